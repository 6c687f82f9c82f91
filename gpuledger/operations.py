"""What operators change (sweeps, retries, cancellations), inside the caller's transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpuledger import queries
from gpuledger.errors import BadSweepFile, BadUsage
from gpuledger.model import TaskState
from gpuledger.selection import Selection, TaskChange
from gpuledger.spec import (
    Params,
    SweepChange,
    SweepSpec,
    TaskSpec,
    params_digest,
    settings_from_json,
    settings_to_json,
)

NAMES_SHOWN = 20

INSERT_TASK = (
    "INSERT INTO task (sweep_id, point, seed, params, digest, priority) VALUES (?, ?, ?, ?, ?, ?)"
)


def record_event(
    db: sqlite3.Connection,
    kind: str,
    *,
    at: float,
    task: str | None = None,
    number: int | None = None,
    worker: str | None = None,
    **data: Any,
) -> None:
    """Append one event for people who follow; None values are left out of its data."""
    insert_events(db, [event_values(kind, at=at, task=task, number=number, worker=worker, **data)])


def event_values(
    kind: str,
    *,
    at: float,
    task: str | None = None,
    number: int | None = None,
    worker: str | None = None,
    **data: Any,
) -> tuple[object, ...]:
    """Return an event's row, for `insert_events`."""
    told = {key: value for key, value in data.items() if value is not None}
    return (at, kind, task, number, worker, json.dumps(told) if told else "{}")


def insert_events(db: sqlite3.Connection, events: Sequence[tuple[object, ...]]) -> None:
    """Append several events."""
    db.executemany(
        "INSERT INTO event (at, kind, task, number, worker, data) VALUES (?, ?, ?, ?, ?, ?)",
        events,
    )


# --- sweeps -----------------------------------------------------------------------------------


def add_sweep(db: sqlite3.Connection, spec: SweepSpec, *, prune: bool, now: float) -> SweepChange:
    """Add a sweep, or bring the one of that name up to date; see `Ledger.add_sweep`."""
    row = db.execute("SELECT * FROM sweep WHERE name = ?", (spec.name,)).fetchone()
    if row is None:
        change = _create_sweep(db, spec, now=now)
    else:
        change = _update_sweep(db, row, spec, prune=prune)
    record_event(db, "sweep_added", at=now, sweep=spec.name, added=change.added)
    return change


def _create_sweep(db: sqlite3.Connection, spec: SweepSpec, *, now: float) -> SweepChange:
    settings = settings_to_json(spec.settings)
    sweep_id = db.execute(
        "INSERT INTO sweep (name, file, settings, priority, created_at) VALUES (?, ?, ?, ?, ?)",
        (spec.name, spec.file, settings, spec.priority, now),
    ).lastrowid
    db.executemany(INSERT_TASK, _rows(spec, sweep_id))
    _set_next_point(db, sweep_id)
    return SweepChange(name=spec.name, created=True, added=spec.task_count)


def _rows(spec: SweepSpec, sweep_id: int | None) -> Iterator[tuple[Any, ...]]:
    """Yield the values of INSERT_TASK; the seeds of a point share the work on its parameters."""
    last: Params | None = None
    text, digest = "", b""
    for task in spec.tasks():
        if task.params is not last:
            last = task.params
            text, digest = json.dumps(dict(task.params)), params_digest(task.params)
        yield (sweep_id, task.point, task.seed, text, digest, spec.priority)


def _update_sweep(
    db: sqlite3.Connection, row: sqlite3.Row, spec: SweepSpec, *, prune: bool
) -> SweepChange:
    before = dict(
        db.execute("SELECT state, n FROM task_count WHERE sweep_id = ?", (row["id"],)).fetchall()
    )
    changed = _update_settings(db, row, spec)
    db.execute("CREATE TEMP TABLE seen (id INTEGER PRIMARY KEY)")
    added = kept = 0
    next_point = row["next_point"]
    new_points: dict[bytes, int] = {}
    for task in spec.tasks():
        digest = params_digest(task.params)
        known = _known_task(db, row["id"], digest, task.seed)
        if known is not None:
            kept += db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (known,)).rowcount
            continue
        point = new_points.get(digest)
        if point is None:
            point = _known_point(db, row["id"], digest, task.seed)
            if point is None:
                point = new_points[digest] = next_point
                next_point += 1
        added += 1
        new = _insert_task(db, row["id"], point, task, digest, spec.priority)
        db.execute("INSERT INTO seen VALUES (?)", (new,))
    _set_next_point(db, row["id"])
    missing = sum(before.values()) - kept
    pruned = _prune(db, row["id"]) if prune and missing else 0
    db.execute("DROP TABLE seen")
    return SweepChange(
        name=spec.name,
        created=False,
        added=added,
        kept=kept,
        missing=missing,
        pruned=pruned,
        settings_changed=changed,
        completed_before=before.get(TaskState.COMPLETED, 0),
    )


