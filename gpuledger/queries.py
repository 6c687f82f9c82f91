"""What people ask of the ledger: SQL that reads, and nothing else."""

from __future__ import annotations

import difflib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpuledger import chosen
from gpuledger.errors import UnknownTask
from gpuledger.heartbeat import beat_path, read_sign_of_life
from gpuledger.model import Outcome, TaskState, WorkerIdentity
from gpuledger.origin import Packages, origin_from, packages_from
from gpuledger.resources import misfit, no_worker_fits
from gpuledger.routing import PastFailure
from gpuledger.selection import Selection
from gpuledger.spec import settings_from_json
from gpuledger.suspicion import cools_down
from gpuledger.views import AttemptRecord, Event, TaskRecord, WorkerView
from gpuledger.why import LiveWorker, Waiting

PAGE = 2000
"""Tasks read in one transaction: a few tens of milliseconds."""

BEHIND_ALL = 2**63 - 1
"""No task's id is so high."""

NAME_AND_PARAMS = (
    "lower((SELECT name FROM sweep WHERE id = task.sweep_id) || '_' || task.point || '_'"
    " || task.seed || ' ' || replace(replace(task.params, '\"', ''), ': ', '='))"
)
"""A task as people write it: `exp1_0_42 {lr=0.1, model=resnet18}`."""

LAST_ERROR = (
    "lower((SELECT error FROM attempt WHERE task_id = task.id AND error IS NOT NULL"
    " ORDER BY number DESC LIMIT 1))"
)

NAMES = 1000
"""More names of workers nobody looks through."""


def task_name(sweep: str, point: int, seed: int) -> str:
    """Return a task's name; `find_task` reads it."""
    return f"{sweep}_{point}_{seed}"


def find_task(db: sqlite3.Connection, name: str) -> sqlite3.Row | None:
    """Return the task's row with its sweep's name and settings, or None."""
    sweep, _, rest = name.rpartition("_")
    sweep, _, point = sweep.rpartition("_")
    try:
        numbers = int(point), int(rest)
    except ValueError:
        return None
    if max(map(abs, numbers)) > BEHIND_ALL:  # SQLite has no such number
        return None
    row: sqlite3.Row | None = db.execute(
        "SELECT task.*, sweep.name AS sweep, sweep.settings FROM task"
        " JOIN sweep ON sweep.id = task.sweep_id"
        " WHERE sweep.name = ? AND task.point = ? AND task.seed = ?",
        (sweep, *numbers),
    ).fetchone()
    return row if row is not None and task_name(sweep, *numbers) == name else None


def sweep_id(db: sqlite3.Connection, name: str) -> int:
    """Return the sweep's id; raise UnknownTask with the nearest names when there is none."""
    row = db.execute("SELECT id FROM sweep WHERE name = ?", (name,)).fetchone()
    if row is not None:
        return int(row["id"])
    names = [row["name"] for row in db.execute("SELECT name FROM sweep ORDER BY id")]
    near = difflib.get_close_matches(name, names, n=1)
    there = f"the ledger has {', '.join(names[:8])}" if names else "the ledger has none yet"
    raise UnknownTask(
        f"no sweep is named {name!r}", hint=f"did you mean {near[0]}?" if near else there
    )


def where(db: sqlite3.Connection, selection: Selection) -> tuple[str, tuple[Any, ...]]:
    """Return a condition on `task` and its values; raise UnknownTask for names that are not.

    It is meant for the transaction it was asked in: `selection.where` becomes the ids it means.
    """
    condition = _in_sql(db, selection)
    if selection.where is None:
        return condition
    ids = chosen.ids_where(db, selection.where, condition)
    return _among(ids)


def _among(ids: Sequence[int]) -> tuple[str, tuple[Any, ...]]:
    return "task.id IN (SELECT value FROM json_each(?))", (json.dumps(ids),)


