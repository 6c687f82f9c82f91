"""What a process per task costs over `xargs -P2`, end to end with `gpuledger work --slots 2`.

Two workloads: `python -c pass`, where everything but the task is overhead, and a script that
imports torch and works for 0.1 s, cold and (where this version knows `preload`) warm. Rounds of
xargs and gpuledger alternate. The time includes the workers' own start and end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpuledger import sweep_words
from tests.benchmarks.measure import spread

ROOT = Path(__file__).resolve().parent.parent.parent
WORKERS = 2

TORCH_TASK = """
import time
import torch

ended = time.perf_counter() + 0.1
while time.perf_counter() < ended:
    torch.ones(64, 64) @ torch.ones(64, 64)
"""


def run(*, rounds: int, tasks: int, torch_tasks: int, torch_python: str | None) -> dict[str, Any]:
    """Measure both workloads; the second only with a Python that has torch."""
    plain = [sys.executable, "-c", "pass"]
    figures: dict[str, Any] = {"python -c pass": _compare(plain, rounds=rounds, tasks=tasks)}
    if torch_python is None:
        return {**figures, "left_out": {"torch": "torch is not installed"}}
    with tempfile.TemporaryDirectory(prefix="gpuledger-bench-") as scratch:
        script = Path(scratch) / "task.py"
        script.write_text(TORCH_TASK, encoding="utf-8")
        command = [torch_python, str(script)]
        subprocess.run(command, check=True)  # its first import reads from the disk
        variants = {"cold": ""}
        if "preload" in sweep_words.RUN_KEYS:
            variants["warm"] = 'preload = ["torch"]'
        figures["import torch + 0.1 s"] = _compare(
            command, rounds=rounds, tasks=torch_tasks, variants=variants
        )
    return figures


def has_torch(python: str) -> bool:
    """Tell whether that interpreter can import torch."""
    found = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    return found.returncode == 0


def _compare(
    command: Sequence[str], *, rounds: int, tasks: int, variants: dict[str, str] | None = None
) -> dict[str, Any]:
    times: dict[str, list[float]] = {"xargs": []}
    for _ in range(rounds):
        times["xargs"].append(xargs_s(command, tasks))
        for name, extra in (variants or {"cold": ""}).items():
            times.setdefault(name, []).append(gpuledger_s(command, tasks, extra))
    ratios = {
        name: spread([mine / its for mine, its in zip(values, times["xargs"], strict=True)])
        for name, values in times.items()
        if name != "xargs"
    }
    return {
        "tasks": tasks,
        "workers": WORKERS,
        "seconds": {name: spread(values) for name, values in times.items()},
        "over_xargs": ratios,
    }


def xargs_s(command: Sequence[str], tasks: int) -> float:
    """Return how long `xargs` takes with two processes at a time."""
    numbers = "\n".join(str(number) for number in range(tasks))
    # With -L1 and a command that ignores its arguments, each line is one process.
    began = time.perf_counter()
    subprocess.run(
        ["xargs", f"-P{WORKERS}", "-L1", *command],
        input=numbers,
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def gpuledger_s(command: Sequence[str], tasks: int, run_keys: str) -> float:
    """Return how long `gpuledger work` takes for the same, from its start to its end."""
    with tempfile.TemporaryDirectory(prefix="gpuledger-bench-") as scratch:
        words = json.dumps(list(command))
        text = f"command = {words}\nseeds = {tasks}\n[run]\n{run_keys}\n"
        (Path(scratch) / "bench.toml").write_text(text, encoding="utf-8")
        _gpuledger(["init", "bench.toml"], scratch)
        began = time.perf_counter()
        _gpuledger(["work", "--cpu", "--slots", str(WORKERS)], scratch)
        took_s = time.perf_counter() - began
        counts = json.loads(_gpuledger(["status", "--json"], scratch))["counts"]
        assert counts["completed"] == tasks, counts
    return took_s


def _gpuledger(arguments: Sequence[str], folder: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gpuledger", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout
