"""How attempts end, and what follows for task, worker and sweep, inside a transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Set
from dataclasses import replace

from gpuledger import queries
from gpuledger.claims import claim_of
from gpuledger.errors import LeaseLost
from gpuledger.model import (
    COUNTED_AS_FAILURE,
    Claim,
    Ended,
    Ending,
    Outcome,
    TaskState,
    Token,
    state_after,
)
from gpuledger.operations import event_values, insert_events, record_event
from gpuledger.origin import origin_text, packages_text
from gpuledger.resources import misfit
from gpuledger.spec import RunSettings, settings_from_json
from gpuledger.suspicion import RecentEnding, is_broken, is_suspect, is_value_to_blame
from gpuledger.traceback_reader import is_fatal

STREAK_KEPT = 64
"""Failed tasks a sweep remembers since its last success; more would change nothing."""

BLAMED_TIMES = 10
"""A value of a parameter is to blame for so many times `pause_after` tasks, not for more."""

COMPARED, LOOKED_AT = 1000, 10_000
"""Completed tasks that the failed ones are compared with, among the ledger's latest attempts."""


def end(db: sqlite3.Connection, token: Token, ending: Ending, *, now: float) -> Ended:
    """Close one open attempt and move its task on: the only way an attempt ends."""
    task = task_row(db, token)
    settings = settings_from_json(task["settings"])
    closed = db.execute(
        "UPDATE attempt SET outcome = :outcome, ended_at = :now, duration_s = :duration,"
        " counted = :counted, exit_code = :exit_code, signal = :signal, error = :error,"
        " traceback = :traceback, metrics = :metrics, memory_peak_mib = :memory_peak,"
        " origin = :origin, environment = :environment"
        " WHERE task_id = :task AND number = :number AND nonce = :nonce"
        " AND outcome IS NULL",
        {
            **columns(ending, now=now),
            "task": task["id"],
            "number": token.number,
            "nonce": token.nonce,
        },
    )
    if closed.rowcount != 1:
        return _ended_before(db, task, token, ending, settings, now=now)
    failures = task["failures"] + (ending.outcome in COUNTED_AS_FAILURE)
    losses = task["losses"] + (ending.outcome is Outcome.LOST)
    state = state_after(
        ending.outcome,
        failures=failures,
        losses=losses,
        max_attempts=settings.max_attempts,
        max_losses=settings.max_losses,
        fatal=ending.fatal,
        cancel_requested=task["stop"] is not None,
    )
    db.execute(
        "UPDATE task SET state = ?, failures = ?, losses = ?, stop = NULL WHERE id = ?",
        (state, failures, losses, task["id"]),
    )
    ended = Ended(state=state, failures=failures, max_attempts=settings.max_attempts)
    _record_ending(db, task, token, ending, ended, now=now)
    return _judge(db, task, token, ending, ended, settings, now=now)


def end_worker(
    db: sqlite3.Connection, nonce: str, how: str, ending: Ending, *, now: float
) -> list[Claim]:
    """End a worker and its open attempts; return what it was running."""
    open_attempts = db.execute(
        "SELECT task_id, number FROM attempt WHERE nonce = ? AND outcome IS NULL", (nonce,)
    ).fetchall()
    claims = [claim_of(db, row["task_id"], row["number"], nonce) for row in open_attempts]
    for claim in claims:
        end(db, claim.token, ending, now=now)
    db.execute("UPDATE task SET held_by = NULL WHERE held_by = ?", (nonce,))
    gone = db.execute(
        "UPDATE worker SET ended_at = ?, ending = ?"
        " WHERE nonce = ? AND ended_at IS NULL RETURNING name",
        (now, how, nonce),
    ).fetchone()
    if gone is not None:
        record_event(db, f"worker_{how}", at=now, worker=gone["name"])
    return claims


