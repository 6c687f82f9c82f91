"""What every part of the benchmarks needs: medians with their spread, and what they ran on."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PEERS = (
    "huey",
    "jug",
    "labtasker",
    "litequeue",
    "optuna",
    "orion",
    "persist-queue",
    "ray",
    "sqlalchemy",
    "torch",
)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the median, the smallest, the largest and how many there were."""
    return {
        "median": round(statistics.median(values), 5),
        "low": round(min(values), 5),
        "high": round(max(values), 5),
        "n": len(values),
    }


def timed_ms(operation: Callable[[], object]) -> float:
    """Return how many milliseconds one call took."""
    began = time.perf_counter()
    operation()
    return 1000 * (time.perf_counter() - began)


def machine() -> dict[str, Any]:
    """Return what the figures depend on; nothing that names the machine or its users."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "load_before": round(os.getloadavg()[0], 1),
    }


def versions() -> dict[str, str]:
    """Return the versions of gpuledger and of the peers that are installed."""
    found = {}
    for name in ("gpuledger", *PEERS):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def reference_ms(folder: Path, *, rounds: int = 50) -> dict[str, Any]:
    """Return what the disk does now: a 4 KiB write with fsync, and a commit of bare SQLite."""
    descriptor = os.open(folder / "reference", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:

        def write() -> None:
            os.pwrite(descriptor, b"x" * 4096, 0)
            os.fsync(descriptor)

        fsync = [timed_ms(write) for _ in range(rounds)]
    finally:
        os.close(descriptor)
    return {
        "fsync_4k_ms": spread(fsync),
        "commit_wal_ms": spread(_commits(folder, "WAL", rounds)),
        "commit_rollback_ms": spread(_commits(folder, "DELETE", rounds)),
    }


def _commits(folder: Path, journal: str, rounds: int) -> list[float]:
    path = folder / f"reference-{journal}.db"
    path.unlink(missing_ok=True)
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute(f"PRAGMA journal_mode = {journal}")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
        return [timed_ms(lambda: db.execute("INSERT INTO t (x) VALUES (1)")) for _ in range(rounds)]
    finally:
        db.close()
