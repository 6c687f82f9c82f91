"""The loop of one worker, run by the test itself: when it looks, and what it does not miss."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpuledger import outbox, readiness, reports, room, runner
from gpuledger import worker as worker_module
from gpuledger.allocation import Allocation, Place
from gpuledger.clock import SystemClock
from gpuledger.errors import LedgerBusy, LedgerError, LedgerTooNew, NotAllowed
from gpuledger.ledger import Ledger
from gpuledger.model import Claim, NothingToDo, Outcome, TaskState
from gpuledger.patience import Patience
from gpuledger.process import CannotStart, become_subreaper
from gpuledger.pulse import Pulse
from gpuledger.recorder import Recorder
from gpuledger.running_task import Exit
from gpuledger.selection import Selection
from gpuledger.signals import Signals, listen
from gpuledger.why import why_pending
from gpuledger.worker import Tools, Worker, WorkerOptions
from tests.helpers import ManualClock, failure, identity, spec

PATIENCE_S = 30.0


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / ".gpuledger")


@contextmanager
def told_to_leave_in_time() -> Iterator[Signals]:
    """A worker that waits for ever leaves: the test then fails by what was not done."""
    with listen() as signals:
        timer = threading.Timer(PATIENCE_S, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        try:
            yield signals
        finally:
            timer.cancel()
            timer.join()


def tools(ledger: Ledger, signals: Signals) -> Tools:
    return Tools(
        signals=signals,
        clock=SystemClock(),
        say=lambda line: None,
        environ=os.environ,
        pulse=lambda me: Pulse(
            ledger.folder, me, lease_s=60, heartbeat_s=5, clock=SystemClock(), sample_gpus=tuple
        ),
        identify=identity,
    )


def test_what_is_added_just_after_a_claim_found_nothing_is_seen(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "ASK_IN_VAIN_S", 3600.0)
    claim_as_always, claims = ledger.claim, []

    def claim(*given: Any, **more: Any) -> Claim | NothingToDo:
        found = claim_as_always(*given, **more)
        claims.append(found)
        if len(claims) == 1:
            assert isinstance(found, NothingToDo)
            Ledger.open(ledger.folder).add_sweep(spec(points=1))
        return found

    monkeypatch.setattr(ledger, "claim", claim)
    with told_to_leave_in_time() as signals:
        Worker(ledger, WorkerOptions(max_tasks=1, stay=True), tools(ledger, signals)).run()

    assert ledger.snapshot().counts.completed == 1
    assert len(claims) == 2


def test_a_ledger_in_which_nothing_changes_is_asked_seldom(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks at the counter, and not one more transaction."""
    monkeypatch.setattr(worker_module, "IDLE_POLL_S", 0.05)
    counter_as_always, looks = ledger.store.change_counter, []
    connect_as_always, transactions = ledger.store._with_connection, 0

    with told_to_leave_in_time() as signals:

        def change_counter() -> int | None:
            looks.append(transactions)
            if len(looks) == 30:
                os.kill(os.getpid(), signal.SIGTERM)
            return counter_as_always()

        def with_connection(*given: Any, **more: Any) -> Any:
            nonlocal transactions
            transactions += 1
            return connect_as_always(*given, **more)

        monkeypatch.setattr(ledger.store, "change_counter", change_counter)
        monkeypatch.setattr(ledger.store, "_with_connection", with_connection)
        Worker(ledger, WorkerOptions(stay=True), tools(ledger, signals)).run()

    assert looks[0] > 0
    assert looks[-1] == looks[10]


