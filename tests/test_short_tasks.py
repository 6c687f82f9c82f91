"""Real workers that hold several short tasks at a time: what stays true when something happens."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

from gpuledger.ledger import Ledger
from gpuledger.outbox import letters, outbox_folder
from tests.helpers import wait_until
from tests.shell import Background, gpuledger, records, states, tasks, worker
from tests.test_scenarios import outcomes, start_sweep

SHORT = """
record(event="began")
"""
SWEEP = 'command = "python -I -S train.py"\nseeds = {count}\n'


def visits(folder: Path) -> int:
    """Return how many changes the ledger has seen."""
    ledger = Ledger.open(folder / ".gpuledger")
    return int(ledger.store.read(lambda db: db.execute("SELECT seq FROM ledger").fetchone()[0]))


def test_many_short_tasks_need_few_visits_to_the_ledger(tmp_path: Path) -> None:
    start_sweep(tmp_path, "", 'command = "true"\nseeds = 60\n')
    before = visits(tmp_path)

    with worker("--cpu", cwd=tmp_path) as alone:
        assert alone.wait() == 0

    assert states(tmp_path)["completed"] == 60
    assert visits(tmp_path) - before < 60  # one by one it would be 61, and two for the worker


def test_of_a_limited_number_of_tasks_none_is_started_beyond(tmp_path: Path) -> None:
    start_sweep(tmp_path, SHORT, SWEEP.format(count=30))

    with worker("--cpu", "--max-tasks", "11", cwd=tmp_path) as limited:
        assert limited.wait() == 0

    assert len(records(tmp_path / "record.jsonl")) == 11
    assert (states(tmp_path)["completed"], states(tmp_path)["pending"]) == (11, 19)


def test_a_failure_among_short_tasks_is_recorded_as_such(tmp_path: Path) -> None:
    script = "record(event='began')\nsys.exit(os.environ['GPULEDGER_SEED'] in ('7', '13'))\n"
    start_sweep(tmp_path, script, SWEEP.format(count=20) + "[run]\nmax_attempts = 2\n")

    with worker("--cpu", cwd=tmp_path) as alone:
        assert alone.wait() == 1

    known = tasks(tmp_path)
    assert sorted(name for name, task in known.items() if task["state"] == "failed") == [
        "exp_0_13",
        "exp_0_7",
    ]
    assert outcomes(known["exp_0_7"]) == [("alpha", "failed")] * 2
    assert states(tmp_path)["completed"] == 18


LONG_ONE = """
import time
record(event="began")
while os.environ["GPULEDGER_SEED"] == "8" and not os.path.exists("go"):
    time.sleep(0.02)