def _update_settings(db: sqlite3.Connection, row: sqlite3.Row, spec: SweepSpec) -> tuple[str, ...]:
    former = json.loads(settings_to_json(settings_from_json(row["settings"])))
    latter = json.loads(settings_to_json(spec.settings))
    changed = [name for name in latter if latter[name] != former[name]]
    if row["priority"] != spec.priority:
        changed.append("priority")
        db.execute(
            "UPDATE task SET priority = ? WHERE sweep_id = ? AND state <> 'completed'",
            (spec.priority, row["id"]),
        )
    db.execute(
        "UPDATE sweep SET settings = ?, priority = ?, file = ? WHERE id = ?",
        (settings_to_json(spec.settings), spec.priority, spec.file, row["id"]),
    )
    return tuple(changed)


def _known_task(db: sqlite3.Connection, sweep_id: int, digest: bytes, seed: int) -> int | None:
    row = db.execute(
        "SELECT id FROM task WHERE sweep_id = :sweep AND digest = :digest AND seed = :seed"
        " UNION ALL SELECT id FROM task"
        " WHERE sweep_id = :sweep AND file_digest = :digest AND seed = :seed LIMIT 1",
        {"sweep": sweep_id, "digest": digest, "seed": seed},
    ).fetchone()
    return None if row is None else int(row["id"])


def _known_point(db: sqlite3.Connection, sweep_id: int, digest: bytes, seed: int) -> int | None:
    """Return the number of a point that is there with other seeds, unless that name is taken."""
    row = db.execute(
        "SELECT point FROM task AS one WHERE sweep_id = ? AND digest = ? AND NOT EXISTS"
        " (SELECT 1 FROM task AS two WHERE two.sweep_id = one.sweep_id"
        "  AND two.point = one.point AND two.seed = ?) LIMIT 1",
        (sweep_id, digest, seed),
    ).fetchone()
    return None if row is None else int(row["point"])


def _insert_task(
    db: sqlite3.Connection,
    sweep_id: int,
    point: int,
    task: TaskSpec,
    digest: bytes,
    priority: int,
) -> int | None:
    params = json.dumps(dict(task.params))
    values = (sweep_id, point, task.seed, params, digest, priority)
    return db.execute(INSERT_TASK, values).lastrowid


def _set_next_point(db: sqlite3.Connection, sweep_id: int | None) -> None:
    db.execute(
        "UPDATE sweep SET next_point ="
        " (SELECT COALESCE(MAX(point), -1) + 1 FROM task WHERE sweep_id = :id) WHERE id = :id",
        {"id": sweep_id},
    )


def _prune(db: sqlite3.Connection, sweep_id: int) -> int:
    return db.execute(
        "UPDATE task SET state = 'cancelled', held_by = NULL"
        " WHERE sweep_id = ? AND state = 'pending'"
        " AND id NOT IN (SELECT id FROM seen)",
        (sweep_id,),
    ).rowcount


# --- tasks ------------------------------------------------------------------------------------


def retry(
    db: sqlite3.Connection,
    selection: Selection,
    *,
    completed: bool,
    params: Params,
    now: float,
) -> TaskChange:
    """Put ended tasks back to pending; see `Ledger.retry`."""
    where, values = queries.where(db, selection)
    wanted = [TaskState.FAILED, TaskState.CANCELLED]
    if completed:
        wanted.append(TaskState.COMPLETED)
    skipped = _by_state(db, where, values, leaving_out=frozenset(wanted))
    withdrawn = 0
    if not params:  # what runs goes on with its own; what is being killed cannot be kept
        withdrawn = db.execute(
            f"UPDATE task SET stop = NULL WHERE {where} AND state = 'running' AND stop = 'after'",
            values,
        ).rowcount
    rows = db.execute(
        f"SELECT task.id, task.params, task.sweep_id FROM task WHERE {where}"
        f" AND state IN ({_marks(wanted)})",
        (*values, *wanted),
    ).fetchall()
    for row in rows:
        if params:
            _set_params(db, row, params)
        db.execute(
            "UPDATE task SET state = 'pending', failures = 0, losses = 0, stop = NULL,"
            " held_by = NULL,"
            " forgiven_until = (SELECT COALESCE(MAX(number), 0) FROM attempt WHERE task_id = :id)"
            " WHERE id = :id",
            {"id": row["id"]},
        )
    ids = [row["id"] for row in rows]
    names = queries.names_of(db, ids[:NAMES_SHOWN])
    for name in names:
        record_event(db, "retried", at=now, task=name)
    return TaskChange(
        changed=len(ids),
        running=skipped.pop(TaskState.RUNNING, 0),
        withdrawn=withdrawn,
        skipped=skipped,
        names=tuple(names),
        resumed=_resume_broken(db, {row["sweep_id"] for row in rows}, now=now),
    )


