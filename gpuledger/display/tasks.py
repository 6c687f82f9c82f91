"""Draws a list of tasks, one line each."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from gpuledger.display.bars import STATE_STYLES
from gpuledger.display.drawing import Drawing
from gpuledger.display.grid import Cell, Column, grid, pieces, plain, whole
from gpuledger.display.text import duration, metric_texts, one_line, value_text
from gpuledger.model import TaskState
from gpuledger.views import AttemptRecord, TaskRecord

PARAM_DIGITS = 6


def tasks_table(records: Sequence[TaskRecord], *, width: int | None = None) -> RenderableType:
    """Return one line for each task; `width` in cells, None means as wide as the console."""
    return Drawing(draw=lambda cells: task_lines(records, width=cells), width=width)


def task_lines(records: Sequence[TaskRecord], *, width: int) -> list[Text]:
    """Return the headings and a line for each task; one line that says so for none."""
    if not records:
        return [Text("no such task", style="dim")]
    return grid(_columns(records), width=width)


def _columns(records: Sequence[TaskRecord]) -> list[Column]:
    last = [record.attempts[-1] if record.attempts else None for record in records]
    return [
        Column(
            heading="task",
            rank=0,
            cells=[plain(one_line(r.task), "bold", least=12, keep_end=6) for r in records],
        ),
        Column(
            heading="state",
            rank=1,
            cells=[whole(r.state.value, STATE_STYLES[r.state]) for r in records],
        ),
        Column(heading="failed", rank=2, cells=[_tries(record) for record in records]),
        Column(
            heading="worker",
            rank=5,
            cells=[plain(one_line(a.worker), least=11, keep_end=6) if a else None for a in last],
        ),
        Column(heading="time", rank=6, cells=[_time(a) for a in last], right=True),
        Column(heading="parameters", rank=4, cells=[_params(record) for record in records]),
        Column(heading="said last", rank=3, cells=[_said(record) for record in records]),
    ]


def _tries(record: TaskRecord) -> Cell | None:
    if not record.failures and not record.losses:
        return None
    text = f"{record.failures}/{record.max_attempts}"
    lost = f" +{record.losses} lost" if record.losses else ""
    return whole(text + lost, "yellow")


def _time(attempt: AttemptRecord | None) -> Cell | None:
    return None if attempt is None else whole(duration(attempt.duration_s))


def _params(record: TaskRecord) -> Cell | None:
    texts = [
        f"{one_line(name)}={value_text(value, digits=PARAM_DIGITS)}"
        for name, value in record.params.items()
    ]
    return plain(" ".join(texts), least=16)


def _said(record: TaskRecord) -> Cell | None:
    """Return what came out, or why not."""
    if record.state is TaskState.COMPLETED:
        return pieces([Text(text) for text in metric_texts(record.result or {})])
    return plain(one_line(record.last_error or ""), "red", least=16)
