"""Every report of every attempt, one row each: read from the attempts' files, a line at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gpuledger.reports import read_all
from gpuledger.results import Column, columns_of, names_in
from gpuledger.views import AttemptRecord, TaskRecord

STEP_FACTS = ("task", "sweep", "state", "seed", "attempt", "worker", "outcome", "step", "total")
"""The first columns; `attempt` is a number, `outcome` that of the attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One report.

    Attributes:
        record: The task.
        facts: By the names in `STEP_FACTS`.
        metrics: What was reported with it.
    """

    record: TaskRecord
    facts: Mapping[str, Any]
    metrics: Mapping[str, Any]

    def value(self, column: Column) -> Any:
        """Return what stands in this row of a column."""
        if column.kind == "fact":
            return self.facts[column.key]
        return (self.record.params if column.kind == "param" else self.metrics).get(column.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a first look at all files found, so that a second sees the same.

    Attributes:
        columns: Of the reports.
        counts: By file, its reports: a running task goes on writing.
    """

    columns: tuple[Column, ...]
    counts: Mapping[Path, int]


def survey(records: Sequence[TaskRecord]) -> Survey:
    """Read all reports for their names and their number, and keep nothing else of them."""
    metrics: dict[str, None] = {}
    counts: dict[Path, int] = {}
    for record in records:
        for attempt in record.attempts:
            count = 0
            for report in read_all(_file(attempt)):
                metrics.update(dict.fromkeys(report.metrics))
                count += 1
            counts[_file(attempt)] = count
    params = names_in(record.params for record in records)
    return Survey(columns=columns_of(params, metrics, facts=STEP_FACTS), counts=counts)


def steps_of(records: Sequence[TaskRecord], surveyed: Survey) -> Iterator[Step]:
    """Yield the reports of all attempts, in the order in which they were made.

    An attempt without a file reported nothing.
    """
    for record in records:
        for attempt in record.attempts:
            facts = {
                "task": record.task,
                "sweep": record.sweep,
                "state": str(record.state),
                "seed": record.seed,
                "attempt": attempt.number,
                "worker": attempt.worker,
                "outcome": None if attempt.outcome is None else str(attempt.outcome),
            }
            file = _file(attempt)
            for report in islice(read_all(file), surveyed.counts[file]):
                yield Step(
                    record=record,
                    facts={**facts, "step": report.step, "total": report.total},
                    metrics=report.metrics,
                )


def _file(attempt: AttemptRecord) -> Path:
    return Path(attempt.log).with_suffix(".jsonl")
