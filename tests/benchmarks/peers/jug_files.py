"""Jug's file store, locked and loaded as its execution loop does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.peers import Step

LABEL = "Jug (files)"
NEEDS = "jug"
PER_S = 1000


def create(folder: Path, tasks: int) -> None:
    (folder / "count").write_text(str(tasks), encoding="utf-8")


def connect(folder: Path) -> Step:
    from jug.backends.file_store import file_store

    store = file_store(str(folder / "jugdata"))
    tasks = int((folder / "count").read_text(encoding="utf-8"))

    def run() -> Iterator[str]:
        for number in range(tasks):
            name = b"%040d" % number  # a hash of function and arguments, in Jug
            if store.can_load(name):
                continue
            lock = store.getlock(name)
            if not lock.get():
                continue
            if not store.can_load(name):
                yield str(number)
                store.dump(number, name)
            lock.release()

    running = run()
    return lambda: next(running, None)
