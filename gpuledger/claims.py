"""Who gets which task: registers workers and opens attempts, inside the caller's transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace

from gpuledger import queries
from gpuledger.errors import LeaseLost
from gpuledger.model import Claim, NothingToDo, Token, WorkerIdentity
from gpuledger.operations import record_event
from gpuledger.resources import misfit, too_long
from gpuledger.routing import Candidate, may_run_on
from gpuledger.spec import RunSettings, settings_from_json
from gpuledger.suspicion import cools_down

FIRST_PENDING = (
    "SELECT id, priority, failures FROM task WHERE sweep_id = ? AND state = 'pending'"
    " AND held_by IS NULL ORDER BY priority DESC, id"
)
"""One probe of the index task_pending, whatever the number of tasks."""


def register(db: sqlite3.Connection, worker: WorkerIdentity, *, now: float) -> WorkerIdentity:
    """Record a new worker; see `Ledger.register`."""
    named = replace(worker, name=_free_name(db, worker.name))
    db.execute(
        "INSERT INTO worker (nonce, name, host, machine, pid, pid_start, gpus,"
        " gpu_memory_mib, gpu_name, details, started_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            named.nonce,
            named.name,
            named.host,
            named.machine,
            named.pid,
            named.pid_start,
            json.dumps(named.gpus),
            named.gpu_memory_mib,
            named.gpu_name,
            json.dumps(dict(named.details)),
            now,
        ),
    )
    record_event(db, "worker_started", at=now, worker=named.name)
    return named


def claim(
    db: sqlite3.Connection,
    worker: WorkerIdentity,
    sweeps: Sequence[str],
    *,
    now: float,
    time_left_s: float | None = None,
) -> Claim | NothingToDo:
    """Open the next attempt of the task that the worker should take; see `Ledger.claim`."""
    if not is_live(db, worker.nonce):
        raise LeaseLost("worker " + worker.name, 0, why="it was found dead meanwhile")
    mine = db.execute(
        "SELECT task_id, number FROM attempt WHERE nonce = ? AND outcome IS NULL",
        (worker.nonce,),
    ).fetchone()
    if mine is not None:
        return claim_of(db, mine["task_id"], mine["number"], worker.nonce)
    task_id = _first_pending(db, worker, sweeps, now=now, time_left_s=time_left_s)
    if task_id is None:
        return nothing_for(db, worker, sweeps, time_left_s=time_left_s)
    number = db.execute(
        "INSERT INTO attempt (task_id, number, worker, nonce, gpu_memory_mib, started_at)"
        " SELECT :task, COALESCE(MAX(number), 0) + 1, :worker, :nonce, :memory, :now"
        " FROM attempt WHERE task_id = :task RETURNING number",
        {
            "task": task_id,
            "worker": worker.name,
            "nonce": worker.nonce,
            "memory": worker.gpu_memory_mib,
            "now": now,
        },
    ).fetchone()["number"]
    db.execute("UPDATE task SET state = 'running', stop = NULL WHERE id = ?", (task_id,))
    claim = claim_of(db, task_id, number, worker.nonce)
    record_event(
        db,
        "started",
        at=now,
        task=claim.task,
        number=number,
        worker=worker.name,
        failures=claim.failures,
        max_attempts=claim.settings.max_attempts,
    )
    return claim


def is_live(db: sqlite3.Connection, nonce: str) -> bool:
    """Tell whether the worker has neither left nor been reaped."""
    row = db.execute("SELECT ended_at FROM worker WHERE nonce = ?", (nonce,)).fetchone()
    return row is not None and row["ended_at"] is None


def claim_of(db: sqlite3.Connection, task_id: int, number: int, nonce: str) -> Claim:
    """Return what a worker needs to run this attempt."""
    row = db.execute(
        "SELECT task.*, sweep.name AS sweep, sweep.settings, completed_n, completed_s FROM task"
        " JOIN sweep ON sweep.id = sweep_id WHERE task.id = ?",
        (task_id,),
    ).fetchone()
    settings = settings_from_json(row["settings"])
    name = queries.task_name(row["sweep"], row["point"], row["seed"])
    return Claim(
        token=Token(task=name, number=number, nonce=nonce),
        sweep=row["sweep"],
        params=json.loads(row["params"]),
        seed=row["seed"],
        failures=row["failures"],
        settings=settings,
        usual_s=usual_s(row, settings),
    )


def _free_name(db: sqlite3.Connection, wanted: str) -> str:
    taken = {row["name"] for row in db.execute("SELECT name FROM worker WHERE ended_at IS NULL")}
    if wanted not in taken:
        return wanted
    ordinal = 2
    while f"{wanted}#{ordinal}" in taken:
        ordinal += 1
    return f"{wanted}#{ordinal}"


def _first_pending(
    db: sqlite3.Connection,
    worker: WorkerIdentity,
    sweeps: Sequence[str],
    *,
    now: float,
    time_left_s: float | None,
) -> int | None:
    """Return the id of the task that `worker` should take, or None."""
    for _, _, sweep_id in heads_in_order(db, worker, sweeps, time_left_s):
        for row in db.execute(FIRST_PENDING, (sweep_id,)):
            if row["failures"] == 0 or is_for(db, row["id"], worker, now=now):
                return int(row["id"])
    return None


def heads_in_order(
    db: sqlite3.Connection,
    worker: WorkerIdentity,
    sweeps: Sequence[str],
    time_left_s: float | None,
) -> list[tuple[int, int, int]]:
    """Return the first free task of each sweep: negative priority, its id, the sweep's id."""
    heads: list[tuple[int, int, int]] = []
    for sweep in _claimable_sweeps(db, worker, sweeps, time_left_s):
        head = db.execute(FIRST_PENDING + " LIMIT 1", (sweep["id"],)).fetchone()
        if head is not None:
            heads.append((-head["priority"], head["id"], sweep["id"]))
    return sorted(heads)


