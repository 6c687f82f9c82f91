"""What goes wrong in the night, with real workers, real processes and real files."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpuledger.ledger import Ledger
from gpuledger.locks import read_holder
from tests.helpers import wait_until
from tests.shell import (
    Background,
    environment,
    gpuledger,
    processes_with,
    records,
    states,
    tasks,
    worker,
    write_sweep,
)
from tests.test_guard import state

RECORD = """
import json, os, sys, time
def record(**what):
    env = os.environ
    who = {"task": env["GPULEDGER_TASK"], "attempt": env["GPULEDGER_ATTEMPT"]}
    who |= {"worker": env["GPULEDGER_WORKER"], "pid": os.getpid(), **what}
    line = json.dumps(who) + "\\n"
    fd = os.open("record.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line.encode())
    os.close(fd)
"""


def start_sweep(folder: Path, script: str, text: str, *options: str) -> None:
    gpuledger(
        "init", str(write_sweep(folder, script=RECORD + script, text=text)), *options, cwd=folder
    )


def status(folder: Path) -> str:
    return gpuledger("status", "--json", cwd=folder).stdout


def outcomes(task: dict[str, object]) -> list[tuple[str, str]]:
    attempts = task["attempts"]
    assert isinstance(attempts, list)
    return [(attempt["worker"].split(":")[0], attempt["outcome"]) for attempt in attempts]


def test_two_workers_drain_200_tasks_each_exactly_once(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        "record(event='ran')\n",
        'command = "python -I -S train.py"\nseeds = 20\n[parameters]\nlr = {min = 1, max = 10}\n',
    )

    with worker("--cpu", cwd=tmp_path) as one, worker("--cpu", cwd=tmp_path, host="beta") as two:
        assert [one.wait(timeout_s=100), two.wait(timeout_s=100)] == [0, 0]

    ran = records(tmp_path / "record.jsonl")
    assert sorted(line["task"] for line in ran) == sorted(tasks(tmp_path))
    assert len(ran) == 200
    assert {line["worker"] for line in ran} == {"alpha:cpu", "beta:cpu"}
    assert states(tmp_path)["completed"] == 200


SELDOM = """
import gpuledger.worker
gpuledger.worker.IDLE_POLL_S = gpuledger.worker.LONGEST_IDLE_POLL_S = 3600.0
from gpuledger.cli import main
main()
"""


def test_who_finds_work_after_waiting_wakes_the_others_of_its_machine(tmp_path: Path) -> None:
    Ledger.create(tmp_path / ".gpuledger", lease_s=3600, heartbeat_s=5)
    (tmp_path / "seldom.py").write_text(SELDOM, encoding="utf-8")
    seldom = [sys.executable, "seldom.py", "work", "--cpu", "--wait"]
    env = environment(GPULEDGER_HOST="alpha", PYTHONPATH=str(Path.cwd()))
    with subprocess.Popen(seldom, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL) as sleeper:
        try:
            found_nothing(tmp_path, sleeper.pid)
            with worker("--cpu", "--wait", cwd=tmp_path) as finder:
                found_nothing(tmp_path, finder.pid)
                start_sweep(  # each waits for the other, longer than one who is awake needs
                    tmp_path,
                    """
open(os.environ["GPULEDGER_TASK"], "w").close()
until = time.monotonic() + 30
while not (os.path.exists("exp_0_0") and os.path.exists("exp_0_1")):
    assert time.monotonic() < until
    time.sleep(0.01)
""",
                    'command = "python -I -S train.py"\nseeds = 2\n[run]\nmax_attempts = 1\n',
                )
                wait_until(
                    lambda: states(tmp_path)["completed"] + states(tmp_path)["failed"] == 2,
                    because="neither ended",
                    timeout_s=60,
                )
        finally:
            sleeper.kill()
    assert states(tmp_path)["completed"] == 2


def found_nothing(folder: Path, pid: int) -> None:
    """Wait until a worker's claim was the ledger's last transaction."""
    wait_until(
        lambda: re.search(
            rf"process {pid} .*'claim", read_holder(folder / ".gpuledger" / "ledger.lock") or ""
        ),
        because="it did not ask for a task",
    )


def test_a_download_that_fails_on_one_host_works_on_another(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        """
record(event="began")
if os.environ["GPULEDGER_WORKER"].startswith("alpha"):
    import urllib.error
    raise urllib.error.URLError("no route to the data set")
""",
        'command = "python train.py"\n',
    )

    with worker("--cpu", "--max-tasks", "1", cwd=tmp_path) as alpha:
        assert alpha.wait() == 0
        assert "Reassigning" in alpha.text()
    with worker("--cpu", cwd=tmp_path, host="beta") as beta:
        assert beta.wait() == 0

    task = tasks(tmp_path)["exp_0_0"]
    assert task["state"] == "completed"
    assert outcomes(task) == [("alpha", "failed"), ("beta", "completed")]
    assert "URLError" in task["attempts"][0]["error"]
    assert "no route to the data set" in task["attempts"][0]["traceback"]


def test_while_another_worker_lives_it_gets_what_failed_here(tmp_path: Path) -> None:
    start_sweep(tmp_path, "record(event='warm')\n", 'command = "python -I -S train.py"\n')
    with (
        worker("--cpu", "--wait", cwd=tmp_path) as alpha,
        worker("--cpu", "--wait", cwd=tmp_path, host="beta") as beta,
    ):
        wait_until(
            lambda: len(json.loads(status(tmp_path))["workers"]) == 2,
            because="the workers did not register",
        )
        # Whoever takes it first fails it, and would have it again before the other looks.
        script = "sys.exit(int(os.environ['GPULEDGER_ATTEMPT']) < 2)\n"
        file = write_sweep(
            tmp_path,
            script=RECORD + script,
            text='command = "python -I -S train.py"\n[run]\navoid = "60s"\n',
            name="second",
        )
        gpuledger("init", str(file), cwd=tmp_path)
        wait_until(
            lambda: states(tmp_path)["completed"] == 2, because="the second sweep did not end"
        )
        for one in (alpha, beta):
            one.send(signal.SIGTERM)
            one.wait()

    hosts = [host for host, _ in outcomes(tasks(tmp_path)["second_0_0"])]
    assert sorted(hosts) == ["alpha", "beta"]


def test_a_broken_config_fails_three_times_and_ends_well_after_the_fix(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        """
model = json.loads(os.environ["GPULEDGER_PARAMS"])["model"]
if model == "resnet999" and not os.path.exists("fixed"):
    raise KeyError(model)
""",
        'command = "python train.py"\nseeds = 1\n[parameters]\nmodel = ["a", "b", '
        '"resnet999", "c"]\n'
        '[run]\navoid = "1s"\n',
    )

    with worker("--cpu", cwd=tmp_path) as one, worker("--cpu", cwd=tmp_path, host="beta") as two:
        codes = {one.wait(), two.wait()}

    assert codes <= {0, 1}
    assert 1 in codes
    found = tasks(tmp_path)
    assert {name: task["state"] for name, task in found.items()} == {
        "exp_0_0": "completed",
        "exp_1_0": "completed",
        "exp_2_0": "failed",
        "exp_3_0": "completed",
    }
    assert [outcome for _, outcome in outcomes(found["exp_2_0"])] == ["failed"] * 3
    assert len({host for host, _ in outcomes(found["exp_2_0"])}) == 2
    assert found["exp_2_0"]["last_error"] == "KeyError: 'resnet999'"

    (tmp_path / "fixed").touch()
    gpuledger("retry", "--failed", cwd=tmp_path)
    with worker("--cpu", cwd=tmp_path) as again:
        assert again.wait() == 0
    assert tasks(tmp_path)["exp_2_0"]["state"] == "completed"
    assert len(tasks(tmp_path)["exp_2_0"]["attempts"]) == 4


def test_the_task_of_a_killed_worker_runs_again_at_once_and_nothing_of_it_is_left(
    tmp_path: Path,
) -> None:
    start_sweep(
        tmp_path,
        """
record(event="began")
if os.environ["GPULEDGER_ATTEMPT"] == "1":
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            record(event="daemon")
            time.sleep(600)
        os._exit(0)
    time.sleep(600)
record(event="ended")
""",
        'command = "python -I -S train.py"\n',
    )

    with worker("--cpu", cwd=tmp_path) as victim:
        wait_until(
            lambda: any(r["event"] == "daemon" for r in records(tmp_path / "record.jsonl")),
            because="the task did not start its daemon",
        )
        pids = [line["pid"] for line in records(tmp_path / "record.jsonl")]
        with worker("--cpu", cwd=tmp_path) as heir:
            heir.wait_for("")
            victim.process.kill()
            assert heir.wait() == 0

    task = tasks(tmp_path)["exp_0_0"]
    assert [outcome for _, outcome in outcomes(task)] == ["lost", "completed"]
    assert task["losses"] == 1
    assert task["failures"] == 0
    wait_until(
        lambda: not any(is_running(pid) for pid in pids),
        because="a process outlived its attempt",
    )


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] not in "ZX"


def test_a_task_over_its_time_that_ignores_term_is_killed_with_its_children(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        """
import signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code])
record(event="began", child=child.pid)
time.sleep(600)
""",
        'command = "python train.py"\n[run]\ntimeout = "1s"\nkill_grace = "1s"\nmax_attempts = 1\n',
    )

    with worker("--cpu", cwd=tmp_path) as only:
        assert only.wait() == 1

    task = tasks(tmp_path)["exp_0_0"]
    assert task["state"] == "failed"
    assert task["attempts"][0]["outcome"] == "timed_out"
    assert "timeout of 1 s" in task["last_error"]
    began = records(tmp_path / "record.jsonl")[0]
    assert not is_running(began["pid"])
    assert not is_running(began["child"])


def test_a_silent_task_is_ended_and_says_so(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        "print('hello')\ntime.sleep(600)\n",
        'command = "python train.py"\n[run]\nsilence_timeout = "1s"\nkill_grace = "1s"\n'
        "max_attempts = 1\n",
    )
    with worker("--cpu", cwd=tmp_path) as only:
        assert only.wait() == 1
    assert "silent for 1 s" in tasks(tmp_path)["exp_0_0"]["last_error"]


def test_a_log_that_grows_without_end_ends_the_task(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        "while True:\n    os.write(1, b'x' * 65536)\n    time.sleep(0.001)\n",
        'command = "python train.py"\n[run]\nlog_limit = "1MB"\nkill_grace = "1s"\n'
        "max_attempts = 1\n",
    )
    with worker("--cpu", cwd=tmp_path) as only:
        assert only.wait() == 1
    assert "log_limit" in tasks(tmp_path)["exp_0_0"]["last_error"]


def test_fatal_and_no_retry_codes_fail_at_once(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        """
import gpuledger
if gpuledger.params()["how"] == "fatal":
    raise gpuledger.Fatal("this configuration can never work")
