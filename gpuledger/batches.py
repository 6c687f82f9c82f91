"""Several short tasks at once: held for one worker, settled in one transaction.

A held task stays pending, but nobody else may claim it. Its attempt is opened when the ledger
hears that it has really started: with its outcome when it was short, else while it runs. So a
crash charges only what ran, and what a dead worker held is free again when it is reaped.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from gpuledger import claims, endings
from gpuledger.errors import LeaseLost
from gpuledger.model import Claim, Ended, Finished, Settled, Token, WorkerIdentity
from gpuledger.operations import record_event

MOST_HELD = 64
HOLDER_SHARE = 2
"""A worker holds at most the pending tasks divided by so many times the live workers."""


def settle(
    db: sqlite3.Connection,
    worker: WorkerIdentity,
    finished: Sequence[Finished],
    *,
    running: Token | None,
    hold: int,
    sweeps: Sequence[str],
    now: float,
) -> Settled:
    """Record what ended, and what runs; give back what is held, then hold anew.

    See `Ledger.settle`.
    """
    if not claims.is_live(db, worker.nonce):
        raise LeaseLost("worker " + worker.name, 0, why="it was found dead meanwhile")
    ended: list[Ended | LeaseLost] = []
    for one in finished:
        try:
            _open(db, one.token, worker, at=one.started_at)
            ended.append(endings.end(db, one.token, one.ending, now=one.ended_at))
        except LeaseLost as lost:
            ended.append(lost)
    if running is not None:
        _open(db, running, worker, at=now)
    db.execute("UPDATE task SET held_by = NULL WHERE held_by = ?", (worker.nonce,))
    return Settled(ended=tuple(ended), held=_hold(db, worker, hold, sweeps) if hold else ())


def _open(db: sqlite3.Connection, token: Token, worker: WorkerIdentity, *, at: float) -> None:
    """Open the attempt of a held task; nothing is done when it is open already."""
    task = endings.task_row(db, token)
    if endings.is_open(db, token):
        return
    latest = db.execute(
        "SELECT COALESCE(MAX(number), 0) AS number FROM attempt WHERE task_id = ?", (task["id"],)
    ).fetchone()["number"]
    mine = task["held_by"] == worker.nonce and task["state"] == "pending"
    if not mine or latest + 1 != token.number:
        raise LeaseLost(token.task, token.number, why="it is not held for this worker any more")
    db.execute(
        "INSERT INTO attempt (task_id, number, worker, nonce, gpu_memory_mib, started_at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (task["id"], token.number, worker.name, worker.nonce, worker.gpu_memory_mib, at),
    )
    db.execute(
        "UPDATE task SET state = 'running', stop = NULL, held_by = NULL WHERE id = ?",
        (task["id"],),
    )
    record_event(db, "started", at=at, task=token.task, number=token.number, worker=worker.name)


def _hold(
    db: sqlite3.Connection, worker: WorkerIdentity, count: int, sweeps: Sequence[str]
) -> tuple[Claim, ...]:
    """Hold the next fresh tasks of the sweep that is next; none when a failed one comes first."""
    sweep_id = claims.next_sweep(db, worker, sweeps)
    if sweep_id is None:
        return ()
    live = db.execute("SELECT COUNT(*) AS n FROM worker WHERE ended_at IS NULL").fetchone()["n"]
    pending = db.execute(
        "SELECT n FROM task_count WHERE sweep_id = ? AND state = 'pending'", (sweep_id,)
    ).fetchone()["n"]
    most = max(min(count, MOST_HELD, pending // (HOLDER_SHARE * live)), 1)
    ids = []
    for row in db.execute(claims.FIRST_PENDING + " LIMIT ?", (sweep_id, most)):
        if row["failures"]:
            break
        ids.append(row["id"])
    found = []
    for task_id in ids:
        db.execute("UPDATE task SET held_by = ? WHERE id = ?", (worker.nonce, task_id))
        number = db.execute(
            "SELECT COALESCE(MAX(number), 0) + 1 AS number FROM attempt WHERE task_id = ?",
            (task_id,),
        ).fetchone()["number"]
        found.append(claims.claim_of(db, task_id, number, worker.nonce))
    return tuple(found)