def _claimable_sweeps(
    db: sqlite3.Connection,
    worker: WorkerIdentity,
    sweeps: Sequence[str],
    time_left_s: float | None,
) -> Iterable[sqlite3.Row]:
    """Return the sweeps with pending tasks that this worker may take, by what they need."""
    rows = db.execute(
        "SELECT sweep.id, sweep.name, sweep.settings, completed_n, completed_s FROM sweep"
        " JOIN task_count ON sweep_id = sweep.id"
        " WHERE task_count.state = 'pending' AND n > 0 AND paused IS NULL"
    ).fetchall()
    return [
        row
        for row in rows
        if (not sweeps or row["name"] in sweeps) and _misfit(row, worker, time_left_s) is None
    ]


def _misfit(row: sqlite3.Row, worker: WorkerIdentity, time_left_s: float | None) -> str | None:
    """Return why a worker cannot take the tasks of a sweep: what they need, or how long."""
    settings = settings_from_json(row["settings"])
    return misfit(settings, worker) or too_long(usual_s(row, settings), time_left_s)


def usual_s(sweep: sqlite3.Row, settings: RunSettings) -> float | None:
    """Return how long a task of a sweep takes; None when nobody knows."""
    if settings.time_needed_s is not None:
        return settings.time_needed_s
    return sweep["completed_s"] / sweep["completed_n"] if sweep["completed_n"] else None


def is_for(db: sqlite3.Connection, task_id: int, worker: WorkerIdentity, *, now: float) -> bool:
    """Apply `may_run_on` to a task that has failed before."""
    task = db.execute(
        "SELECT task.*, sweep.settings FROM task JOIN sweep ON sweep.id = sweep_id"
        " WHERE task.id = ?",
        (task_id,),
    ).fetchone()
    past = queries.past_failures(db, task_id, task["forgiven_until"], now=now)
    settings = settings_from_json(task["settings"])
    others = [
        Candidate(
            name=other.name, gpu_memory_mib=other.gpu_memory_mib, is_suspect=cools_down(other)
        )
        for other in queries.able_workers(db, suspects=True)
        if other.nonce != worker.nonce and misfit(settings, other) is None
    ]
    return may_run_on(
        Candidate(name=worker.name, gpu_memory_mib=worker.gpu_memory_mib),
        past,
        others=others,
        avoid_s=settings.avoid_s,
    )


def nothing_for(
    db: sqlite3.Connection,
    worker: WorkerIdentity,
    sweeps: Sequence[str],
    *,
    time_left_s: float | None = None,
) -> NothingToDo:
    """Count what could still come to a worker; see `Ledger.outlook`."""
    pending = running = held = 0
    broken: list[str] = []
    misfits: dict[str, str] = {}
    for row in db.execute(
        "SELECT name, settings, paused_by, state, n, completed_n, completed_s FROM sweep"
        " JOIN task_count ON sweep_id = sweep.id"
        " WHERE n > 0 AND state IN ('pending', 'running')"
    ):
        if sweeps and row["name"] not in sweeps:
            continue
        problem = _misfit(row, worker, time_left_s)
        if problem is not None:
            if row["state"] == "pending":
                misfits[row["name"]] = problem
        elif row["state"] == "running":
            running += row["n"]
        elif row["paused_by"] == "operator":
            held += row["n"]
        elif row["paused_by"] == "gpuledger":
            broken.append(row["name"])
        else:
            pending += row["n"]
    return NothingToDo(
        pending=pending, running=running, held=held, broken=tuple(broken), misfits=misfits
    )


def stand_back(db: sqlite3.Connection, nonce: str, why: str | None, *, now: float) -> None:
    """Record that a worker claims nothing for now, and why; see `Ledger.stand_back`."""
    row = db.execute(
        "UPDATE worker SET details = json_set(details, '$.stands_back', ?)"
        " WHERE nonce = ? AND ended_at IS NULL RETURNING name",
        (why, nonce),
    ).fetchone()
    if row is not None:
        kind = "worker_ready" if why is None else "worker_stands_back"
        record_event(db, kind, at=now, worker=row["name"], reason=why)
