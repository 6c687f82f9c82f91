"""Any order of verbs, stale tokens included, agrees with a model of a few dictionaries."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from gpuledger.errors import LeaseLost
from gpuledger.ledger import Ledger
from gpuledger.model import Claim, NothingToDo, Outcome, TaskState, WorkerIdentity
from gpuledger.selection import Selection
from tests.helpers import ManualClock, failure, identity, spec
from tests.test_ledger import assert_consistent

MAX_ATTEMPTS, MAX_LOSSES = 3, 2


class LedgerMachine(RuleBasedStateMachine):
    """The model: each task's state and counters, each worker's open attempt, who was reaped."""

    workers: Bundle[WorkerIdentity] = Bundle("workers")
    claims: Bundle[Claim] = Bundle("claims")

    @initialize()
    def start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="gpuledger-stateful-")
        self.clock = ManualClock()
        self.ledger = Ledger.create(Path(self._folder.name) / ".gpuledger", clock=self.clock)
        self.states: dict[str, TaskState] = {}
        self.failures: dict[str, int] = {}
        self.losses: dict[str, int] = {}
        self.numbers: dict[str, int] = {}
        self.open: dict[str, Claim] = {}
        self.gone: set[str] = set()
        self.reaped: dict[str, str] = {}  # task: nonce of the attempt that was lost last
        self.paused = False
        self.points = 0
        self._nonces = itertools.count()

    def teardown(self) -> None:
        if hasattr(self, "_folder"):
            self._folder.cleanup()

    @rule(more=st.integers(1, 3))
    def submit(self, more: int) -> None:
        self.points += more
        change = self.ledger.add_sweep(
            spec(
                points=self.points,
                max_attempts=MAX_ATTEMPTS,
                max_losses=MAX_LOSSES,
                avoid_s=0.0,
                pause_after=0,
            )
        )
        assert change.added == more
        for point in range(self.points - more, self.points):
            name = f"exp_{point}_0"
            self.states[name] = TaskState.PENDING
            self.failures[name] = self.losses[name] = self.numbers[name] = 0

    @rule(target=workers)
    def register(self) -> WorkerIdentity:
        number = next(self._nonces)
        return self.ledger.register(identity(f"n{number}", host=f"host{number}"))

    @rule(target=claims, worker=workers)
    def claim(self, worker: WorkerIdentity) -> Any:
        if worker.nonce in self.gone:
            try:
                self.ledger.claim(worker)
            except LeaseLost:
                return multiple()
            raise AssertionError("a worker that is gone claimed")
        found = self.ledger.claim(worker)
        if worker.nonce in self.open:
            assert found == self.open[worker.nonce]
            return multiple()
        expected = self._first_pending()
        if isinstance(found, NothingToDo):
            assert expected is None
            return multiple()
        assert found.task == expected
        self.numbers[found.task] += 1
        assert found.number == self.numbers[found.task]
        self.states[found.task] = TaskState.RUNNING
        self.open[worker.nonce] = found
        self.reaped.pop(found.task, None)
        return found

    @rule(claim=claims)
    def complete(self, claim: Claim) -> None:
        is_late = self.reaped.get(claim.task) == claim.token.nonce and (
            self.states[claim.task] is TaskState.PENDING
            and claim.number == self.numbers[claim.task]
        )
        if self._is_open(claim):
            self.ledger.complete(claim.token)
            self._closed(claim, TaskState.COMPLETED)
        elif is_late:
            self.ledger.complete(claim.token)
            self.states[claim.task] = TaskState.COMPLETED
            self.losses[claim.task] = max(self.losses[claim.task] - 1, 0)
            del self.reaped[claim.task]
        else:
            self._refused(lambda: self.ledger.complete(claim.token), claim, Outcome.COMPLETED)

    @rule(claim=claims, fatal=st.booleans())
    def fail(self, claim: Claim, fatal: bool) -> None:
        ending = failure(duration_s=1000.0, fatal=fatal)
        if not self._is_open(claim):
            self._refused(lambda: self.ledger.fail(claim.token, ending), claim, Outcome.FAILED)
            return
        self.ledger.fail(claim.token, ending)
        self.failures[claim.task] += 1
        done = fatal or self.failures[claim.task] >= MAX_ATTEMPTS
        self._closed(claim, TaskState.FAILED if done else TaskState.PENDING)

    @rule(claim=claims)
    def release(self, claim: Claim) -> None:
        if not self._is_open(claim):
            self._refused(lambda: self.ledger.release(claim.token), claim, Outcome.INTERRUPTED)
            return
        self.ledger.release(claim.token)
        self._closed(claim, TaskState.PENDING)

    @rule(worker=consumes(workers))
    def reap(self, worker: WorkerIdentity) -> None:
        lost = self.ledger.reap({worker.nonce: lambda: True})
        had = self.open.get(worker.nonce)
        assert [claim.task for claim in lost] == ([had.task] if had else [])
        self.gone.add(worker.nonce)
        if had is not None:
            self.losses[had.task] += 1
            done = self.losses[had.task] >= MAX_LOSSES
            self._closed(had, TaskState.FAILED if done else TaskState.PENDING)
            self.reaped[had.task] = worker.nonce

    @rule(completed=st.booleans())
    def retry(self, completed: bool) -> None:
        wanted = {TaskState.FAILED, TaskState.CANCELLED}
        if completed:
            wanted.add(TaskState.COMPLETED)
        change = self.ledger.retry(Selection(), completed=completed)
        chosen = [name for name, state in self.states.items() if state in wanted]
        assert change.changed == len(chosen)
        for name in chosen:
            self.states[name] = TaskState.PENDING
            self.failures[name] = self.losses[name] = 0

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        names = [name for name, state in self.states.items() if state is not TaskState.RUNNING]
        if names:
            name = data.draw(st.sampled_from(sorted(names)))
            self.ledger.cancel(Selection(names=(name,)))
            if self.states[name] in (TaskState.PENDING, TaskState.FAILED):
                self.states[name] = TaskState.CANCELLED

    @rule()
    def pause_or_resume(self) -> None:
        if self.points:
            (self.ledger.resume if self.paused else self.ledger.pause)("exp")
            self.paused = not self.paused

    @rule(seconds=st.floats(0, 1000))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert_consistent(self.ledger)
        told = {task.task: task for task in self.ledger.tasks()}
        assert {name: task.state for name, task in told.items()} == self.states
        assert {name: task.failures for name, task in told.items()} == self.failures
        assert {name: task.losses for name, task in told.items()} == self.losses
        counts = self.ledger.snapshot().counts
        for state in TaskState:
            assert getattr(counts, state) == list(self.states.values()).count(state)

    def _first_pending(self) -> str | None:
        pending = [name for name, state in self.states.items() if state is TaskState.PENDING]
        return None if self.paused or not pending else pending[0]

    def _is_open(self, claim: Claim) -> bool:
        return self.open.get(claim.token.nonce) == claim

    def _closed(self, claim: Claim, state: TaskState) -> None:
        del self.open[claim.token.nonce]
        self.states[claim.task] = state

    def _refused(self, verb: Any, claim: Claim, outcome: Outcome) -> None:
        """A stale token changes nothing, and is answered only for what it said before."""
        attempt = self.ledger.task(claim.task).attempts[claim.number - 1]
        try:
            verb()
        except LeaseLost:
            assert attempt.outcome != outcome
        else:
            assert attempt.outcome == outcome


LedgerMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestLedgerMachine = LedgerMachine.TestCase
