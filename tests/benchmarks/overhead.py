"""What a process per task costs over `xargs -P2`, end to end with `gpuledger work --slots 2`.

Two workloads: `python -c pass`, where everything but the task is overhead, and a script that
imports torch and works for 0.1 s, cold and warm. Rounds of xargs and gpuledger alternate. The time
includes the workers' own start and end. A bare loop of `subprocess.run` in each of two Python
processes, which keeps nothing of what it ran, is the least that any program in Python takes. Warm,
many more tasks are run than xargs can wait for: its time is taken times as many. The idle gap is
from the script's last line to the first one of the next on the same worker, by the scripts' own
clock.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import spread

ROOT = Path(__file__).resolve().parent.parent.parent
WORKERS = 2
TIMES_AS_MANY = 10
RUN_KEYS = {"cold": "", "warm": 'preload = ["torch"]'}

TORCH_TASK = """
import os, time
began = time.time()
import torch

ended = time.perf_counter() + 0.1
while time.perf_counter() < ended:
    torch.ones(64, 64) @ torch.ones(64, 64)
if "GPULEDGER_WORKER" in os.environ:
    with open(__file__ + ".times", "a") as file:
        file.write(f"{os.environ['GPULEDGER_WORKER']} {began} {time.time()}\\n")
"""


def run(*, rounds: int, tasks: int, torch_tasks: int, torch_python: str | None) -> dict[str, Any]:
    """Measure both workloads; the second only with a Python that has torch."""
    plain = [sys.executable, "-c", "pass"]
    counts = {"cold": tasks, "bare": tasks, "xargs": tasks}
    figures: dict[str, Any] = {"python -c pass": _compare(plain, rounds=rounds, counts=counts)}
    if torch_python is None:
        return {**figures, "left_out": {"torch": "torch is not installed"}}
    with tempfile.TemporaryDirectory(prefix="gpuledger-bench-") as scratch:
        script = Path(scratch) / "task.py"
        script.write_text(TORCH_TASK, encoding="utf-8")
        command = [torch_python, str(script)]
        subprocess.run(command, check=True)  # its first import reads from the disk
        counts = {"xargs": torch_tasks, "cold": torch_tasks, "warm": TIMES_AS_MANY * torch_tasks}
        found = _compare(
            command, rounds=rounds, counts=counts, times=script.with_suffix(".py.times")
        )
    return {**figures, "import torch + 0.1 s": found}


def has_torch(python: str) -> bool:
    """Tell whether that interpreter can import torch."""
    found = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    return found.returncode == 0


def _compare(
    command: Sequence[str], *, rounds: int, counts: Mapping[str, int], times: Path | None = None
) -> dict[str, Any]:
    """Run so many tasks each way, in turn; `times` is where the tasks note when they ran."""
    kinds = [kind for kind in counts if kind != "xargs"]
    took: dict[str, list[float]] = {kind: [] for kind in counts}
    gaps: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        took["xargs"].append(xargs_s(command, counts["xargs"]))
        for kind in kinds:
            if kind == "bare":
                took[kind].append(bare_s(command, counts[kind]))
                continue
            took[kind].append(gpuledger_s(command, counts[kind], RUN_KEYS[kind]))
            if times is not None:
                gaps[kind] += _gaps_ms(times)
                times.unlink()
    ratios = {
        kind: spread(
            [
                mine / (its * counts[kind] / counts["xargs"])
                for mine, its in zip(took[kind], took["xargs"], strict=True)
            ]
        )
        for kind in kinds
    }
    return {
        "tasks": counts,
        "workers": WORKERS,
        "seconds": {kind: spread(values) for kind, values in took.items()},
        "over_xargs": ratios,
        "gap_ms": {kind: spread(values) for kind, values in gaps.items() if values},
    }


def _gaps_ms(times: Path) -> list[float]:
    """Return how long each worker's GPU had nothing to do between two tasks."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for line in times.read_text(encoding="utf-8").splitlines():
        worker, began, ended = line.split()
        spans.setdefault(worker, []).append((float(began), float(ended)))
    return [
        1000 * (after[0] - before[1])
        for of_one in spans.values()
        for before, after in itertools.pairwise(sorted(of_one))
    ]


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


def bare_s(command: Sequence[str], tasks: int) -> float:
    """Return how long it takes in as many Python processes that do nothing else."""
    program = f"import subprocess\nfor _ in range({tasks // WORKERS}): subprocess.run({command!r})"
    began = time.perf_counter()
    loops = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(WORKERS)]
    assert [loop.wait() for loop in loops] == [0] * WORKERS
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