def _set_params(db: sqlite3.Connection, row: sqlite3.Row, params: Params) -> None:
    """Correct some of a task's parameters; `init` again does not take it for a new point."""
    before = json.loads(row["params"])
    unknown = sorted(set(params) - set(before))
    if unknown:
        raise BadUsage(
            f"the task has no parameter {unknown[0]!r}; nothing was changed",
            hint=f"it has: {', '.join(before) or 'none'}",
        )
    after = {**before, **params}
    try:
        put_params(db, row["id"], after)
    except sqlite3.IntegrityError as error:
        twin = db.execute(
            "SELECT other.id FROM task JOIN task AS other ON other.sweep_id = task.sweep_id"
            " AND other.seed = task.seed AND other.digest = ? WHERE task.id = ?",
            (params_digest(after), row["id"]),
        ).fetchone()
        (name,) = queries.names_of(db, [row["id"]])
        other = queries.names_of(db, [twin["id"]])[0] if twin else "another task"
        raise BadSweepFile(
            f"{name} would have the same parameters as {other}; nothing was changed",
            hint="cancel one of them instead of changing it",
        ) from error


def put_params(db: sqlite3.Connection, task_id: int, params: Params) -> None:
    """Give a task parameters; what the file says stays known.

    Raises:
        sqlite3.IntegrityError: Another task of the sweep has them, with this seed.
    """
    db.execute(
        "UPDATE task SET params = ?, digest = ?, file_digest = COALESCE(file_digest, digest)"
        " WHERE id = ?",
        (json.dumps(dict(params)), params_digest(params), task_id),
    )


def _resume_broken(db: sqlite3.Connection, sweep_ids: set[int], *, now: float) -> tuple[str, ...]:
    """A retry says that the cause is mended: let the sweeps that were paused for it go on."""
    names = []
    for sweep_id in sorted(sweep_ids):
        row = db.execute(
            "UPDATE sweep SET paused = NULL, paused_by = NULL, failing = '{}'"
            " WHERE id = ? AND paused_by = 'gpuledger' RETURNING name",
            (sweep_id,),
        ).fetchone()
        if row is not None:
            names.append(str(row["name"]))
            record_event(db, "sweep_resumed", at=now, sweep=row["name"])
    return tuple(names)


def cancel(db: sqlite3.Connection, selection: Selection, *, kill: bool, now: float) -> TaskChange:
    """Cancel pending and failed tasks and mark running ones; see `Ledger.cancel`."""
    where, values = queries.where(db, selection)
    wanted = (TaskState.PENDING, TaskState.FAILED)
    running = db.execute(
        f"UPDATE task SET stop = ? WHERE {where} AND state = 'running' RETURNING id",
        ("now" if kill else "after", *values),
    ).fetchall()
    skipped = _by_state(db, where, values, leaving_out=frozenset({*wanted, TaskState.RUNNING}))
    ids = [
        row["id"]
        for row in db.execute(
            f"UPDATE task SET state = 'cancelled', held_by = NULL WHERE {where}"
            f" AND state IN ({_marks(wanted)})"
            " RETURNING id",
            (*values, *wanted),
        ).fetchall()
    ]
    names = queries.names_of(db, sorted(ids)[:NAMES_SHOWN])
    for name in names:
        record_event(db, "cancelled", at=now, task=name)
    return TaskChange(changed=len(ids), running=len(running), skipped=skipped, names=tuple(names))


def set_priority(db: sqlite3.Connection, selection: Selection, priority: int) -> int:
    """Give tasks that are not ended another priority; return how many there were."""
    where, values = queries.where(db, selection)
    return db.execute(
        f"UPDATE task SET priority = ? WHERE {where} AND state IN ('pending', 'running')",
        (priority, *values),
    ).rowcount


def pause(db: sqlite3.Connection, sweep: str | None, *, reason: str, now: float) -> tuple[str, ...]:
    """Pause one sweep or all; see `Ledger.pause`."""
    return _set_paused(db, sweep, reason, "operator", "sweep_paused", now=now)


def resume(db: sqlite3.Connection, sweep: str | None, *, now: float) -> tuple[str, ...]:
    """Let one sweep or all go on; see `Ledger.resume`."""
    return _set_paused(db, sweep, None, None, "sweep_resumed", now=now)


def _set_paused(
    db: sqlite3.Connection,
    sweep: str | None,
    reason: str | None,
    by: str | None,
    kind: str,
    *,
    now: float,
) -> tuple[str, ...]:
    if sweep is not None:
        queries.sweep_id(db, sweep)  # raises when there is none
    rows = db.execute(
        "UPDATE sweep SET paused = :reason, paused_by = :by, failing = '{}'"
        " WHERE (:sweep IS NULL OR name = :sweep) AND (paused IS NULL) = (:reason IS NOT NULL)"
        " RETURNING name",
        {"reason": reason, "by": by, "sweep": sweep},
    ).fetchall()
    for row in rows:
        record_event(db, kind, at=now, sweep=row["name"], reason=reason)
    return tuple(row["name"] for row in rows)


def _by_state(
    db: sqlite3.Connection,
    where: str,
    values: tuple[Any, ...],
    *,
    leaving_out: frozenset[TaskState],
) -> dict[TaskState, int]:
    rows = db.execute(
        f"SELECT state, COUNT(*) AS n FROM task WHERE {where} GROUP BY state", values
    ).fetchall()
    counts: Mapping[TaskState, int] = {TaskState(row["state"]): row["n"] for row in rows}
    return {state: n for state, n in counts.items() if state not in leaving_out}


def _marks(values: list[TaskState] | tuple[TaskState, ...]) -> str:
    return ", ".join("?" for _ in values)
