"""Several short tasks at once: held for one worker, settled in one transaction.

A held task stays pending, but nobody else may claim it. Its attempt is opened when the ledger
hears that it has really started: with its outcome when it was short, else while it runs. So a
crash charges only what ran, and what a dead worker held is free again when it is reaped.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from gpuledger import claims, endings, queries
from gpuledger.errors import LeaseLost
from gpuledger.model import (
    Claim,
    Ended,
    Finished,
    Outcome,
    Settled,
    TaskState,
    Token,
    WorkerIdentity,
)
from gpuledger.operations import event_values, insert_events
from gpuledger.spec import params_digest, settings_from_json

MOST_HELD = 64
HELD_BY_ALL = 768
FEW_HELD = 12
"""Workers hold fewer where many compete, so that the ledger goes round among 64 within a second;
not fewer than these, so that going round is not all that it does (`python -m tests.benchmarks`)."""

HOLDER_SHARE = 2
"""A worker holds at most the free tasks divided by so many times the live workers."""

SHORT_S = 1.0
"""Tasks of a sweep that usually take longer are claimed one by one."""

Held = Mapping[str, sqlite3.Row]
"""What a worker holds, by the task's name."""

HELD = (
    "SELECT task.id, sweep_id, point, seed, failures, sweep.name AS sweep, settings,"
    " (SELECT COALESCE(MAX(number), 0) FROM attempt WHERE task_id = task.id) AS latest"
    " FROM task JOIN sweep ON sweep.id = sweep_id WHERE held_by = ? AND state = 'pending'"
)

FREE = (
    "SELECT id, point, seed, params, priority, failures,"
    " (SELECT COALESCE(MAX(number), 0) FROM attempt WHERE task_id = task.id) AS latest"
    " FROM task WHERE sweep_id = ? AND state = 'pending' AND held_by IS NULL"
    " ORDER BY priority DESC, id"
)
"""One probe of the index task_pending, as a claim is."""


def settle(
    db: sqlite3.Connection,
    worker: WorkerIdentity,
    finished: Sequence[Finished],
    *,
    running: Token | None,
    hold: int,
    sweeps: Sequence[str],
    now: float,
    time_left_s: float | None = None,
) -> Settled:
    """Record what ended, and what runs; give back what is held, then hold anew.

    See `Ledger.settle`.
    """
    if not claims.is_live(db, worker.nonce):
        raise LeaseLost("worker " + worker.name, 0, why="it was found dead meanwhile")
    held = _held(db, worker)
    ended: list[Ended | LeaseLost] = []
    for plain, some in groupby(finished, lambda one: _is_plain(one, worker, held)):
        if plain:
            ended += _complete_all(db, worker, tuple(some), held)
        else:
            ended += [_end_one(db, worker, one) for one in some]
    lost_running = None if running is None else _open_running(db, worker, running, now=now)
    db.execute("UPDATE task SET held_by = NULL WHERE held_by = ?", (worker.nonce,))
    settled = Settled(ended=tuple(ended), lost_running=lost_running)
    if hold < 1 or any(isinstance(one, Ended) and one.suspect for one in ended):
        return settled
    return _with_next(db, worker, settled, hold, sweeps, now=now, time_left_s=time_left_s)


def deliver(db: sqlite3.Connection, worker: str, finished: Finished) -> Ended:
    """Record what a worker did that is not live any more; see `Ledger.deliver`."""
    token, ending = finished.token, finished.ending
    task = endings.task_row(db, token)
    if finished.params is not None and params_digest(finished.params) != task["digest"]:
        raise LeaseLost(token.task, token.number, why="its parameters were changed meanwhile")
    latest = _latest(db, task["id"])
    is_new = token.number == (latest["number"] if latest else 0) + 1
    if is_new and endings.is_free(task, token) and ending.outcome is Outcome.COMPLETED:
        _insert_open(db, task["id"], token, worker, None, at=finished.started_at)
    return endings.end(db, token, ending, now=finished.ended_at)


def _held(db: sqlite3.Connection, worker: WorkerIdentity) -> Held:
    rows = db.execute(HELD, (worker.nonce,))
    return {queries.task_name(row["sweep"], row["point"], row["seed"]): row for row in rows}