"""


def test_a_long_task_among_short_ones_is_opened_and_the_rest_is_for_others(
    tmp_path: Path,
) -> None:
    start_sweep(tmp_path, LONG_ONE, SWEEP.format(count=30))

    with worker("--cpu", cwd=tmp_path) as alpha:
        wait_until(
            lambda: tasks(tmp_path)["exp_0_8"]["state"] == "running",
            because="the task that takes long was never shown as running",
        )
        done_before = states(tmp_path)["completed"]
        with worker("--cpu", cwd=tmp_path, host="beta") as beta:
            wait_until(
                lambda: states(tmp_path)["completed"] == 29,
                because="what the busy worker held was not free for the other",
            )
            (tmp_path / "go").touch()
            assert [alpha.wait(), beta.wait()] == [0, 0]

    assert done_before == 8
    assert outcomes(tasks(tmp_path)["exp_0_8"]) == [("alpha", "completed")]
    assert len(records(tmp_path / "record.jsonl")) == 30


def test_a_worker_killed_among_short_tasks_loses_nothing(tmp_path: Path) -> None:
    start_sweep(tmp_path, LONG_ONE, SWEEP.format(count=30), "--lease=3s", "--heartbeat=0.5s")

    with worker("--cpu", cwd=tmp_path) as alpha:
        wait_until(
            lambda: any(line["task"] == "exp_0_8" for line in records(tmp_path / "record.jsonl")),
            because="the task that takes long was never begun",
        )
        alpha.process.kill()
        alpha.process.wait()
    (tmp_path / "go").touch()
    with worker("--cpu", cwd=tmp_path) as second:
        assert second.wait() == 0

    assert states(tmp_path)["completed"] == 30
    for name, task in tasks(tmp_path).items():
        ended_well = [end for _, end in outcomes(task)].count("completed")
        assert ended_well == 1, (name, task["attempts"])
        others = [end for _, end in outcomes(task) if end != "completed"]
        assert not others or (name, others) == ("exp_0_8", ["lost"])


def test_what_is_cancelled_or_paused_meanwhile_does_not_start(tmp_path: Path) -> None:
    start_sweep(tmp_path, LONG_ONE, SWEEP.format(count=30))

    with worker("--cpu", "--wait", cwd=tmp_path) as alpha:
        wait_until(
            lambda: any(line["task"] == "exp_0_8" for line in records(tmp_path / "record.jsonl")),
            because="the task that takes long was never begun",
        )
        gpuledger("cancel", "exp_0_9", "exp_0_10", cwd=tmp_path)
        gpuledger("pause", cwd=tmp_path)
        (tmp_path / "go").touch()
        wait_until(
            lambda: states(tmp_path)["completed"] == 9,
            because="the running task was not completed",
        )
        gpuledger("resume", cwd=tmp_path)
        wait_until(lambda: states(tmp_path)["completed"] == 28, because="it did not go on")
        alpha.send(signal.SIGTERM)
        alpha.wait()

    begun = [line["task"] for line in records(tmp_path / "record.jsonl")]
    assert len(begun) == 28
    assert not {"exp_0_9", "exp_0_10"} & set(begun)


def test_cancelling_a_running_task_with_kill_ends_it_although_it_was_only_held(
    tmp_path: Path,
) -> None:
    start_sweep(tmp_path, LONG_ONE, SWEEP.format(count=20))

    with worker("--cpu", cwd=tmp_path) as alpha:
        wait_until(
            lambda: any(line["task"] == "exp_0_8" for line in records(tmp_path / "record.jsonl")),
            because="the task that takes long was never begun",
        )
        gpuledger("cancel", "exp_0_8", "--kill", cwd=tmp_path)
        assert alpha.wait() == 0

    assert tasks(tmp_path)["exp_0_8"]["state"] == "cancelled"
    assert states(tmp_path)["completed"] == 19
    assert "signing on anew" not in alpha.text()


def test_a_worker_told_to_leave_gives_back_what_it_holds(tmp_path: Path) -> None:
    start_sweep(tmp_path, LONG_ONE, SWEEP.format(count=30))

    with worker("--cpu", cwd=tmp_path) as alpha:
        wait_until(
            lambda: any(line["task"] == "exp_0_8" for line in records(tmp_path / "record.jsonl")),
            because="the task that takes long was never begun",
        )
        alpha.send(signal.SIGTERM)
        alpha.wait()

    assert states(tmp_path)["completed"] == 8
    assert states(tmp_path)["pending"] == 22
    assert outcomes(tasks(tmp_path)["exp_0_8"]) == [("alpha", "interrupted")]
    ledger = Ledger.open(tmp_path / ".gpuledger")
    held = ledger.store.read(
        lambda db: db.execute("SELECT COUNT(*) FROM task WHERE held_by IS NOT NULL").fetchone()[0]
    )
    assert held == 0


def test_what_ran_unrecorded_leaves_no_report_to_the_next_attempt(tmp_path: Path) -> None:
    start_sweep(tmp_path, SHORT, SWEEP.format(count=1))
    runs = tmp_path / ".gpuledger" / "runs" / "exp_0_0"
    (runs / "files").mkdir(parents=True)
    (runs / "attempt-1.jsonl").write_text('{"step": 1, "metrics": {"acc": 0.1}}\n')
    (runs / "attempt-1.log").write_text("of a worker that died\n")

    with worker("--cpu", cwd=tmp_path) as alone:
        assert alone.wait() == 0

    assert tasks(tmp_path)["exp_0_0"]["result"] in (None, {})
    assert (runs / "attempt-1.log").read_text() == ""
    assert (runs / "unrecorded-attempt-1.log").read_text() == "of a worker that died\n"


def test_a_ledger_that_is_away_among_short_tasks_hears_of_all_later(tmp_path: Path) -> None:
    start_sweep(tmp_path, SHORT, SWEEP.format(count=60))
    there, away = tmp_path / ".gpuledger", tmp_path / "away"

    with worker("--cpu", cwd=tmp_path) as alone:
        wait_until(lambda: len(records(tmp_path / "record.jsonl")) >= 12, because="it ran too few")
        there.rename(away)
        wait_until(lambda: "trying on" in alone.text(), because="it did not notice")
        away.rename(there)
        assert alone.wait(timeout_s=60) == 0

    assert states(tmp_path)["completed"] == 60
    assert sorted(line["task"] for line in records(tmp_path / "record.jsonl")) == sorted(
        tasks(tmp_path)
    ), "each ran once"
    assert all(task["failures"] == task["losses"] == 0 for task in tasks(tmp_path).values())


def stopped_outside_the_ledger(worker: Background, folder: Path) -> bool:
    """Stop a worker; let it go on when it has the ledger's lock just now."""
    worker.process.send_signal(signal.SIGSTOP)
    lock = os.open(folder / ".gpuledger" / "ledger.lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        worker.process.send_signal(signal.SIGCONT)
        return False
    finally:
        os.close(lock)
    return True


def test_a_worker_stopped_for_longer_than_its_lease_among_short_tasks_loses_its_share(
    tmp_path: Path,
) -> None:
    start_sweep(tmp_path, SHORT, SWEEP.format(count=80), "--lease=3s", "--heartbeat=0.5s")

    with worker("--cpu", cwd=tmp_path) as alpha:
        wait_until(lambda: len(records(tmp_path / "record.jsonl")) >= 12, because="it ran too few")
        wait_until(lambda: stopped_outside_the_ledger(alpha, tmp_path), because="it is never out")
        # On another machine, as far as it knows: only the lease tells it that alpha is gone.
        with worker("--cpu", cwd=tmp_path, host="beta") as beta:
            assert beta.wait(timeout_s=90) == 0
        alpha.process.send_signal(signal.SIGCONT)
        assert alpha.wait(timeout_s=60) == 0

    assert states(tmp_path)["completed"] == 80
    for task in tasks(tmp_path).values():
        ends = [outcome for _, outcome in outcomes(task)]
        assert ends.count("completed") == 1
        assert set(ends) <= {"completed", "lost"}


def test_what_short_tasks_did_before_the_ledger_was_damaged_is_recovered(tmp_path: Path) -> None:
    start_sweep(tmp_path, SHORT, SWEEP.format(count=60))
    gpuledger("backup", cwd=tmp_path)
    kept = outbox_folder(Ledger.open(tmp_path / ".gpuledger").uuid)
    assert kept is not None

    with worker("--cpu", cwd=tmp_path) as alpha:
        wait_until(lambda: len(records(tmp_path / "record.jsonl")) >= 12, because="it ran too few")
        (tmp_path / ".gpuledger" / "ledger.db").write_bytes(b"this is no database" * 3000)
        assert alpha.wait(timeout_s=60) == 74
        assert "gpuledger recover" in alpha.text()
    assert list(letters(kept)), "what it could not record any more is on this machine's disk"
    gpuledger("recover", cwd=tmp_path)
    with worker("--cpu", cwd=tmp_path) as beta:
        assert beta.wait(timeout_s=60) == 0
    assert not kept.exists(), "the next worker told the ledger, and left nothing"

    assert states(tmp_path)["completed"] == 60
    ran = [line["task"] for line in records(tmp_path / "record.jsonl")]
    assert sorted(ran) == sorted(tasks(tmp_path)), "what had run was not run again"