def _in_sql(db: sqlite3.Connection, selection: Selection) -> tuple[str, tuple[Any, ...]]:
    """Return what SQL can say of the selection: all but `selection.where`."""
    clauses = ["1"]
    values: list[Any] = []
    if selection.names:
        ids = [_known(db, name) for name in selection.names]
        clauses.append(f"task.id IN ({', '.join('?' for _ in ids)})")
        values += ids
    if selection.sweep is not None:
        clauses.append("task.sweep_id = ?")
        values.append(sweep_id(db, selection.sweep))
    if selection.states:
        clauses.append(f"task.state IN ({', '.join('?' for _ in selection.states)})")
        values += sorted(selection.states)
    if selection.error is not None:
        clauses.append(
            "EXISTS (SELECT 1 FROM attempt WHERE task_id = task.id AND number ="
            " (SELECT MAX(number) FROM attempt AS last WHERE last.task_id = task.id"
            "  AND last.error IS NOT NULL)"
            " AND instr(lower(error || char(10) || COALESCE(traceback, '')), lower(?)) > 0)"
        )
        values.append(selection.error)
    if selection.worker is not None:
        clauses.append("EXISTS (SELECT 1 FROM attempt WHERE task_id = task.id AND worker = ?)")
        values.append(selection.worker)
    if selection.text is not None:
        clauses.append(f"(instr({NAME_AND_PARAMS}, lower(?)) > 0 OR instr({LAST_ERROR}, lower(?)))")
        values += [json.dumps(selection.text)[1:-1].replace('"', ""), selection.text]
    return " AND ".join(clauses), tuple(values)


def _known(db: sqlite3.Connection, name: str) -> int:
    row = find_task(db, name)
    if row is not None:
        return int(row["id"])
    names = [
        task_name(row["name"], row["point"], row["seed"])
        for row in db.execute(
            "SELECT sweep.name, point, seed FROM task JOIN sweep ON sweep.id = sweep_id"
            " ORDER BY task.id LIMIT 5000"
        )
    ]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "'gpuledger tasks' lists them"
    if db.execute("SELECT 1 FROM sweep WHERE name = ?", (name,)).fetchone() is not None:
        hint = f"{name} is a sweep: 'gpuledger tasks --sweep {name}' lists its tasks"
    raise UnknownTask(f"no task is named {name!r}", hint=hint)


def names_of(db: sqlite3.Connection, ids: Sequence[int]) -> list[str]:
    """Return the names of tasks given by id, in the order of creation."""
    rows = db.execute(
        "SELECT name, point, seed FROM task JOIN sweep ON sweep.id = sweep_id"
        f" WHERE task.id IN ({', '.join('?' for _ in ids)}) ORDER BY task.id",
        tuple(ids),
    )
    return [task_name(row["name"], row["point"], row["seed"]) for row in rows]


def task_names(db: sqlite3.Connection, starting_with: str, *, limit: int) -> list[str]:
    """Return the first names that start with the given text."""
    rows = db.execute(
        "SELECT name FROM (SELECT sweep.name || '_' || point || '_' || seed AS name, task.id"
        " FROM task JOIN sweep ON sweep.id = sweep_id) WHERE substr(name, 1, ?) = ?"
        " ORDER BY id LIMIT ?",
        (len(starting_with), starting_with, limit),
    )
    return [row["name"] for row in rows]


# --- tasks, whole -----------------------------------------------------------------------------