def _is_plain(one: Finished, worker: WorkerIdentity, held: Held) -> bool:
    """Tell whether it is the success of a held task: those are recorded all together."""
    row = held.get(one.token.task)
    return (
        row is not None
        and one.ending.outcome is Outcome.COMPLETED
        and one.token.nonce == worker.nonce
        and one.token.number == row["latest"] + 1
    )


def _complete_all(
    db: sqlite3.Connection, worker: WorkerIdentity, finished: Sequence[Finished], held: Held
) -> list[Ended]:
    """Record successes of held tasks: what opening and ending each would do, in few statements."""
    attempts, tasks, events, ended = [], [], [], []
    took_s: dict[int, list[float]] = defaultdict(list)
    packages: dict[str | None, Finished] = {}
    for one in finished:
        row, token, ending = held[one.token.task], one.token, one.ending
        settings = settings_from_json(row["settings"])
        done = Ended(
            state=TaskState.COMPLETED,
            failures=row["failures"],
            max_attempts=settings.max_attempts,
        )
        attempts.append(
            {
                **endings.columns(ending, now=one.ended_at),
                "task": row["id"],
                "number": token.number,
                "worker": worker.name,
                "nonce": worker.nonce,
                "memory": worker.gpu_memory_mib,
                "started": one.started_at,
            }
        )
        tasks.append((row["id"],))
        events.append(_started(token, worker.name, at=one.started_at))
        events.append(endings.ended_event(token, worker.name, ending, done, at=one.ended_at))
        took_s[row["sweep_id"]].append(ending.duration_s or 0.0)
        if ending.origin is not None:
            packages.setdefault(ending.origin.environment, one)
        ended.append(done)
    db.executemany(
        "INSERT INTO attempt (task_id, number, worker, nonce, gpu_memory_mib, started_at, outcome,"
        " ended_at, duration_s, counted, exit_code, signal, error, traceback, metrics,"
        " memory_peak_mib, origin, environment) VALUES (:task, :number, :worker, :nonce, :memory,"
        " :started, :outcome, :now, :duration, :counted, :exit_code, :signal, :error, :traceback,"
        " :metrics, :memory_peak, :origin, :environment)",
        attempts,
    )
    db.executemany(
        "UPDATE task SET state = 'completed', stop = NULL, held_by = NULL WHERE id = ?", tasks
    )
    insert_events(db, events)
    for sweep_id, durations in took_s.items():
        endings.note_success(db, sweep_id, count=len(durations), took_s=sum(durations))
    for one in packages.values():
        endings.keep_packages(db, one.ending)
    return ended


def _end_one(db: sqlite3.Connection, worker: WorkerIdentity, one: Finished) -> Ended | LeaseLost:
    try:
        _open(db, one.token, worker, at=one.started_at)
        return endings.end(db, one.token, one.ending, now=one.ended_at)
    except LeaseLost as lost:
        return lost


def _open_running(
    db: sqlite3.Connection, worker: WorkerIdentity, token: Token, *, now: float
) -> LeaseLost | None:
    try:
        _open(db, token, worker, at=now)
    except LeaseLost as lost:
        return lost
    if endings.is_open(db, token):
        return None
    return LeaseLost(token.task, token.number, why="somebody ended it")


def _open(db: sqlite3.Connection, token: Token, worker: WorkerIdentity, *, at: float) -> None:
    """Open the attempt of a held task; nothing is done when the ledger knows the attempt."""
    task = endings.task_row(db, token)
    latest = _latest(db, task["id"])
    if latest is not None and (latest["number"], latest["nonce"]) == (token.number, token.nonce):
        return
    mine = task["held_by"] == worker.nonce and task["state"] == "pending"
    if not mine or token.number != (latest["number"] if latest else 0) + 1:
        raise LeaseLost(token.task, token.number, why="it is not held for this worker any more")
    _insert_open(db, task["id"], token, worker.name, worker.gpu_memory_mib, at=at)


def _latest(db: sqlite3.Connection, task_id: int) -> sqlite3.Row | None:
    row: sqlite3.Row | None = db.execute(
        "SELECT number, nonce FROM attempt WHERE task_id = ? ORDER BY number DESC LIMIT 1",
        (task_id,),
    ).fetchone()
    return row


def _insert_open(
    db: sqlite3.Connection,
    task_id: int,
    token: Token,
    worker: str,
    gpu_memory_mib: int | None,
    *,
    at: float,
) -> None:
    db.execute(
        "INSERT INTO attempt (task_id, number, worker, nonce, gpu_memory_mib, started_at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (task_id, token.number, worker, token.nonce, gpu_memory_mib, at),
    )
    db.execute(
        "UPDATE task SET state = 'running', stop = NULL, held_by = NULL WHERE id = ?", (task_id,)
    )
    insert_events(db, [_started(token, worker, at=at)])


def _started(token: Token, worker: str, *, at: float) -> tuple[object, ...]:
    return event_values("started", at=at, task=token.task, number=token.number, worker=worker)


def _with_next(
    db: sqlite3.Connection,
    worker: WorkerIdentity,
    settled: Settled,
    hold: int,
    sweeps: Sequence[str],
    *,
    now: float,
    time_left_s: float | None,
) -> Settled:
    """Hold several tasks, or else claim one in the ordinary way."""
    held = _hold(db, worker, hold, sweeps, time_left_s, now=now) if hold > 1 else ()
    if held:
        return replace(settled, held=held)
    found = claims.claim(db, worker, sweeps, now=now, time_left_s=time_left_s)
    return replace(settled, next=found)


def _hold(
    db: sqlite3.Connection,
    worker: WorkerIdentity,
    count: int,
    sweeps: Sequence[str],
    time_left_s: float | None,
    *,
    now: float,
) -> tuple[Claim, ...]:
    """Hold the next fresh tasks of the sweep that is next.

    A failed one that this worker should take comes before those behind it, and is claimed alone.
    """
    heads = claims.heads_in_order(db, worker, sweeps, time_left_s)
    if not heads:
        return ()
    _, _, sweep_id = heads[0]
    before = heads[1][:2] if len(heads) > 1 else None
    sweep = db.execute(
        "SELECT id, name, settings, completed_n, completed_s FROM sweep WHERE id = ?", (sweep_id,)
    ).fetchone()
    settings = settings_from_json(sweep["settings"])
    usual_s = claims.usual_s(sweep, settings)
    if usual_s is not None and usual_s > SHORT_S:
        return ()
    rows: list[sqlite3.Row] = []
    most = _share(db, sweep_id, count)
    for row in db.execute(FREE, (sweep_id,)):
        later = before is not None and (-row["priority"], row["id"]) > before
        if len(rows) >= most or later:
            break
        if not row["failures"]:
            rows.append(row)
        elif claims.is_for(db, row["id"], worker, now=now):
            break
    if len(rows) < 2:
        return ()
    db.executemany(
        "UPDATE task SET held_by = ? WHERE id = ?", [(worker.nonce, row["id"]) for row in rows]
    )
    return tuple(
        Claim(
            token=Token(
                task=queries.task_name(sweep["name"], row["point"], row["seed"]),
                number=row["latest"] + 1,
                nonce=worker.nonce,
            ),
            sweep=sweep["name"],
            params=json.loads(row["params"]),
            seed=row["seed"],
            failures=0,
            settings=settings,
            usual_s=usual_s,
        )
        for row in rows
    )


def _share(db: sqlite3.Connection, sweep_id: int, count: int) -> int:
    """Return how many tasks a worker may hold of those that are free."""
    live = db.execute("SELECT COUNT(*) AS n FROM worker WHERE ended_at IS NULL").fetchone()["n"]
    free = db.execute(
        "SELECT n FROM task_count WHERE sweep_id = ? AND state = 'pending'", (sweep_id,)
    ).fetchone()["n"]
    parts = HOLDER_SHARE * live
    most = min(count, MOST_HELD, max(HELD_BY_ALL // live, FEW_HELD))
    if free < 2 * most * parts:  # few are left: what others hold is not free
        free -= db.execute("SELECT COUNT(*) AS n FROM task WHERE held_by IS NOT NULL").fetchone()[
            "n"
        ]
    return int(min(most, free // parts))
