"""Writes results as CSV, JSON or parquet: to standard output, or to a file whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpuledger.cli.output import finite, is_terminal
from gpuledger.cli.shapes import group_shape, result_shape, step_shape
from gpuledger.display.text import clean
from gpuledger.errors import BadUsage
from gpuledger.results import (
    Column,
    Group,
    best_of,
    columns_in,
    find_column,
    grouped,
    in_order,
    only_metrics,
    summed_up,
)
from gpuledger.steps import Step, steps_of, survey
from gpuledger.views import TaskRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the options of `gpuledger results` ask for; names as the user wrote them."""

    sort: str | None = None
    reverse: bool = False
    best: str | None = None
    smallest: bool = False
    by: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    steps: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What is printed: tasks, or groups of them.

    Attributes:
        records: In order, only the best if that was asked for.
        columns: Of a row for each.
        by: The columns that make a group.
        groups: None when a row is a task.
    """

    records: list[TaskRecord]
    columns: tuple[Column, ...]
    by: tuple[Column, ...] = ()
    groups: list[Group] | None = None

    @property
    def metric_keys(self) -> list[str]:
        """The metrics' own names."""
        return [column.key for column in self.columns if column.kind == "metric"]


def choose(records: list[TaskRecord], wanted: Wanted) -> Chosen:
    """Sort, sum up, or find the best; raise BadUsage for names that nothing has."""
    every = columns_in(records)
    if not records:
        return Chosen(
            records=[], columns=every, groups=[] if wanted.by and not wanted.best else None
        )
    by = tuple(find_column(every, name) for name in wanted.by)
    columns = only_metrics(every, wanted.metrics) if wanted.metrics else every
    if wanted.best is not None:
        records = _best(records, find_column(every, wanted.best), by, smallest=wanted.smallest)
    elif by:
        metrics = [column for column in columns if column.kind == "metric"]
        groups = summed_up(records, by, metrics)
        if wanted.sort is not None:
            groups = _sorted_groups(groups, by, every, wanted)
        return Chosen(records=records, columns=columns, by=by, groups=groups)
    if wanted.sort is not None:
        column = find_column(every, wanted.sort)
        order = in_order([column.value(record) for record in records], reverse=wanted.reverse)
        records = [records[index] for index in order]
    return Chosen(records=records, columns=columns)


def _best(
    records: list[TaskRecord], column: Column, by: Sequence[Column], *, smallest: bool
) -> list[TaskRecord]:
    found = []
    for indices in grouped(records, by):
        at = best_of([column.value(records[index]) for index in indices], smallest=smallest)
        if at is not None:
            found.append(records[indices[at]])
    return found


def _sorted_groups(
    groups: list[Group], by: Sequence[Column], every: Sequence[Column], wanted: Wanted
) -> list[Group]:
    """Sort by one of the parameters that make the groups, or by the mean of a metric."""
    column = find_column(every, wanted.sort or "")
    if column in by:
        values = [group.values[by.index(column)] for group in groups]
    elif column.kind == "metric":
        means = [group.metrics.get(column.name) for group in groups]
        values = [None if mean is None else mean.mean for mean in means]
    else:
        raise BadUsage(
            f"groups cannot be sorted by {column.name!r}, which is not the same within them",
            hint="sort by what stands after --by, or by a metric",
        )
    return [groups[index] for index in in_order(values, reverse=wanted.reverse)]


# --- writing ----------------------------------------------------------------------------------


