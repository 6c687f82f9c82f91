"""The ledger's verbs: each is one transaction, and this is the manager, the whole of it.

Workers call `register`, `claim`, `complete`, `fail`, `release`, `reap` and `leave`; people call
the rest, through the command line or from Python:

    ledger = Ledger.open(Path(".gpuledger"))
    print(ledger.snapshot().counts)

The SQL of what operators change is in `operations.py`, of what they ask in `queries.py`.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gpuledger import operations, queries
from gpuledger.clock import Clock, SystemClock
from gpuledger.errors import LeaseLost
from gpuledger.model import (
    COUNTED_AS_FAILURE,
    Candidate,
    Claim,
    Ended,
    Ending,
    Event,
    NothingToDo,
    Outcome,
    Params,
    PastFailure,
    RecentEnding,
    RunSettings,
    Selection,
    Snapshot,
    SweepChange,
    SweepSpec,
    TaskChange,
    TaskRecord,
    TaskState,
    Token,
    WorkerIdentity,
    is_broken,
    is_suspect,
    may_run_on,
    settings_from_json,
    state_after,
)
from gpuledger.operations import record_event
from gpuledger.store import Store, Unchanged

FIRST_PENDING = (
    "SELECT id, priority, failures FROM task WHERE sweep_id = ? AND state = 'pending'"
    " ORDER BY priority DESC, id"
)
"""One probe of the index task_pending, whatever the number of tasks."""

STREAK_KEPT = 64
"""Failed tasks a sweep remembers since its last success; more would change nothing."""


class Ledger:
    """The API over one ledger folder.

    Attributes:
        folder: Absolute path of the folder.
        lease_s: How long a silent worker keeps its task.
        heartbeat_s: How often a worker gives a sign of life.
    """

    def __init__(self, store: Store, clock: Clock | None = None) -> None:
        self.store = store
        self.folder = store.folder
        self._clock: Clock = clock or SystemClock()
        row = store.read(lambda db: db.execute("SELECT * FROM ledger").fetchone())
        self.uuid: str = row["uuid"]
        self.lease_s: float = row["lease_s"]
        self.heartbeat_s: float = row["heartbeat_s"]

    @classmethod
    def open(cls, folder: Path, *, lock_timeout_s: float = 60.0) -> Ledger:
        """Open the ledger at `folder`; raise NoLedger when there is none."""
        return cls(Store(folder.absolute(), lock_timeout_s=lock_timeout_s))

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        lease_s: float = 60.0,
        heartbeat_s: float = 5.0,
        shared: bool = False,
        clock: Clock | None = None,
    ) -> Ledger:
        """Open the ledger at `folder`, made when there is none (lease and heartbeat are for that).

        Args:
            folder: Usually `.gpuledger` beside the sweep file.
            lease_s: Seconds without a sign of life until a worker loses its task.
            heartbeat_s: Seconds between two signs of life, at most a third of `lease_s`.
            shared: Open it to the folder's group.
            clock: This machine's, unless a test moves time by hand.
        """
        if not 0 < heartbeat_s <= lease_s / 3:
            raise ValueError(f"heartbeat_s must be at most lease_s / 3, got {heartbeat_s}")
        store = Store(folder.absolute())
        store.create(shared=shared)
        values = (uuid.uuid4().hex, lease_s, heartbeat_s, (clock or SystemClock()).now())

        def describe(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT OR IGNORE INTO ledger (id, uuid, lease_s, heartbeat_s, created_at)"
                " VALUES (1, ?, ?, ?, ?)",
                values,
            )

        store.write(describe, operation="create")
        return cls(store, clock)

    # --- workers ------------------------------------------------------------------------------

    def register(self, worker: WorkerIdentity) -> WorkerIdentity:
        """Record a new worker and return it with the name it got (`#2` when the name is taken)."""
        return self.store.write(lambda db: self._register(db, worker), operation="register")

    def leave(self, nonce: str) -> None:
        """Record that a worker left; an attempt it still had is given back as interrupted."""

        def change(db: sqlite3.Connection) -> None:
            self._end_worker(db, nonce, "left", Ending(outcome=Outcome.INTERRUPTED))

        self.store.write(change, operation="leave")

    def claim(self, worker: WorkerIdentity, *, sweeps: Sequence[str] = ()) -> Claim | NothingToDo:
        """Give the first pending task to `worker` and open its next attempt.

        First is the highest priority, then the oldest. An attempt that the worker has open
        already (a claim whose answer never reached it) is returned again.

        Args:
            worker: As `register` returned it.
            sweeps: Only tasks of these; empty means of all.

        Raises:
            LeaseLost: The worker was found dead meanwhile; it must register anew.
        """

        def change(db: sqlite3.Connection) -> Claim | NothingToDo:
            found = self._claim(db, worker, sweeps)
            if isinstance(found, NothingToDo):
                raise Unchanged(found)
            return found

        return self.store.write(change, operation="claim")

    def complete(
        self,
        token: Token,
        *,
        metrics: Mapping[str, Any] | None = None,
        duration_s: float | None = None,
        then: WorkerIdentity | None = None,
        sweeps: Sequence[str] = (),
    ) -> Ended:
        """Record that the attempt succeeded; with `then`, claim that worker's next task as well.

        Raises:
            LeaseLost: Somebody else ended the attempt; nothing was recorded.
        """
        ending = Ending(
            outcome=Outcome.COMPLETED, exit_code=0, metrics=metrics or {}, duration_s=duration_s
        )
        return self._end_and_claim(token, ending, then, sweeps, "complete")

    def fail(
        self,
        token: Token,
        ending: Ending,
        *,
        then: WorkerIdentity | None = None,
        sweeps: Sequence[str] = (),
    ) -> Ended:
        """Record that the attempt ended badly (failed, oom, timed_out); see `complete`."""
        if ending.outcome not in COUNTED_AS_FAILURE:
            raise ValueError(f"fail() records failures, got {ending.outcome}")
        return self._end_and_claim(token, ending, then, sweeps, "fail")

    def release(self, token: Token, ending: Ending | None = None) -> Ended:
        """Give the attempt back, uncounted: interrupted, or cancelled by an operator."""
        ending = ending or Ending(outcome=Outcome.INTERRUPTED)
        if ending.outcome not in (Outcome.INTERRUPTED, Outcome.CANCELLED):
            raise ValueError(f"release() gives back, got {ending.outcome}")
        return self._end_and_claim(token, ending, None, (), "release")

    def confirm(self, worker: WorkerIdentity) -> bool:
        """Tell whether the worker still counts as alive: False when it was reaped."""
        return self.store.read(lambda db: _is_live(db, worker.nonce))

    def stop_requested(self, token: Token) -> bool:
        """Tell whether an operator wants this attempt ended now (`cancel --kill`)."""
        return self.store.read(lambda db: bool(_task_row(db, token)["stop"] == "now"))

    def reap(self, dead: Mapping[str, Callable[[], bool]]) -> tuple[Claim, ...]:
        """End the attempts of workers that were found dead, outcome `lost`.

        Args:
            dead: By nonce, a check that is made once more under the lock: still dead? It closes
                the race with a worker that comes back to life at this moment.

        Returns:
            What they were running.
        """

        def change(db: sqlite3.Connection) -> tuple[Claim, ...]:
            lost: list[Claim] = []
            for nonce, still_dead in dead.items():
                if _is_live(db, nonce) and still_dead():
                    ending = Ending(
                        outcome=Outcome.LOST, error="its worker or machine died (no heartbeat)"
                    )
                    lost.extend(self._end_worker(db, nonce, "lost", ending))
            return tuple(lost)

        return self.store.write(change, operation="reap") if dead else ()

    def live_workers(self) -> tuple[WorkerIdentity, ...]:
        """Return the workers that have neither left nor been reaped."""
        return self.store.read(queries.live_workers)

    # --- operators ----------------------------------------------------------------------------

    def add_sweep(self, spec: SweepSpec, *, prune: bool = False) -> SweepChange:
        """Add the sweep's tasks; those that are there (equal parameters and seed) are kept.

        Args:
            spec: A sweep file, understood.
            prune: Cancel the pending tasks that are not in the file (any more).
        """
        now = self._clock.now()
        return self.store.write(
            lambda db: operations.add_sweep(db, spec, prune=prune, now=now), operation="init"
        )

    def retry(
        self,
        selection: Selection,
        *,
        completed: bool = False,
        params: Params | None = None,
    ) -> TaskChange:
        """Put ended tasks back to pending, their failures forgiven; their history stays.

        Args:
            selection: Which; running tasks are never touched.
            completed: Completed ones as well.
            params: New values for some parameters: the tasks keep their names.
        """
        now = self._clock.now()
        return self.store.write(
            lambda db: operations.retry(
                db, selection, completed=completed, params=params or {}, now=now
            ),
            operation="retry",
        )

    def cancel(self, selection: Selection, *, kill: bool = False) -> TaskChange:
        """Cancel pending tasks; running ones finish first, or are stopped now with `kill`."""
        now = self._clock.now()
        change = self.store.write(
            lambda db: operations.cancel(db, selection, kill=kill, now=now), operation="cancel"
        )
        if kill and change.running:
            self.store.nudge()
        return change

    def pause(self, sweep: str | None, *, reason: str = "by an operator") -> tuple[str, ...]:
        """Pause one sweep or all: nothing of it is claimed; return the names that changed."""
        now = self._clock.now()
        return self.store.write(
            lambda db: operations.pause(db, sweep, reason=reason, now=now), operation="pause"
        )

    def resume(self, sweep: str | None) -> tuple[str, ...]:
        """Let one sweep or all go on; return the names that changed."""
        now = self._clock.now()
        return self.store.write(
            lambda db: operations.resume(db, sweep, now=now), operation="resume"
        )

    def set_priority(self, selection: Selection, priority: int) -> int:
        """Give tasks that are not ended another priority; return how many there were."""
        return self.store.write(
            lambda db: operations.set_priority(db, selection, priority), operation="set"
        )

    def snapshot(self, *, sweep: str | None = None) -> Snapshot:
        """Return everything `status` shows."""
        now = self._clock.now()
        bare = self.store.read(
            lambda db: queries.snapshot(db, folder=self.folder, sweep=sweep, now=now)
        )
        return queries.with_signs_of_life(bare, self.folder, now=now)

    def tasks(
        self, selection: Selection | None = None, *, limit: int | None = None
    ) -> list[TaskRecord]:
        """Return the selected tasks with all their attempts, in the order of creation.

        Many tasks are read in several short transactions, so that nobody waits long for them.

        Args:
            selection: Which; None means all.
            limit: Return at most so many; None means all.
        """
        chosen = selection or Selection()
        found: list[TaskRecord] = []
        after = 0
        while limit is None or len(found) < limit:
            size = queries.PAGE if limit is None else min(queries.PAGE, limit - len(found))
            page, after = self.store.read(
                partial(
                    queries.tasks, selection=chosen, folder=self.folder, after=after, limit=size
                )
            )
            found.extend(page)
            if len(page) < size:
                break
        return found

    def task(self, name: str) -> TaskRecord:
        """Return one task with all its attempts; raise UnknownTask when there is none."""
        return self.tasks(Selection(names=(name,)))[0]

    def task_names(self, *, starting_with: str = "", limit: int = 100) -> list[str]:
        """Return names of tasks, for shell completion."""
        return self.store.read(lambda db: queries.task_names(db, starting_with, limit=limit))

    def events(self, *, after: int = 0, limit: int = 1000) -> list[Event]:
        """Return events with a number above `after`, the oldest first."""
        return self.store.read(lambda db: queries.events(db, after=after, limit=limit))

    def latest_event(self) -> int:
        """Return the number of the newest event; 0 when there is none."""
        return self.store.read(queries.latest_event)

    # --- inside a transaction -----------------------------------------------------------------

    def _register(self, db: sqlite3.Connection, worker: WorkerIdentity) -> WorkerIdentity:
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
                self._clock.now(),
            ),
        )
        record_event(db, "worker_started", at=self._clock.now(), worker=named.name)
        return named

    def _claim(
        self, db: sqlite3.Connection, worker: WorkerIdentity, sweeps: Sequence[str]
    ) -> Claim | NothingToDo:
        if not _is_live(db, worker.nonce):
            raise LeaseLost("worker " + worker.name, 0, why="it was found dead meanwhile")
        mine = db.execute(
            "SELECT task_id, number FROM attempt WHERE nonce = ? AND outcome IS NULL",
            (worker.nonce,),
        ).fetchone()
        if mine is not None:
            return _claim_of(db, mine["task_id"], mine["number"], worker.nonce)
        now = self._clock.now()
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
        claim = _claim_of(db, task_id, number, worker.nonce)
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

    def _end_and_claim(
        self,
        token: Token,
        ending: Ending,
        then: WorkerIdentity | None,
        sweeps: Sequence[str],
        operation: str,
    ) -> Ended:
        def change(db: sqlite3.Connection) -> Ended:
            ended = self._end(db, token, ending)
            if then is None or ended.suspect:
                return ended
            return replace(ended, next=self._claim(db, then, sweeps))

        return self.store.write(change, operation=operation)

    def _end(self, db: sqlite3.Connection, token: Token, ending: Ending) -> Ended:
        """Close one open attempt and move its task on: the only way an attempt ends."""
        task = _task_row(db, token)
        settings = settings_from_json(task["settings"])
        counted = ending.outcome in COUNTED_AS_FAILURE
        now = self._clock.now()
        closed = db.execute(
            "UPDATE attempt SET outcome = :outcome, ended_at = :now, duration_s = :duration,"
            " counted = :counted, exit_code = :exit_code, signal = :signal, error = :error,"
            " traceback = :traceback, metrics = :metrics"
            " WHERE task_id = :task AND number = :number AND nonce = :nonce"
            " AND outcome IS NULL",
            {
                "outcome": ending.outcome,
                "now": now,
                "duration": ending.duration_s,
                "counted": int(counted),
                "exit_code": ending.exit_code,
                "signal": ending.signal,
                "error": ending.error,
                "traceback": ending.traceback,
                "metrics": json.dumps(dict(ending.metrics)) if ending.metrics else None,
                "task": task["id"],
                "number": token.number,
                "nonce": token.nonce,
            },
        )
        if closed.rowcount != 1:
            return self._ended_before(db, task, token, ending, settings)
        failures = task["failures"] + counted
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
        self._record_ending(db, task, token, ending, ended)
        return self._judge(db, task, token, ending, ended, settings)

    def _ended_before(
        self,
        db: sqlite3.Connection,
        task: sqlite3.Row,
        token: Token,
        ending: Ending,
        settings: RunSettings,
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
        untouched = task["state"] == "pending" and not _has_later_attempt(db, task, token)
        if attempt["outcome"] == Outcome.LOST and untouched and ending.outcome == "completed":
            return self._complete_late(db, task, token, ending, before)
        raise LeaseLost(token.task, token.number, why=f"it was ended as {attempt['outcome']}")

    def _complete_late(
        self,
        db: sqlite3.Connection,
        task: sqlite3.Row,
        token: Token,
        ending: Ending,
        before: Ended,
    ) -> Ended:
        """Accept the success of a worker thought dead, while nobody else took the task."""
        db.execute(
            "UPDATE attempt SET outcome = 'completed', ended_at = ?, duration_s = ?,"
            " exit_code = 0, error = NULL, metrics = ? WHERE task_id = ? AND number = ?",
            (
                self._clock.now(),
                ending.duration_s,
                json.dumps(dict(ending.metrics)) if ending.metrics else None,
                task["id"],
                token.number,
            ),
        )
        db.execute(
            "UPDATE task SET state = 'completed', losses = MAX(losses - 1, 0) WHERE id = ?",
            (task["id"],),
        )
        ended = replace(before, state=TaskState.COMPLETED)
        self._record_ending(db, task, token, ending, ended)
        return ended

    def _record_ending(
        self,
        db: sqlite3.Connection,
        task: sqlite3.Row,
        token: Token,
        ending: Ending,
        ended: Ended,
    ) -> None:
        now = self._clock.now()
        attempt = db.execute(
            "SELECT worker FROM attempt WHERE task_id = ? AND number = ?",
            (task["id"], token.number),
        ).fetchone()
        record_event(
            db,
            ending.outcome,
            at=now,
            task=token.task,
            number=token.number,
            worker=attempt["worker"],
            failures=ended.failures,
            max_attempts=ended.max_attempts,
            state=ended.state,
            error=ending.error,
            duration_s=ending.duration_s,
            metrics=dict(ending.metrics),
        )
        if ending.outcome is Outcome.COMPLETED:
            db.execute(
                "UPDATE sweep SET failing = '{}', completed_n = completed_n + 1,"
                " completed_s = completed_s + ? WHERE id = ?",
                (ending.duration_s or 0.0, task["sweep_id"]),
            )

    def _judge(
        self,
        db: sqlite3.Connection,
        task: sqlite3.Row,
        token: Token,
        ending: Ending,
        ended: Ended,
        settings: RunSettings,
    ) -> Ended:
        """After a failure: is it the task, this worker, or the whole sweep that is broken?"""
        if ending.outcome not in COUNTED_AS_FAILURE:
            return ended
        me = db.execute("SELECT name FROM worker WHERE nonce = ?", (token.nonce,)).fetchone()
        live = frozenset(
            row["name"] for row in db.execute("SELECT name FROM worker WHERE ended_at IS NULL")
        )
        reason = _note_failure(db, task, me["name"], ending, live, settings)
        if reason is not None:
            record_event(
                db,
                "sweep_paused",
                at=self._clock.now(),
                worker=me["name"],
                sweep=task["sweep"],
                reason=reason,
            )
            return replace(ended, sweep_paused=reason)
        latest = _latest_endings(db, token.nonce, me["name"])
        if not is_suspect([recent for _, recent in latest], others=len(live - {me["name"]})):
            return ended
        for attempt, _ in latest:
            _give_back(db, attempt)
        record_event(
            db, "worker_suspect", at=self._clock.now(), worker=me["name"], error=ending.error
        )
        return replace(ended, suspect=True, state=TaskState.PENDING)

    def _end_worker(
        self, db: sqlite3.Connection, nonce: str, how: str, ending: Ending
    ) -> list[Claim]:
        """End a worker and its open attempts; return what it was running."""
        open_attempts = db.execute(
            "SELECT task_id, number FROM attempt WHERE nonce = ? AND outcome IS NULL", (nonce,)
        ).fetchall()
        claims = [_claim_of(db, row["task_id"], row["number"], nonce) for row in open_attempts]
        for claim in claims:
            self._end(db, claim.token, ending)
        gone = db.execute(
            "UPDATE worker SET ended_at = ?, ending = ?"
            " WHERE nonce = ? AND ended_at IS NULL RETURNING name",
            (self._clock.now(), how, nonce),
        ).fetchone()
        if gone is not None:
            record_event(db, f"worker_{how}", at=self._clock.now(), worker=gone["name"])
        return claims


def _is_live(db: sqlite3.Connection, nonce: str) -> bool:
    row = db.execute("SELECT ended_at FROM worker WHERE nonce = ?", (nonce,)).fetchone()
    return row is not None and row["ended_at"] is None


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
    past = [
        PastFailure(
            worker=row["worker"],
            outcome=Outcome(row["outcome"]),
            age_s=now - row["ended_at"],
            gpu_memory_mib=row["gpu_memory_mib"],
        )
        for row in db.execute(
            "SELECT worker, outcome, ended_at, gpu_memory_mib FROM attempt"
            " WHERE task_id = ? AND number > ? AND outcome IN ('failed', 'oom', 'timed_out')",
            (task_id, task["forgiven_until"]),
        )
    ]
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


def _claim_of(db: sqlite3.Connection, task_id: int, number: int, nonce: str) -> Claim:
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


def _task_row(db: sqlite3.Connection, token: Token) -> sqlite3.Row:
    row = queries.find_task(db, token.task)
    if row is None:
        raise LeaseLost(token.task, token.number, why="the task is not in the ledger")
    return row


def _has_later_attempt(db: sqlite3.Connection, task: sqlite3.Row, token: Token) -> bool:
    return (
        db.execute(
            "SELECT 1 FROM attempt WHERE task_id = ? AND number > ?", (task["id"], token.number)
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
    if row["paused"] is None and is_broken(
        failed_tasks=len(tasks),
        failed_on=frozenset(workers),
        live=live,
        pause_after=settings.pause_after,
    ):
        where = "on every worker" if len(live) > 1 else "in a row"
        reason = f"{len(tasks)} tasks failed {where}, none succeeded: {ending.error}"
        db.execute(
            "UPDATE sweep SET paused = ?, paused_by = 'gpuledger' WHERE id = ?",
            (reason, task["sweep_id"]),
        )
    kept = {"tasks": sorted(tasks)[-STREAK_KEPT:], "workers": sorted(workers & (live | {worker}))}
    db.execute("UPDATE sweep SET failing = ? WHERE id = ?", (json.dumps(kept), task["sweep_id"]))
    return reason


def _latest_endings(
    db: sqlite3.Connection, nonce: str, worker: str
) -> list[tuple[sqlite3.Row, RecentEnding]]:
    """Return the worker's latest attempts that say something about it, newest first."""
    rows = db.execute(
        "SELECT task_id, number, outcome, counted, COALESCE(duration_s, 0) AS duration_s,"
        " EXISTS (SELECT 1 FROM attempt AS other WHERE other.task_id = attempt.task_id"
        "   AND other.worker <> attempt.worker"
        "   AND other.outcome IN ('failed', 'oom', 'timed_out')) AS elsewhere"
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
                failed_elsewhere=bool(row["elsewhere"]) or not row["counted"],
            ),
        )
        for row in rows
    ]


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