def tasks(
    db: sqlite3.Connection, *, selection: Selection, folder: Path, after: int | str, limit: int
) -> tuple[list[TaskRecord], int | None]:
    """Return the next selected tasks behind `after` (an id, or a name), at most `limit`.

    There may be fewer. The number beside them is `after` for what follows; None when nothing does.
    """
    after = task_id(db, after) if isinstance(after, str) else after
    condition, values = _in_sql(db, selection)
    last: int | None = None
    if selection.where is not None:
        if after == 0:
            chosen.require_names(db, selection.where, (condition, values))
        found = chosen.next_ids(db, selection.where, (condition, values), after=after, limit=limit)
        condition, values = _among(found.ids)
        last = None if found.is_all else found.last
    rows = db.execute(
        "SELECT task.*, sweep.name AS sweep, sweep.settings FROM task"
        f" JOIN sweep ON sweep.id = task.sweep_id WHERE {condition} AND task.id > ?"
        " ORDER BY task.id LIMIT ?",
        (*values, after, limit),
    ).fetchall()
    records = [_task_record(db, row, folder) for row in rows]
    if selection.where is None and len(rows) == limit:
        last = rows[-1]["id"]
    return records, last


def tasks_before(
    db: sqlite3.Connection, *, selection: Selection, folder: Path, before: int, limit: int
) -> list[TaskRecord]:
    """Return the last selected tasks with an id below `before`, in the order of creation."""
    condition, values = where(db, selection)
    rows = db.execute(
        # By id: an index on something else would end in a sort of all tasks.
        "SELECT task.*, sweep.name AS sweep, sweep.settings FROM task NOT INDEXED"
        f" JOIN sweep ON sweep.id = task.sweep_id WHERE {condition} AND task.id < ?"
        " ORDER BY task.id DESC LIMIT ?",
        (*values, before, limit),
    ).fetchall()
    return [_task_record(db, row, folder) for row in reversed(rows)]


def task_id(db: sqlite3.Connection, name: str) -> int:
    """Return the task's id; raise UnknownTask with the nearest names when there is none."""
    return _known(db, name)


def _task_record(db: sqlite3.Connection, row: sqlite3.Row, folder: Path) -> TaskRecord:
    name = task_name(row["sweep"], row["point"], row["seed"])
    runs = folder / "runs" / name
    attempts = tuple(
        _attempt_record(attempt, runs)
        for attempt in db.execute(
            "SELECT attempt.*, worker.details FROM attempt LEFT JOIN worker USING (nonce)"
            " WHERE task_id = ? ORDER BY number",
            (row["id"],),
        )
    )
    errors = [attempt.error for attempt in attempts if attempt.error is not None]
    won = [attempt for attempt in attempts if attempt.outcome is Outcome.COMPLETED]
    state = TaskState(row["state"])
    settings = settings_from_json(row["settings"])
    return TaskRecord(
        task=name,
        sweep=row["sweep"],
        state=state,
        params=json.loads(row["params"]),
        seed=row["seed"],
        priority=row["priority"],
        failures=row["failures"],
        losses=row["losses"],
        max_attempts=settings.max_attempts,
        last_error=errors[-1] if errors else None,
        result=won[-1].metrics if won and state is TaskState.COMPLETED else None,
        folder=str(runs),
        timeout_s=settings.timeout_s,
        attempts=attempts,
    )


