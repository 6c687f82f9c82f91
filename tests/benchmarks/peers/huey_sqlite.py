"""huey's SQLite storage as its consumer uses it: a claim deletes the row, a result is stored."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.peers import Step

LABEL = "huey (SQLite; a claim deletes the row)"
NEEDS = "huey"
PER_S = 2000


def create(folder: Path, tasks: int) -> None:
    from huey.storage import SqliteStorage

    storage = SqliteStorage(filename=str(folder / "huey.db"))
    for number in range(tasks):
        storage.enqueue(b"%d" % number)
    storage.close()


def connect(folder: Path) -> Step:
    from huey.storage import SqliteStorage

    storage = SqliteStorage(filename=str(folder / "huey.db"), timeout=60)
    held: list[bytes] = []

    def step() -> str | None:
        if held:
            storage.put_data(held.pop(), b"done")
        found = storage.dequeue()
        if found is None:
            return None
        held.append(bytes(found))
        return bytes(found).decode()

    return step
