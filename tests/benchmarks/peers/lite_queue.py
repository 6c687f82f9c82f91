"""litequeue, one queue in SQLite (WAL)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks.peers import Step

LABEL = "litequeue (SQLite, WAL; commits not synced)"
NEEDS = "litequeue"
PER_S = 2000


def _queue(folder: Path) -> Any:
    from litequeue import LiteQueue

    return LiteQueue(str(folder / "queue.db"), timeout=60)


def create(folder: Path, tasks: int) -> None:
    queue = _queue(folder)
    for number in range(tasks):
        queue.put(str(number))
    queue.close()


def connect(folder: Path) -> Step:
    queue = _queue(folder)
    held: list[Any] = []

    def step() -> str | None:
        if held:
            queue.done(held.pop())
        message = queue.pop()
        if message is None:
            return None
        held.append(message.message_id)
        return str(message.data)

    return step
