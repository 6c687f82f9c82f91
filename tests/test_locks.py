"""Waiting for the lock: fair, cheap, bounded; and nobody commits after a hold that was too long."""

from __future__ import annotations

import errno
import fcntl
import functools
import multiprocessing
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from gpuledger import locks
from gpuledger.clock import SystemClock
from gpuledger.errors import LedgerBusy, LedgerUnreachable
from gpuledger.ledger import Ledger
from gpuledger.line import LINE_FILE, RECORD, Place, stand
from gpuledger.locks import Pace
from gpuledger.spec import TaskSpec
from gpuledger.store import HOLD_BUDGET_S, Store
from tests.helpers import ManualClock, spec, wait_until

SPAWN = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Ledger.create(tmp_path / ".gpuledger").folder


def compete(folder: Path, ready: Event, over: Event, counts: list[int], me: int) -> None:
    """Change the ledger again and again, as soon as the former change is done."""
    store = Store(folder)
    ready.wait()
    while not over.is_set():
        store.write(
            lambda db: db.execute("UPDATE ledger SET lease_s = lease_s"), operation="compete"
        )
        counts[me] += 1


def operations_of_each(folder: Path, crowd: int, enough: int) -> list[int]:
    """Let so many processes compete until they did `enough` operations in all."""
    ready, over = SPAWN.Event(), SPAWN.Event()
    counts = SPAWN.Array("i", crowd, lock=False)
    processes = [
        SPAWN.Process(target=compete, args=(folder, ready, over, counts, me)) for me in range(crowd)
    ]
    for process in processes:
        process.start()
    ready.set()
    deadline = time.monotonic() + 60
    while sum(counts) < enough and time.monotonic() < deadline:
        time.sleep(0.05)
    over.set()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return sorted(counts)


@pytest.mark.parametrize(
    "crowd", [12, pytest.param(64, marks=pytest.mark.exhaustive)]
)  # fmt: skip
def test_nobody_starves(folder: Path, crowd: int) -> None:
    counts = operations_of_each(folder, crowd, enough=60 * crowd)
    assert counts[0] >= statistics.median(counts) / 5, counts


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("taken", ["ledger.lock", "ledger.turn", "ledger.line"])
def test_a_failed_poll_is_one_system_call(folder: Path, taken: str, tmp_path: Path) -> None:
    with stand(folder) as former:
        assert former.take(sync=False)  # so that it takes a system call to know who is first
    with taken_by_somebody(folder, taken):
        trace = traced_wait(folder, tmp_path)
    wanted = "fcntl(" if taken == "ledger.line" else "flock("
    polls = [n for n, line in enumerate(trace) if line.startswith(wanted) and is_refused(line)]
    assert len(polls) > 10
    between = trace[polls[1] : polls[-1] + 1]  # after the first one a place in line is taken
    assert all(line.startswith(wanted) for line in between), between[:5]


