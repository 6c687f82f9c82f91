"""Turns records into what the page shows: JSON-able values only, every text in them cleaned.

Columns instead of rows, and numbers instead of repeated texts, keep the page small.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpuledger.display.failures import VARYING
from gpuledger.display.text import clean, one_line, value_text
from gpuledger.model import Outcome, TaskState
from gpuledger.views import AttemptRecord, Counts, Snapshot, TaskRecord

Json = dict[str, Any]

TASKS_SHOWN = 50_000
"""Tasks in the table and the charts; counts, progress and causes are over all."""

STEPS_SHOWN = 1000
"""Points of a line of the progress."""

CAUSES_SHOWN = 100
EXAMPLES_SHOWN = 20
TRACEBACK_CHARS = 16_384
PARAMETERS_SHOWN = 40
METRICS_SHOWN = 40

OPEN = "running"
"""Stands for the outcome of an attempt that has none yet."""

OUTCOMES = (*(str(outcome) for outcome in Outcome), OPEN)
STATES = tuple(str(state) for state in TaskState)
FAILED = frozenset({Outcome.FAILED, Outcome.OOM, Outcome.TIMED_OUT, Outcome.LOST})
"""Outcomes that have a cause worth reading."""

EXACT_INTEGERS = 2**53
"""What JavaScript, whose numbers are all floats, can tell apart."""


def report_data(
    records: Sequence[TaskRecord], snapshot: Snapshot, *, title: str, logs: str, curves: Json
) -> Json:
    """Return everything the page shows.

    Args:
        records: All tasks, or those of one sweep.
        snapshot: Of the same tasks.
        title: The page's headline.
        logs: URL of the folder of all tasks' folders, relative to the page or absolute.
        curves: See `curves.read_curves`; its task numbers count in `records`.
    """
    shown = records[:TASKS_SHOWN]
    origin = _origin(records, snapshot)
    texts = _Texts()
    params = _columns([record.params for record in shown], PARAMETERS_SHOWN)
    metrics = _columns([record.result or {} for record in shown], METRICS_SHOWN)
    return {
        "title": one_line(title),
        "ledger": one_line(snapshot.ledger),
        "logs": logs,
        "origin": origin,
        "taken": _since(snapshot.taken_at, origin),
        "span": _span(records, snapshot, origin),
        "counts": _counts(snapshot.counts),
        "sweeps": [
            {
                "name": one_line(view.name),
                "counts": _counts(view.counts),
                "paused": None if view.paused is None else one_line(view.paused),
            }
            for view in snapshot.sweeps
        ],
        "states": list(STATES),
        "outcomes": list(OUTCOMES),
        "total": len(records),
        "time": _time_by_outcome(records, snapshot.taken_at),
        "progress": _progress(records, origin),
        "causes": _causes(records, origin),
        "fixed": [
            [name, value_text(column[0])] for name, column in params if _is_fixed(column, shown)
        ],
        "params": [[name, column] for name, column in params if not _is_fixed(column, shown)],
        "metrics": [[name, column] for name, column in metrics],
        "tasks": _tasks(shown, snapshot, texts),
        "attempts": _attempts(shown, snapshot.taken_at, origin, texts),
        "workers": texts.workers,
        "errors": texts.errors,
        "curves": curves,
    }


def default_title(snapshot: Snapshot) -> str:
    """Return the sweep's name; of several sweeps the name of the folder that has the ledger."""
    if len(snapshot.sweeps) == 1:
        return snapshot.sweeps[0].name
    return Path(snapshot.ledger).parent.name or "gpuledger"


class _Texts:
    """Texts that occur many times, each written once."""

    def __init__(self) -> None:
        self.workers: list[str] = []
        self.errors: list[str] = []
        self._numbers: dict[tuple[int, str], int] = {}

    def worker(self, text: str) -> int:
        return self._number(self.workers, text)

    def error(self, text: str | None) -> int:
        """Return the error's number; -1 for none."""
        return -1 if text is None else self._number(self.errors, text)

    def _number(self, among: list[str], text: str) -> int:
        key = (id(among), text)
        if key not in self._numbers:
            self._numbers[key] = len(among)
            among.append(one_line(text, limit=300))
        return self._numbers[key]


# --- tasks and attempts -------------------------------------------------------------------------


def _tasks(records: Sequence[TaskRecord], snapshot: Snapshot, texts: _Texts) -> Json:
    sweeps = {view.name: number for number, view in enumerate(snapshot.sweeps)}
    return {
        "name": [one_line(record.task) for record in records],
        "sweep": [sweeps.get(record.sweep, 0) for record in records],
        "state": [STATES.index(record.state) for record in records],
        "seed": [_cell(record.seed) for record in records],
        "error": [
            -1 if record.state is TaskState.COMPLETED else texts.error(record.last_error)
            for record in records
        ],
        "attempts": [len(record.attempts) for record in records],
    }


def _attempts(records: Sequence[TaskRecord], now: float, origin: float, texts: _Texts) -> Json:
    """Return the attempts of all tasks, one after another in the order of the tasks."""
    flat = [(i, attempt) for i, record in enumerate(records) for attempt in record.attempts]
    return {
        "task": [i for i, _ in flat],
        "number": [attempt.number for _, attempt in flat],
        "worker": [texts.worker(attempt.worker) for _, attempt in flat],
        "outcome": [OUTCOMES.index(attempt.outcome or OPEN) for _, attempt in flat],
        "start": [_since(attempt.started_at, origin) for _, attempt in flat],
        "duration": [_rounded(_duration_s(attempt, now)) for _, attempt in flat],
        "error": [texts.error(attempt.error) for _, attempt in flat],
    }


def _columns(rows: Sequence[Mapping[str, Any]], limit: int) -> list[tuple[str, list[Any]]]:
    """Return a column for each of the first names, None where a row lacks it."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    return [
        (one_line(name, limit=100), [_cell(row[name]) if name in row else None for row in rows])
        for name in list(names)[:limit]
    ]


def _cell(value: Any) -> float | str:
    """Return a number that JavaScript can hold, or a text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value_text(value)
    if isinstance(value, int):
        return value if abs(value) <= EXACT_INTEGERS else one_line(str(value))
    return value if math.isfinite(value) else str(value)


def _is_fixed(column: Sequence[Any], rows: Sequence[Any]) -> bool:
    return len(rows) > 1 and all(value == column[0] for value in column)


# --- time ---------------------------------------------------------------------------------------


def _origin(records: Sequence[TaskRecord], snapshot: Snapshot) -> float:
    """Return the whole second before the first attempt: all other instants count from it."""
    starts = (attempt.started_at for record in records for attempt in record.attempts)
    return float(math.floor(min(starts, default=snapshot.taken_at)))


def _span(records: Sequence[TaskRecord], snapshot: Snapshot, origin: float) -> list[float] | None:
    ends = [
        attempt.started_at + _duration_s(attempt, snapshot.taken_at)
        for record in records
        for attempt in record.attempts
    ]
    return [0.0, _since(max(ends), origin)] if ends else None


def _duration_s(attempt: AttemptRecord, now: float) -> float:
    """Return how long it ran, or runs so far; never negative, whatever clocks were set to."""
    if attempt.duration_s is not None:
        return max(attempt.duration_s, 0.0)
    return max((now if attempt.ended_at is None else attempt.ended_at) - attempt.started_at, 0.0)


def _since(at: float, origin: float) -> float:
    return _rounded(at - origin)


def _rounded(seconds: float) -> float:
    return round(seconds, 2)


def _time_by_outcome(records: Sequence[TaskRecord], now: float) -> Json:
    """Return the seconds that workers spent, by outcome."""
    spent = dict.fromkeys(OUTCOMES, 0.0)
    for record in records:
        for attempt in record.attempts:
            spent[attempt.outcome or OPEN] += _duration_s(attempt, now)
    return {outcome: _rounded(seconds) for outcome, seconds in spent.items()}


