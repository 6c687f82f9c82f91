"""Who gets which task: registers workers and opens attempts, inside the caller's transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace

from gpuledger import queries
from gpuledger.errors import LeaseLost
from gpuledger.model import (
    Candidate,
    Claim,
    NothingToDo,
    Token,
    WorkerIdentity,
    may_run_on,
    settings_from_json,
)
from gpuledger.operations import record_event

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
        " gpu_memory_mib, gpu_name, started_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
            now,
        ),
    )
    record_event(db, "worker_started", at=now, worker=named.name)
    return named


def claim(
    db: sqlite3.Connection, worker: WorkerIdentity, sweeps: Sequence[str], *, now: float
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
    task_id = _first_pending(db, worker, sweeps, now=now)
    if task_id is None:
        return _nothing(db, sweeps)
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
        "SELECT task.*, sweep.name AS sweep, sweep.settings FROM task"
        " JOIN sweep ON sweep.id = sweep_id WHERE task.id = ?",
        (task_id,),
    ).fetchone()
    name = queries.task_name(row["sweep"], row["point"], row["seed"])
    return Claim(
        token=Token(task=name, number=number, nonce=nonce),
        sweep=row["sweep"],
        params=json.loads(row["params"]),
        seed=row["seed"],
        failures=row["failures"],
        settings=settings_from_json(row["settings"]),
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
    db: sqlite3.Connection, worker: WorkerIdentity, sweeps: Sequence[str], *, now: float
) -> int | None:
    """Return the id of the task that `worker` should take, or None."""
    heads: list[tuple[int, int, int]] = []
    for sweep in _claimable_sweeps(db, sweeps):
        head = db.execute(FIRST_PENDING + " LIMIT 1", (sweep["id"],)).fetchone()
        if head is not None:
            heads.append((-head["priority"], head["id"], sweep["id"]))
    for _, _, sweep_id in sorted(heads):
        for row in db.execute(FIRST_PENDING, (sweep_id,)):
            if row["failures"] == 0 or _is_for(db, row["id"], worker, now=now):
                return int(row["id"])
    return None


def _claimable_sweeps(db: sqlite3.Connection, sweeps: Sequence[str]) -> Iterable[sqlite3.Row]:
    rows = db.execute(
        "SELECT sweep.id, sweep.name FROM sweep JOIN task_count ON sweep_id = sweep.id"
        " WHERE task_count.state = 'pending' AND n > 0 AND paused IS NULL"
    ).fetchall()
    return [row for row in rows if not sweeps or row["name"] in sweeps]


def _is_for(db: sqlite3.Connection, task_id: int, worker: WorkerIdentity, *, now: float) -> bool:
    """Apply `may_run_on` to a task that has failed before."""
    task = db.execute(
        "SELECT task.*, sweep.settings FROM task JOIN sweep ON sweep.id = sweep_id"
        " WHERE task.id = ?",
        (task_id,),
    ).fetchone()
    past = queries.past_failures(db, task_id, task["forgiven_until"], now=now)
    others = [
        Candidate(name=row["name"], gpu_memory_mib=row["gpu_memory_mib"])
        for row in db.execute(
            "SELECT name, gpu_memory_mib FROM worker WHERE ended_at IS NULL AND nonce <> ?",
            (worker.nonce,),
        )
    ]
    return may_run_on(
        Candidate(name=worker.name, gpu_memory_mib=worker.gpu_memory_mib),
        past,
        others=others,
        avoid_s=settings_from_json(task["settings"]).avoid_s,
    )


def _nothing(db: sqlite3.Connection, sweeps: Sequence[str]) -> NothingToDo:
    pending = running = held = 0
    broken: list[str] = []
    for row in db.execute(
        "SELECT name, paused_by, state, n FROM sweep JOIN task_count ON sweep_id = sweep.id"
        " WHERE n > 0 AND state IN ('pending', 'running')"
    ):
        if sweeps and row["name"] not in sweeps:
            continue
        if row["state"] == "running":
            running += row["n"]
        elif row["paused_by"] == "operator":
            held += row["n"]
        elif row["paused_by"] == "gpuledger":
            broken.append(row["name"])
        else:
            pending += row["n"]
    return NothingToDo(pending=pending, running=running, held=held, broken=tuple(broken))
