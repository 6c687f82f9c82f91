"""What `status` shows: SQL that reads it, at the same cost for any number of tasks."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gpuledger.eta import with_etas
from gpuledger.heartbeat import Beat, beat_path, read_sign_of_life
from gpuledger.machine import is_alive
from gpuledger.model import Outcome, TaskState, WorkerIdentity
from gpuledger.queries import live_workers, sweep_id, task_name, worker_views
from gpuledger.resources import no_worker_fits
from gpuledger.spec import settings_from_json
from gpuledger.views import Counts, FailureView, Snapshot, SweepView, WorkerView

FAILURES_SHOWN = 200
TRACEBACKS_SHOWN = 20

RECENT_FAILURES = 2000
"""Failures that were made good since are passed over; so many are looked at."""

HOUR_S = 3600.0

TELLING_S = 10.0
"""Over less than this a rate says little, and clocks of hosts differ by seconds."""

RATED = 10_000
"""The rate is that of so many tasks at most, so that it costs the same in any ledger."""


def snapshot(db: sqlite3.Connection, *, folder: Path, sweep: str | None, now: float) -> Snapshot:
    """Return the status as far as the database knows it; the same cost for any number of tasks."""
    only = None if sweep is None else sweep_id(db, sweep)
    sweeps = db.execute(
        "SELECT * FROM sweep WHERE :only IS NULL OR id = :only ORDER BY id", {"only": only}
    ).fetchall()
    live = live_workers(db)
    views = tuple(_sweep_view(db, row, live) for row in sweeps)
    counts = sum((view.counts for view in views), Counts())
    failures, more_failures = _latest_failures(db, only, failed=counts.failed)
    return Snapshot(
        taken_at=now,
        ledger=str(folder),
        counts=counts,
        sweeps=views,
        workers=tuple(worker_views(db)),
        failures=failures,
        more_failures=more_failures,
        per_hour=_per_hour(db, only, now=now),
    )


def _sweep_view(
    db: sqlite3.Connection, row: sqlite3.Row, live: Sequence[WorkerIdentity]
) -> SweepView:
    counts = {
        count["state"]: count["n"]
        for count in db.execute("SELECT state, n FROM task_count WHERE sweep_id = ?", (row["id"],))
    }
    mean_s = row["completed_s"] / row["completed_n"] if row["completed_n"] else None
    return SweepView(
        name=row["name"],
        counts=Counts(**counts),
        created_at=row["created_at"],
        paused=row["paused"],
        mean_s=mean_s,
        misfit=_misfit(row, counts, live),
    )


COMPLETED_OF = {
    False: "outcome = 'completed'",
    True: "outcome = 'completed' AND (SELECT sweep_id FROM task WHERE id = task_id) = :only",
}


def _per_hour(db: sqlite3.Connection, only: int | None, *, now: float) -> float:
    """Return the rate of completed tasks over the last hour, or since the first of it began.

    It is 0 as long as that was only just now.
    """
    completed = COMPLETED_OF[only is not None]
    values = {"only": only, "since": now - HOUR_S, "most": RATED}
    count, first_at = db.execute(
        "SELECT COUNT(*), MIN(ended_at) FROM (SELECT ended_at FROM attempt"
        f" WHERE {completed} AND ended_at > :since ORDER BY ended_at DESC LIMIT :most)",
        values,
    ).fetchone()
    if not count:
        return 0.0
    began_at: float = first_at
    if count < RATED:  # all of that hour: the time before the first of them ended counts, too
        began_at = db.execute(
            f"SELECT started_at FROM attempt WHERE {completed} AND ended_at >= :first"
            " ORDER BY ended_at LIMIT 1",
            {**values, "first": first_at},
        ).fetchone()["started_at"]
    seconds = min(max(now - began_at, 1.0), HOUR_S)
    return float(count * HOUR_S / seconds) if seconds >= TELLING_S or count == RATED else 0.0


def _misfit(
    row: sqlite3.Row, counts: Mapping[str, int], live: Sequence[WorkerIdentity]
) -> str | None:
    """Return why no worker takes the pending tasks of a sweep, as far as what it needs goes.

    One that stands back has what it has: it says itself why it claims nothing.
    """
    if not counts.get("pending") or row["paused"] is not None:
        return None
    return no_worker_fits(settings_from_json(row["settings"]), live)


LATEST_FAILURES = """
    SELECT attempt.task_id, attempt.number, worker, outcome, ended_at, error,
        task.state, task.failures, task.point, task.seed, sweep.name AS sweep, sweep.settings
    FROM ({candidates}) AS attempt JOIN task ON task.id = attempt.task_id
    JOIN sweep ON sweep.id = task.sweep_id
    WHERE (:only IS NULL OR sweep.id = :only)
        AND task.state NOT IN ('completed', 'cancelled') AND number > task.forgiven_until
    ORDER BY ended_at DESC LIMIT :limit
