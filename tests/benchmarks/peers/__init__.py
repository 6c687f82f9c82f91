"""Other queues, each behind the same two functions in a small file of its own.

`create(folder, tasks)` makes so many waiting tasks. `connect(folder)` is called once in each
worker process and returns `step`: end the task in hand well, take the next, return its name, or
None when nothing waits. `LABEL` is for people, `NEEDS` names what must be importable, `PER_S` is
about how many tasks a second it may do at best, so that a round never runs dry. One that has a
server has `server(folder)`, too, the command that is one until it is terminated; `create` waits for
it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

Step = Callable[[], str | None]

NAMES = (
    "gpuledger_ledger",
    "sqlite_wal",
    "sqlite_rollback",
    "sqlite_flock",
    "huey_sqlite",
    "optuna_journal",
    "optuna_rdb",
    "jug_files",
    "persist_queue",
    "lite_queue",
    "orion_pickled",
    "labtasker_server",
    "ray_actor",
)
"""Modules of this package, in the order of the table."""


class Peer(Protocol):
    """What each of the modules has."""

    LABEL: str
    NEEDS: str | None
    PER_S: int

    def create(self, folder: Path, tasks: int) -> None: ...

    def connect(self, folder: Path) -> Step: ...


def load(name: str) -> Peer:
    """Return the adapter of that name; nothing of the peer itself is imported yet."""
    module: Peer = importlib.import_module(f"{__name__}.{name}")
    return module


def why_not(peer: Peer) -> str | None:
    """Return why a peer cannot be measured here, or None."""
    if peer.NEEDS is None or importlib.util.find_spec(peer.NEEDS) is not None:
        return None
    return f"{peer.NEEDS} is not installed (pip install '.[benchmarks]')"
