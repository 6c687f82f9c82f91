"""Several short tasks held and settled in one transaction, on a real file, time moved by hand."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest

from gpuledger import batches
from gpuledger.errors import LeaseLost
from gpuledger.ledger import Ledger
from gpuledger.model import (
    Claim,
    Ended,
    Ending,
    Finished,
    NothingToDo,
    Outcome,
    TaskState,
    WorkerIdentity,
)
from gpuledger.rhythm import Rhythm
from gpuledger.selection import Selection
from tests.helpers import ManualClock, failure, identity, spec
from tests.test_ledger import assert_consistent, claim, dead, state

COMPLETED = Ending(outcome=Outcome.COMPLETED, exit_code=0, duration_s=0.1, metrics={"acc": 1})


def done(held: Claim, ending: Ending = COMPLETED) -> Finished:
    return Finished(token=held.token, ending=ending, started_at=5.0, ended_at=6.0)


def holding(
    ledger: Ledger, count: int = 4, points: int = 20
) -> tuple[WorkerIdentity, tuple[Claim, ...]]:
    ledger.add_sweep(spec(points=points))
    worker = ledger.register(identity())
    held = ledger.settle(worker, [], hold=count).held
    assert len(held) == count
    return worker, held


def test_what_is_held_is_pending_and_nobody_elses(ledger: Ledger) -> None:
    _, held = holding(ledger)

    other = claim(ledger, ledger.register(identity("n2", host="beta")))

    assert [one.task for one in held] == ["exp_0_0", "exp_1_0", "exp_2_0", "exp_3_0"]
    assert {one.number for one in held} == {1}
    assert other.task == "exp_4_0"
    assert state(ledger, "exp_0_0") is TaskState.PENDING
    assert ledger.task("exp_0_0").attempts == ()
    assert_consistent(ledger)


def test_successes_are_recorded_together_and_the_rest_is_given_back(ledger: Ledger) -> None:
    worker, held = holding(ledger)

    settled = ledger.settle(worker, [done(one) for one in held[:2]])

    assert [ended.state for ended in settled.ended if isinstance(ended, Ended)] == [
        TaskState.COMPLETED
    ] * 2
    first = ledger.task("exp_0_0")
    assert (first.state, first.result) == (TaskState.COMPLETED, {"acc": 1})
    [attempt] = first.attempts
    assert (attempt.outcome, attempt.started_at, attempt.ended_at) == ("completed", 5.0, 6.0)
    kinds = [(event.kind, event.at) for event in ledger.events() if event.task == "exp_1_0"]
    assert kinds == [("started", 5.0), ("completed", 6.0)]
    other = claim(ledger, ledger.register(identity("n2", host="beta")))
    assert other.task == "exp_2_0"
    assert ledger.snapshot().sweeps[0].mean_s == pytest.approx(0.1)
    assert_consistent(ledger)


def test_settling_again_after_a_lost_answer_changes_nothing(ledger: Ledger) -> None:
    worker, held = holding(ledger)
    finished = [done(held[0]), done(held[1], failure())]
    ledger.settle(worker, finished)
    events = ledger.latest_event()

    again = ledger.settle(worker, finished)

    assert [type(ended) for ended in again.ended] == [Ended, Ended]
    assert ledger.latest_event() == events
    assert ledger.task("exp_1_0").failures == 1
    assert_consistent(ledger)


def test_a_task_that_runs_on_is_opened_and_charged_when_its_worker_dies(ledger: Ledger) -> None:
    worker, held = holding(ledger)

    settled = ledger.settle(worker, [done(held[0])], running=held[1].token)

    assert settled.lost_running is None
    assert state(ledger, "exp_1_0") is TaskState.RUNNING
    lost = ledger.reap(dead(worker))
    assert [one.task for one in lost] == ["exp_1_0"]
    assert ledger.task("exp_1_0").losses == 1
    assert ledger.task("exp_2_0").losses == 0
    assert_consistent(ledger)


def test_a_dead_workers_held_tasks_are_free_and_uncharged(ledger: Ledger) -> None:
    worker, _ = holding(ledger)

    ledger.reap(dead(worker))

    other = ledger.register(identity("n2", host="beta"))
    found = claim(ledger, other)
    assert (found.task, found.number) == ("exp_0_0", 1)
    assert ledger.task("exp_0_0").losses == 0
    with pytest.raises(LeaseLost):
        ledger.settle(worker, [])


def test_a_late_success_comes_too_late_for_a_task_that_another_holds(ledger: Ledger) -> None:
    """The other may run it by now; what a healthy worker ran is in the ledger."""
    ledger.add_sweep(spec(points=9))
    late = ledger.register(identity())
    claimed = claim(ledger, late)
    ledger.reap(dead(late))
    other = ledger.register(identity("n2", host="beta"))
    held = ledger.settle(other, [], hold=64).held
    assert claimed.task == held[0].task

    with pytest.raises(LeaseLost, match="ended as lost"):
        ledger.complete(claimed.token)

    [ended] = ledger.settle(other, [done(held[0])]).ended
    assert isinstance(ended, Ended)
    outcomes = [attempt.outcome for attempt in ledger.task(claimed.task).attempts]
    assert outcomes == [Outcome.LOST, Outcome.COMPLETED]
    assert_consistent(ledger)


def test_a_dead_workers_success_counts_until_others_have_the_task(ledger: Ledger) -> None:
    worker, held = holding(ledger)
    ledger.reap(dead(worker))
    other = ledger.register(identity("n2", host="beta"))
    taken = claim(ledger, other)
    assert taken.task == held[0].task

    with pytest.raises(LeaseLost):
        ledger.deliver(worker.name, done(held[0]))
    ended = ledger.deliver(worker.name, done(held[1]))
    with pytest.raises(LeaseLost):  # what failed unnoticed is simply tried anew
        ledger.deliver(worker.name, done(held[2], failure()))

    assert ended.state is TaskState.COMPLETED
    assert state(ledger, held[0].task) is TaskState.RUNNING
    [attempt] = ledger.task(held[1].task).attempts
    assert (attempt.worker, attempt.outcome) == (worker.name, "completed")
    assert state(ledger, held[2].task) is TaskState.PENDING
    assert_consistent(ledger)


def test_what_an_operator_cancelled_is_not_completed(ledger: Ledger) -> None:
    worker, held = holding(ledger)
    nudge = ledger.store.last_nudge()
    ledger.cancel(Selection(names=(held[0].task, held[1].task)))
    assert ledger.store.last_nudge() != nudge

    settled = ledger.settle(worker, [done(held[0])], running=held[1].token)

    assert isinstance(settled.ended[0], LeaseLost)
    assert isinstance(settled.lost_running, LeaseLost)
    assert state(ledger, held[0].task) is TaskState.CANCELLED
    assert ledger.task(held[0].task).attempts == ()
    assert_consistent(ledger)


@pytest.mark.parametrize("change", ["pause", "priority"])
def test_operators_changes_are_told_to_those_who_hold_tasks(ledger: Ledger, change: str) -> None:
    worker, _ = holding(ledger)
    nudge = ledger.store.last_nudge()

    if change == "pause":
        ledger.pause("exp")
    else:
        ledger.set_priority(Selection(names=("exp_9_0",)), 5)

    assert ledger.store.last_nudge() != nudge
    settled = ledger.settle(worker, [], hold=4)
    assert [one.task for one in settled.held[:1]] == ([] if change == "pause" else ["exp_9_0"])
    if change == "pause":
        assert isinstance(settled.next, NothingToDo)


def test_nobody_holds_more_than_a_fair_share(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=24))
    one, two = (ledger.register(identity(nonce, host=nonce)) for nonce in ("n1", "n2"))

    sizes = [len(ledger.settle(worker, [], hold=64).held) for worker in (one, two)]

    assert sizes == [6, 4]  # 24 // (2 * 2), then 18 // (2 * 2)


@pytest.mark.parametrize(("workers", "held"), [(1, 64), (12, 64), (16, 48), (64, 12), (200, 12)])
def test_where_many_compete_each_holds_less(ledger: Ledger, workers: int, held: int) -> None:
    ledger.add_sweep(spec(points=2 * workers * 64 + 1))
    crowd = [ledger.register(identity(f"n{n}", host=f"h{n}")) for n in range(workers)]

    assert len(ledger.settle(crowd[0], [], hold=64).held) == held


def test_the_last_tasks_are_claimed_one_by_one(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=3))
    worker = ledger.register(identity())

    settled = ledger.settle(worker, [], hold=64)

    assert settled.held == ()
    assert isinstance(settled.next, Claim)
    assert state(ledger, "exp_0_0") is TaskState.RUNNING


def test_a_failed_task_that_may_run_again_comes_first(ledger: Ledger) -> None:
    worker, held = holding(ledger)

    settled = ledger.settle(worker, [done(held[0], failure(duration_s=99.0))], hold=4)

    assert settled.held == ()
    assert isinstance(settled.next, Claim)
    assert (settled.next.task, settled.next.number) == (held[0].task, 2)


def test_a_failed_task_for_other_workers_is_passed_over(ledger: Ledger) -> None:
    worker, held = holding(ledger)
    ledger.register(identity("n2", host="beta"))
    failed = replace(done(held[0], failure(duration_s=99.0)), ended_at=ledger.now())

    settled = ledger.settle(worker, [failed], hold=4)

    assert [one.task for one in settled.held] == ["exp_1_0", "exp_2_0", "exp_3_0", "exp_4_0"]


def test_a_sweep_of_long_tasks_is_not_held(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=40))
    worker = ledger.register(identity())
    ledger.complete(claim(ledger, worker).token, duration_s=60.0)

    settled = ledger.settle(worker, [], hold=8)

    assert settled.held == ()
    assert isinstance(settled.next, Claim)


def test_priorities_of_two_sweeps_are_kept(ledger: Ledger) -> None:
    ledger.add_sweep(spec(name="one", points=20))
    ledger.add_sweep(spec(name="two", points=20, priority=5))
    ledger.set_priority(Selection(names=("one_3_0", "one_4_0")), 9)
    worker = ledger.register(identity())

    held = ledger.settle(worker, [], hold=6).held

    assert [one.task for one in held] == ["one_3_0", "one_4_0"]


def test_a_worker_that_fails_everything_gets_nothing_more(ledger: Ledger) -> None:
    worker, held = holding(ledger)
    other = ledger.register(identity("n2", host="beta"))
    ledger.complete(claim(ledger, other).token)

    settled = ledger.settle(worker, [done(one, failure()) for one in held[:3]], hold=4)

    assert isinstance(settled.ended[2], Ended)
    assert settled.ended[2].suspect
    assert (settled.held, settled.next) == ((), None)
    assert [ledger.task(one.task).failures for one in held[:3]] == [0, 0, 0]
    assert_consistent(ledger)


def test_an_allocation_that_ends_holds_no_tasks_that_take_longer(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=20, time_needed_s=0.5))
    worker = ledger.register(identity())

    assert ledger.settle(worker, [], hold=4, time_left_s=0.2).held == ()
    assert len(ledger.settle(worker, [], hold=4, time_left_s=60.0).held) == 4


def test_finding_what_is_free_is_one_probe(ledger: Ledger) -> None:
    def plan(db: sqlite3.Connection) -> list[str]:
        rows = db.execute(f"EXPLAIN QUERY PLAN {batches.FREE}", (1,)).fetchall()
        held = db.execute(f"EXPLAIN QUERY PLAN {batches.HELD}", ("n",)).fetchall()
        return [row["detail"] for row in (*rows, *held)]

    text = "\n".join(ledger.store.read(plan))
    assert "INDEX task_pending (sweep_id=?)" in text
    assert "INDEX task_held (held_by=?)" in text
    assert "TEMP B-TREE" not in text


# --- how many ---------------------------------------------------------------------------------


def rhythm(*tasks_s: float, visit_s: float) -> tuple[Rhythm, ManualClock]:
    clock = ManualClock()
    found = Rhythm(clock)
    found.visit_took(visit_s)
    for seconds in tasks_s:
        found.task_took(seconds)
    return found, clock


@pytest.mark.parametrize(
    ("tasks_s", "visit_s", "count"),
    [
        ((), 0.01, 1),
        ((0.01,), 0.01, 1),  # one says little
        ((0.01, 0.01), 0.01, 50),  # a fiftieth of the time for the ledger
        ((0.01, 0.01), 1.0, 80),  # but no more than fit in the period
        ((0.01, 0.4), 1.0, 2),  # the longest counts
        ((60.0, 60.0), 0.01, 1),
        ((0.5, 0.5), 0.001, 1),  # the ledger is no brake
    ],
)
def test_as_many_as_the_ledger_is_slow(
    tasks_s: tuple[float, ...], visit_s: float, count: int
) -> None:
    assert rhythm(*tasks_s, visit_s=visit_s)[0].count() == count


def test_another_task_starts_only_when_it_ends_before_the_next_visit() -> None:
    found, clock = rhythm(0.2, 0.2, visit_s=0.01)
    assert found.has_time()
    clock.advance(0.75)
    assert found.due_in_s() == pytest.approx(0.25)
    assert found.has_time()
    clock.advance(0.1)
    assert not found.has_time()


def test_what_a_dead_worker_left_is_not_that_of_other_parameters(ledger: Ledger) -> None:
    worker, held = holding(ledger)
    ledger.reap({worker.nonce: lambda: True})
    left = [replace(done(one), params=one.params) for one in held[:2]]
    ledger.cancel(Selection(names=(held[0].task,)))
    ledger.retry(Selection(names=(held[0].task,)), params={"lr": 77})

    with pytest.raises(LeaseLost, match="parameters were changed"):
        ledger.deliver(worker.name, left[0])
    ledger.deliver(worker.name, left[1])

    assert state(ledger, held[0].task) is TaskState.PENDING
    assert state(ledger, held[1].task) is TaskState.COMPLETED
