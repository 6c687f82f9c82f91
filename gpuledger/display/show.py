"""Draws one task whole: its parameters, its attempts, and what went wrong at last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from gpuledger.display.bars import STATE_STYLES
from gpuledger.display.cells import fold
from gpuledger.display.drawing import Drawing
from gpuledger.display.gpus import peak
from gpuledger.display.grid import Cell, Column, grid, plain, whole
from gpuledger.display.highlight import highlight
from gpuledger.display.text import JOINERS, clean, duration, exact_text, instant, one_line, several
from gpuledger.model import Outcome
from gpuledger.views import AttemptRecord, TaskRecord

OUTCOME_STYLES: Mapping[Outcome | None, str] = {
    None: "cyan",
    Outcome.COMPLETED: "green",
    Outcome.FAILED: "red",
    Outcome.OOM: "red",
    Outcome.TIMED_OUT: "red",
    Outcome.LOST: "yellow",
    Outcome.INTERRUPTED: "yellow",
    Outcome.CANCELLED: "dim",
}


def task_detail(
    record: TaskRecord, *, why: Sequence[str] = (), width: int | None = None
) -> RenderableType:
    """Return everything about a task; nothing of its traceback is cut, long lines are folded.

    Args:
        record: The task.
        why: Sentences that say why it does not run.
        width: In cells; None means as wide as the console.
    """
    return Drawing(draw=lambda cells: detail_lines(record, why, width=cells), width=width)


def detail_lines(record: TaskRecord, why: Sequence[str] = (), *, width: int) -> list[Text]:
    """Return the lines of `task_detail`."""
    lines = _facts(record, why, width)
    if record.attempts:
        lines += [Text(), *_attempt_lines(record.attempts, width)]
    told = [attempt for attempt in record.attempts if attempt.traceback]
    if told:
        lines += [Text(), *_traceback_lines(told[-1], width)]
    return lines


def _facts(record: TaskRecord, why: Sequence[str], width: int) -> list[Text]:
    state = Text().append(record.state.value, style=f"bold {STATE_STYLES[record.state]}")
    state.append(_tries(record))
    lines = [*_folded(one_line(record.task), width, "bold"), state]
    for sentence in why:
        lines += _folded(f"  {one_line(sentence)}", width, "yellow")
    facts: dict[str, Any] = {"sweep": record.sweep, "seed": record.seed, "folder": record.folder}
    if record.priority:
        facts["priority"] = record.priority
    if record.timeout_s is not None:
        facts["timeout"] = duration(record.timeout_s)
    groups = [facts, record.params, record.result or {}]
    names = ["", "parameters", "result"]
    for heading, group in zip(names, groups, strict=True):
        if heading and group:
            lines.append(Text(heading, style="dim"))
        lines += _named(group, width)
    return lines


def _tries(record: TaskRecord) -> str:
    parts = []
    if record.failures:
        parts.append(f"{record.failures} of {several(record.max_attempts, 'attempt')} failed")
    if record.losses:
        parts.append(f"lost {several(record.losses, 'time')}")
    return f"  {', '.join(parts)}" if parts else ""


def _named(values: Mapping[str, Any], width: int) -> list[Text]:
    """Return a name and its value, unrounded, in each line."""
    names = [one_line(str(name), limit=60) for name in values]
    longest = min(max((len(name) for name in names), default=0), max(width // 3, 1))
    lines = []
    for name, value in zip(names, values.values(), strict=True):
        lines += _folded(f"  {name.ljust(longest)}  {exact_text(value)}", width)
    return lines


def _attempt_lines(attempts: Sequence[AttemptRecord], width: int) -> list[Text]:
    columns = [
        Column(heading="try", rank=0, cells=[whole(str(a.number)) for a in attempts], right=True),
        Column(heading="outcome", rank=1, cells=[_outcome(attempt) for attempt in attempts]),
        Column(heading="exit", rank=4, cells=[_exit(attempt) for attempt in attempts]),
        Column(
            heading="worker",
            rank=2,
            cells=[plain(one_line(a.worker), least=11, keep_end=6) for a in attempts],
        ),
        Column(heading="started", rank=6, cells=[whole(instant(a.started_at)) for a in attempts]),
        Column(
            heading="time",
            rank=5,
            cells=[whole(duration(a.duration_s)) for a in attempts],
            right=True,
        ),
        Column(heading="peak mem", rank=7, cells=[whole(peak(a)) for a in attempts], right=True),
        Column(
            heading="error",
            rank=3,
            cells=[plain(one_line(a.error or ""), least=30) for a in attempts],
        ),
    ]
    lines = grid(columns, width=width)
    for attempt in attempts:
        if attempt.place:
            lines += _folded(f"try {attempt.number}: {one_line(attempt.place)}", width, "dim")
    return [*lines, *_folded(f"log of the last one: {one_line(attempts[-1].log)}", width, "dim")]


def _outcome(attempt: AttemptRecord) -> Cell | None:
    text = "running" if attempt.outcome is None else attempt.outcome.value
    return whole(text, OUTCOME_STYLES[attempt.outcome])


def _exit(attempt: AttemptRecord) -> Cell | None:
    if attempt.signal is not None:
        return whole(f"signal {attempt.signal}")
    return None if attempt.exit_code is None else whole(str(attempt.exit_code))


def _traceback_lines(attempt: AttemptRecord, width: int) -> list[Text]:
    title = f"attempt {attempt.number} on {one_line(attempt.worker)} ended with:"
    lines = _folded(title, width, "dim")
    for line in (attempt.traceback or "").rstrip().splitlines():
        safe = JOINERS.sub("", clean(line).expandtabs(4))
        lines += [highlight(piece) for piece in fold(safe, width)]
    return lines


def _folded(text: str, width: int, style: str = "") -> list[Text]:
    return [Text(piece, style=style) for piece in fold(text, width)]
