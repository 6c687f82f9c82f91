"""The batch script, the queue's lines and the time that is left: all that needs no Slurm."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from gpuledger import slurm, slurm_jobs
from gpuledger.allocation import (
    LAST_CALL_S,
    WARNING_S,
    Allocation,
    Place,
    Span,
    leave_within_s,
    leaving_grace_s,
    parse_duration,
    parse_kill_wait,
    parse_shares_signals,
    parse_span,
    place_of,
)
from gpuledger.errors import BadUsage
from gpuledger.ledger import Ledger
from gpuledger.slurm import (
    Job,
    Request,
    SlurmFailed,
    _overriding,
    dead_in_a_row,
    outside_a_job,
    parse_queue,
    render,
)
from gpuledger.slurm_jobs import Change, Submission, WorkerFacts, plan
from tests.helpers import ManualClock, identity, spec
from tests.shell import gpuledger, write_sweep

HOSTILE = ["$(touch pwned)", "`touch pwned`", "; touch pwned", "a b", "ü", "'", '"', "-rf", "*"]


def script(folder: Path, **values: object) -> str:
    request = Request(**{"workers": 2, "gpus_per_worker": 0, "options": {}, **values})  # type: ignore[arg-type]
    return render(request, ledger=folder, program=["/bin/echo", "gpuledger"])


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_is_anything_but_a_word(tmp_path: Path, value: str) -> None:
    folder = tmp_path / value.replace("/", "_") / ".gpuledger"
    (folder / "slurm").mkdir(parents=True)
    try:
        text = script(folder, work=(f"--sweep={value}",), wrap=("/usr/bin/env",))
    except BadUsage:  # a folder's name that Slurm could not be told
        assert value == '"'
        text = script(tmp_path, work=(f"--sweep={value}",), wrap=("/usr/bin/env",))
        (tmp_path / "slurm").mkdir()
    file = tmp_path / "script.sh"
    file.write_text(text)
    env = {**os.environ, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(
        ["bash", str(file)], capture_output=True, text=True, check=True, cwd=tmp_path, env=env
    )
    assert f"--sweep={value}\n" in done.stdout, "the last word, as it was"
    assert not (tmp_path / "pwned").exists()
    assert (Path(shlex.split(text.split(": >")[1].split("/${")[0])[0]) / "7_1.began").exists()


@pytest.mark.parametrize("value", ['a"b', "a\nb", "a\\b", "\x1b[31m", ""])
def test_what_has_no_place_in_a_directive_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(BadUsage, match="nothing was submitted"):
        script(tmp_path, options={"partition": value})
    with pytest.raises(BadUsage, match="nothing was submitted"):
        script(tmp_path, extra=(f"--comment={value}",))
    with pytest.raises(BadUsage, match="nothing was submitted"):
        script(tmp_path, extra=("-x", value))


@pytest.mark.parametrize(
    "word", ["--mem\ntouch=1", "--a b=c", "--", "-", "---x", "-\nrm", "n7", "--$(x)"]
)
def test_what_is_no_option_of_sbatch_is_refused(tmp_path: Path, word: str) -> None:
    with pytest.raises(BadUsage, match="nothing was submitted"):
        script(tmp_path, extra=(word,))


def test_the_script_says_what_was_asked_for(tmp_path: Path) -> None:
    text = script(
        tmp_path,
        workers=8,
        gpus_per_worker=2,
        throttle=3,
        options={"time": "4:00:00", "partition": "gpu", "qos": None, "constraint": "a100|h100"},
        extra=("--mail-type=FAIL", "-x", "n7", "-Jname", "--comment=it's # one", "--exclusive"),
        setup="module load cuda\n",
        wrap=("apptainer", "exec", "--nv", "my image.sif"),
    )
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    for line in (
        "#SBATCH --array=1-8%3", "#SBATCH --open-mode=append", "#SBATCH --signal=B:USR1@120",
        "#SBATCH --requeue", "#SBATCH --gres=gpu:2", "#SBATCH --time=4:00:00",
        "#SBATCH --partition=gpu", '#SBATCH --constraint="a100|h100"',
        "#SBATCH --mail-type=FAIL", "#SBATCH -x n7", "#SBATCH -J name", "#SBATCH --exclusive",
        '#SBATCH --comment="it\'s # one"', "trap '' USR1", "module load cuda",
    ):  # fmt: skip
        assert line in lines
    assert "qos" not in text
    assert lines[-1].startswith("exec apptainer exec --nv 'my image.sif' /bin/echo gpuledger work")
    assert lines[-1].endswith("--gpus=all --gpus-per-task=2")


@pytest.mark.parametrize(
    ("limit", "warning_s"),
    [
        (None, 120), ("4:00:00", 120), ("1-0", 120), ("8", 120), ("9:00", 120), ("UNLIMITED", 120),
        ("2", 30), ("2:00", 30), ("0:02:00", 30), ("0-0:02", 30), ("0-0:2:00", 30), ("0", 120),
        ("-", 120), ("1-", 120), ("1:2:3:4", 120), ("-5", 120),
    ],
)  # fmt: skip
def test_a_short_allocation_is_warned_later(
    tmp_path: Path, limit: str | None, warning_s: int
) -> None:
    text = script(tmp_path, options={"time": limit})
    assert f"#SBATCH --signal=B:USR1@{warning_s}\n" in text


def test_the_queue_is_read_and_odd_lines_are_left_out() -> None:
    jobs = parse_queue(
        "12_1|RUNNING|None|n1|1:00|/l/a|b.sh\n12_2|PENDING|Resources||2:00|/l/c.sh\nslurm: odd\n"
    )
    assert jobs == [
        Job(
            id="12_1", state="RUNNING", reason="None", node="n1", elapsed="1:00", script="/l/a|b.sh"
        ),
        Job(
            id="12_2", state="PENDING", reason="Resources", node="", elapsed="2:00",
            script="/l/c.sh",
        ),
    ]  # fmt: skip


def queued(id: str, state: str) -> Job:
    return Job(id=id, state=state, reason="None", node="")


def facts(job: str, **values: object) -> WorkerFacts:
    known = {"name": "n:cpu", "ending": None, "task": None, "attempts": 0, **values}
    return WorkerFacts(job=job, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pending", "change"),
    [
        (0, Change(cancel=("9_5", "9_4"))),  # the latest first, and never what runs
        (3, Change(cancel=("9_5",))),
        (4, Change()),  # two wait, one begins, one is idle
        (5, Change(submit=1)),
        (9, Change(submit=3)),  # no more than the limit
    ],
)
def test_allocations_follow_what_is_pending(pending: int, change: Change) -> None:
    jobs = [queued(f"9_{number}", "RUNNING") for number in (1, 2, 3, 6)]
    jobs += [queued("9_4", "PENDING"), queued("9_5", "PENDING")]
    workers = [
        facts("9_2"),
        facts("9_3", task="exp_0_0", attempts=1),
        facts("9_6", ending="left", attempts=4),  # about to end
        facts("8_1"),  # an earlier job
    ]
    assert plan(jobs, workers, pending=pending, limit=9) == change


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("1:05", 65), ("2:00:00", 7200), ("1-00:00:01", 86401), ("UNLIMITED", None),
     ("INVALID", None), ("", None), ("NOT_SET", None)],
)  # fmt: skip
def test_the_time_left_is_understood(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


JOB = (
    "JobId=1 ArrayJobId=1 RunTime=00:03:00 TimeLimit={limit} TimeMin=N/A"
    " StartTime={began} EndTime={ends} PreemptTime=None"
)


@pytest.mark.parametrize(
    ("limit", "began", "ends", "span"),
    [
        (
            "04:00:00",
            "2026-11-28T10:00:00",
            "2026-11-28T14:00:00",
            Span(whole_s=14400, left_s=14220),
        ),
        # preempted, with a grace time
        ("04:00:00", "2026-11-28T10:00:00", "2026-11-28T10:04:00", Span(whole_s=240, left_s=60)),
        # over the night when the clocks are put back
        (
            "06:00:00",
            "2026-10-24T23:00:00",
            "2026-10-25T04:00:00",
            Span(whole_s=21600, left_s=21420),
        ),
        ("UNLIMITED", "2026-11-28T10:00:00", "2027-11-28T10:00:00", None),
        ("04:00:00", "2026-11-28T10:00:00", "Unknown", None),
    ],
)
def test_the_time_left_is_taken_from_the_end_that_slurm_knows(
    limit: str, began: str, ends: str, span: Span | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert parse_span(JOB.format(limit=limit, began=began, ends=ends)) == span
    finally:
        monkeypatch.undo()
        time.tzset()
    assert parse_span("slurm_load_jobs error: Invalid job id specified") is None


def test_a_task_gets_no_more_time_to_end_than_its_worker_has() -> None:
    assert parse_kill_wait("JobRequeue = 1\nKillWait                = 30 sec\n") == 30
    assert parse_kill_wait("Configuration data") is None
    assert leaving_grace_s(None) == 15
    assert leaving_grace_s(30) == 15
    assert leaving_grace_s(5) == 2
    assert leaving_grace_s(1) == 0.5


def test_who_follows_processes_by_control_groups_signals_the_worker_alone() -> None:
    assert not parse_shares_signals("a = 1\nProctrackType           = proctrack/cgroup\n")
    assert parse_shares_signals("ProctrackType           = proctrack/linuxproc\n")
    assert parse_shares_signals(""), "nobody knows"


@pytest.mark.parametrize(("kill_wait_s", "within_s"), [(None, 22), (30, 27), (5, 4), (1, 1)])
def test_a_worker_is_out_before_slurm_kills_it(kill_wait_s: float | None, within_s: float) -> None:
    assert leave_within_s(kill_wait_s) == within_s


@pytest.mark.parametrize("words", [["--wait"], ["-W"], ["--array=1-5"], ["-a", "3"], ["--wrap=x"]])
def test_what_would_break_a_submission_is_not_passed_on(words: list[str]) -> None:
    with pytest.raises(BadUsage, match=r"cannot be passed on to sbatch: .*nothing was submitted"):
        script(Path("/l"), extra=tuple(words))


def test_what_the_script_does_not_say_the_profile_may(tmp_path: Path) -> None:
    path = tmp_path / "workers.sh"
    path.write_text(script(tmp_path, options={"partition": "gpu"}, extra=("--mail-type=END",)))
    found = _overriding(path)
    assert {"SBATCH_PARTITION", "SBATCH_MAIL_TYPE", "SBATCH_NO_REQUEUE"} <= found
    assert not {"SBATCH_TIMELIMIT", "SBATCH_ACCOUNT", "SBATCH_MEM_PER_NODE"} & found
    path.write_text(script(tmp_path, options={"time": "10", "mem": "1G"}))
    assert {"SBATCH_TIMELIMIT", "SBATCH_MEM_PER_NODE"} <= _overriding(path)


def test_what_a_job_submits_knows_nothing_of_that_job() -> None:
    inside = {
        "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1", "SLURMD_NODENAME": "n1", "HOME": "/h",
        "GPULEDGER_HOST": "n1", "SLURM_CONF": "/etc/slurm.conf", "CUDA_VISIBLE_DEVICES": "1",
    }  # fmt: skip
    always = {"HOME": "/h", "SLURM_CONF": "/etc/slurm.conf", "SLURM_TIME_FORMAT": "standard"}
    assert outside_a_job(inside) == always
    outside = {"HOME": "/h", "CUDA_VISIBLE_DEVICES": "1", "SQUEUE_STATES": "PENDING"}
    assert outside_a_job(outside) == {
        "HOME": "/h", "CUDA_VISIBLE_DEVICES": "1", "SLURM_TIME_FORMAT": "standard"
    }  # fmt: skip


def test_an_array_task_is_named_so_that_it_alone_is_meant() -> None:
    env = {"SLURM_JOB_ID": "40", "SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "3"}
    assert place_of(env) == Place(job="40_3", node="?")
    named = {**env, "SLURMD_NODENAME": "n7", "SLURM_RESTART_COUNT": "2"}
    assert place_of(named) == Place(job="40_3", node="n7", restarts=2)
    assert place_of({"SLURM_JOB_ID": "40"}) == Place(job="40", node="?")
    assert place_of({}) is None
    assert place_of({"SLURM_JOB_ID": "x; rm"}) is None


@pytest.mark.parametrize(
    ("left_s", "usual_s", "elapsed_s", "warned", "handed_back"),
    [
        (3600, 7200, 0, True, False),  # a warning so early means: finish and leave
        (WARNING_S, 100, 90, True, False),  # it will be done
        (WARNING_S, 1000, 90, True, True),
        (WARNING_S, None, 90, True, False),  # nobody knows: as long as there is time
        (WARNING_S, 1000, 90, False, False),
        (LAST_CALL_S - 1, None, 90, False, True),
        (LAST_CALL_S - 1, 91, 90, True, True),
    ],
)
def test_who_is_handed_back(
    left_s: float, usual_s: float | None, elapsed_s: float, warned: bool, handed_back: bool
) -> None:
    allocation = lent(left_s)
    verdict = allocation.verdict(usual_s=usual_s, elapsed_s=elapsed_s, warned=warned)
    assert (verdict is not None) is handed_back
    assert allocation.is_over() is (left_s < LAST_CALL_S), "nothing is begun to be ended at once"
    assert lent(None).verdict(usual_s=usual_s, elapsed_s=elapsed_s, warned=warned) is None


def lent(*left_s: float | None) -> Allocation:
    """Return an allocation of which Slurm says, each time it is asked, that so much is left."""
    answers = [None if left is None else Span(whole_s=7200, left_s=left) for left in left_s]
    return Allocation(
        Place(job="1", node="n"),
        ask=lambda: answers.pop(0) if len(answers) > 1 else answers[0],
        clock=ManualClock(),
    )


def test_the_end_is_asked_for_again_when_the_warning_comes() -> None:
    preempted = lent(3600, 60)
    assert preempted.verdict(usual_s=1000, elapsed_s=0, warned=False) is None
    assert not preempted.ends_soon()
    assert preempted.verdict(usual_s=1000, elapsed_s=0, warned=True) is not None
    assert preempted.ends_soon()
    prolonged = lent(100, 3600, 0)
    assert prolonged.verdict(usual_s=1000, elapsed_s=0, warned=True) is None
    assert prolonged.verdict(usual_s=1000, elapsed_s=0, warned=True) is None, "asked once more only"
    assert prolonged.whole_s == 100
    told_late = lent(None, 60)
    told_late.warn()
    assert told_late.whole_s == 7200


def died(folder: Path, task: str, *, after_s: float = 5.0, says: str = "boom\n") -> None:
    (folder / "slurm").mkdir(exist_ok=True)
    for name, at in ((f"{task}.began", 1000.0), (f"{task}.log", 1000.0 + after_s)):
        path = folder / "slurm" / name
        path.write_text(says)
        os.utime(path, (at, at))


def test_only_quick_deaths_without_a_claim_in_a_row_count(tmp_path: Path) -> None:
    tasks = [f"9_{number}" for number in range(1, 6)]
    for task in tasks:
        died(tmp_path, task)
    none: frozenset[str] = frozenset()
    assert len(dead_in_a_row(tasks, tmp_path, queued=none, useful=none)) == 5
    assert dead_in_a_row(tasks, tmp_path, queued=none, useful=frozenset({"9_4"})) == []
    assert dead_in_a_row(tasks[:2], tmp_path, queued=none, useful=none) == []
    waits = dead_in_a_row(tasks, tmp_path, queued=frozenset({"9_5"}), useful=none)
    assert waits == ["9_4", "9_3", "9_2", "9_1"]
    died(tmp_path, "9_5", after_s=90.0)
    assert dead_in_a_row(tasks, tmp_path, queued=none, useful=none) == []


def test_each_array_task_has_one_standing(tmp_path: Path) -> None:
    died(tmp_path, "9_5")
    died(tmp_path, "9_9", says="Killed\n")
    submission = Submission(id="9", at=0.0, workers=9, script="x")
    jobs = [
        Job(id="9_1", state="PENDING", reason="Priority", node=""),
        Job(id="9_2", state="RUNNING", reason="None", node="n1"),
        Job(id="9_3", state="RUNNING", reason="None", node="n2", elapsed="1:05"),
        Job(id="9_8", state="RUNNING", reason="None", node="n2"),
    ]
    known = [
        facts("9_2", task="exp_0_0", attempts=1, silent_s=1.0),
        facts("9_4", ending="left", attempts=3),
        facts("9_7", task="exp_0_1", attempts=1),
        facts("9_8", task="exp_0_2", attempts=1, silent_s=40.0),
        facts("9_9", ending="lost", attempts=1),
    ]
    rows = slurm_jobs.rows([submission], jobs, known, tmp_path)
    assert [(row["job"], row["state"]) for row in rows] == [
        ("9_1", "waits"), ("9_2", "works"), ("9_3", "silent"), ("9_4", "left"),
        ("9_5", "died"), ("9_6", "left"), ("9_7", "silent"), ("9_8", "silent"), ("9_9", "died"),
    ]  # fmt: skip
    assert rows[0]["says"] == "Priority"
    assert rows[2]["says"] == "running for 1:05, no worker gave a sign"
    assert rows[4]["says"] == "boom"
    assert rows[7]["says"] == "no sign of life for 40 s"
    assert rows[8]["says"] == "Killed"


def test_without_slurm_there_is_one_clear_sentence(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, script="", text='command = ["true"]\n')
    gpuledger("init", str(sweep), cwd=tmp_path)
    bare = {"PATH": str(tmp_path)}
    for command in (["start", "--workers", "2"], ["status"], ["stop"]):
        done = gpuledger("slurm", *command, cwd=tmp_path, env=bare, exit_code=None)
        if command == ["start", "--workers", "2"]:
            assert done.returncode == 69
            assert "this machine has no Slurm" in done.stderr
            assert "Traceback" not in done.stderr


def test_a_worker_outside_slurm_knows_no_allocation() -> None:
    assert slurm.tasks_of("5", 2) == ["5_1", "5_2"]
    assert place_of({"SLURM_JOB_ID": ""}) is None


def refusing(monkeypatch: pytest.MonkeyPatch, *problems: str | None) -> list[tuple[str, ...]]:
    """Let Slurm's commands fail so, one after the other; return what was called."""
    called: list[tuple[str, ...]] = []
    left = list(problems)

    def call(*command: str, without: frozenset[str] = frozenset()) -> None:
        called.append(command)
        problem = left.pop(0)
        if problem is not None:
            raise SlurmFailed(problem)

    monkeypatch.setattr(slurm, "call", call)
    monkeypatch.setattr(slurm, "REQUEUE_PAUSE_S", 0.0)
    return called


