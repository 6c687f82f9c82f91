"""Reads the attempts' reports for the learning curves: a bounded amount, on common steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpuledger.display.text import one_line
from gpuledger.reports import read_spread
from gpuledger.views import TaskRecord

TASKS_READ = 400
BYTES_READ = 32 << 20
"""Of all files together: a few seconds."""

STEPS_SHOWN = 120
METRICS_SHOWN = 12

Points = dict[str, dict[float, float]]
"""By metric, the value at each step."""


def read_curves(records: Sequence[TaskRecord]) -> dict[str, Any]:
    """Return the reported numbers of some tasks over their steps.

    Of many tasks some points, evenly spread, are read with all their seeds; of long files evenly
    spread pieces. What was left out is said in `read`, `of` and `averaged`.

    Returns:
        `read` and `of`: tasks that were read, and that could have been. `metrics`: for each its
        `name`, its `steps`, `averaged` (how many steps' width became one, None when exact) and
        `curves`: pairs of a task's number in `records` and a value, or None, for each step.
    """
    started = [i for i, record in enumerate(records) if record.attempts]
    chosen = _spread(records, started)
    files = sum(len(records[i].attempts) for i in chosen)
    limit = max(BYTES_READ // files, 1 << 14) if files else 0
    found = {i: _points(records[i], limit) for i in chosen}
    names = list(dict.fromkeys(name for points in found.values() for name in points))
    return {
        "read": len(chosen),
        "of": len(started),
        "metrics": [_on_common_steps(name, found) for name in names[:METRICS_SHOWN]],
    }


def _spread(records: Sequence[TaskRecord], started: Sequence[int]) -> list[int]:
    """Return at most `TASKS_READ` of the tasks: every n-th point, with all its seeds."""
    points: dict[str, list[int]] = {}
    for i in started:
        points.setdefault(records[i].task.rpartition("_")[0], []).append(i)
    stride = math.ceil(len(started) / TASKS_READ) or 1
    return [i for point in list(points.values())[::stride] for i in point][:TASKS_READ]


def _points(record: TaskRecord, limit_bytes: int) -> Points:
    """Return the task's numbers over all attempts.

    An attempt that began at a step replaces what former attempts said from that step on: one
    that resumed continues their curve, one that began anew begins a new one.
    """
    points: Points = {}
    for attempt in record.attempts:
        this: Points = {}
        path = Path(attempt.log).with_suffix(".jsonl")
        for count, report in enumerate(read_spread(path, limit_bytes=limit_bytes)):
            step = float(count if report.step is None else report.step)
            for name, value in report.metrics.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    this.setdefault(name, {})[step] = float(value)
        if this:
            first = min(min(values) for values in this.values())
            for name in points:
                points[name] = {step: y for step, y in points[name].items() if step < first}
        for name, values in this.items():
            points.setdefault(name, {}).update(values)
    return {name: values for name, values in points.items() if values}


def _on_common_steps(name: str, found: dict[int, Points]) -> dict[str, Any]:
    """Return one metric's curves on the steps of all, or on evenly spread ones if they are many."""
    curves = {i: points[name] for i, points in found.items() if name in points}
    steps = sorted({step for values in curves.values() for step in values})
    width = None
    if len(steps) > STEPS_SHOWN:
        first, width = steps[0], (steps[-1] - steps[0]) / (STEPS_SHOWN - 1)
        steps = [first + i * width for i in range(STEPS_SHOWN)]
        curves = {i: _averaged(values, first, width) for i, values in curves.items()}
    return {
        "name": one_line(name, limit=100),
        "steps": [_short(step) for step in steps],
        "averaged": None if width is None else _short(width),
        "curves": [
            [i, [_short(values[step]) if step in values else None for step in steps]]
            for i, values in curves.items()
        ],
    }


def _averaged(values: dict[float, float], first: float, width: float) -> dict[float, float]:
    """Return the mean of the values around each of the common steps."""
    around: dict[float, list[float]] = {}
    for step, value in values.items():
        around.setdefault(first + round((step - first) / width) * width, []).append(value)
    return {step: math.fsum(some) / len(some) for step, some in around.items()}


def _short(value: float) -> float:
    """Return the value with six significant digits, which no chart can show more of."""
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