def test_a_task_for_which_there_is_no_guard_is_handed_back_and_runs_later(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add_sweep(spec(points=1))
    monkeypatch.setattr(worker_module, "LOOK_AGAIN_S", 0.05)
    show_as_always = Pulse.show
    refused: list[Claim] = []

    def show(self: Pulse, claim: Claim | None, report: Path | None = None) -> None:
        if claim is not None and not refused:
            refused.append(claim)
            raise CannotStart("no memory", exit_code=126, machine_at_fault=True)
        show_as_always(self, claim, report)

    monkeypatch.setattr(Pulse, "show", show)
    with told_to_leave_in_time() as signals:
        Worker(ledger, WorkerOptions(max_tasks=1), tools(ledger, signals)).run()

    assert len(refused) == 1
    (task,) = ledger.tasks()
    assert (task.state, task.failures) == (TaskState.COMPLETED, 0)
    assert [attempt.outcome for attempt in task.attempts] == [
        Outcome.INTERRUPTED,
        Outcome.COMPLETED,
    ]


def test_a_fault_of_ours_with_one_task_stops_no_other(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add_sweep(spec(points=2, max_losses=1))
    read_as_always = reports.read_last

    def read(path: Path) -> Any:
        if "exp_0_0" in str(path):
            raise RecursionError("too deep")
        return read_as_always(path)

    monkeypatch.setattr(runner, "read_last", read)
    with told_to_leave_in_time() as signals:
        Worker(ledger, WorkerOptions(), tools(ledger, signals)).run()

    first, second = ledger.tasks()
    assert (first.state, second.state) == (TaskState.FAILED, TaskState.COMPLETED)
    assert first.last_error == "a fault of gpuledger itself: RecursionError: too deep"
    assert "in read" in str(first.attempts[0].traceback)


def test_a_worker_that_crashes_says_so_when_it_leaves(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add_sweep(spec(points=1))
    monkeypatch.setattr(Recorder, "ended", lambda *given, **more: 1 / 0)

    with told_to_leave_in_time() as signals, pytest.raises(ZeroDivisionError):
        Worker(ledger, WorkerOptions(), tools(ledger, signals)).run()

    (task,) = ledger.tasks()
    assert (task.state, task.losses) == (TaskState.PENDING, 1)
    assert task.last_error == "its worker crashed: ZeroDivisionError: division by zero"
    assert ledger.live_workers() == ()


def leaving(ledger: Ledger, signals: Signals, **changed: Any) -> Worker:
    return Worker(ledger, WorkerOptions(), replace(tools(ledger, signals), **changed))


class LetterBox:
    """A ledger that records nothing for a while, and has its worker told to leave meanwhile."""

    def __init__(self, ledger: Ledger, error: LedgerError, *, times: int) -> None:
        self._as_always, self._error, self._left = ledger.settle, error, times

    def __call__(self, *given: Any, **more: Any) -> Any:
        if not self._left:
            return self._as_always(*given, **more)
        self._left -= 1
        os.kill(os.getpid(), signal.SIGTERM)
        raise self._error


@pytest.mark.parametrize(("times", "outcome"), [(1, "completed"), (2, None)])
def test_what_a_leaving_worker_had_completed_is_not_ended_as_interrupted(
    ledger: Ledger,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    outcome: str | None,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ledger.add_sweep(spec(points=1))
    busy = LedgerBusy(ledger.folder, waited_s=1.0, holder="somebody")
    monkeypatch.setattr(ledger, "settle", LetterBox(ledger, busy, times=times))
    with told_to_leave_in_time() as signals:
        leaving(ledger, signals).run()
    (task,) = ledger.tasks()
    assert [attempt.outcome for attempt in task.attempts] == [outcome]

    with told_to_leave_in_time() as signals:
        monkeypatch.undo()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        leaving(ledger, signals, identify=lambda: identity("n2")).run()
    (task,) = ledger.tasks()
    assert [attempt.outcome for attempt in task.attempts] == [Outcome.COMPLETED]


def test_what_was_done_is_kept_when_the_ledger_became_too_new_meanwhile(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ledger.add_sweep(spec(points=1))
    newer = LedgerTooNew(ledger.store.path, found=99, known=2)
    monkeypatch.setattr(ledger, "settle", LetterBox(ledger, newer, times=1))
    with told_to_leave_in_time() as signals, pytest.raises(LedgerTooNew):
        leaving(ledger, signals).run()
    folder = outbox.outbox_folder(ledger.uuid)
    assert folder is not None
    assert [letter.token.task for letter in outbox.letters(folder)] == ["exp_0_0"]


@pytest.mark.parametrize(
    ("shared", "ran_s", "told_after_s", "is_ours"),
    [
        (False, 60.0, 0.0, False),
        (True, 0.1, 0.0, True),
        (True, 0.1, 0.04, False),
        (True, 5.0, 0.08, True),
        (True, 600.0, 0.9, True),
        (True, 600.0, 1.2, False),
    ],
)
def test_where_slurm_signals_the_task_as_well_a_success_may_be_none(
    shared: bool, ran_s: float, told_after_s: float, is_ours: bool
) -> None:
    clock = ManualClock()
    told_s = clock.boottime() + told_after_s

    class Told:
        @property
        def must_leave(self) -> bool:
            return clock.boottime() >= told_s

        def wait(self, timeout_s: float) -> None:
            clock.advance(min(timeout_s, 0.01))

    around: Any = SimpleNamespace(signals=Told(), clock=clock, shares_signals=shared)
    verdict = runner._died_with_us(Exit(exit_code=0), around, ran_s=ran_s)
    assert (verdict is not None and verdict.outcome is Outcome.INTERRUPTED) is is_ours


def test_who_is_told_to_leave_waits_in_line_for_the_ledger_while_there_is_time(
    ledger: Ledger,
) -> None:
    clock = ManualClock(boot=SystemClock().boottime())
    with told_to_leave_in_time() as signals:
        patience = Patience(ledger, signals=signals, clock=clock, say=print, leave_within_s=20.0)
        patience.hasten()
        assert ledger.store.lock_timeout_s > 20.0
        os.kill(os.getpid(), signal.SIGTERM)
        clock.advance(5.0)
        patience.hasten()
        assert 14.0 < ledger.store.lock_timeout_s < 16.0
        clock.advance(60.0)
        patience.hasten()
        assert ledger.store.lock_timeout_s == 2.0


def test_a_worker_told_to_leave_does_not_wait_for_a_long_grace(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn = (
        "worker=$PPID task=$$; trap '' TERM;"
        " (while kill -0 $task; do :; done; kill -TERM $worker; exec sleep 60) & exit 0"
    )  # as long as nobody waited for it, there is somebody to signal
    ledger.add_sweep(spec(points=1, command=("sh", "-c", stubborn), kill_grace_s=600.0))
    monkeypatch.setattr(runner, "LEAVING_GRACE_S", 0.3)
    become_subreaper()
    with told_to_leave_in_time() as signals:
        leaving(ledger, signals).run()
        assert signals.terminates == 1, "only its task's own signal"
    (task,) = ledger.tasks()
    assert task.state is TaskState.COMPLETED


@pytest.mark.parametrize(
    ("frozen", "seconds", "counts"), [(True, 5, 0), (False, 5, 5), (False, 60, 0)]
)
def test_time_that_was_not_the_tasks_counts_for_no_limit(
    ledger: Ledger, frozen: bool, seconds: float, counts: float
) -> None:
    ledger.add_sweep(spec(points=1, timeout_s=100.0, silence_timeout_s=50.0))
    claim, clock = claim_of(ledger), ManualClock()
    limits = runner._Limits(claim, runner.files_of(ledger.folder, claim), clock)
    clock.advance(1.0)
    limits.look(frozen=False)
    clock.advance(seconds)
    limits.look(frozen=frozen)
    assert limits.exceeded() is None
    for _ in range(round(49 - counts)):
        clock.advance(1.0)
        limits.look(frozen=False)
    assert limits.exceeded() is None
    clock.advance(0.5)
    verdict = limits.exceeded()
    assert verdict is not None
    assert verdict.error == "silent for 50 s"


def test_an_allocation_does_not_wait_for_ever_for_a_full_disk(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add_sweep(spec(points=1, command=("false",)))
    monkeypatch.setattr(room, "has_room", lambda folder: False)
    monkeypatch.setattr(worker_module, "FULL_PATIENCE_S", 0.0)
    monkeypatch.setattr(runner, "TOGETHER_S", 0.0)
    place = Place(job="7", node="n1", restarts=0)
    allocation = Allocation(place, ask=lambda: None, clock=SystemClock())
    with told_to_leave_in_time() as signals:
        worker = leaving(ledger, signals, allocation=allocation)
        worker.run()
        assert not signals.terminates
    assert worker.gave_up
    (task,) = ledger.tasks()
    assert (task.state, task.failures) == (TaskState.PENDING, 0)


def test_a_disk_without_room_for_a_folder_is_full_as_well(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add_sweep(spec(points=1))
    make_as_always = runner._make_room
    said: list[str] = []

    def make_room(files: runner.Files) -> None:
        if not said:
            raise OSError(errno.ENOSPC, "No space left on device")
        make_as_always(files)

    def say(line: str) -> None:
        if "claiming nothing" in line:
            said.append(line)

    monkeypatch.setattr(runner, "_make_room", make_room)
    monkeypatch.setattr(worker_module, "LOOK_AGAIN_S", 0.1)
    monkeypatch.setattr(room, "LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(room, "has_room", lambda folder: bool(said))
    with told_to_leave_in_time() as signals:
        leaving(ledger, signals, say=say).run()
        assert not signals.terminates
    (task,) = ledger.tasks()
    outcomes = [attempt.outcome for attempt in task.attempts]
    assert outcomes == [Outcome.INTERRUPTED, Outcome.COMPLETED]


def test_a_worker_without_room_lets_the_others_have_what_was_kept_for_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add_sweep(spec(points=1, command=("false",), max_attempts=1))
    monkeypatch.setattr(readiness, "QUIET_S", 0.0)
    monkeypatch.setattr(readiness, "STAND_BACK_S", 0.0)
    monkeypatch.setattr(room, "LOOK_AGAIN_S", 0.0)
    told: list[str | None] = []
    stand_back = ledger.stand_back

    def note(nonce: str, why: str | None) -> None:
        told.append(why)
        stand_back(nonce, why)

    monkeypatch.setattr(ledger, "stand_back", note)
    monkeypatch.setattr(room, "has_room", lambda folder: bool(told))
    with told_to_leave_in_time() as signals:
        leaving(ledger, signals).run()
    assert told == [f"the disk is full ({ledger.folder / 'runs'})", None]


def test_a_worker_that_a_machine_has_no_room_for_leaves_nothing_behind(ledger: Ledger) -> None:
    def no_room(me: Any) -> Pulse:
        raise CannotStart("too many open files", exit_code=126, machine_at_fault=True)

    ledger.add_sweep(spec(points=1))
    with told_to_leave_in_time() as signals, pytest.raises(CannotStart):
        Worker(ledger, WorkerOptions(), replace(tools(ledger, signals), pulse=no_room)).run()
    assert ledger.live_workers() == ()


def test_what_a_worker_had_done_before_it_crashed_is_kept_for_the_next(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add_sweep(spec(points=2))

    def broken(*given: Any, **more: Any) -> None:
        raise RuntimeError("no more")

    with told_to_leave_in_time() as signals:
        monkeypatch.setattr(Worker, "_go_on", broken)
        with pytest.raises(RuntimeError):
            Worker(ledger, WorkerOptions(), tools(ledger, signals)).run()
        (first, second) = ledger.tasks()
        assert (first.state, second.state) == (TaskState.PENDING, TaskState.PENDING)
        monkeypatch.undo()
        next_one = replace(tools(ledger, signals), identify=lambda: identity("n2"))
        Worker(ledger, WorkerOptions(), next_one).run()

    (first, second) = ledger.tasks()
    assert [attempt.outcome for attempt in first.attempts] == [Outcome.COMPLETED]
    assert first.losses == 0
    assert second.state is TaskState.COMPLETED


def test_a_failure_on_a_full_disk_is_no_failure_and_no_task_starts_until_there_is_room(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add_sweep(spec(points=2, command=("false",), max_attempts=1))
    begun: list[int] = []
    said: list[str] = []

    def has_room(folder: Path) -> bool:
        begun.append(sum(len(task.attempts) for task in ledger.tasks()))
        return any("claiming nothing" in line for line in said)  # it is mended once it is said

    monkeypatch.setattr(room, "has_room", has_room)
    monkeypatch.setattr(room, "LOOK_AGAIN_S", 0.0)
    with told_to_leave_in_time() as signals:
        given = replace(tools(ledger, signals), say=said.append)
        Worker(ledger, WorkerOptions(), given).run()

    first, second = ledger.tasks()
    outcomes = [attempt.outcome for task in (first, second) for attempt in task.attempts]
    assert outcomes == [Outcome.INTERRUPTED, Outcome.FAILED, Outcome.FAILED]
    assert first.attempts[0].error == "the disk of its log is full: exit code 1, no output"
    assert (first.state, first.failures) == (TaskState.FAILED, 1)
    full = f"the disk is full ({ledger.folder / 'runs'}); claiming nothing"
    assert [line for line in said if "full (" in line or "ready" in line] == [
        full,
        "ready for the next task",
    ]
    assert begun[:-2] == [1] * len(begun[:-2]), "nothing began while it was full"


def test_a_worker_that_waits_for_an_operator_says_so_once(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=2))
    ledger.pause("exp")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "paused sweeps" in line:
            ledger.resume("exp")

    with told_to_leave_in_time() as signals:
        leaving(ledger, signals, say=say).run()
        assert not signals.terminates
    waiting = "2 pending tasks of paused sweeps: waiting ('gpuledger resume' lets them go on)"
    assert [line for line in said if "paused" in line] == [waiting]
    assert {task.state for task in ledger.tasks()} == {TaskState.COMPLETED}


def test_a_task_that_knows_better_fails_on_a_full_disk_as_well(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add_sweep(spec(points=1, command=("sh", "-c", "exit 3"), no_retry_codes=(3,)))
    monkeypatch.setattr(room, "has_room", lambda folder: False)
    with told_to_leave_in_time() as signals:
        Worker(ledger, WorkerOptions(), tools(ledger, signals)).run()
    (task,) = ledger.tasks()
    assert (task.state, task.last_error) == (TaskState.FAILED, "exit code 3, no output")


def test_a_ledger_that_may_not_be_written_is_no_place_to_begin(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def register(worker: Any) -> None:
        raise NotAllowed("it cannot be written by you")

    monkeypatch.setattr(ledger, "register", register)
    with told_to_leave_in_time() as signals, pytest.raises(NotAllowed):
        Worker(ledger, WorkerOptions(), tools(ledger, signals)).run()


def test_what_an_operator_does_ends_a_pause(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add_sweep(spec(points=2, max_attempts=1))
    ledger.fail(claim_of(ledger).token, failure())
    waits = 0

    def wait(self: Signals, timeout_s: float | None, also: Any = ()) -> frozenset[int]:
        nonlocal waits
        waits += 1
        ledger.retry(Selection(names=("exp_0_0",)))
        return frozenset()

    with told_to_leave_in_time() as signals:
        worker = Worker(ledger, WorkerOptions(), tools(ledger, signals))
        assert worker._enlist()
        monkeypatch.setattr(Signals, "wait", wait)
        worker._pause(1000.0)
        worker._sign_off(crash=None)

    assert waits == 1


def test_where_nothing_is_left_a_pause_is_over(ledger: Ledger) -> None:
    with told_to_leave_in_time() as signals:
        worker = Worker(ledger, WorkerOptions(), tools(ledger, signals))
        assert worker._enlist()
        worker._pause(1000.0)
        assert not signals.terminates
        worker._sign_off(crash=None)


def test_nobody_keeps_a_task_for_a_worker_that_cools_down(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add_sweep(spec(points=1))
    seen: list[bool] = []

    def pause(self: Worker, pause_s: float) -> None:
        other = ledger.register(identity("other", host="other"))
        found = ledger.claim(other)
        assert isinstance(found, Claim)
        ledger.fail(found.token, failure())
        waiting = ledger.waiting("exp_0_0")
        assert waiting is not None
        assert "leaves it" not in " ".join(why_pending(waiting))
        seen.append(isinstance(ledger.claim(other), Claim))
        ledger.leave(other.nonce)

    with told_to_leave_in_time() as signals:
        worker = Worker(ledger, WorkerOptions(), tools(ledger, signals))
        assert worker._enlist()
        monkeypatch.setattr(Worker, "_pause", pause)
        worker._cool_down()
        (me,) = ledger.live_workers()
        worker._sign_off(crash=None)

    assert seen == [True], "it would be kept for a minute"
    assert me.details["stands_back"] is None


def claim_of(ledger: Ledger) -> Claim:
    found = ledger.claim(ledger.register(identity("before", host="before")))
    assert isinstance(found, Claim)
    return found