def _ended_before(
    db: sqlite3.Connection,
    task: sqlite3.Row,
    token: Token,
    ending: Ending,
    settings: RunSettings,
    *,
    now: float,
) -> Ended:
    """The attempt was ended already: by this very call, by a reaper, or by an operator."""
    attempt = db.execute(
        "SELECT * FROM attempt WHERE task_id = ? AND number = ?", (task["id"], token.number)
    ).fetchone()
    if attempt is None or attempt["nonce"] != token.nonce:
        raise LeaseLost(token.task, token.number, why="it is not this worker's attempt")
    before = Ended(
        state=TaskState(task["state"]),
        failures=task["failures"],
        max_attempts=settings.max_attempts,
    )
    if attempt["outcome"] == ending.outcome:
        return before  # the same call again, after an answer that got lost
    untouched = (
        # It may have been the last loss that the task was allowed.
        (is_free(task, token) or task["state"] == TaskState.FAILED)
        and not _has_later_attempt(db, task, token)
        and token.number > task["forgiven_until"]  # else it was retried, perhaps with other values
    )
    if attempt["outcome"] == Outcome.LOST and untouched and ending.outcome == "completed":
        return _complete_late(db, task, token, ending, before, now=now)
    raise LeaseLost(token.task, token.number, why=f"it was ended as {attempt['outcome']}")


def _complete_late(
    db: sqlite3.Connection,
    task: sqlite3.Row,
    token: Token,
    ending: Ending,
    before: Ended,
    *,
    now: float,
) -> Ended:
    """Accept the success of a worker thought dead, while nobody took or retried the task."""
    db.execute(
        "UPDATE attempt SET outcome = 'completed', ended_at = :now, duration_s = :duration,"
        " exit_code = 0, error = NULL, metrics = :metrics, memory_peak_mib = :memory_peak,"
        " origin = :origin, environment = :environment"
        " WHERE task_id = :task AND number = :number",
        {
            "now": now,
            "duration": ending.duration_s,
            "metrics": json.dumps(dict(ending.metrics)) if ending.metrics else None,
            "memory_peak": ending.memory_peak_mib,
            **_origin(ending),
            "task": task["id"],
            "number": token.number,
        },
    )
    db.execute(
        "UPDATE task SET state = 'completed', losses = MAX(losses - 1, 0) WHERE id = ?",
        (task["id"],),
    )
    ended = replace(before, state=TaskState.COMPLETED)
    _record_ending(db, task, token, ending, ended, now=now)
    return ended


def _record_ending(
    db: sqlite3.Connection,
    task: sqlite3.Row,
    token: Token,
    ending: Ending,
    ended: Ended,
    *,
    now: float,
) -> None:
    attempt = db.execute(
        "SELECT worker FROM attempt WHERE task_id = ? AND number = ?",
        (task["id"], token.number),
    ).fetchone()
    insert_events(db, [ended_event(token, attempt["worker"], ending, ended, at=now)])
    keep_packages(db, ending)
    if ending.outcome is Outcome.COMPLETED:
        note_success(db, task["sweep_id"], count=1, took_s=ending.duration_s or 0.0)


def ended_event(
    token: Token, worker: str, ending: Ending, ended: Ended, *, at: float
) -> tuple[object, ...]:
    """Return the event's row that says how an attempt ended."""
    return event_values(
        ending.outcome,
        at=at,
        task=token.task,
        number=token.number,
        worker=worker,
        failures=ended.failures,
        max_attempts=ended.max_attempts,
        state=ended.state,
        error=ending.error,
        duration_s=ending.duration_s,
        metrics=dict(ending.metrics),
    )


def note_success(db: sqlite3.Connection, sweep_id: int, *, count: int, took_s: float) -> None:
    """Count completed tasks of a sweep: whatever failed before, it is not what is broken."""
    db.execute(
        "UPDATE sweep SET failing = '{}', completed_n = completed_n + ?,"
        " completed_s = completed_s + ? WHERE id = ?",
        (count, took_s, sweep_id),
    )


def columns(ending: Ending, *, now: float) -> dict[str, object]:
    """Return the values of the columns that an ended attempt has."""
    return {
        "outcome": ending.outcome,
        "now": now,
        "duration": ending.duration_s,
        "counted": int(ending.outcome in COUNTED_AS_FAILURE),
        "exit_code": ending.exit_code,
        "signal": ending.signal,
        "error": ending.error,
        "traceback": ending.traceback,
        "metrics": json.dumps(dict(ending.metrics)) if ending.metrics else None,
        "memory_peak": ending.memory_peak_mib,
        **_origin(ending),
    }


