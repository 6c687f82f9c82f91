"""One table in SQLite and nothing around it: the floor under everything that uses SQLite.

Completing and claiming are one transaction, synced to the disk, without leases, attempts, events
or names: what a queue cannot do without.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.peers import Step

BUSY_S = 60.0


def create_with(folder: Path, tasks: int, *, journal: str) -> None:
    db = sqlite3.connect(folder / "bare.db", isolation_level=None)
    db.execute(f"PRAGMA journal_mode = {journal}")
    db.execute("CREATE TABLE task (id INTEGER PRIMARY KEY, state INTEGER NOT NULL)")
    db.execute("CREATE INDEX waiting ON task (state, id)")
    db.execute("BEGIN")
    db.executemany("INSERT INTO task VALUES (?, 0)", ((n,) for n in range(tasks)))
    db.execute("COMMIT")
    db.close()


def connect_with(folder: Path, *, behind_flock: bool = False) -> Step:
    db = sqlite3.connect(folder / "bare.db", isolation_level=None, timeout=BUSY_S)
    db.execute("PRAGMA synchronous = FULL")
    lock = os.open(folder / "bare.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    held: list[int] = []

    def step() -> str | None:
        with _locked(lock if behind_flock else None):
            db.execute("BEGIN IMMEDIATE")
            if held:
                db.execute("UPDATE task SET state = 2 WHERE id = ?", (held.pop(),))
            row = db.execute("SELECT id FROM task WHERE state = 0 ORDER BY id LIMIT 1").fetchone()
            if row is not None:
                db.execute("UPDATE task SET state = 1 WHERE id = ?", row)
                held.append(row[0])
            db.execute("COMMIT")
        return None if row is None else str(row[0])

    return step


@contextmanager
def _locked(descriptor: int | None) -> Iterator[None]:
    if descriptor is None:
        yield
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