def test_a_refused_requeue_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    called = refusing(monkeypatch, "unable to contact it", "unable to contact it", None)
    slurm.requeue("9_1")
    assert called == [("scontrol", "requeue", "9_1")] * 3


def test_a_requeue_that_may_have_been_heard_is_not_said_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = refusing(monkeypatch, "'scontrol' did not answer for 60 s")
    with pytest.raises(SlurmFailed):
        slurm.requeue("9_1")
    assert len(called) == 1


def test_what_could_not_be_cancelled_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, "Kill job error on job id 9: Invalid job id specified", "no controller")
    slurm.cancel(["9"])
    with pytest.raises(SlurmFailed):
        slurm.cancel(["9"])


def test_what_is_submitted_while_an_operator_stops_all_is_stopped_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.create(tmp_path / ".gpuledger")
    ledger.add_sweep(spec(points=5))
    (ledger.folder / "slurm").mkdir()
    own = Submission(id="9", at=1.0, workers=1, script="/l/w.sh", autoscale=4)
    slurm_jobs.record(ledger, own)
    job = Job(id="9_1", state="RUNNING", reason="", node="n1", script="/l/w.sh")
    cancelled: list[list[str]] = []

    def submit(script: Path, *, array: str) -> str:
        slurm_jobs.stop(ledger, now=False)
        cancelled.clear()
        return "10"

    monkeypatch.setattr(slurm, "queue", lambda jobs: [job])
    monkeypatch.setattr(slurm, "submit", submit)
    monkeypatch.setattr(slurm, "cancel", lambda jobs, *more: cancelled.append(list(jobs)))
    allocation = Allocation(Place(job="9_1", node="n1"), ask=lambda: None, clock=ManualClock())
    said: list[str] = []
    slurm_jobs.balance(ledger, identity(), (), allocation, said.append, leaving=False)
    assert cancelled == [["10"]]
    assert {found.id: found.stopped for found in slurm_jobs.submissions(ledger)} == {
        "9": True,
        "10": True,
    }
    assert "cancelled job 10" in said[-1]
