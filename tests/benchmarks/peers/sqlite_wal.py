"""SQLite alone, WAL (one machine only); see `sqlite_bare`."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.peers import Step
from tests.benchmarks.peers.sqlite_bare import connect_with, create_with

LABEL = "SQLite alone, WAL (one machine only)"
NEEDS = None
PER_S = 3000


def create(folder: Path, tasks: int) -> None:
    create_with(folder, tasks, journal="WAL")


def connect(folder: Path) -> Step:
    return connect_with(folder)
