"""Waiting for the lock: fair, cheap, bounded; and nobody commits after a hold that was too long."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from gpuledger import locks
from gpuledger.clock import SystemClock
from gpuledger.errors import LedgerBusy, LedgerUnreachable
from gpuledger.ledger import Ledger
from gpuledger.locks import Pace
from gpuledger.model import TaskSpec
from gpuledger.store import HOLD_BUDGET_S, Store
from tests.helpers import ManualClock, spec

SPAWN = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Ledger.create(tmp_path / ".gpuledger").folder


def compete(
    folder: Path, crowd: int, ready: Event, over: Event, counts: list[int], me: int
) -> None:
    """Change the ledger again and again, as soon as the former change is done."""
    store = Store(folder)
    store.expect_crowd(crowd)
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
        SPAWN.Process(target=compete, args=(folder, crowd, ready, over, counts, me))
        for me in range(crowd)
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
@pytest.mark.parametrize("taken", ["ledger.lock", "ledger.turn"])
def test_a_failed_poll_is_one_system_call(folder: Path, taken: str, tmp_path: Path) -> None:
    descriptor = os.open(folder / taken, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
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
    os.close(descriptor)

    lines = trace.read_text().splitlines()
    polls = [n for n, line in enumerate(lines) if "flock(" in line and "EAGAIN" in line]
    assert len(polls) > 10
    between = lines[polls[0] : polls[-1] + 1]
    assert all("flock(" in line for line in between), between[:5]


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


def test_all_waiters_together_poll_a_few_times_a_hold() -> None:
    """The pause scales with the crowd, with jitter, and grows when the holder hangs."""

    def mean(ask: Callable[[], float]) -> float:
        return statistics.mean(ask() for _ in range(500))

    few, many = Pace(), Pace()
    few.crowd, many.crowd = 8, 64
    assert mean(lambda: many.in_line_s(0.0)) == pytest.approx(
        8 * mean(lambda: few.in_line_s(0.0)), rel=0.15
    )
    assert len({few.in_line_s(0.0) for _ in range(20)}) > 10
    for _ in range(200):
        few.learn(0.016)  # a slow file server
    assert mean(lambda: few.in_line_s(0.0)) == pytest.approx(8 * 0.016 / 4, rel=0.15)
    assert mean(lambda: few.at_the_door_s(50.0)) == pytest.approx(locks.LONGEST_POLL_S, rel=0.1)


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