sys.exit(42)
""",
        'command = "python train.py"\n[parameters]\nhow = ["fatal", "code"]\n'
        "[run]\nno_retry_codes = [42]\n",
    )
    with worker("--cpu", cwd=tmp_path) as only:
        assert only.wait() == 1
    found = tasks(tmp_path)
    assert [len(task["attempts"]) for task in found.values()] == [1, 1]
    assert {task["state"] for task in found.values()} == {"failed"}


SLEEPER = "record(event='began')\ntime.sleep(600)\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_worker_told_to_leave_hands_its_task_back_uncounted(
    tmp_path: Path, number: signal.Signals
) -> None:
    start_sweep(tmp_path, SLEEPER, 'command = "python -I -S train.py"\n')
    with worker("--cpu", cwd=tmp_path) as only:
        wait_until(lambda: records(tmp_path / "record.jsonl"), because="the task did not start")
        only.send(number)
        assert only.wait(timeout_s=25) == 130
    task = tasks(tmp_path)["exp_0_0"]
    assert task["state"] == "pending"
    assert (task["failures"], task["losses"]) == (0, 0)
    assert outcomes(task) == [("alpha", "interrupted")]
    assert not is_running(records(tmp_path / "record.jsonl")[0]["pid"])


def end_task_then_worker(folder: Path, only: Background) -> None:
    """Send SIGTERM to a task and, once its death is known, to its worker."""
    wait_until(lambda: records(folder / "record.jsonl"), because="the task did not start")
    pid = records(folder / "record.jsonl")[0]["pid"]
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), because="the worker knows of it")
    only.send(signal.SIGTERM)
    assert only.wait(timeout_s=25) == 130


def test_a_task_that_a_cluster_ended_a_moment_before_its_worker_is_not_charged(
    tmp_path: Path,
) -> None:
    """Slurm's linuxproc sends its TERM to both, and the task's death may be the first news."""
    start_sweep(tmp_path, SLEEPER, 'command = "python -I -S train.py"\n')
    with worker("--cpu", cwd=tmp_path) as only:
        end_task_then_worker(tmp_path, only)
    task = tasks(tmp_path)["exp_0_0"]
    assert outcomes(task) == [("alpha", "interrupted")]
    assert task["failures"] == 0


def test_first_ctrl_c_finishes_the_task_and_leaves(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        "record(event='began')\nwhile not os.path.exists('go'): time.sleep(0.01)\n",
        'command = "python -I -S train.py"\nseeds = 2\n',
    )
    with worker("--cpu", cwd=tmp_path) as only:
        wait_until(lambda: records(tmp_path / "record.jsonl"), because="the task did not start")
        only.send(signal.SIGINT)
        only.wait_for("finishing this task")
        (tmp_path / "go").touch()
        assert only.wait() == 130
    assert states(tmp_path)["completed"] == 1
    assert states(tmp_path)["pending"] == 1


def test_second_ctrl_c_hands_back_and_the_third_kills(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        "import signal\nsignal.signal(15, signal.SIG_IGN)\n" + SLEEPER,
        'command = "python -I -S train.py"\n[run]\nkill_grace = "1h"\n',
    )
    with worker("--cpu", cwd=tmp_path) as only:
        wait_until(lambda: records(tmp_path / "record.jsonl"), because="the task did not start")
        only.send(signal.SIGINT)
        only.wait_for("finishing this task")
        only.send(signal.SIGINT)
        only.wait_for("handed back")
        only.send(signal.SIGINT)
        assert only.wait(timeout_s=10) == 130
    assert outcomes(tasks(tmp_path)["exp_0_0"]) == [("alpha", "interrupted")]


def test_usr1_claims_nothing_more(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        "record(event='began')\nwhile not os.path.exists('go'): time.sleep(0.01)\n",
        'command = "python -I -S train.py"\nseeds = 2\n',
    )
    with worker("--cpu", cwd=tmp_path) as only:
        wait_until(lambda: records(tmp_path / "record.jsonl"), because="the task did not start")
        only.send(signal.SIGUSR1)
        (tmp_path / "go").touch()
        assert only.wait() == 0
    assert states(tmp_path)["pending"] == 1


def test_ctrl_z_stops_a_worker_that_waits_at_once_and_never_later(tmp_path: Path) -> None:
    start_sweep(tmp_path, "record(event='ran')\n", 'command = "python -I -S train.py"\n')
    with worker("--cpu", "--wait", cwd=tmp_path) as only:
        wait_until(lambda: states(tmp_path)["completed"] == 1, because="it has nothing to do")
        only.send(signal.SIGTSTP)
        pid = only.process.pid
        wait_until(lambda: state(pid) == "T", because="Ctrl-Z stops it")
        only.send(signal.SIGCONT)
        more = 'command = "python -I -S train.py"\nseeds = 2\n'
        start_sweep(tmp_path, "record(event='ran')\n", more)
        wait_until(lambda: states(tmp_path)["completed"] == 2, because="it went on for good")
        only.send(signal.SIGTERM)
        assert only.wait() == 130


def test_slurms_term_may_end_a_task_with_any_code_before_its_worker_hears(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        "import signal\nsignal.signal(15, lambda *given: sys.exit(1))\n" + SLEEPER,
        'command = "python -I -S train.py"\n',
    )
    with worker("--cpu", cwd=tmp_path, SLURM_JOB_ID="7", SLURMD_NODENAME="n1") as only:
        end_task_then_worker(tmp_path, only)
    (attempt,) = tasks(tmp_path)["exp_0_0"]["attempts"]
    assert attempt["outcome"] == "interrupted"


def test_a_worker_stopped_for_longer_than_its_lease_finds_it_gone_and_goes_on(
    tmp_path: Path,
) -> None:
    start_sweep(
        tmp_path,
        """