def _origin(ending: Ending) -> dict[str, str | None]:
    """Return the columns that say where an attempt came from."""
    if ending.origin is None:
        return {"origin": None, "environment": None}
    return {
        "origin": origin_text(ending.origin),
        "environment": ending.origin.environment,
    }


def keep_packages(db: sqlite3.Connection, ending: Ending) -> None:
    """Keep the list of an environment's packages, once."""
    if ending.origin is not None and ending.origin.packages is not None:
        db.execute(
            "INSERT OR IGNORE INTO environment (digest, data) VALUES (?, ?)",
            (ending.origin.environment, packages_text(ending.origin.packages)),
        )


def _judge(
    db: sqlite3.Connection,
    task: sqlite3.Row,
    token: Token,
    ending: Ending,
    ended: Ended,
    settings: RunSettings,
    *,
    now: float,
) -> Ended:
    """After a failure: is it the task, this worker, or the whole sweep that is broken?"""
    if ending.outcome not in COUNTED_AS_FAILURE:
        return ended
    me = db.execute("SELECT name FROM worker WHERE nonce = ?", (token.nonce,)).fetchone()
    live = frozenset(  # those that may run it: the others say nothing about the sweep
        worker.name
        for worker in queries.able_workers(db)
        if worker.name == me["name"] or misfit(settings, worker) is None
    )
    reason = _note_failure(db, task, me["name"], ending, live, settings)
    if reason is not None:
        record_event(
            db,
            "sweep_paused",
            at=now,
            worker=me["name"],
            sweep=task["sweep"],
            reason=reason,
        )
        return replace(ended, sweep_paused=reason)
    if ending.fatal:
        return ended  # the task says itself that it is to blame
    latest = _latest_endings(db, token.nonce, me["name"])
    if not is_suspect([recent for _, recent in latest], others=len(live - {me["name"]})):
        return ended
    for attempt, _ in latest:
        _give_back(db, attempt)
    record_event(db, "worker_suspect", at=now, worker=me["name"], error=ending.error)
    return replace(ended, suspect=True, state=TaskState.PENDING)


def task_row(db: sqlite3.Connection, token: Token) -> sqlite3.Row:
    """Return the task of an attempt; raise LeaseLost when the ledger has no such task."""
    row = queries.find_task(db, token.task)
    if row is None:
        raise LeaseLost(token.task, token.number, why="the task is not in the ledger")
    return row


def is_free(task: sqlite3.Row, token: Token) -> bool:
    """Tell whether nobody but the attempt's worker has the task: who holds it may run it by now."""
    return task["state"] == "pending" and task["held_by"] in (None, token.nonce)


def is_open(db: sqlite3.Connection, token: Token) -> bool:
    """Tell whether the attempt is still its worker's to end."""
    return (
        db.execute(
            "SELECT 1 FROM attempt WHERE task_id = ? AND number = ? AND nonce = ?"
            " AND outcome IS NULL",
            (task_row(db, token)["id"], token.number, token.nonce),
        ).fetchone()
        is not None
    )


def _note_failure(
    db: sqlite3.Connection,
    task: sqlite3.Row,
    worker: str,
    ending: Ending,
    live: frozenset[str],
    settings: RunSettings,
) -> str | None:
    """Remember a failure since the sweep's last success; return why it is paused now, or None."""
    row = db.execute(
        "SELECT failing, paused FROM sweep WHERE id = ?", (task["sweep_id"],)
    ).fetchone()
    failing = json.loads(row["failing"])
    tasks = set(failing.get("tasks", ())) | {task["id"]}
    workers = set(failing.get("workers", ())) | {worker}
    reason = None
    broken = row["paused"] is None and is_broken(
        failed_tasks=len(tasks),
        failed_on=frozenset(workers),
        live=live,
        pause_after=settings.pause_after,
    )
    if broken and len(tasks) < min(BLAMED_TIMES * settings.pause_after, STREAK_KEPT):
        broken = not _is_value_to_blame(db, task["sweep_id"], tasks)
    if broken:
        where = "on every worker" if len(live) > 1 else "in a row"
        reason = f"{len(tasks)} tasks failed {where}, none succeeded meanwhile: {ending.error}"
        db.execute(
            "UPDATE sweep SET paused = ?, paused_by = 'gpuledger' WHERE id = ?",
            (reason, task["sweep_id"]),
        )
    kept = {"tasks": sorted(tasks)[-STREAK_KEPT:], "workers": sorted(workers & (live | {worker}))}
    db.execute("UPDATE sweep SET failing = ? WHERE id = ?", (json.dumps(kept), task["sweep_id"]))
    return reason


