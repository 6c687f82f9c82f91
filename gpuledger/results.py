"""What tasks reported, as rows: columns, order, the best, and groups over seeds.

Nothing here reads or writes. A value is what JSON carries; where one is compared as a number, the
texts "NaN", "Infinity" and "-Infinity", by which reports carry them, are numbers, too.
"""

from __future__ import annotations

import difflib
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpuledger.errors import BadUsage
from gpuledger.views import TaskRecord

FACTS = ("task", "sweep", "state", "seed")
"""The first columns of every table of tasks."""

NUMBERS: Mapping[str, float] = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Value = Callable[[TaskRecord], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table of tasks.

    Attributes:
        name: Different from all others: `param.NAME` and `metric.NAME` where names meet.
        kind: `fact`, `param` or `metric`.
        key: The name of the parameter or metric itself.
    """

    name: str
    kind: str
    key: str

    def value(self, record: TaskRecord) -> Any:
        """Return what stands in the task's row; None when it has no such thing."""
        if self.kind == "param":
            return record.params.get(self.key)
        if self.kind == "metric":
            return (record.result or {}).get(self.key)
        return str(record.state) if self.key == "state" else getattr(record, self.key)


def columns_of(
    params: Iterable[str], metrics: Iterable[str], *, facts: Sequence[str] = FACTS
) -> tuple[Column, ...]:
    """Return the columns of a table with these parameters and metrics, their names told apart."""
    columns = [Column(name=name, kind="fact", key=name) for name in facts]
    taken = set(facts)
    for kind, keys in (("param", params), ("metric", metrics)):
        new = [
            Column(name=f"{kind}.{key}" if key in taken else key, kind=kind, key=key)
            for key in keys
        ]
        taken |= {column.name for column in new}
        columns += new
    return tuple(columns)


def columns_in(records: Sequence[TaskRecord]) -> tuple[Column, ...]:
    """Return the columns of these tasks, in the order of first sight."""
    return columns_of(
        names_in(record.params for record in records),
        names_in(record.result or {} for record in records),
    )


def names_in(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names in all mappings, each once, in the order of first sight."""
    names: dict[str, None] = {}
    for mapping in mappings:
        names.update(dict.fromkeys(mapping))
    return list(names)


def only_metrics(columns: Sequence[Column], names: Sequence[str]) -> tuple[Column, ...]:
    """Return the columns without the metrics that are not named, those in the order given."""
    metrics = [column for column in columns if column.kind == "metric"]
    chosen = dict.fromkeys(find_column(metrics, name) for name in names)
    return (*(column for column in columns if column.kind != "metric"), *chosen)


def find_column(columns: Sequence[Column], name: str) -> Column:
    """Return the column of that name, `params.NAME` and `result.NAME` understood as well.

    Raises:
        BadUsage: There is none.
    """
    for column in columns:
        if column.name == name:
            return column
    scope, _, key = name.partition(".")
    kind = {"params": "param", "param": "param", "result": "metric", "metric": "metric"}.get(scope)
    for column in columns:
        if (column.kind, column.key) == (kind, key):
            return column
    for column in columns:  # of a choice where only its own kind is left
        if column.key == name:
            return column
    known = [column.name for column in columns]
    near = difflib.get_close_matches(name, known, n=1)
    has = f"they have {', '.join(known)}" if known else "they have none yet"
    raise BadUsage(
        f"no selected task has a parameter or metric {name!r}",
        hint=f"did you mean {near[0]}?" if near else has,
    )


# --- order ------------------------------------------------------------------------------------


def number(value: Any) -> int | float | None:
    """Return a value as a number, NaN and infinities included; None when it is none."""
    if isinstance(value, str):
        return NUMBERS.get(value)
    return None if isinstance(value, bool) or not isinstance(value, int | float) else value


def in_order(values: Sequence[Any], *, reverse: bool = False) -> list[int]:
    """Return the indices of the values from the smallest to the largest.

    Numbers stand before texts and those before anything else; NaN and what is missing (None)
    stand last, in that order, whichever way the others are sorted. Equal ones keep their order.
    """
    ranked = [(_rank(value), index) for index, value in enumerate(values)]
    there = [pair for pair in ranked if pair[0][0] < _LAST]
    there.sort(key=lambda pair: pair[0], reverse=reverse)
    rest = sorted((pair for pair in ranked if pair[0][0] >= _LAST), key=lambda pair: pair[0][0])
    return [index for _, index in [*there, *rest]]


_LAST = 3


def _rank(value: Any) -> tuple[int, Any]:
    measured = number(value)
    if value is None:
        return (_LAST + 1, 0)
    if measured is not None:
        return (_LAST, 0) if measured != measured else (0, measured)
    if isinstance(value, str):
        return (1, value)
    return (2, json.dumps(value, sort_keys=True))


def best_of(values: Sequence[Any], *, smallest: bool = False) -> int | None:
    """Return the index of the largest (or smallest) number, the first of equal ones.

    None when there is no number; NaN and infinities of a run that diverged are not counted.
    """
    finite = [
        (measured, index)
        for index, value in enumerate(values)
        if (measured := _finite(value)) is not None
    ]
    if not finite:
        return None
    if smallest:
        return min(finite)[1]
    return max(finite, key=lambda pair: (pair[0], -pair[1]))[1]


# --- groups -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """What the seeds of a point say together.

    Attributes:
        n: How many numbers there were; NaN and infinities are not among them.
        mean: None without any.
        std: Standard deviation of the sample (n - 1); None for fewer than two.
    """

    n: int
    mean: float | None = None
    std: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tasks with the same values of some parameters.

    Attributes:
        values: Those values.
        n: How many of its tasks have a result.
        total: How many tasks it has.
        metrics: By name, those that are numbers somewhere.
    """

    values: tuple[Any, ...]
    n: int
    total: int
    metrics: Mapping[str, Statistic]


def statistic(values: Iterable[Any]) -> Statistic:
    """Return mean and standard deviation of the finite numbers among the values."""
    numbers = [float(v) for v in map(_finite, values) if v is not None]
    if not numbers:
        return Statistic(n=0)
    try:
        mean = statistics.fmean(numbers)
        std = statistics.stdev(numbers) if len(numbers) > 1 else None
    except OverflowError:  # the sum, or the squares, of numbers near the largest there is
        return Statistic(n=len(numbers))
    return Statistic(n=len(numbers), mean=mean, std=std)


def _finite(value: Any) -> int | float | None:
    """Return a value as a number that a float can hold; None when it is none."""
    measured = number(value)
    if measured is None:
        return None
    try:
        return measured if math.isfinite(measured) else None
    except OverflowError:  # a whole number beyond all floats
        return None


def grouped(records: Sequence[TaskRecord], by: Sequence[Column]) -> list[list[int]]:
    """Return the indices of tasks with equal values in all these columns, group by group."""
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        key = json.dumps([column.value(record) for column in by], sort_keys=True)
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def summed_up(
    records: Sequence[TaskRecord], by: Sequence[Column], metrics: Sequence[Column]
) -> list[Group]:
    """Return the groups with the statistics of all metrics that are a number somewhere."""
    numeric = [
        column
        for column in metrics
        if any(_finite(column.value(record)) is not None for record in records)
    ]
    found = []
    for indices in grouped(records, by):
        members = [records[index] for index in indices]
        found.append(
            Group(
                values=tuple(column.value(members[0]) for column in by),
                n=sum(member.result is not None for member in members),
                total=len(members),
                metrics={
                    column.name: statistic(column.value(member) for member in members)
                    for column in numeric
                },
            )
        )
    return found