record(event="began")
if os.environ["GPULEDGER_ATTEMPT"] == "1":
    while True:
        record(event="alive")
        time.sleep(0.05)
record(event="ended")
""",
        'command = "python -I -S train.py"\nseeds = 1\n',
        "--lease",
        "3s",
        "--heartbeat",
        "0.5s",
    )
    with worker("--cpu", "--wait", cwd=tmp_path) as sleeper:
        wait_until(lambda: records(tmp_path / "record.jsonl"), because="the task did not start")
        sleeper.send(signal.SIGSTOP)
        with worker("--cpu", cwd=tmp_path, host="beta") as heir:
            assert heir.wait() == 0
        took_over = records(tmp_path / "record.jsonl")
        sleeper.send(signal.SIGCONT)
        sleeper.wait_for("lease lost")
        sleeper.wait_for("signing on anew")
        sleeper.send(signal.SIGTERM)
        assert sleeper.wait() == 130

    task = tasks(tmp_path)["exp_0_0"]
    assert outcomes(task) == [("alpha", "lost"), ("beta", "completed")]
    second = next(i for i, line in enumerate(took_over) if line["attempt"] == "2")
    assert all(line["attempt"] == "2" for line in took_over[second:]), "both attempts ran at once"
    assert records(tmp_path / "record.jsonl") == took_over, "the frozen task went on"


def test_an_operator_can_cancel_a_running_task(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        SLEEPER,
        'command = "python -I -S train.py"\nseeds = 2\n',
        "--lease",
        "3s",
        "--heartbeat",
        "0.5s",
    )
    with worker("--cpu", cwd=tmp_path) as only:
        wait_until(lambda: records(tmp_path / "record.jsonl"), because="the task did not start")
        gpuledger("cancel", "--sweep", "exp", "--kill", cwd=tmp_path)
        assert only.wait() == 0
    assert states(tmp_path)["cancelled"] == 2
    assert not is_running(records(tmp_path / "record.jsonl")[0]["pid"])


def test_a_sweep_that_fails_everywhere_is_paused_before_it_burned_its_tasks(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        "raise ModuleNotFoundError('no module named trochvision')\n",
        'command = "python train.py"\nseeds = 40\n',
    )
    with worker("--cpu", cwd=tmp_path) as one, worker("--cpu", cwd=tmp_path, host="beta") as two:
        one.wait(timeout_s=200)  # one that begins before the other is suspect, and cools down
        two.wait(timeout_s=200)
    status = json.loads(gpuledger("status", "--json", cwd=tmp_path).stdout)
    assert status["counts"]["pending"] >= 25
    assert "trochvision" in status["sweeps"][0]["paused"]
    gpuledger("resume", "exp", cwd=tmp_path)
    assert (
        json.loads(gpuledger("status", "--json", cwd=tmp_path).stdout)["sweeps"][0]["paused"]
        is None
    )


def test_the_hook_gets_each_failure_and_its_own_failure_stops_nobody(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        "raise RuntimeError('boom')\n",
        'command = "python train.py"\n[run]\nmax_attempts = 2\navoid = "0s"\n',
    )
    with worker("--cpu", "--on-failure", "cat >> hook.jsonl; exit 7", cwd=tmp_path) as only:
        assert only.wait() == 1
        assert "--on-failure" in only.text()
    told = records(tmp_path / "hook.jsonl")
    assert [(line["attempt"], line["state"]) for line in told] == [(1, "pending"), (2, "failed")]
    assert "RuntimeError: boom" in told[0]["traceback"]


def test_workers_wait_while_the_ledger_is_moved_away_and_lose_no_outcome(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        "record(event='began')\nwhile not os.path.exists('go'): time.sleep(0.01)\n",
        'command = "python -I -S train.py"\nseeds = 2\n',
    )
    folder, away = tmp_path / ".gpuledger", tmp_path / "away"
    with worker("--cpu", cwd=tmp_path) as only:
        wait_until(lambda: records(tmp_path / "record.jsonl"), because="the task did not start")
        folder.rename(away)
        (tmp_path / "go").touch()
        only.wait_for("there is no ledger")
        away.rename(folder)
        assert only.wait() == 0
    assert states(tmp_path)["completed"] == 2
    assert all(len(task["attempts"]) == 1 for task in tasks(tmp_path).values())


def test_the_outcome_of_a_worker_killed_while_the_ledger_was_away_is_delivered_by_the_next(
    tmp_path: Path,
) -> None:
    start_sweep(
        tmp_path,
        "record(event='began')\nwhile not os.path.exists('go'): time.sleep(0.01)\n",
        'command = "python -I -S train.py"\n',
    )
    folder, away = tmp_path / ".gpuledger", tmp_path / "away"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with worker("--cpu", cwd=tmp_path, TMPDIR=str(scratch)) as victim:
        wait_until(lambda: records(tmp_path / "record.jsonl"), because="the task did not start")
        folder.rename(away)
        (tmp_path / "go").touch()
        victim.wait_for("trying on")
        wait_until(lambda: list(scratch.rglob("*.json")), because="no outcome on the local disk")
        victim.process.kill()
        victim.wait()
    away.rename(folder)
    with worker("--cpu", cwd=tmp_path, TMPDIR=str(scratch)) as heir:
        assert heir.wait() == 0
    task = tasks(tmp_path)["exp_0_0"]
    assert outcomes(task) == [("alpha", "completed")]
    assert len(records(tmp_path / "record.jsonl")) == 1
    assert not list(scratch.rglob("*.json"))


def test_no_process_of_a_worker_is_left_when_it_is_killed(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        "record(event='began')\nos.system('sleep 600')\n",
        'command = "python -I -S train.py"\n',
    )
    with worker("--cpu", cwd=tmp_path) as victim:
        wait_until(lambda: records(tmp_path / "record.jsonl"), because="the task did not start")
        assert processes_with(str(tmp_path))
        victim.process.kill()
        victim.wait()
        wait_until(lambda: not processes_with(str(tmp_path)), because="the guard left processes")
    assert os.path.exists(tmp_path)  # noqa: PTH110


def state_of(pid: int) -> str:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return stat[stat.rindex(")") + 2]


def test_ctrl_z_stops_the_task_with_its_worker_and_fg_lets_both_go_on(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        "record(event='began')\nwhile not os.path.exists('go'): time.sleep(0.01)\n",
        'command = "python -I -S train.py"\n',
    )
    with worker("--cpu", cwd=tmp_path) as only:
        wait_until(lambda: records(tmp_path / "record.jsonl"), because="the task did not start")
        task_pid = records(tmp_path / "record.jsonl")[0]["pid"]
        only.send(signal.SIGTSTP)
        wait_until(lambda: state_of(only.pid) == "T", because="the worker did not stop")
        wait_until(lambda: state_of(task_pid) == "T", because="its task did not stop")
        (tmp_path / "go").touch()
        only.send(signal.SIGCONT)
        assert only.wait() == 0
    assert [outcome for _, outcome in outcomes(tasks(tmp_path)["exp_0_0"])] == ["completed"]


def test_a_worker_for_a_sweep_that_is_not_there_says_so(tmp_path: Path) -> None:
    start_sweep(tmp_path, "", 'command = "python -I -S train.py"\n')
    told = gpuledger("work", "--cpu", "--sweep", "expp", cwd=tmp_path, exit_code=65).stderr
    assert "no sweep is named 'expp'" in told
    assert "did you mean exp?" in told
    assert states(tmp_path)["pending"] == 1


def test_run_says_at_its_end_what_is_paused_and_how_it_goes_on(tmp_path: Path) -> None:
    sweep = write_sweep(
        tmp_path,
        script="raise ValueError('no data')\n",
        text='command = "python -I -S train.py"\nseeds = 9\n[run]\nmax_attempts = 1\n',
    )
    told = gpuledger("run", str(sweep), "--cpu", cwd=tmp_path, exit_code=1).stdout
    assert "Sweep exp is paused: 5 tasks failed in a row" in told
    assert "'gpuledger resume exp' lets its 4 tasks go on." in told
    assert "5 of 9 tasks failed" in told


def test_run_of_a_sweep_that_is_paused_is_no_success_though_no_task_failed_for_good(
    tmp_path: Path,
) -> None:
    sweep = write_sweep(
        tmp_path,
        script="raise ValueError('no data')\n",
        text='command = "python -I -S train.py"\nseeds = 9\n[run]\npause_after = 2\n',
    )
    gpuledger("run", str(sweep), "--cpu", "--slots", "2", cwd=tmp_path, exit_code=1)
    assert gpuledger("run", str(sweep), "--cpu", cwd=tmp_path, exit_code=1).stdout


def test_run_says_at_its_end_what_is_left(tmp_path: Path) -> None:
    sweep = write_sweep(
        tmp_path,
        script="import os, signal\nos.kill(os.getppid(), signal.SIGTERM)\n",
        text='command = "python -I -S train.py"\nseeds = 9\n',
    )
    told = gpuledger("run", str(sweep), "--cpu", cwd=tmp_path, exit_code=None).stdout
    assert "left to run: the same command goes on with them." in told


def test_a_corrected_parameter_is_what_runs_next(tmp_path: Path) -> None:
    start_sweep(
        tmp_path,
        "lr = json.loads(os.environ['GPULEDGER_PARAMS'])['lr']\nassert lr < 1, lr\n",
        'command = "python train.py"\n[parameters]\nlr = [0.1, 7]\n[run]\nmax_attempts = 1\n',
    )
    with worker("--cpu", cwd=tmp_path) as first:
        assert first.wait() == 1
    gpuledger("retry", "exp_1_0", "--set", "lr=0.7", cwd=tmp_path)
    with worker("--cpu", cwd=tmp_path) as second:
        assert second.wait() == 0
    mended = tasks(tmp_path)["exp_1_0"]
    assert (mended["state"], mended["params"]) == ("completed", {"lr": 0.7})
    assert [attempt["outcome"] for attempt in mended["attempts"]] == ["failed", "completed"]


def test_a_worker_that_must_leave_does_so_in_time_although_the_ledger_is_locked(
    tmp_path: Path,
) -> None:
    start_sweep(tmp_path, SLEEPER, 'command = "python -I -S train.py"\n')
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with worker("--cpu", cwd=tmp_path, TMPDIR=str(scratch)) as only:
        wait_until(lambda: records(tmp_path / "record.jsonl"), because="the task did not start")
        with (tmp_path / ".gpuledger" / "ledger.lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            only.send(signal.SIGTERM)
            assert only.wait(timeout_s=25) == 130
        assert not is_running(records(tmp_path / "record.jsonl")[0]["pid"])
    with worker("--cpu", "--max-tasks", "1", cwd=tmp_path, TMPDIR=str(scratch)) as heir:
        wait_until(
            lambda: len(records(tmp_path / "record.jsonl")) == 2, because="it was not run again"
        )
        heir.send(signal.SIGTERM)
        heir.wait()
    assert outcomes(tasks(tmp_path)["exp_0_0"])[0] == ("alpha", "interrupted")