def _is_value_to_blame(db: sqlite3.Connection, sweep_id: int, failed: Set[int]) -> bool:
    """Apply `is_value_to_blame` to tasks that failed, and the latest of those that completed."""
    completed = db.execute(
        "SELECT params FROM (SELECT task_id FROM attempt WHERE outcome = 'completed'"
        " ORDER BY ended_at DESC LIMIT ?) JOIN task ON task.id = task_id WHERE sweep_id = ?"
        " LIMIT ?",
        (LOOKED_AT, sweep_id, COMPARED),
    ).fetchall()
    if not completed:
        return False
    rows = db.execute(
        "SELECT params FROM task WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps(sorted(failed)),),
    )
    return is_value_to_blame(
        [json.loads(row["params"]) for row in rows],
        [json.loads(row["params"]) for row in completed],
    )


def _latest_endings(
    db: sqlite3.Connection, nonce: str, worker: str
) -> list[tuple[sqlite3.Row, RecentEnding]]:
    """Return the worker's latest attempts that say something about it, newest first."""
    rows = db.execute(
        "SELECT task_id, number, outcome, counted, COALESCE(duration_s, 0) AS duration_s,"
        " EXISTS (SELECT 1 FROM attempt AS other WHERE other.task_id = attempt.task_id"
        "   AND other.worker <> attempt.worker"
        "   AND other.outcome IN ('failed', 'oom', 'timed_out')) AS elsewhere,"
        " error, traceback, exit_code, (SELECT settings FROM task JOIN sweep"
        "   ON sweep.id = sweep_id WHERE task.id = task_id) AS settings"
        " FROM attempt WHERE worker = ? AND nonce = ?"
        " AND outcome IN ('completed', 'failed', 'oom', 'timed_out')"
        " ORDER BY started_at DESC, task_id DESC, number DESC LIMIT 3",
        (worker, nonce),
    ).fetchall()
    return [
        (
            row,
            RecentEnding(
                task=str(row["task_id"]),
                outcome=Outcome(row["outcome"]),
                duration_s=row["duration_s"],
                task_to_blame=bool(row["elsewhere"]) or not row["counted"] or _was_fatal(row),
            ),
        )
        for row in rows
    ]


def _was_fatal(attempt: sqlite3.Row) -> bool:
    """Tell whether no other attempt made sense after this one."""
    codes = settings_from_json(attempt["settings"]).no_retry_codes
    lines = (attempt["traceback"] or "").splitlines()
    return attempt["exit_code"] in codes or is_fatal(attempt["error"] or "", lines)


def _give_back(db: sqlite3.Connection, attempt: sqlite3.Row) -> None:
    """Take a counted failure off its task: the worker was to blame."""
    db.execute(
        "UPDATE attempt SET counted = 0 WHERE task_id = ? AND number = ?",
        (attempt["task_id"], attempt["number"]),
    )
    db.execute(
        "UPDATE task SET failures = MAX(failures - 1, 0),"
        " state = CASE state WHEN 'failed' THEN 'pending' ELSE state END WHERE id = ?",
        (attempt["task_id"],),
    )


def _has_later_attempt(db: sqlite3.Connection, task: sqlite3.Row, token: Token) -> bool:
    return (
        db.execute(
            "SELECT 1 FROM attempt WHERE task_id = ? AND number > ?", (task["id"], token.number)
        ).fetchone()
        is not None
    )
