"""Reads what a script reported: one JSON object a line, the last line maybe torn."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TAIL_BYTES = 65536
PIECES = 32
"""Of a file that is too long to be read whole."""

DEEPEST = 32
"""Levels of a metric's value: whoever copies or writes one needs several frames for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Reported values.

    Attributes:
        step: A finite number; None means never reported.
        total: The same.
        metrics: By name; NaN and infinities are the texts "NaN", "Infinity" and "-Infinity".
    """

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
    """Yield every report of a file, in order; what cannot be read is left out.

    A line longer than any that `gpuledger.report` writes is never held in memory as a whole.
    """
    with contextlib.suppress(OSError), path.open("rb") as file:
        for line in iter(lambda: file.readline(TAIL_BYTES), b""):
            one = _parse(line)
            if one is not None:
                yield one


def read_spread(path: Path, *, limit_bytes: int) -> Iterator[Report]:
    """Yield the reports of a file; of one longer than the limit, those of pieces of it.

    The pieces are evenly spread, the first and the last included, and as long as the limit
    together. A line longer than a piece is left out.
    """
    with contextlib.suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        pieces = 1 if size <= limit_bytes else PIECES
        length = min(size, limit_bytes) // pieces
        for number in range(pieces):
            file.seek(number * (size - length) // max(pieces - 1, 1))
            # A piece begins and ends anywhere; a part of a line is never an object by itself.
            for line in file.read(length).split(b"\n"):
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
        values = json.loads(line, parse_constant=str, parse_float=_float, parse_int=_int)
        metrics = values.get("metrics", {})
        step, total = values.get("step"), values.get("total")
    except (ValueError, AttributeError, RecursionError):
        return None
    if not isinstance(metrics, dict) or _depth(metrics) > DEEPEST + 1:
        return None
    return Report(step=_number(step), total=_number(total), metrics=metrics)


def _float(text: str) -> float | str:
    """Return a float that strict JSON can carry on, or the text that stands for it."""
    value = float(text)
    return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")


def _int(text: str) -> int | float | str:
    """Return a whole number; one that no float can hold, as a float would be."""
    value = int(text)
    try:
        float(value)
    except OverflowError:
        return _float(text)
    return value


def _depth(value: object) -> int:
    """Return how many levels a JSON value has: 0 for a number or a text."""
    depth, level = 0, [value]
    while level := [
        inner
        for outer in level
        if isinstance(outer, dict | list)
        for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        depth += 1
    return depth


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 2**63 else None