@contextmanager
def taken_by_somebody(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock, or the turn, or the turn and the first place in line for it."""
    with ExitStack() as stack:
        if name == "ledger.line":
            assert stack.enter_context(stand(folder)).take(sync=False)
            name = "ledger.turn"
        descriptor = os.open(folder / name, os.O_RDWR)
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def traced_wait(folder: Path, tmp_path: Path) -> list[str]:
    """Return the system calls of a process that waits for a second."""
    trace = tmp_path / "trace"
    code = (
        "import sys; from pathlib import Path; from gpuledger.store import Store\n"
        "try: Store(Path(sys.argv[1]), lock_timeout_s=1.0).read(lambda db: None)\n"
        "except Exception: pass"
    )
    subprocess.run(
        ["strace", "-f", "-qq", "-o", str(trace), "-y", "-e", "trace=%file,%desc",
         sys.executable, "-c", code, str(folder)],
        check=True, timeout=60, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    return [line.split(maxsplit=1)[1] for line in trace.read_text().splitlines()]


def is_refused(line: str) -> bool:
    """Tell whether a traced call found what it asked for taken."""
    return "EAGAIN" in line or ("F_OFD_GETLK" in line and "F_UNLCK" not in line)


def test_a_process_that_was_stopped_while_it_had_the_turn_is_passed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "TURN_PATIENCE_S", 0.2)
    descriptor = os.open(folder / "ledger.turn", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)

    Store(folder, lock_timeout_s=20.0).write(
        lambda db: db.execute("UPDATE ledger SET lease_s = lease_s"), operation="test"
    )
    os.close(descriptor)


def test_one_who_was_stopped_in_line_is_passed_over_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "TURN_PATIENCE_S", 0.2)
    with taken_by_somebody(folder, "ledger.line"):
        Store(folder, lock_timeout_s=20.0).write(
            lambda db: db.execute("UPDATE ledger SET lease_s = lease_s"), operation="test"
        )
        with stand(folder) as late:
            assert late.take(sync=False)
            assert late.ahead() == 0


@pytest.mark.parametrize("broken", ["file", "locks"])
def test_where_there_is_no_line_the_turn_is_had_by_luck(
    folder: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    if broken == "file":
        (folder / LINE_FILE).mkdir()
    else:
        monkeypatch.setattr(Place, "take", no_such_locks)
    monkeypatch.setattr(locks, "TURN_PATIENCE_S", 60.0)
    store = Store(folder, lock_timeout_s=20.0)
    with taken_by_somebody(folder, "ledger.turn"):
        waiting = threading.Thread(target=store.read, args=(lambda db: None,))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive(), "it waits for the turn"
    waiting.join(20)
    assert not waiting.is_alive()


def no_such_locks(place: Place, *, sync: bool) -> bool:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def test_they_come_in_the_order_in_which_they_arrived(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "TURN_PATIENCE_S", 60.0)
    came, called = SPAWN.SimpleQueue(), [SPAWN.Event() for _ in range(8)]

    def come(me: int) -> None:
        called[me].wait()
        Store(folder, lock_timeout_s=60.0).write(lambda db: came.put(me), operation="test")

    processes = [SPAWN.Process(target=come, args=(me,)) for me in range(8)]
    for process in processes:  # they must not inherit the lock
        process.start()
    with taken_by_somebody(folder, "ledger.lock"):
        called[0].set()
        wait_until(lambda: is_taken(folder / "ledger.turn"), because="it has the turn")
        for me in range(1, 8):
            called[me].set()
            wait_until(functools.partial(has_come, folder, number=me), because="it stands in line")
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert [came.get() for _ in processes] == list(range(8))


def is_taken(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def has_come(folder: Path, *, number: int) -> bool:
    """Tell whether somebody stands in line with that number."""
    try:
        raw = (folder / LINE_FILE).read_bytes()
    except FileNotFoundError:
        return False
    return bool(raw) and RECORD.unpack(raw)[1] == number


def test_a_busy_ledger_is_given_up_in_time_even_behind_the_turn(folder: Path) -> None:
    """The turn's holder waits for the lock: who waits behind it gives up at its own deadline."""
    turn = os.open(folder / "ledger.turn", os.O_RDWR)
    lock = os.open(folder / "ledger.lock", os.O_RDWR)
    for descriptor in (turn, lock):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    clock = SystemClock()
    began_s = clock.boottime()
    with pytest.raises(LedgerBusy):
        Store(folder, lock_timeout_s=0.3).read(lambda db: None)
    assert clock.boottime() - began_s < locks.TURN_PATIENCE_S
    os.close(turn)
    os.close(lock)


def test_who_is_further_from_the_lock_polls_less() -> None:
    """The pause scales with who is ahead, with jitter, and grows when the holder hangs."""

    def mean(ask: Callable[[], float]) -> float:
        return statistics.mean(ask() for _ in range(500))

    pace = Pace()
    assert mean(lambda: pace.in_line_s(32)) == pytest.approx(
        8 * mean(lambda: pace.in_line_s(4)), rel=0.1
    )
    assert len({pace.in_line_s(4) for _ in range(20)}) > 10
    for _ in range(200):
        pace.learn(0.016)  # a slow file server
    assert mean(lambda: pace.in_line_s(8)) == pytest.approx(0.75 * 8 * 0.016, rel=0.1)
    assert mean(lambda: pace.in_line_s(0)) == pytest.approx(0.75 * 0.016 / 4, rel=0.1)
    assert mean(lambda: pace.at_the_door_s(50.0)) == pytest.approx(
        0.75 * locks.LONGEST_POLL_S, rel=0.1
    )


def test_a_transaction_that_held_the_lock_for_too_long_is_not_committed(folder: Path) -> None:
    """A machine that slept: meanwhile its file server may have given the lock to another."""
    clock = ManualClock()
    store = Store(folder, clock=clock)

    def sleep_in_the_middle(db: sqlite3.Connection) -> None:
        db.execute("UPDATE ledger SET lease_s = 999")
        clock.advance(HOLD_BUDGET_S + 1)

    with pytest.raises(LedgerUnreachable, match="nothing was changed"):
        store.write(sleep_in_the_middle, operation="test")
    assert Ledger.open(folder).lease_s == 60.0


def test_an_operators_change_may_take_long(folder: Path) -> None:
    clock = ManualClock()
    ledger = Ledger(Store(folder, clock=clock), clock)
    slow = spec(points=3)

    def tasks() -> Iterator[TaskSpec]:
        for task in slow.tasks():
            clock.advance(HOLD_BUDGET_S)
            yield task

    ledger.add_sweep(replace(slow, tasks=tasks))
    assert ledger.snapshot().counts.total == 3


def test_a_stopped_holder_does_not_commit_when_it_wakes_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with a real process and real time: stopped in the middle of its transaction."""
    script = (
        "import os, signal, sys; from pathlib import Path; import gpuledger.store as store\n"
        "store.HOLD_BUDGET_S = 0.5\n"
        "def work(db):\n"
        "    db.execute('UPDATE ledger SET lease_s = 999')\n"
        "    print('in', flush=True); os.kill(os.getpid(), signal.SIGSTOP)\n"
        "try: store.Store(Path(sys.argv[1])).write(work, operation='test')\n"
        "except store.LedgerUnreachable as error: print(error, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    clock = SystemClock()
    until_s = clock.boottime() + 0.6
    while clock.boottime() < until_s:
        time.sleep(0.01)
    process.send_signal(signal.SIGCONT)
    said = process.stdout.read()
    process.wait()
    process.stdout.close()

    assert "nothing was changed" in said
    assert Ledger.open(folder).lease_s == 60.0
