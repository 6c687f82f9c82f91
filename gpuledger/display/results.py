"""Draws what the tasks reported: one line each, parameters and metrics in columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from gpuledger.display.bars import STATE_STYLES
from gpuledger.display.cells import cut, flow
from gpuledger.display.drawing import Drawing
from gpuledger.display.grid import Cell, Column, grid, left_out, plain, whole
from gpuledger.display.text import number, one_line, several, value_text
from gpuledger.model import TaskState
from gpuledger.results import Group, Statistic, columns_of
from gpuledger.views import TaskRecord

PARAM_DIGITS = 6
VALUE_CELLS = 24


def results_table(
    records: Sequence[TaskRecord],
    *,
    metrics: Sequence[str] | None = None,
    width: int | None = None,
) -> RenderableType:
    """Return one line for each task: name, seed, parameters that differ, metrics.

    Parameters that are the same for all tasks stand above the table. The last metrics are left
    out when there is no room, and a line says how many.

    Args:
        records: The tasks.
        metrics: Only these, in this order; None means all.
        width: In cells; None means as wide as the console.
    """
    if metrics is None:
        metrics = _names(record.result or {} for record in records)
    return Drawing(draw=lambda cells: _lines(records, metrics, cells), width=width)


def groups_table(
    names: Sequence[str],
    groups: Sequence[Group],
    *,
    first: str | None = None,
    width: int | None = None,
) -> RenderableType:
    """Return one line for each group: its parameters, and `mean ± deviation` of each metric.

    A metric that fewer tasks have than have a result says of how many it speaks.

    Args:
        names: Of the parameters that make the groups.
        groups: In order.
        first: The metric that is left out last for want of room.
        width: In cells; None means as wide as the console.
    """
    return Drawing(draw=lambda cells: _group_lines(names, groups, first, cells), width=width)


def _group_lines(
    names: Sequence[str], groups: Sequence[Group], first: str | None, width: int
) -> list[Text]:
    if not groups:
        return [Text("no such task", style="dim")]
    columns = []
    for at, name in enumerate(names):
        texts = [value_text(group.values[at], digits=PARAM_DIGITS) for group in groups]
        columns.append(_column(name, [_value(text) for text in texts], rank=at))
    counts = [str(g.n) if g.n == g.total else f"{g.n}/{g.total}" for g in groups]
    columns.append(_column("n", [whole(text) for text in counts], rank=len(columns)))
    for name in sorted(groups[0].metrics, key=lambda name: name != first):
        cells = [whole(_mean(group.metrics[name], group.n)) for group in groups]
        columns.append(_column(name, cells, rank=len(columns)))
    return _fitted(columns, width)


def _mean(told: Statistic, n: int) -> str:
    if told.mean is None:
        return ""
    text = number(told.mean)
    text += f" ± {number(told.std, digits=2)}" if told.std is not None else ""
    return text if told.n == n else f"{text} (n={told.n})"


def _lines(records: Sequence[TaskRecord], metrics: Sequence[str], width: int) -> list[Text]:
    if not records:
        return [Text("no such task", style="dim")]
    differing, common = _told_apart(records)
    lines = flow([Text(text) for text in common], width)
    lines += [Text()] if lines else []
    return lines + _fitted(_columns(records, differing, metrics), width)


def _fitted(columns: Sequence[Column], width: int) -> list[Text]:
    """Return the lines of what fits, and how much does not."""
    lines = grid(columns, width=width)
    missing = left_out(columns, width=width)
    if missing:
        hint = f"… {several(missing, 'more column')}: gpuledger results --format csv"
        lines.append(Text(cut(hint, width), style="dim"))
    return lines


def _told_apart(records: Sequence[TaskRecord]) -> tuple[list[str], list[str]]:
    """Return the parameters with different values, and `name=value` of the others."""
    differing, common = [], []
    for name in _names(record.params for record in records):
        texts = {_param(record, name) for record in records}
        if len(texts) > 1 or len(records) == 1:
            differing.append(name)
        else:
            common.append(f"{one_line(name)}={texts.pop()}")
    return differing, common


def _columns(
    records: Sequence[TaskRecord], params: Sequence[str], metrics: Sequence[str]
) -> list[Column]:
    unfinished = any(record.state is not TaskState.COMPLETED for record in records)
    columns = [
        Column(
            heading="task",
            rank=0,
            cells=[plain(one_line(r.task), "bold", least=12, keep_end=6) for r in records],
        ),
        Column(
            heading="state",
            rank=1,
            cells=[
                whole(r.state.value, STATE_STYLES[r.state]) if unfinished else None for r in records
            ],
        ),
        Column(heading="seed", rank=2, cells=[whole(str(r.seed)) for r in records], right=True),
    ]
    every = columns_of(_names(record.params for record in records), metrics)
    headings = {(column.kind, column.key): column.name for column in every}
    for name in params:
        cells = [_value(_param(record, name)) for record in records]
        columns.append(_column(headings["param", name], cells, rank=len(columns)))
    for name in metrics:
        texts = [_text(record.result or {}, name, digits=4) for record in records]
        cells = [_value(text) for text in texts]
        columns.append(_column(headings["metric", name], cells, rank=len(columns)))
    return columns


def _column(name: str, cells: Sequence[Cell | None], *, rank: int) -> Column:
    return Column(heading=one_line(name, limit=VALUE_CELLS), rank=rank, cells=cells, right=True)


def _param(record: TaskRecord, name: str) -> str:
    return _text(record.params, name, digits=PARAM_DIGITS)


def _text(values: Mapping[str, Any], name: str, *, digits: int) -> str:
    return value_text(values[name], digits=digits) if name in values else ""


def _value(text: str) -> Cell | None:
    return plain(text, least=VALUE_CELLS)


def _names(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names in all mappings, each once, in the order of first sight."""
    names: dict[str, None] = {}
    for mapping in mappings:
        names.update(dict.fromkeys(mapping))
    return list(names)
