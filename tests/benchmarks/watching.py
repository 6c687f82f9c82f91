"""What watching costs: `status`, open several times, on a large ledger that changes all the time.

    python -m tests.benchmarks.watching

A pretended fleet ends some tasks a second. Each `status` is the real command on a terminal of its
own, and counts how often it takes the lock.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from gpuledger.cli.live import watch
from gpuledger.ledger import Ledger
from gpuledger.locks import OuterLock
from gpuledger.model import Claim, WorkerIdentity
from tests.benchmarks.growth import create
from tests.benchmarks.idle import _cpu_s
from tests.test_cli_status import Terminal, on_a_terminal

ROOT = Path(__file__).resolve().parent.parent.parent
DONE_BEFORE = 2_000
SETTLE_S = 3.0


class Fleet:
    """A thread in which workers, one after another, end their task and take the next."""

    def __init__(self, ledger: Ledger, *, workers: int, tasks_per_s: float) -> None:
        self.ended = 0
        self._ledger = ledger
        self._pause_s = 1 / tasks_per_s
        self._leave = threading.Event()
        self._claims = [self._first(number) for number in range(workers)]
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Fleet:
        for _ in range(DONE_BEFORE):
            self._end_one()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._leave.set()
        self._thread.join(30)

    def _first(self, number: int) -> tuple[WorkerIdentity, Claim]:
        worker = self._ledger.register(
            WorkerIdentity(
                nonce=f"n{number}",
                name=f"node{number // 8}:cpu#{number % 8}",
                host=f"node{number // 8}",
                machine="m",
                pid=1,
                pid_start=1,
            )
        )
        return worker, _claim(self._ledger.claim(worker))

    def _end_one(self) -> None:
        worker, claim = self._claims.pop(0)
        ended = self._ledger.complete(
            claim.token, metrics={"loss": 0.1}, duration_s=2.0, then=worker
        )
        self._claims.append((worker, _claim(ended.next)))
        self.ended += 1

    def _work(self) -> None:
        while not self._leave.wait(self._pause_s):
            self._end_one()


def run(*, tasks: int, watchers: int, seconds: float) -> dict[str, Any]:
    """Watch for so many seconds, and return what it cost each of those who did."""
    with tempfile.TemporaryDirectory(prefix="gpuledger-bench-") as scratch:
        ledger, _, _ = create(Path(scratch), tasks)
        with Fleet(ledger, workers=32, tasks_per_s=10.0) as fleet, contextlib.ExitStack() as opened:
            counts = [Path(scratch) / f"locks{i}" for i in range(watchers)]
            program = (sys.executable, "-m", "tests.benchmarks.watching", "--watch")
            terminals = [
                opened.enter_context(
                    on_a_terminal(str(ledger.folder), str(count), cwd=ROOT, program=program)
                )
                for count in counts
            ]
            for terminal in terminals:
                terminal.wait_for(b"completed")
            _drain(terminals, SETTLE_S)
            before = [
                _figures(terminal, count) for terminal, count in zip(terminals, counts, strict=True)
            ]
            ended, began = fleet.ended, time.monotonic()
            _drain(terminals, seconds)
            took_s = time.monotonic() - began
            after = [
                _figures(terminal, count) for terminal, count in zip(terminals, counts, strict=True)
            ]
            rate = (fleet.ended - ended) / took_s
    costs = [
        tuple((new - old) / took_s for new, old in zip(late, early, strict=True))
        for late, early in zip(after, before, strict=True)
    ]
    return {
        "tasks": tasks,
        "ended_per_s": round(rate, 1),
        "cpu_share": [round(cpu, 4) for cpu, _ in costs],
        "locks_per_s": [round(lock, 2) for _, lock in costs],
    }


def _claim(found: object) -> Claim:
    assert isinstance(found, Claim), found
    return found


def _drain(terminals: list[Terminal], seconds: float) -> None:
    """Read what is drawn, as a terminal does."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for terminal in terminals:
            terminal.read()
        time.sleep(0.1)


def _figures(terminal: Terminal, count: Path) -> tuple[float, int]:
    return _cpu_s(terminal.process.pid), count.stat().st_size


def _watch(folder: Path, count: Path) -> None:
    """Run `status` in this process; each time it takes the lock a byte is added to a file."""
    hold = OuterLock.hold
    with count.open("ab", buffering=0) as counted:

        def counting(*args: Any, **options: Any) -> Any:
            counted.write(b".")
            return hold(*args, **options)

        setattr(OuterLock, "hold", counting)  # noqa: B010
        watch(Ledger.open(folder), sweep=None)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--watchers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--watch", type=Path, nargs=2, metavar=("LEDGER", "COUNT"))
    given = parser.parse_args()
    if given.watch:
        _watch(*given.watch)
        return
    for name, value in run(
        tasks=given.tasks, watchers=given.watchers, seconds=given.seconds
    ).items():
        print(f"{name:12} {value}")


if __name__ == "__main__":
    main()