@contextlib.contextmanager
def destination(path: Path | None) -> Iterator[BinaryIO]:
    """Give a file to write to; what is at `path` is replaced only when all was written.

    Raises:
        BadUsage: It cannot be written; what was there before is as it was.
    """
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        with _replacing(path) as file:
            yield file
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise BadUsage(
            f"{path} cannot be written: {reason}; it is as it was", hint="name another file"
        ) from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    target = path.resolve()
    if target.exists() and not target.is_file():  # a pipe, /dev/null
        with target.open("wb") as file:
            yield file
        return
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:80]}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.umask(umask := os.umask(0))  # mkstemp's file is for its owner alone
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~umask
        Path(name).chmod(mode)
        Path(name).replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def write(file: BinaryIO, format_: str, records: list[TaskRecord], wanted: Wanted) -> None:
    """Write what is wanted in `csv`, `json` or `parquet`."""
    if wanted.steps:
        table = _steps_table(records, wanted)
    else:
        chosen = choose(records, wanted)
        table = _tasks_table(chosen) if chosen.groups is None else _groups_table(chosen)
    if format_ == "json":
        _write_json(file, table.shapes())
    elif format_ == "csv":
        _write_csv(file, table)
    else:
        _write_parquet(file, table)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Names and rows; each is read anew every time it is asked for.

    Attributes:
        names: Of the columns.
        rows: Returns one value for each column, row by row.
        shapes: Returns what JSON prints instead, row by row.
    """

    names: Sequence[str]
    rows: Callable[[], Iterable[Sequence[Any]]]
    shapes: Callable[[], Iterable[Any]]


def _tasks_table(chosen: Chosen) -> Table:
    columns = chosen.columns
    metrics = set(chosen.metric_keys)
    return Table(
        names=[column.name for column in columns],
        rows=lambda: ([c.value(record) for c in columns] for record in chosen.records),
        shapes=lambda: (result_shape(record, metrics) for record in chosen.records),
    )


def _groups_table(chosen: Chosen) -> Table:
    groups = chosen.groups or []
    metrics = list(groups[0].metrics) if groups else []
    parts = [f"{name}.{part}" for name in metrics for part in ("mean", "std", "n")]

    def row(group: Group) -> list[Any]:
        numbers = [group.metrics[name] for name in metrics]
        return [
            *group.values,
            group.n,
            *(part for one in numbers for part in (one.mean, one.std, one.n)),
        ]

    names = [column.name for column in chosen.by]
    return Table(
        names=[*names, "tasks" if "n" in names else "n", *parts],
        rows=lambda: (row(group) for group in groups),
        shapes=lambda: (group_shape(names, group) for group in groups),
    )


def _steps_table(records: list[TaskRecord], wanted: Wanted) -> Table:
    surveyed = survey(records)
    columns = surveyed.columns
    if wanted.metrics and records:
        columns = only_metrics(columns, wanted.metrics)
    keys = {column.key for column in columns if column.kind == "metric"}

    def steps() -> Iterator[Step]:
        """Leave out reports without any of the metrics asked for."""
        for step in steps_of(records, surveyed):
            if not wanted.metrics or keys & set(step.metrics):
                yield step

    return Table(
        names=[column.name for column in columns],
        rows=lambda: ([step.value(column) for column in columns] for step in steps()),
        shapes=lambda: (step_shape(step, keys) for step in steps()),
    )


def _write_csv(file: BinaryIO, table: Table) -> None:
    """Write RFC 4180, but with LF; to a terminal without control characters."""
    show = clean if file is sys.stdout.buffer and is_terminal() else str
    file.write(_csv_line(table.names, show))
    for values in table.rows():
        file.write(_csv_line(values, show))


def _csv_line(values: Sequence[Any], show: Callable[[str], str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_NONNUMERIC, lineterminator="").writerow(
        [_cell(value) for value in values]
    )
    return (show(line.getvalue()) + "\n").encode("utf-8", "backslashreplace")


def _cell(value: Any) -> Any:
    """Return a number or a text; structures become JSON, None an empty cell."""
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value)
    return value


def _write_json(file: BinaryIO, shapes: Iterable[Any]) -> None:
    """Write one list, an element a line; numbers that JSON does not know (NaN) become null."""
    file.write(b"[")
    separator = b"\n"
    for shape in shapes:
        try:
            text = json.dumps(shape, allow_nan=False)
        except ValueError:
            text = json.dumps(finite(shape), allow_nan=False)
        file.write(separator + text.encode())
        separator = b",\n"
    file.write(b"\n]\n" if separator == b",\n" else b"]\n")


def _write_parquet(file: BinaryIO, table: Table) -> None:
    """Write parquet; rows are read twice, since the types must be known before the first."""
    from gpuledger.parquet import ColumnTypes, write_parquet

    types = ColumnTypes(len(table.names))
    for row in table.rows():
        types.see(row)
    if file is not sys.stdout.buffer:
        write_parquet(file, table.names, types.types(), table.rows())
        return
    with tempfile.TemporaryFile() as whole:  # its end is written at places a pipe cannot go to
        write_parquet(whole, table.names, types.types(), table.rows())
        whole.seek(0)
        shutil.copyfileobj(whole, file)
