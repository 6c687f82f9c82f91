"""Reads what a script reported: one JSON object a line, the last line maybe torn."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TAIL_BYTES = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Reported values; None means never reported."""

    step: float | None = None
    total: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


def read_last(path: Path) -> Report | None:
    """Return the last value of everything in the file's end; None when there is nothing."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - TAIL_BYTES, 0))
            lines = file.read(TAIL_BYTES).split(b"\n")
    except OSError:
        return None
    report = None
    for line in lines:
        one = _parse(line)
        if one is not None:
            report = one if report is None else _merged(report, one)
    return report


def read_all(path: Path) -> Iterator[Report]:
    """Yield every report of a file, in order; what cannot be read is left out."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        for line in file:
            one = _parse(line)
            if one is not None:
                yield one


def _merged(before: Report, after: Report) -> Report:
    return Report(
        step=before.step if after.step is None else after.step,
        total=before.total if after.total is None else after.total,
        metrics={**before.metrics, **after.metrics},
    )


def _parse(line: bytes) -> Report | None:
    try:
        values = json.loads(line)
        metrics = values.get("metrics", {})
        step, total = values.get("step"), values.get("total")
    except (ValueError, AttributeError, RecursionError):
        return None
    if not isinstance(metrics, dict):
        return None
    return Report(step=_number(step), total=_number(total), metrics=metrics)


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
