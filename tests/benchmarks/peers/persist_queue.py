"""persist-queue's SQLite queue with acknowledgements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks.peers import Step

LABEL = "persist-queue (SQLite)"
NEEDS = "persistqueue"
PER_S = 2000


def _queue(folder: Path) -> Any:
    from persistqueue import SQLiteAckQueue

    # Each process finds what waits; resuming would take back what the others have.
    return SQLiteAckQueue(str(folder / "queue"), auto_commit=True, auto_resume=False, timeout=60)


def create(folder: Path, tasks: int) -> None:
    queue = _queue(folder)
    for number in range(tasks):
        queue.put(str(number))
    queue.close()


def connect(folder: Path) -> Step:
    from persistqueue.exceptions import Empty

    queue = _queue(folder)
    held: list[str] = []

    def step() -> str | None:
        if held:
            queue.ack(held.pop())
        try:
            found = str(queue.get_nowait())
        except Empty:
            return None
        held.append(found)
        return found

    return step
