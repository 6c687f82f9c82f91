"""What the ledger knows of its Slurm jobs, and how many there should be.

No daemon: `slurm start`, and each worker that starts or ends, looks at what is pending and at
Slurm's queue, and submits or cancels what is missing or too much.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpuledger import slurm
from gpuledger.errors import LedgerError, Unavailable
from gpuledger.ledger import Ledger
from gpuledger.locks import try_lock

LOCK = "balance.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One array job, as recorded when it was submitted.

    Attributes:
        id: Number of the job.
        at: Seconds since the epoch, on the clock of the host that submitted it.
        workers: How many array tasks it has.
        script: Path of its script.
        autoscale: Allocations follow what is pending, up to this many; None: they do not.
        stopped: An operator stopped it: nothing of it comes back.
    """

    id: str
    at: float
    workers: int
    script: str
    autoscale: int | None = None
    stopped: bool = False

    @property
    def tasks(self) -> list[str]:
        """Ids of its array tasks."""
        return slurm.tasks_of(self.id, self.workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """A worker that ran in an allocation; `live` is False once it left or was found dead."""

    name: str
    job: str
    live: bool
    task: str | None
    attempts: int


def submissions(ledger: Ledger) -> list[Submission]:
    """Return all that were submitted, the oldest first."""

    def ask(db: sqlite3.Connection) -> list[Submission]:
        found = []
        for row in db.execute("SELECT * FROM slurm_job ORDER BY submitted_at, id"):
            data = json.loads(row["data"])
            found.append(
                Submission(
                    id=row["id"],
                    at=row["submitted_at"],
                    workers=row["workers"],
                    script=row["script"],
                    autoscale=data.get("autoscale"),
                    stopped=bool(data.get("stopped")),
                )
            )
        return found

    return ledger.store.read(ask)


def record(ledger: Ledger, submission: Submission) -> None:
    """Keep a submission, or what changed of it."""
    data = {"autoscale": submission.autoscale, "stopped": submission.stopped}

    def change(db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT OR REPLACE INTO slurm_job (id, submitted_at, workers, script, data)"
            " VALUES (?, ?, ?, ?, ?)",
            (
                submission.id,
                submission.at,
                submission.workers,
                submission.script,
                json.dumps(data),
            ),
        )

    ledger.store.write(change, operation="slurm")


def workers(ledger: Ledger) -> list[WorkerFacts]:
    """Return the workers that ran in allocations, the latest last."""

    def ask(db: sqlite3.Connection) -> list[WorkerFacts]:
        rows = db.execute(
            "SELECT name, ended_at, json_extract(details, '$.slurm.job') AS job,"
            " (SELECT COUNT(*) FROM attempt WHERE attempt.worker = worker.name"
            "  AND attempt.nonce = worker.nonce) AS attempts,"
            " (SELECT sweep.name || '_' || point || '_' || seed FROM attempt AS running"
            "  JOIN task ON task.id = running.task_id JOIN sweep ON sweep.id = task.sweep_id"
            "  WHERE running.nonce = worker.nonce AND running.outcome IS NULL) AS task"
            " FROM worker WHERE json_extract(details, '$.slurm.job') IS NOT NULL"
            " ORDER BY started_at"
        )
        return [
            WorkerFacts(
                name=row["name"],
                job=row["job"],
                live=row["ended_at"] is None,
                task=row["task"],
                attempts=row["attempts"],
            )
            for row in rows
        ]

    return ledger.store.read(ask)


def require_living(
    ledger: Ledger, known: Sequence[Submission], queued: Sequence[slurm.Job]
) -> None:
    """Refuse to submit more of what dies at once.

    Raises:
        Unavailable: The last allocations died within a minute without claiming anything; the
            message has the end of the last one's log.
    """
    tasks = [task for submission in known if not submission.stopped for task in submission.tasks]
    claimed = frozenset(facts.job for facts in workers(ledger))
    dead = slurm.dead_in_a_row(
        tasks,
        ledger.folder,
        queued=frozenset(job.id for job in queued),
        claimed=claimed,
    )
    if dead:
        tail = slurm.log_tail(ledger.folder, dead[0]) or "(nothing)"
        raise Unavailable(
            f"the last {len(dead)} allocations ended within a minute without claiming a task, so "
            f"no more are submitted; the log of {dead[0]} ends with: {tail}",
            hint=f"see {slurm.log_of(ledger.folder, dead[0])}; after the mending: --force",
        )


def balance(ledger: Ledger, say: slurm.Say) -> None:
    """Let the allocations follow what is pending, for submissions that autoscale; never raises.

    Called by each worker that starts or ends in an allocation.
    """
    try:
        latest = [found for found in submissions(ledger) if found.autoscale is not None]
        if not latest or latest[-1].stopped:
            return
        folder = ledger.folder / slurm.FOLDER
        with try_lock(folder / LOCK) as mine:
            if mine:
                _balance(ledger, latest[-1], say)
    except (LedgerError, OSError) as error:
        say(f"allocations were not adjusted: {error}")


def _balance(ledger: Ledger, model: Submission, say: slurm.Say) -> None:
    known = submissions(ledger)
    queued = slurm.queue([found.id for found in known if not found.stopped])
    counts = ledger.snapshot().counts
    wanted = min(model.autoscale or 0, counts.pending + counts.running)
    too_many = slurm.surplus(queued, wanted)
    if too_many:
        slurm.cancel(too_many)
        say(f"Slurm: cancelled {len(too_many)} waiting allocations, no tasks for them")
    missing = wanted - len(queued)
    if missing > 0 and counts.pending:
        require_living(ledger, known, queued)
        job = slurm.submit(Path(model.script), array=f"1-{missing}")
        record(ledger, replace(model, id=job, at=ledger.now(), workers=missing))
        say(f"Slurm: submitted {missing} more allocations (job {job})")


def is_stopped(ledger: Ledger, job: str) -> bool:
    """Tell whether an operator stopped the submission that an array task belongs to."""
    number = job.partition("_")[0]
    return any(found.stopped for found in submissions(ledger) if found.id == number)


def rows(
    known: Sequence[Submission],
    queued: Sequence[slurm.Job],
    facts: Sequence[WorkerFacts],
    folder: Path,
) -> list[Mapping[str, Any]]:
    """Join Slurm's queue with the ledger: one row an array task.

    Returns:
        `job`, `state` (waits, works, silent, left, died), `node`, `says`, `worker`, `task`.
    """
    by_id = {job.id: job for job in queued}
    latest = {worker.job: worker for worker in facts}
    found: list[Mapping[str, Any]] = []
    for submission in known:
        for task in submission.tasks:
            job, worker = by_id.get(task), latest.get(task)
            row = {"job": task, "node": job.node if job else "", "worker": None, "task": None}
            if worker is not None:
                row |= {"worker": worker.name, "task": worker.task}
            found.append({**row, **_standing(job, worker, task, submission, folder)})
    return found


def _standing(
    job: slurm.Job | None,
    worker: WorkerFacts | None,
    task: str,
    submission: Submission,
    folder: Path,
) -> Mapping[str, Any]:
    if job is not None and job.state == "PENDING":
        return {"state": "waits", "says": job.reason}
    if job is not None and worker is not None and worker.live:
        return {"state": "works", "says": worker.task or "idle"}
    if job is not None:
        return {"state": "silent", "says": f"{job.state.lower()}, but no worker gave a sign"}
    if worker is not None and worker.live:
        return {"state": "silent", "says": "Slurm has ended it, its lease runs out"}
    if worker is not None:
        return {"state": "left", "says": f"ran {worker.attempts} attempts"}
    tail = slurm.log_tail(folder, task)
    if not tail and (submission.stopped or not slurm.log_of(folder, task).exists()):
        return {"state": "left", "says": "cancelled before it began"}
    return {"state": "died", "says": tail}


def stop(ledger: Ledger, *, now: bool) -> tuple[int, int]:
    """Cancel what waits; let what runs finish its task, or (now) hand it back.

    Returns:
        How many waited, and how many ran.
    """
    known = [found for found in submissions(ledger) if not found.stopped]
    queued = slurm.queue([found.id for found in known])
    for submission in known:
        with contextlib.suppress(LedgerError):
            record(ledger, replace(submission, stopped=True))
    waiting = [job.id for job in queued if job.state == "PENDING"]
    running = [job.id for job in queued if job.state != "PENDING"]
    slurm.cancel(waiting)
    slurm.cancel(running, *([] if now else ["--batch", "--signal=USR1"]))
    return len(waiting), len(running)
