"""What the ledger knows of its Slurm jobs, and how many there should be.

No daemon: `slurm start`, and each worker that starts or ends, looks at what is pending and at
Slurm's queue, and submits or cancels what is missing or too much.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpuledger import slurm
from gpuledger.allocation import LAST_CALL_S, Allocation, Place
from gpuledger.errors import LedgerError, Unavailable
from gpuledger.heartbeat import SILENT_S
from gpuledger.ledger import Ledger
from gpuledger.locks import try_lock
from gpuledger.model import WorkerIdentity
from gpuledger.resources import misfit
from gpuledger.spec import settings_from_json

LOCK = "balance.lock"
STOP_LOOKS = 3
NOT_HELD = slurm.RUNNING_STATES | {"PENDING", "COMPLETING"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One array job, as recorded when it was submitted.

    Attributes:
        id: Number of the job.
        at: Seconds since the epoch, on the clock of the host that submitted it.
        workers: How many array tasks it has.
        script: Path of its script.
        autoscale: Allocations follow what is pending, up to this many; None: they do not.
        throttle: At most so many at a time, or None.
        stopped: An operator stopped it: nothing of it comes back.
    """

    id: str
    at: float
    workers: int
    script: str
    autoscale: int | None = None
    throttle: int | None = None
    stopped: bool = False

    @property
    def tasks(self) -> list[str]:
        """Ids of its array tasks."""
        return slurm.tasks_of(self.id, self.workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """A worker that ran in an allocation.

    Attributes:
        name: As in the status.
        job: As in `123_4`.
        ending: `left`, or `lost` when it was found dead; None: neither.
        task: One that it runs now, or None.
        attempts: How many it began.
        silent_s: Seconds since its last sign of life; None: not known, or not live.
    """

    name: str
    job: str
    ending: str | None
    task: str | None
    attempts: int
    silent_s: float | None = None


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
                    throttle=data.get("throttle"),
                    stopped=bool(data.get("stopped")),
                )
            )
        return found

    return ledger.store.read(ask)


def queue(known: Sequence[Submission]) -> list[slurm.Job]:
    """Return what Slurm has of these submissions.

    Another cluster, or one that was set up anew, may have given a number to somebody's other job:
    only what was made of the same script counts.
    """
    scripts = {found.id: found.script for found in known}
    return [
        job
        for job in slurm.queue(list(scripts))
        if job.script in ("", scripts[job.id.partition("_")[0]])
    ]