def _attempt_record(row: sqlite3.Row, runs: Path) -> AttemptRecord:
    return AttemptRecord(
        number=row["number"],
        worker=row["worker"],
        outcome=Outcome(row["outcome"]) if row["outcome"] else None,
        exit_code=row["exit_code"],
        signal=row["signal"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        duration_s=row["duration_s"],
        error=row["error"],
        traceback=row["traceback"],
        metrics=json.loads(row["metrics"]) if row["metrics"] else {},
        log=str(runs / f"attempt-{row['number']}.log"),
        memory_peak_mib=row["memory_peak_mib"],
        gpu_memory_mib=row["gpu_memory_mib"],
        place=place_text(json.loads(row["details"] or "{}")),
        origin=origin_from(json.loads(row["origin"])) if row["origin"] else None,
    )


def packages(db: sqlite3.Connection, environment: str) -> Packages | None:
    """Return the packages of an environment by its digest, or None."""
    row = db.execute("SELECT data FROM environment WHERE digest = ?", (environment,)).fetchone()
    return None if row is None else packages_from(row["data"])


# --- workers ----------------------------------------------------------------------------------


def live_workers(db: sqlite3.Connection) -> tuple[WorkerIdentity, ...]:
    """Return the workers that have neither left nor been reaped."""
    return tuple(
        _identity(row)
        for row in db.execute("SELECT * FROM worker WHERE ended_at IS NULL ORDER BY name")
    )


def worker_views(db: sqlite3.Connection) -> list[WorkerView]:
    """Return the live workers and what they run, as far as the database knows it."""
    views = []
    for row in db.execute(
        "SELECT worker.*, attempt.number, attempt.started_at AS attempt_started_at, task.point,"
        " task.seed, task.failures, sweep.name AS sweep, sweep.settings FROM worker"
        " LEFT JOIN attempt ON attempt.nonce = worker.nonce AND attempt.outcome IS NULL"
        " LEFT JOIN task ON task.id = attempt.task_id LEFT JOIN sweep ON sweep.id = task.sweep_id"
        " WHERE worker.ended_at IS NULL ORDER BY worker.host, length(worker.name), worker.name"
    ):
        view = WorkerView(
            name=row["name"],
            nonce=row["nonce"],
            has_gpu=row["gpus"] != "[]",
            place=place_text(json.loads(row["details"])),
        )
        if row["sweep"] is not None:
            view = replace(
                view,
                task=task_name(row["sweep"], row["point"], row["seed"]),
                number=row["number"],
                failures=row["failures"],
                max_attempts=settings_from_json(row["settings"]).max_attempts,
            )
        views.append(view)
    return views


def worker_names(db: sqlite3.Connection) -> tuple[str, ...]:
    """Return the names of the latest workers, whether they are still there or not."""
    rows = db.execute(
        "SELECT name FROM worker GROUP BY name ORDER BY MAX(started_at) DESC LIMIT ?", (NAMES,)
    )
    return tuple(row["name"] for row in rows)


def place_text(details: Mapping[str, Any]) -> str | None:
    """Return where a worker's allocation is, in a few words; None without one."""
    slurm = details.get("slurm")
    if not isinstance(slurm, dict):
        return None
    restarts = slurm.get("restarts")
    again = f", restart {restarts}" if restarts else ""
    return f"slurm {slurm.get('job')} on {slurm.get('node')}{again}"


def slurm_setups(db: sqlite3.Connection, sweeps: Sequence[str]) -> tuple[str, ...]:
    """Return the `[slurm] setup` of each of these sweeps, of all when none is named."""
    for name in sweeps:
        sweep_id(db, name)
    return tuple(
        settings_from_json(row["settings"]).slurm_setup
        for row in db.execute("SELECT name, settings FROM sweep ORDER BY id")
        if not sweeps or row["name"] in sweeps
    )


def able_workers(db: sqlite3.Connection, *, suspects: bool = False) -> tuple[WorkerIdentity, ...]:
    """Return the live workers but for those that stand back: suspect, or their GPU is not free.

    Args:
        db: The ledger.
        suspects: With those that are suspect: they claim again in a while.
    """
    return tuple(
        worker
        for worker in live_workers(db)
        if worker.details.get("stands_back") is None or (suspects and cools_down(worker))
    )


def _identity(row: sqlite3.Row) -> WorkerIdentity:
    return WorkerIdentity(
        nonce=row["nonce"],
        name=row["name"],
        host=row["host"],
        machine=row["machine"],
        pid=row["pid"],
        pid_start=row["pid_start"],
        gpus=tuple(json.loads(row["gpus"])),
        gpu_memory_mib=row["gpu_memory_mib"],
        gpu_name=row["gpu_name"],
        details=json.loads(row["details"]),
    )


# --- why a task waits -------------------------------------------------------------------------


def waiting(db: sqlite3.Connection, name: str, *, lease_s: float, now: float) -> Waiting | None:
    """Return what decides when a pending task runs, but for signs of life; None if not pending."""
    row = find_task(db, name)
    if row is None or row["state"] != TaskState.PENDING:
        return None
    holder = db.execute("SELECT name FROM worker WHERE nonce = ?", (row["held_by"],)).fetchone()
    sweep = db.execute("SELECT paused FROM sweep WHERE id = ?", (row["sweep_id"],)).fetchone()
    needs, live = settings_from_json(row["settings"]), live_workers(db)
    fit = {worker.nonce for worker in live if misfit(needs, worker) is None}
    return Waiting(
        sweep=row["sweep"],
        paused=sweep["paused"],
        held_by=None if row["held_by"] is None else holder["name"] if holder else "a worker",
        past=past_failures(db, row["id"], row["forgiven_until"], now=now),
        avoid_s=needs.avoid_s,
        ahead=_ahead(db, row),
        misfit=no_worker_fits(needs, live),
        lease_s=lease_s,
        workers=tuple(w for w in _live_workers(db) if w.nonce in fit or not fit),
    )


def _ahead(db: sqlite3.Connection, task: sqlite3.Row) -> int:
    """Count the claimable tasks that come before a task: of higher priority, or older."""
    row = db.execute(
        "SELECT COUNT(*) AS n FROM sweep JOIN task ON task.sweep_id = sweep.id"
        " WHERE sweep.paused IS NULL AND task.state = 'pending' AND task.held_by IS NULL"
        " AND (task.priority > :priority OR task.priority = :priority AND task.id < :id)",
        {"priority": task["priority"], "id": task["id"]},
    ).fetchone()
    return int(row["n"])


def past_failures(
    db: sqlite3.Connection, task_id: int, forgiven_until: int, *, now: float
) -> tuple[PastFailure, ...]:
    """Return a task's counted failures since it was last retried by an operator."""
    return tuple(
        PastFailure(
            worker=row["worker"],
            outcome=Outcome(row["outcome"]),
            age_s=now - row["ended_at"],
            gpu_memory_mib=row["gpu_memory_mib"],
        )
        for row in db.execute(
            "SELECT worker, outcome, ended_at, gpu_memory_mib FROM attempt"
            " WHERE task_id = ? AND number > ? AND outcome IN ('failed', 'oom', 'timed_out')",
            (task_id, forgiven_until),
        )
    )


def _live_workers(db: sqlite3.Connection) -> list[LiveWorker]:
    known = {worker.nonce: worker for worker in live_workers(db)}
    return [
        LiveWorker(
            name=view.name,
            nonce=view.nonce,
            task=view.task,
            gpu_memory_mib=known[view.nonce].gpu_memory_mib,
            stands_back=known[view.nonce].details.get("stands_back") is not None,
            is_suspect=cools_down(known[view.nonce]),
        )
        for view in worker_views(db)
    ]


def heard_of(bare: Waiting, folder: Path, *, now: float) -> Waiting:
    """Add what the workers' own files say: how long ago they wrote, and a note."""
    workers = []
    for worker in bare.workers:
        beat, age_s = read_sign_of_life(beat_path(folder, worker.name, worker.nonce), now=now)
        note = None if beat is None else beat.note
        workers.append(replace(worker, silent_s=age_s, note=note))
    return replace(bare, workers=tuple(workers))


# --- events -----------------------------------------------------------------------------------


def events(db: sqlite3.Connection, *, after: int, limit: int) -> list[Event]:
    """Return events with a number above `after`, the oldest first."""
    return [
        Event(
            id=row["id"],
            at=row["at"],
            kind=row["kind"],
            task=row["task"],
            number=row["number"],
            worker=row["worker"],
            data=json.loads(row["data"]),
        )
        for row in db.execute(
            "SELECT * FROM event WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
        )
    ]


def latest_event(db: sqlite3.Connection) -> int:
    """Return the number of the newest event; 0 when there is none."""
    return int(db.execute("SELECT COALESCE(MAX(id), 0) FROM event").fetchone()[0])
