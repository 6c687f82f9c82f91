"""The ledger's verbs: each is one transaction, and this is the manager, the whole of it.

Workers call `register`, `claim`, `complete`, `fail`, `release`, `reap` and `leave`; people call
the rest, through the command line or from Python:

    ledger = Ledger.open(Path(".gpuledger"))
    print(ledger.snapshot().counts)

The SQL is in `claims.py` and `endings.py` (what workers do), `operations.py` (what operators
change), `queries.py` (what everybody asks) and `snapshots.py` (what `status` shows).
"""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gpuledger import batches, claims, endings, operations, queries, snapshots
from gpuledger.clock import Clock, SystemClock
from gpuledger.errors import LedgerDamaged, LedgerError
from gpuledger.model import (
    COUNTED_AS_FAILURE,
    Claim,
    Ended,
    Ending,
    Finished,
    NothingToDo,
    Outcome,
    Settled,
    Token,
    WorkerIdentity,
)
from gpuledger.origin import Origin, Packages
from gpuledger.selection import Selection, TaskChange
from gpuledger.spec import Params, SweepChange, SweepSpec
from gpuledger.store import Store, Unchanged
from gpuledger.views import Event, Snapshot, TaskRecord
from gpuledger.why import Waiting


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
        self.reopen()

    def reopen(self) -> None:
        """Accept what the ledger is now, after it was recovered from a backup."""
        row = self.store.read(lambda db: db.execute("SELECT * FROM ledger").fetchone())
        if row is None:
            raise LedgerDamaged(self.store.path, "it describes no ledger")
        self.uuid: str = row["uuid"]
        self.lease_s: float = row["lease_s"]
        self.heartbeat_s: float = row["heartbeat_s"]
        self.store.epoch = row["epoch"]

    def now(self) -> float:
        """Return the time as this ledger's verbs write it down."""
        return self._clock.now()

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
        now = self._clock.now()
        return self.store.write(
            lambda db: claims.register(db, worker, now=now), operation="register"
        )

    def leave(self, nonce: str, *, crash: str | None = None) -> None:
        """Record that a worker left; an attempt it still had is given back as interrupted.

        Args:
            nonce: The worker's.
            crash: What it crashed of: its attempt is lost then, as if the machine had died, for
                it may be what the worker crashed of. None means that it left as it should.
        """
        outcome = Outcome.INTERRUPTED if crash is None else Outcome.LOST
        ending = Ending(outcome=outcome, error=crash)

        def change(db: sqlite3.Connection) -> None:
            endings.end_worker(db, nonce, "left", ending, now=self._clock.now())

        self.store.write(change, operation="leave")

    def claim(
        self,
        worker: WorkerIdentity,
        *,
        sweeps: Sequence[str] = (),
        time_left_s: float | None = None,
    ) -> Claim | NothingToDo:
        """Give the first pending task to `worker` and open its next attempt.

        First is the highest priority, then the oldest. An attempt that the worker has open
        already (a claim whose answer never reached it) is returned again.

        Args:
            worker: As `register` returned it.
            sweeps: Only tasks of these; empty means of all.
            time_left_s: Only tasks that usually end within it; None means any.

        Raises:
            LeaseLost: The worker was found dead meanwhile; it must register anew.
        """

        def change(db: sqlite3.Connection) -> Claim | NothingToDo:
            found = claims.claim(db, worker, sweeps, now=self._clock.now(), time_left_s=time_left_s)
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
        memory_peak_mib: int | None = None,
        origin: Origin | None = None,
        then: WorkerIdentity | None = None,
        sweeps: Sequence[str] = (),
        time_left_s: float | None = None,
    ) -> Ended:
        """Record that the attempt succeeded; with `then`, claim that worker's next task as well.

        Raises:
            LeaseLost: Somebody else ended the attempt; nothing was recorded.
        """
        ending = Ending(
            outcome=Outcome.COMPLETED,
            exit_code=0,
            metrics=metrics or {},
            duration_s=duration_s,
            memory_peak_mib=memory_peak_mib,
            origin=origin,
        )
        return self._end_and_claim(token, ending, then, sweeps, "complete", time_left_s)

    def fail(
        self,
        token: Token,
        ending: Ending,
        *,
        then: WorkerIdentity | None = None,
        sweeps: Sequence[str] = (),
        time_left_s: float | None = None,
    ) -> Ended:
        """Record that the attempt ended badly (failed, oom, timed_out); see `complete`."""
        if ending.outcome not in COUNTED_AS_FAILURE:
            raise ValueError(f"fail() records failures, got {ending.outcome}")
        return self._end_and_claim(token, ending, then, sweeps, "fail", time_left_s)

    def release(self, token: Token, ending: Ending | None = None) -> Ended:
        """Give the attempt back: interrupted, cancelled by an operator, or lost with its GPU."""
        ending = ending or Ending(outcome=Outcome.INTERRUPTED)
        if ending.outcome not in (Outcome.INTERRUPTED, Outcome.CANCELLED, Outcome.LOST):
            raise ValueError(f"release() gives back, got {ending.outcome}")
        return self._end_and_claim(token, ending, None, (), "release")

    def settle(
        self,
        worker: WorkerIdentity,
        finished: Sequence[Finished],
        *,
        running: Token | None = None,
        hold: int = 0,
        sweeps: Sequence[str] = (),
        time_left_s: float | None = None,
    ) -> Settled:
        """Record attempts that ended, open the one that runs, and hold or claim what is next.

        What the worker held and is not named here is given back, uncounted.

        Args:
            worker: As `register` returned it.
            finished: In the order in which they ran.
            running: A held task that was started and has not ended; None: there is none.
            hold: At most so many tasks, and no more than a fair share of what is free; where
                that is less than two, one is claimed in the ordinary way. 0: neither.
            sweeps: Only tasks of these; empty means of all.
            time_left_s: Only tasks that usually end within it; None means any.

        Raises:
            LeaseLost: The worker was found dead meanwhile; nothing was recorded.
        """

        def change(db: sqlite3.Connection) -> Settled:
            return batches.settle(
                db,
                worker,
                finished,
                running=running,
                hold=hold,
                sweeps=sweeps,
                time_left_s=time_left_s,
                now=self._clock.now(),
            )

        return self.store.write(change, operation="settle")

    def deliver(self, worker: str, finished: Finished) -> Ended:
        """Record an ending that its worker could not: it is gone, or was found dead meanwhile.

        Args:
            worker: Name of the worker that ran the attempt.
            finished: How it ended. The success of a task that was only held counts, too, as long
                as nobody else has the task.

        Raises:
            LeaseLost: Others have the task; nothing was recorded.
        """
        return self.store.write(
            lambda db: batches.deliver(db, worker, finished), operation="deliver"
        )

    def confirm(self, worker: WorkerIdentity) -> bool:
        """Tell whether the worker still counts as alive: False when it was reaped."""
        return self.store.read(lambda db: claims.is_live(db, worker.nonce))

    def stop_requested(self, token: Token) -> bool:
        """Tell whether an operator wants this attempt ended now (`cancel --kill`)."""
        return self.store.read(lambda db: bool(endings.task_row(db, token)["stop"] == "now"))

    def is_open(self, token: Token) -> bool:
        """Tell whether the attempt is still its worker's to end."""
        return self.store.read(lambda db: endings.is_open(db, token))

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
                if claims.is_live(db, nonce) and still_dead():
                    ending = Ending(
                        outcome=Outcome.LOST, error="its worker or machine died (no heartbeat)"
                    )
                    lost.extend(
                        endings.end_worker(db, nonce, "lost", ending, now=self._clock.now())
                    )
            return tuple(lost)

        return self.store.write(change, operation="reap") if dead else ()

    def outlook(
        self,
        worker: WorkerIdentity,
        *,
        sweeps: Sequence[str] = (),
        time_left_s: float | None = None,
    ) -> NothingToDo:
        """Return what could still come to a worker that does not claim now; see `claim`."""
        return self.store.read(
            lambda db: claims.nothing_for(db, worker, sweeps, time_left_s=time_left_s)
        )

    def stand_back(self, nonce: str, why: str | None) -> None:
        """Record that a live worker claims nothing for now, or (None) that it claims again.

        Nobody keeps a failed task for a worker that stands back.
        """
        now = self._clock.now()
        self.store.write(
            lambda db: claims.stand_back(db, nonce, why, now=now), operation="stand back"
        )

    def live_workers(self) -> tuple[WorkerIdentity, ...]:
        """Return the workers that have neither left nor been reaped."""
        return self.store.read(queries.live_workers)

    def worker_names(self) -> tuple[str, ...]:
        """Return the names of the latest workers, whether they are still there or not."""
        return self.store.read(queries.worker_names)

    def slurm_setups(self, sweeps: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the `[slurm] setup` of these sweeps (all of them, when none is named)."""
        return self.store.read(lambda db: queries.slurm_setups(db, sweeps))

    # --- operators ----------------------------------------------------------------------------

    def add_sweep(self, spec: SweepSpec, *, prune: bool = False) -> SweepChange:
        """Add the sweep's tasks; those that are there (equal parameters and seed) are kept.

        Args:
            spec: A sweep file, understood.
            prune: Cancel the pending tasks that are not in the file (any more).
        """
        now = self._clock.now()
        return self.store.write(
            lambda db: operations.add_sweep(db, spec, prune=prune, now=now),
            operation="init",
            long=True,
        )

    def plan_sweep(self, spec: SweepSpec, *, prune: bool = False) -> SweepChange:
        """Return what `add_sweep` would do, and change nothing."""
        now = self._clock.now()

        def work(db: sqlite3.Connection) -> SweepChange:
            raise Unchanged(operations.add_sweep(db, spec, prune=prune, now=now))

        return self.store.write(work, operation="init", long=True)

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
        change = self.store.write(
            lambda db: operations.retry(
                db, selection, completed=completed, params=params or {}, now=now
            ),
            operation="retry",
            long=True,
        )
        if change.changed:
            self._nudge()
        return change

    def cancel(self, selection: Selection, *, kill: bool = False) -> TaskChange:
        """Cancel pending tasks; running ones finish first, or are stopped now with `kill`."""
        now = self._clock.now()
        change = self.store.write(
            lambda db: operations.cancel(db, selection, kill=kill, now=now),
            operation="cancel",
            long=True,
        )
        if change.changed or (kill and change.running):
            self._nudge()
        return change

    def pause(self, sweep: str | None, *, reason: str = "by an operator") -> tuple[str, ...]:
        """Pause one sweep or all: nothing of it is claimed; return the names that changed."""
        now = self._clock.now()
        names = self.store.write(
            lambda db: operations.pause(db, sweep, reason=reason, now=now),
            operation="pause",
            long=True,
        )
        self._nudge()
        return names

    def resume(self, sweep: str | None) -> tuple[str, ...]:
        """Let one sweep or all go on; return the names that changed."""
        now = self._clock.now()
        return self.store.write(
            lambda db: operations.resume(db, sweep, now=now),
            operation="resume",
            long=True,
        )

    def set_priority(self, selection: Selection, priority: int) -> int:
        """Give tasks that are not ended another priority; return how many there were."""
        changed = self.store.write(
            lambda db: operations.set_priority(db, selection, priority),
            operation="set",
            long=True,
        )
        self._nudge()
        return changed

    def require_sweeps(self, names: Sequence[str]) -> None:
        """Raise UnknownTask when there is no sweep of one of these names."""

        def look(db: sqlite3.Connection) -> None:
            for name in names:
                queries.sweep_id(db, name)

        self.store.read(look)

    def snapshot(self, *, sweep: str | None = None) -> Snapshot:
        """Return everything `status` shows."""
        now = self._clock.now()
        bare = self.store.read(
            lambda db: snapshots.snapshot(db, folder=self.folder, sweep=sweep, now=now)
        )
        return snapshots.with_signs_of_life(bare, self.folder, now=now)

    def refresh(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot with the workers' signs of life read anew, without any lock.

        Tasks, counts and failures stay as they were: ask for another `snapshot` when
        `store.change_counter()` moved.
        """
        now = self._clock.now()
        bare = replace(snapshot, taken_at=now, unreachable=None)
        return snapshots.with_signs_of_life(bare, self.folder, now=now)

    def tasks(
        self,
        selection: Selection | None = None,
        *,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[TaskRecord]:
        """Return the selected tasks with all their attempts, in the order of creation.

        Many tasks are read in several short transactions, so that nobody waits long for them.

        Args:
            selection: Which; None means all.
            limit: Return at most so many; None means all.
            after: Name of a task, to begin behind it; None means to begin with the first.
        """
        chosen = selection or Selection()
        found: list[TaskRecord] = []
        begin: int | str | None = 0 if after is None else after
        while begin is not None and (limit is None or len(found) < limit):
            size = queries.PAGE if limit is None else min(queries.PAGE, limit - len(found))
            page, begin = self.store.read(
                partial(
                    queries.tasks, selection=chosen, folder=self.folder, after=begin, limit=size
                )
            )
            found.extend(page)
        return found

    def tasks_before(
        self, selection: Selection | None = None, *, limit: int, before: str | None = None
    ) -> list[TaskRecord]:
        """Return the last of the selected tasks, in the order of creation.

        Args:
            selection: Which; None means all.
            limit: Return at most so many.
            before: Name of a task, to end ahead of it; None means to end with the last.
        """

        def ask(db: sqlite3.Connection) -> list[TaskRecord]:
            end = queries.BEHIND_ALL if before is None else queries.task_id(db, before)
            return queries.tasks_before(
                db, selection=selection or Selection(), folder=self.folder, before=end, limit=limit
            )

        return self.store.read(ask)

    def task(self, name: str) -> TaskRecord:
        """Return one task with all its attempts; raise UnknownTask when there is none."""
        return self.tasks(Selection(names=(name,)))[0]

    def waiting(self, name: str) -> Waiting | None:
        """Return what decides when a pending task runs; None when it is not pending."""
        now = self._clock.now()
        bare = self.store.read(lambda db: queries.waiting(db, name, lease_s=self.lease_s, now=now))
        return None if bare is None else queries.heard_of(bare, self.folder, now=now)

    def packages(self, environment: str) -> Packages | None:
        """Return the packages of an attempt's environment (its digest); None when not known."""
        return self.store.read(lambda db: queries.packages(db, environment))

    def task_names(self, *, starting_with: str = "", limit: int = 100) -> list[str]:
        """Return names of tasks, for shell completion."""
        return self.store.read(lambda db: queries.task_names(db, starting_with, limit=limit))

    def events(self, *, after: int = 0, limit: int = 1000) -> list[Event]:
        """Return events with a number above `after`, the oldest first."""
        return self.store.read(lambda db: queries.events(db, after=after, limit=limit))

    def latest_event(self) -> int:
        """Return the number of the newest event; 0 when there is none."""
        return self.store.read(queries.latest_event)

    def _nudge(self) -> None:
        """Workers may hold what was pending, or run what is to be stopped: let them look.

        What was changed stands, whether they can be told or not.
        """
        with contextlib.suppress(LedgerError):
            self.store.nudge()

    def _end_and_claim(
        self,
        token: Token,
        ending: Ending,
        then: WorkerIdentity | None,
        sweeps: Sequence[str],
        operation: str,
        time_left_s: float | None = None,
    ) -> Ended:
        def change(db: sqlite3.Connection) -> Ended:
            now = self._clock.now()  # inside the lock: waiting for it is not the task's time
            ended = endings.end(db, token, ending, now=now)
            if then is None or ended.suspect:
                return ended
            found = claims.claim(db, then, sweeps, now=now, time_left_s=time_left_s)
            return replace(ended, next=found)

        return self.store.write(change, operation=operation)
