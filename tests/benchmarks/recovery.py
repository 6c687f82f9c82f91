"""How long after a worker's SIGKILL its task runs again: on the same host, and on another.

The other host is a pretended one (`GPULEDGER_HOST`), so that only the liveness file tells it of the
death; the lease is short and its length is taken off the figure.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpuledger.ledger import Ledger
from gpuledger.sweep import read_sweep
from tests.benchmarks.measure import spread

ROOT = Path(__file__).resolve().parent.parent.parent
LEASE_S = 6.0
HEARTBEAT_S = 0.5
DEFAULT_LEASE_S, DEFAULT_HEARTBEAT_S = 60.0, 5.0
PATIENCE_S = 60.0

TASK = """
import os, sys, time
with open(sys.argv[1], "a") as file:
    file.write("%r\\n" % time.monotonic())
time.sleep(300)
"""


def run(*, rounds: int) -> dict[str, Any]:
    """Measure both, in turn."""
    here, there = [], []
    for _ in range(rounds):
        here.append(recovery_s(LEASE_S, HEARTBEAT_S, second_host="one"))
        there.append(recovery_s(LEASE_S, HEARTBEAT_S, second_host="two") - LEASE_S)
    return {
        "lease_s": LEASE_S,
        "heartbeat_s": HEARTBEAT_S,
        "same_host_s": spread(here),
        "other_host_after_lease_s": spread(there),
    }


def run_with_default_lease(*, rounds: int) -> dict[str, Any]:
    """Measure the other host with the lease and heartbeat that a ledger has if not told."""
    values = [
        recovery_s(DEFAULT_LEASE_S, DEFAULT_HEARTBEAT_S, second_host="two") - DEFAULT_LEASE_S
        for _ in range(rounds)
    ]
    return {
        "lease_s": DEFAULT_LEASE_S,
        "heartbeat_s": DEFAULT_HEARTBEAT_S,
        "other_host_after_lease_s": spread(values),
    }


def recovery_s(lease_s: float, heartbeat_s: float, *, second_host: str) -> float:
    """Return the seconds from the SIGKILL of a worker to the next start of its task."""
    with tempfile.TemporaryDirectory(prefix="gpuledger-bench-") as scratch:
        folder = Path(scratch)
        script, starts = folder / "task.py", folder / "starts"
        script.write_text(TASK, encoding="utf-8")
        command = json.dumps([sys.executable, str(script), str(starts)])
        (folder / "r.toml").write_text(f"command = {command}\n", encoding="utf-8")
        ledger = Ledger.create(folder / ".gpuledger", lease_s=lease_s, heartbeat_s=heartbeat_s)
        ledger.add_sweep(read_sweep(folder / "r.toml"))
        with _worker(folder, "one") as first:
            _times(starts, 1)
            with _worker(folder, second_host):
                _until(lambda: len(ledger.live_workers()) == 2)
                time.sleep(2 * heartbeat_s + 1.0)  # it has looked around, and waits
                first.kill()
                killed_s = time.monotonic()
                return _times(starts, 2, lease_s)[1] - killed_s


@contextlib.contextmanager
def _worker(folder: Path, host: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "gpuledger", "work", "--cpu", "--wait"],
        cwd=folder,
        env={**os.environ, "GPULEDGER_HOST": host, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _times(file: Path, count: int, extra_s: float = 0.0) -> list[float]:
    def lines() -> list[str]:
        return file.read_text(encoding="ascii").splitlines() if file.exists() else []

    _until(lambda: len(lines()) >= count, extra_s)
    return [float(line) for line in lines()]


def _until(condition: Any, extra_s: float = 0.0) -> None:
    deadline = time.monotonic() + PATIENCE_S + extra_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