def _progress(records: Sequence[TaskRecord], origin: float) -> Json:
    """Return cumulative counts over time: tasks that completed, tasks and attempts that failed."""
    ended = {"completed": _completions(records), "failed": _defeats(records)}
    ended["attempts"] = [
        attempt.ended_at
        for record in records
        for attempt in record.attempts
        if attempt.outcome in FAILED and attempt.ended_at is not None
    ]
    return {name: _cumulative(sorted(instants), origin) for name, instants in ended.items()}


def _completions(records: Sequence[TaskRecord]) -> list[float]:
    return [
        won[-1]
        for record in records
        if record.state is TaskState.COMPLETED and (won := _ends(record, (Outcome.COMPLETED,)))
    ]


def _defeats(records: Sequence[TaskRecord]) -> list[float]:
    return [
        lost[-1]
        for record in records
        if record.state is TaskState.FAILED and (lost := _ends(record, FAILED))
    ]


def _ends(record: TaskRecord, outcomes: Container[Outcome | None]) -> list[float]:
    return [
        attempt.ended_at
        for attempt in record.attempts
        if attempt.outcome in outcomes and attempt.ended_at is not None
    ]


def _cumulative(instants: Sequence[float], origin: float) -> Json:
    """Return instants and how many came until then, the last one always among them."""
    stride = math.ceil(len(instants) / STEPS_SHOWN) or 1
    kept = sorted({*range(0, len(instants), stride), *([len(instants) - 1] if instants else [])})
    return {"at": [_since(instants[i], origin) for i in kept], "count": [i + 1 for i in kept]}


# --- causes -------------------------------------------------------------------------------------


def _causes(records: Sequence[TaskRecord], origin: float) -> list[Json]:
    """Return failed attempts grouped by outcome and error, numbers ignored; the most first."""
    groups: dict[tuple[str, str], list[tuple[int, AttemptRecord]]] = {}
    for i, record in enumerate(records):
        for attempt in record.attempts:
            if attempt.outcome in FAILED:
                error = VARYING.sub("0", one_line(attempt.error or ""))
                groups.setdefault((str(attempt.outcome), error), []).append((i, attempt))
    by_size = sorted(groups.items(), key=lambda item: -len(item[1]))
    causes = [_cause(outcome, group, records) for (outcome, _), group in by_size[:CAUSES_SHOWN]]
    for cause, (_, group) in zip(causes, by_size, strict=False):
        cause["latest"] = _since(max(attempt.ended_at or 0.0 for _, attempt in group), origin)
    rest = [pair for _, group in by_size[CAUSES_SHOWN:] for pair in group]
    if rest:
        causes.append({**_cause("failed", rest, records), "error": None, "traceback": None})
    return causes


def _cause(
    outcome: str, group: Sequence[tuple[int, AttemptRecord]], records: Sequence[TaskRecord]
) -> Json:
    newest = max(group, key=lambda pair: pair[1].ended_at or 0.0)[1]
    hosts: dict[str, int] = {}
    for _, attempt in group:
        host = one_line(host_of(attempt.worker))
        hosts[host] = hosts.get(host, 0) + 1
    return {
        "outcome": outcome,
        "error": one_line(newest.error or "") or "without a word",
        "traceback": None if newest.traceback is None else _traceback(newest.traceback),
        "attempts": len(group),
        "tasks": len({i for i, _ in group}),
        "hosts": sorted(hosts.items(), key=lambda pair: -pair[1]),
        "examples": [
            [one_line(records[i].task), attempt.number] for i, attempt in group[:EXAMPLES_SHOWN]
        ],
    }


def host_of(worker: str) -> str:
    """Return the host of a worker by its name: `ada` of `ada:gpu2`."""
    return worker.rpartition(":")[0] or worker


def _traceback(text: str) -> str:
    """Return its last part, which says what happened."""
    safe = clean(text)
    return safe if len(safe) <= TRACEBACK_CHARS else "…" + safe[-TRACEBACK_CHARS:]


def _counts(counts: Counts) -> Json:
    return {state: getattr(counts, state) for state in STATES}
