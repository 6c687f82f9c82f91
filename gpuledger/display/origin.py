"""Draws what the last attempt of a task came from: code, command, machine, packages."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from gpuledger.display.cells import fold
from gpuledger.display.drawing import Drawing
from gpuledger.display.text import duration, one_line, several
from gpuledger.origin import Origin, Packages
from gpuledger.views import AttemptRecord, TaskRecord

LONGEST_VALUE = 8192


def origin_detail(
    record: TaskRecord, packages: Mapping[str, Packages], *, diffs: Path, width: int | None = None
) -> RenderableType:
    """Return what the last attempt whose origin is known came from.

    Args:
        record: The task.
        packages: By digest, those of its environments.
        diffs: Folder of the differences.
        width: In cells; None means as wide as the console.
    """
    return Drawing(draw=lambda cells: _lines(record, packages, diffs, cells), width=width)


def _lines(
    record: TaskRecord, packages: Mapping[str, Packages], diffs: Path, width: int
) -> list[Text]:
    known = [attempt for attempt in record.attempts if attempt.origin is not None]
    lines = _folded(one_line(record.task), width, "bold")
    if not known or known[-1].origin is None:
        why = "no attempt has ended yet" if record.attempts else "it has no attempt yet"
        if any(attempt.outcome is not None for attempt in record.attempts):
            why = "its worker did not tell"
        return [*lines, *_folded(f"what it came from is not known: {why}", width)]
    last, origin = known[-1], known[-1].origin
    lines += _folded(_title(last), width, "dim")
    lines += _named(_facts(origin, diffs), width)
    lines += _section("variables", origin.variables, width)
    found = packages.get(origin.environment or "")
    if found is not None:
        heading = f"{several(len(found.versions), 'package')}, environment {origin.environment}"
        lines += _section(heading, found.versions, width)
    return lines


def _title(attempt: AttemptRecord) -> str:
    return f"attempt {attempt.number} on {one_line(attempt.worker)}"


def _facts(origin: Origin, diffs: Path) -> dict[str, str]:
    facts = {
        "command": shlex.join(origin.argv),
        "folder": origin.workdir,
        "commit": _commit(origin),
        "diff": _diff(origin, diffs),
        "git": origin.git_problem,
        "host": origin.host,
        "python": " ".join(part for part in (origin.interpreter, origin.python) if part),
        "GPUs": ", ".join(origin.gpus),
        "driver": origin.driver,
    }
    return {name: value for name, value in facts.items() if value}


def _commit(origin: Origin) -> str | None:
    if origin.commit is None:
        return None
    state = {True: ", with changes", False: ", without changes", None: ""}[origin.dirty]
    age = f" ({duration(origin.git_age_s)} before it started)" if origin.git_age_s >= 1 else ""
    return f"{origin.commit}{state}{age}"


def _diff(origin: Origin, diffs: Path) -> str | None:
    if origin.diff is None:
        return None
    return f"{diffs / origin.diff}.diff{' (cut)' if origin.diff_cut else ''}"


def _section(heading: str, values: Mapping[str, str], width: int) -> list[Text]:
    if not values:
        return []
    return [*_folded(one_line(heading), width, "dim"), *_named(values, width)]


def _named(values: Mapping[str, str], width: int) -> list[Text]:
    """Return a name and its value in each line; long ones are folded, nothing is cut."""
    names = [one_line(str(name), limit=60) for name in values]
    longest = min(max((len(name) for name in names), default=0), max(width // 3, 1))
    lines = []
    for name, value in zip(names, values.values(), strict=True):
        shown = one_line(str(value), limit=LONGEST_VALUE)
        lines += _folded(f"  {name.ljust(longest)}  {shown}", width)
    return lines


def _folded(text: str, width: int, style: str = "") -> list[Text]:
    return [Text(piece, style=style) for piece in fold(text, width)]