"""

RECENT = """
    SELECT * FROM attempt WHERE outcome IN ('failed', 'oom', 'timed_out', 'lost')
    ORDER BY ended_at DESC LIMIT :recent
"""

OF_FAILED_TASKS = """
    SELECT attempt.* FROM
        (SELECT id FROM task WHERE state = 'failed' AND (:only IS NULL OR sweep_id = :only)
        ORDER BY sweep_id DESC, id DESC LIMIT :limit)
    JOIN attempt ON task_id = id AND outcome IN ('failed', 'oom', 'timed_out', 'lost')
"""


def _latest_failures(
    db: sqlite3.Connection, only: int | None, *, failed: int
) -> tuple[tuple[FailureView, ...], bool]:
    """Return the latest failures, one a task, and whether there are more.

    Args:
        db: The ledger.
        only: Id of a sweep; None means all.
        failed: Number of tasks that failed for good: when the recent failures are all mended,
            those are looked for by their state.
    """
    values = {"only": only, "limit": FAILURES_SHOWN, "recent": RECENT_FAILURES}
    rows = db.execute(LATEST_FAILURES.format(candidates=RECENT), values).fetchall()
    if failed and len(rows) < FAILURES_SHOWN:
        known = {(row["task_id"], row["number"]) for row in rows}
        older = db.execute(LATEST_FAILURES.format(candidates=OF_FAILED_TASKS), values)
        rows += [row for row in older if (row["task_id"], row["number"]) not in known]
        rows.sort(key=lambda row: row["ended_at"], reverse=True)
    views: dict[int, FailureView] = {}
    for row in rows[:FAILURES_SHOWN]:
        if row["task_id"] not in views:
            views[row["task_id"]] = _failure_view(db, row, whole=len(views) < TRACEBACKS_SHOWN)
    return tuple(views.values()), len(rows) >= FAILURES_SHOWN


def _failure_view(db: sqlite3.Connection, row: sqlite3.Row, *, whole: bool) -> FailureView:
    traceback = None
    if whole:
        traceback = db.execute(
            "SELECT traceback FROM attempt WHERE task_id = ? AND number = ?",
            (row["task_id"], row["number"]),
        ).fetchone()["traceback"]
    return FailureView(
        task=task_name(row["sweep"], row["point"], row["seed"]),
        sweep=row["sweep"],
        state=TaskState(row["state"]),
        number=row["number"],
        failures=row["failures"],
        max_attempts=settings_from_json(row["settings"]).max_attempts,
        worker=row["worker"],
        outcome=Outcome(row["outcome"]),
        error=row["error"],
        traceback=traceback,
        ended_at=row["ended_at"],
    )


def with_signs_of_life(bare: Snapshot, folder: Path, *, now: float) -> Snapshot:
    """Add what the workers' own files say (elapsed time, progress, GPUs), and what is left."""
    workers = []
    for view in bare.workers:
        beat, age_s = read_sign_of_life(beat_path(folder, view.name, view.nonce), now=now)
        workers.append(_alive(view, beat, age_s))
    return with_etas(replace(bare, workers=tuple(workers)))


def _alive(view: WorkerView, beat: Beat | None, age_s: float | None) -> WorkerView:
    if beat is None:
        return view
    view = replace(view, heartbeat_age_s=age_s, gpus=beat.gpus, note=beat.note)
    if is_alive(beat.machine, beat.pid, beat.pid_start) is False:
        return replace(view, note="its process is gone: the next worker to look takes its task")
    if (beat.task, beat.number) != (view.task, view.number):
        return view  # the beat is older, or newer, than the ledger's row
    return replace(
        view,
        elapsed_s=None if beat.elapsed_s is None else beat.elapsed_s + (age_s or 0.0),
        step=beat.step,
        total=beat.total,
        metrics=beat.metrics,
    )