def record(ledger: Ledger, submission: Submission) -> None:
    """Keep a submission, or what changed of it."""
    data = {
        "autoscale": submission.autoscale,
        "throttle": submission.throttle,
        "stopped": submission.stopped,
    }

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
    ages = {view.nonce: view.heartbeat_age_s for view in ledger.snapshot().workers}

    def ask(db: sqlite3.Connection) -> list[WorkerFacts]:
        rows = db.execute(
            "SELECT name, nonce, ending, json_extract(details, '$.slurm.job') AS job,"
            " (SELECT COUNT(*) FROM attempt WHERE attempt.worker = worker.name"
            "  AND attempt.nonce = worker.nonce) AS attempts,"
            " (SELECT sweep.name || '_' || point || '_' || seed FROM attempt AS running"
            "  JOIN task ON task.id = running.task_id JOIN sweep ON sweep.id = task.sweep_id"
            "  WHERE running.nonce = worker.nonce AND running.outcome IS NULL LIMIT 1) AS task"
            " FROM worker WHERE json_extract(details, '$.slurm.job') IS NOT NULL"
            " ORDER BY started_at"
        )
        return [
            WorkerFacts(
                name=row["name"],
                job=row["job"],
                ending=row["ending"],
                task=row["task"],
                attempts=row["attempts"],
                silent_s=ages.get(row["nonce"]),
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
    useful = {facts.job for facts in workers(ledger) if facts.attempts or facts.ending != "lost"}
    dead = slurm.dead_in_a_row(
        tasks,
        ledger.folder,
        queued=frozenset(job.id for job in queued),
        useful=frozenset(useful),
    )
    if dead:
        tail = slurm.log_tail(ledger.folder, dead[0]) or "(nothing)"
        raise Unavailable(
            f"the last {len(dead)} allocations ended within a minute without claiming a task, so "
            f"no more are submitted; the log of {dead[0]} ends with: {tail}",
            hint=f"see {slurm.log_of(ledger.folder, dead[0])}; after the mending: --force",
        )


def pending_for(ledger: Ledger, gpus: int, sweeps: Sequence[str]) -> int:
    """Count the pending tasks for workers of so many GPUs that nobody has started yet.

    What kind of GPU they will have is not known: that is not asked for.
    """
    unknown = WorkerIdentity(
        nonce="", name="", host="", machine="", pid=0, pid_start=0, gpus=("",) * gpus
    )

    def ask(db: sqlite3.Connection) -> int:
        rows = db.execute(
            "SELECT name, settings, n FROM sweep JOIN task_count ON sweep_id = sweep.id"
            " WHERE state = 'pending' AND paused IS NULL"
        )
        return sum(
            row["n"]
            for row in rows
            if (not sweeps or row["name"] in sweeps) and _fits(row["settings"], unknown)
        )

    return ledger.store.read(ask)


def _fits(settings: str, worker: WorkerIdentity) -> bool:
    needs = settings_from_json(settings)
    if worker.gpus:
        needs = replace(needs, min_memory_mib=None, gpu_name=None)
    return misfit(needs, worker) is None


# --- autoscale ----------------------------------------------------------------------------------


def balance(
    ledger: Ledger,
    me: WorkerIdentity,
    sweeps: Sequence[str],
    allocation: Allocation,
    say: slurm.Say,
    *,
    leaving: bool,
) -> None:
    """Let the allocations follow what is pending, if this one's submission autoscales.

    Called by each worker that starts or ends in an allocation; never raises.

    Args:
        ledger: The ledger.
        me: The worker: what fits it fits all of its submission.
        sweeps: What it was limited to; empty: nothing.
        allocation: Its own.
        say: Prints one line.
        leaving: It ends, and is no longer to be counted.
    """
    mine = allocation.place.job
    try:
        known = submissions(ledger)
        own = _own(known, mine)
        if own is None or own.autoscale is None or own.stopped:
            return
        with try_lock(ledger.folder / slurm.FOLDER / LOCK) as free:
            if not free:
                return  # who has it looks at the same queue now
            found = ledger.outlook(me, sweeps=sweeps, time_left_s=allocation.whole_s)
            family = [found for found in known if found.script == own.script]
            queued = queue(family)
            others = [job for job in queued if not (leaving and job.id == mine)]
            facts = [worker for worker in workers(ledger) if worker.job != mine]
            change = plan(others, facts, pending=found.pending, limit=own.autoscale)
            if change.cancel:
                slurm.cancel(change.cancel, "--state=PENDING")  # one may have begun by now
                say(f"Slurm: cancelled {len(change.cancel)} waiting allocations: no tasks for them")
            if change.submit:
                require_living(ledger, family, queued)
                tasks = slurm.array(change.submit, own.throttle)
                job = slurm.submit(Path(own.script), array=tasks)
                record(ledger, replace(own, id=job, at=ledger.now(), workers=change.submit))
                say(f"Slurm: submitted {change.submit} more allocations (job {job})")
                now = submission_of(ledger, mine)
                if now is not None and now.stopped:  # by somebody who did not know of these
                    record(ledger, replace(own, id=job, workers=change.submit, stopped=True))
                    slurm.cancel([job])
                    say(f"Slurm: cancelled job {job}: 'gpuledger slurm stop' came meanwhile")
    except (LedgerError, OSError) as error:
        say(f"allocations were not adjusted: {error}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What would make the allocations follow the tasks."""

    submit: int = 0
    cancel: tuple[str, ...] = ()


def plan(
    queued: Sequence[slurm.Job], facts: Sequence[WorkerFacts], *, pending: int, limit: int
) -> Change:
    """Compare what is pending with the allocations that can still take some of it; pure.

    Those are the ones that wait, that begin (no worker yet), and the idle ones. One with a task
    is none: it takes another only later. One whose worker left is ending.
    """
    waiting = [job.id for job in queued if job.state == "PENDING"]
    coming = len(waiting) + _about_to_claim(queued, facts)
    if coming > pending:
        return Change(cancel=tuple(list(reversed(waiting))[: coming - pending]))
    return Change(submit=max(min(pending - coming, limit - len(queued)), 0))


def _about_to_claim(queued: Sequence[slurm.Job], facts: Sequence[WorkerFacts]) -> int:
    latest = {worker.job: worker for worker in facts}
    count = 0
    for job in queued:
        worker = latest.get(job.id)
        if job.state != "PENDING" and (
            worker is None or (worker.ending is None and worker.task is None)
        ):
            count += 1
    return count


# --- coming back, and stopping ------------------------------------------------------------------


def may_come_back(
    ledger: Ledger,
    me: WorkerIdentity,
    sweeps: Sequence[str],
    allocation: Allocation,
    *,
    drained: bool,
) -> bool:
    """Tell whether a worker that leaves should be started again, for want of time was all.

    Args:
        ledger: The ledger.
        me: The worker.
        sweeps: What it was limited to.
        allocation: Its own.
        drained: It was told to claim no more; if that was not Slurm, an operator meant it.
    """
    own = submission_of(ledger, allocation.place.job)
    if own is None or own.stopped or (drained and not allocation.ends_soon()):
        return False
    if allocation.whole_s is None or allocation.whole_s < LAST_CALL_S:
        return False
    return bool(ledger.outlook(me, sweeps=sweeps, time_left_s=allocation.whole_s).pending)


def adopt(ledger: Ledger, place: Place, *, script: str | None, workers: int) -> None:
    """Record the submission of an allocation that nobody could record when it was submitted.

    Args:
        ledger: The ledger.
        place: Of the allocation.
        script: What Slurm says that it was made of; only scripts of this ledger's are ours.
        workers: How many array tasks it has.
    """
    if script is None or Path(script).parent != ledger.folder / slurm.FOLDER:
        return
    number = place.job.partition("_")[0]
    record(ledger, Submission(id=number, at=ledger.now(), workers=workers, script=script))


def submission_of(ledger: Ledger, job: str) -> Submission | None:
    """Return the submission that an array task belongs to, or None when none is recorded."""
    return _own(submissions(ledger), job)


def _own(known: Sequence[Submission], job: str) -> Submission | None:
    number = job.partition("_")[0]
    return next((found for found in known if found.id == number), None)


def stop(ledger: Ledger, *, now: bool) -> tuple[int, int]:
    """Cancel what waits; let what runs finish its task, or (now) hand it back.

    Returns:
        How many waited, and how many ran.
    """
    slurm.queue([found.id for found in submissions(ledger)])  # without Slurm nothing is changed

    def change(db: sqlite3.Connection) -> None:
        db.execute("UPDATE slurm_job SET data = json_set(data, '$.stopped', json('true'))")

    ledger.store.write(change, operation="slurm stop")
    # Asked after that: none of them comes back from here on. What was stopped before is asked for
    # as well: it may not have been told, or is to be ended now.
    waiting: set[str] = set()
    told: set[str] = set()
    try:
        for _ in range(STOP_LOOKS):  # what waited may have begun before it was cancelled
            queued = queue(submissions(ledger))
            pending = [job.id for job in queued if job.state == "PENDING"]
            running = [job.id for job in queued if job.state in slurm.RUNNING_STATES]
            held = [job.id for job in queued if job.state not in NOT_HELD]
            slurm.cancel(pending, "--state=PENDING")
            slurm.cancel(held)
            fresh = [job for job in running if job not in told]
            slurm.cancel(fresh, *([] if now else ["--batch", "--signal=USR1"]))
            told.update(fresh)
            waiting.update((*pending, *held))
            if not pending:
                break
    except slurm.SlurmFailed as error:
        raise slurm.SlurmFailed(
            f"{error.problem}; no allocation comes back, but not all could be told to end",
            hint="say it again",
        ) from error
    return len(waiting - told), len(told)


# --- what is shown ------------------------------------------------------------------------------


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
    if job is None:
        return _ended(worker, task, submission, folder)
    if job.state == "PENDING":
        return {"state": "waits", "says": job.reason}
    if worker is None or worker.ending is not None:
        what = "no worker gave a sign" if worker is None else f"its worker {worker.ending}"
        return {"state": "silent", "says": f"{job.state.lower()} for {job.elapsed}, {what}"}
    if worker.silent_s is not None and worker.silent_s > SILENT_S:
        return {"state": "silent", "says": f"no sign of life for {worker.silent_s:.0f} s"}
    return {"state": "works", "says": worker.task or "idle"}


def _ended(
    worker: WorkerFacts | None, task: str, submission: Submission, folder: Path
) -> Mapping[str, Any]:
    if worker is not None and worker.ending is None:
        return {"state": "silent", "says": "Slurm has ended it, its lease runs out"}
    if worker is not None and worker.ending == "left":
        return {"state": "left", "says": f"ran {worker.attempts} attempts"}
    tail = slurm.log_tail(folder, task)
    never_began = submission.stopped or not slurm.log_of(folder, task).exists()
    if worker is None and not tail and never_began:
        return {"state": "left", "says": "cancelled before it began"}
    return {"state": "died", "says": tail}
