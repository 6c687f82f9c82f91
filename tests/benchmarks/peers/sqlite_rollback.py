"""SQLite alone, rollback journal; see `sqlite_bare`."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.peers import Step
from tests.benchmarks.peers.sqlite_bare import connect_with, create_with

LABEL = "SQLite alone, rollback journal"
NEEDS = None
PER_S = 1500


def create(folder: Path, tasks: int) -> None:
    create_with(folder, tasks, journal="DELETE")


def connect(folder: Path) -> Step:
    return connect_with(folder)
