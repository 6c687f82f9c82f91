"""What holds always, verb by verb, on a real file and with time moved by hand."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from gpuledger.claims import FIRST_PENDING
from gpuledger.errors import BadSweepFile, LeaseLost, UnknownTask
from gpuledger.ledger import Ledger
from gpuledger.model import Claim, Ending, NothingToDo, Outcome, TaskState, WorkerIdentity
from gpuledger.selection import Selection
from gpuledger.spec import SweepSpec, TaskSpec
from gpuledger.traceback_reader import FATAL_NOTE
from tests.helpers import ManualClock, failure, identity, spec


def claim(ledger: Ledger, worker: WorkerIdentity, **options: Any) -> Claim:
    found = ledger.claim(worker, **options)
    assert isinstance(found, Claim), found
    return found


def dead(*workers: WorkerIdentity) -> dict[str, Any]:
    return {worker.nonce: lambda: True for worker in workers}


def state(ledger: Ledger, name: str) -> TaskState:
    return ledger.task(name).state


def assert_consistent(ledger: Ledger) -> None:
    """The invariants that SQL can tell."""

    def look(db: sqlite3.Connection) -> None:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        counted = db.execute("SELECT sweep_id, state, n FROM task_count WHERE n > 0").fetchall()
        real = db.execute("SELECT sweep_id, state, COUNT(*) FROM task GROUP BY 1, 2").fetchall()
        assert sorted(map(tuple, counted)) == sorted(map(tuple, real))
        running = db.execute("SELECT id FROM task WHERE state = 'running'").fetchall()
        opened = db.execute("SELECT task_id FROM attempt WHERE outcome IS NULL").fetchall()
        assert sorted(map(tuple, running)) == sorted(map(tuple, opened))

    ledger.store.read(look)


# --- claim ------------------------------------------------------------------------------------


def test_tasks_are_claimed_by_priority_then_age(ledger: Ledger) -> None:
    ledger.add_sweep(spec(name="low", points=2))
    ledger.add_sweep(spec(name="high", points=2, priority=5))
    ledger.set_priority(Selection(names=("low_1_0",)), 9)
    worker = ledger.register(identity())

    order = []
    for _ in range(4):
        found = claim(ledger, worker)
        order.append(found.task)
        ledger.complete(found.token)

    assert order == ["low_1_0", "high_0_0", "high_1_0", "low_0_0"]
    assert ledger.claim(worker) == NothingToDo()


def test_a_worker_may_ask_for_some_sweeps_only(ledger: Ledger) -> None:
    ledger.add_sweep(spec(name="one"))
    ledger.add_sweep(spec(name="two"))
    worker = ledger.register(identity())

    assert claim(ledger, worker, sweeps=["two"]).sweep == "two"


def test_a_claim_whose_answer_got_lost_is_answered_again(ledger: Ledger) -> None:
    ledger.add_sweep(spec())
    worker = ledger.register(identity())

    assert claim(ledger, worker) == claim(ledger, worker)
    assert ledger.snapshot().counts.running == 1


def test_a_fruitless_claim_changes_no_byte_of_the_ledger(ledger: Ledger) -> None:
    worker = ledger.register(identity())
    before = ledger.store.path.read_bytes()

    assert ledger.claim(worker) == NothingToDo()

    assert ledger.store.path.read_bytes() == before


def test_a_worker_that_was_reaped_cannot_claim(ledger: Ledger) -> None:
    ledger.add_sweep(spec())
    worker = ledger.register(identity())
    ledger.reap(dead(worker))

    with pytest.raises(LeaseLost, match="found dead"):
        ledger.claim(worker)


def test_the_claim_is_one_probe_of_an_index_and_no_sort(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=50))

    plan = ledger.store.read(
        lambda db: [
            row["detail"] for row in db.execute(f"EXPLAIN QUERY PLAN {FIRST_PENDING}", (1,))
        ]
    )

    assert plan == ["SEARCH task USING INDEX task_pending (sweep_id=?)"]


def test_names_of_live_workers_are_unique(ledger: Ledger) -> None:
    names = [ledger.register(identity(f"n{n}")).name for n in range(3)]
    ledger.leave("n1")

    assert names == ["alpha:cpu", "alpha:cpu#2", "alpha:cpu#3"]
    assert ledger.register(identity("n4")).name == "alpha:cpu#2"


# --- ending an attempt ------------------------------------------------------------------------


def test_complete_and_the_next_claim_are_one_step(ledger: Ledger) -> None:
    ledger.add_sweep(spec())
    worker = ledger.register(identity())
    first = claim(ledger, worker)

    ended = ledger.complete(first.token, metrics={"acc": 0.9}, duration_s=3.0, then=worker)

    assert isinstance(ended.next, Claim)
    assert ended.next.task == "exp_1_0"
    assert ledger.task("exp_0_0").result == {"acc": 0.9}
    assert_consistent(ledger)


def test_the_same_answer_may_be_given_twice(ledger: Ledger) -> None:
    ledger.add_sweep(spec())
    worker = ledger.register(identity())
    first = claim(ledger, worker)

    assert ledger.complete(first.token).state is TaskState.COMPLETED
    assert ledger.complete(first.token).state is TaskState.COMPLETED
    with pytest.raises(LeaseLost, match="ended as completed"):
        ledger.fail(first.token, failure())
    assert len(ledger.task(first.task).attempts) == 1


def test_a_worker_that_lost_its_lease_cannot_end_its_successors_attempt(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1))
    slow, quick = ledger.register(identity("slow")), ledger.register(identity("quick"))
    first = claim(ledger, slow)
    ledger.reap(dead(slow))
    second = claim(ledger, quick)

    with pytest.raises(LeaseLost, match="exp_0_0 attempt 1: lease lost"):
        ledger.complete(first.token)
    with pytest.raises(LeaseLost):
        ledger.fail(first.token, failure())
    with pytest.raises(LeaseLost):
        ledger.release(first.token)

    assert ledger.complete(second.token).state is TaskState.COMPLETED
    outcomes = [attempt.outcome for attempt in ledger.task("exp_0_0").attempts]
    assert outcomes == [Outcome.LOST, Outcome.COMPLETED]
    assert_consistent(ledger)


def test_a_late_success_counts_while_nobody_took_the_task(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1))
    worker = ledger.register(identity())
    first = claim(ledger, worker)
    ledger.reap(dead(worker))

    assert ledger.complete(first.token, metrics={"acc": 1}).state is TaskState.COMPLETED

    task = ledger.task("exp_0_0")
    assert (task.state, task.losses, task.result) == (TaskState.COMPLETED, 0, {"acc": 1})
    assert_consistent(ledger)


def test_a_late_success_counts_after_the_last_loss_that_was_allowed(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1, max_losses=1))
    worker = ledger.register(identity())
    first = claim(ledger, worker)
    ledger.reap(dead(worker))
    assert state(ledger, first.task) is TaskState.FAILED

    assert ledger.complete(first.token).state is TaskState.COMPLETED
    assert_consistent(ledger)


def test_a_late_failure_does_not(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1))
    worker = ledger.register(identity())
    first = claim(ledger, worker)
    ledger.reap(dead(worker))

    with pytest.raises(LeaseLost, match="ended as lost"):
        ledger.fail(first.token, failure())


def test_a_task_fails_for_good_at_its_last_attempt(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1, max_attempts=2, avoid_s=0.0))
    worker = ledger.register(identity())

    states = [ledger.fail(claim(ledger, worker).token, failure()).state for _ in range(2)]

    assert states == [TaskState.PENDING, TaskState.FAILED]
    assert ledger.claim(worker) == NothingToDo()
    assert ledger.task("exp_0_0").last_error == "KeyError: 'x'"


def test_a_fatal_failure_is_the_last(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1))
    worker = ledger.register(identity())

    ended = ledger.fail(claim(ledger, worker).token, failure(fatal=True))

    assert ended.state is TaskState.FAILED


def test_losses_count_apart_and_have_an_end(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1, max_losses=2))
    for number in range(2):
        worker = ledger.register(identity(f"n{number}"))
        claim(ledger, worker)
        ledger.reap(dead(worker))

    task = ledger.task("exp_0_0")
    assert (task.state, task.failures, task.losses) == (TaskState.FAILED, 0, 2)


def test_given_back_is_not_counted(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1))
    worker = ledger.register(identity())
    ledger.release(claim(ledger, worker).token)

    task = ledger.task("exp_0_0")
    assert (task.state, task.failures, task.losses) == (TaskState.PENDING, 0, 0)


def test_a_worker_that_leaves_gives_back_what_it_had(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1))
    worker = ledger.register(identity())
    claim(ledger, worker)

    ledger.leave(worker.nonce)

    assert state(ledger, "exp_0_0") is TaskState.PENDING
    assert ledger.live_workers() == ()
    assert_consistent(ledger)


def test_a_worker_that_came_back_to_life_is_not_reaped(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1))
    worker = ledger.register(identity())
    claim(ledger, worker)

    assert ledger.reap({worker.nonce: lambda: False}) == ()
    assert state(ledger, "exp_0_0") is TaskState.RUNNING
    assert ledger.confirm(worker)


def test_two_reapers_and_the_owner_end_an_attempt_once(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1))
    worker = ledger.register(identity())
    first = claim(ledger, worker)

    assert [lost.task for lost in ledger.reap(dead(worker))] == ["exp_0_0"]
    assert ledger.reap(dead(worker)) == ()
    assert ledger.complete(first.token).state is TaskState.COMPLETED
    assert len(ledger.task("exp_0_0").attempts) == 1


@pytest.mark.parametrize("params", [{}, {"lr": 0.5}])
def test_a_late_success_is_not_that_of_a_task_that_was_retried_meanwhile(
    ledger: Ledger, params: dict[str, Any]
) -> None:
    ledger.add_sweep(spec(points=1))
    worker = ledger.register(identity())
    late = claim(ledger, worker)
    ledger.reap(dead(worker))
    ledger.cancel(Selection(names=(late.task,)))
    ledger.retry(Selection(names=(late.task,)), params=params)

    with pytest.raises(LeaseLost, match="ended as lost"):
        ledger.complete(late.token, metrics={"used_lr": 0})

    assert (state(ledger, late.task), ledger.task(late.task).result) == (TaskState.PENDING, None)
    assert_consistent(ledger)


def test_a_worker_that_crashed_is_charged_with_what_it_ran(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1, max_losses=2))
    for nonce in ("n1", "n2"):
        worker = ledger.register(identity(nonce))
        claim(ledger, worker)
        ledger.leave(worker.nonce, crash="its worker crashed: RecursionError")

    task = ledger.task("exp_0_0")
    assert (task.state, task.losses) == (TaskState.FAILED, 2), "it stops no third worker"
    assert task.last_error == "its worker crashed: RecursionError"


# --- where a task may go ----------------------------------------------------------------------


def test_a_failed_task_goes_to_another_worker_first(ledger: Ledger, clock: ManualClock) -> None:
    ledger.add_sweep(spec(points=1, avoid_s=60.0))
    one = ledger.register(identity("a"))
    two = ledger.register(identity("b", host="beta"))
    ledger.fail(claim(ledger, one).token, failure())

    assert isinstance(ledger.claim(one), NothingToDo)
    clock.advance(59)
    assert isinstance(ledger.claim(one), NothingToDo)
    assert claim(ledger, two).number == 2


def test_after_a_while_it_may_come_back(ledger: Ledger, clock: ManualClock) -> None:
    ledger.add_sweep(spec(points=1, avoid_s=60.0))
    one = ledger.register(identity("a"))
    ledger.register(identity("b", host="beta"))
    ledger.fail(claim(ledger, one).token, failure())
    clock.advance(61)

    assert claim(ledger, one).number == 2


def test_a_clock_that_is_set_back_hides_no_task_for_long(
    ledger: Ledger, clock: ManualClock
) -> None:
    ledger.add_sweep(spec(points=1, avoid_s=60.0))
    one = ledger.register(identity("a"))
    ledger.register(identity("b", host="beta"))
    ledger.fail(claim(ledger, one).token, failure())
    clock.wall -= 86_400

    assert claim(ledger, one).number == 2


def test_alone_a_worker_tries_again_at_once(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1, avoid_s=60.0))
    one = ledger.register(identity("a"))
    ledger.fail(claim(ledger, one).token, failure())

    assert claim(ledger, one).number == 2


def test_out_of_memory_goes_to_a_larger_gpu(ledger: Ledger, clock: ManualClock) -> None:
    ledger.add_sweep(spec(points=1, avoid_s=60.0))
    small = ledger.register(identity("s", name="alpha:gpu0", gpus=("0",), gpu_memory_mib=4096))
    ledger.register(identity("t", name="alpha:gpu1", gpus=("1",), gpu_memory_mib=4096))
    large = ledger.register(identity("l", name="beta:gpu0", gpus=("0",), gpu_memory_mib=24576))
    ledger.fail(claim(ledger, small).token, failure(outcome=Outcome.OOM))
    clock.advance(3600)

    assert isinstance(ledger.claim(small), NothingToDo)
    assert claim(ledger, large).number == 2


def test_a_worker_on_which_everything_fails_is_suspect_and_pays_for_it(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=5, pause_after=0))
    bad = ledger.register(identity("bad"))
    ledger.register(identity("good", host="beta"))

    ended = [ledger.fail(claim(ledger, bad).token, failure()) for _ in range(3)]

    assert [one.suspect for one in ended] == [False, False, True]
    assert {task.failures for task in ledger.tasks()} == {0}
    assert ledger.snapshot().counts.pending == 5


@pytest.mark.parametrize(("max_attempts", "others"), [(3, 2), (1, 0), (1, 1)])
@pytest.mark.parametrize(
    "hopeless",
    [
        {"error": "gpuledger.Fatal: unknown model"},
        {"traceback": f"models.Unknown: x\n{FATAL_NOTE}"},
        {"exit_code": 3},
    ],
)
def test_a_task_that_says_itself_that_it_cannot_succeed_makes_nobody_suspect(
    ledger: Ledger, max_attempts: int, others: int, hopeless: dict[str, Any]
) -> None:
    codes = (3, 4)
    ledger.add_sweep(spec(points=9, pause_after=0, max_attempts=max_attempts, no_retry_codes=codes))
    worker = ledger.register(identity("a"))
    ledger.register(identity("b", host="beta"))

    ended = [
        ledger.fail(claim(ledger, worker).token, ending)
        for ending in [failure(fatal=True, **hopeless)] * 3 + [failure()] * others
    ]

    assert not any(one.suspect for one in ended)
    assert [one.state for one in ended[:3]] == [TaskState.FAILED] * 3


def test_more_memory_is_waited_for_while_its_worker_is_suspect(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1))
    small = ledger.register(identity("s", name="alpha:gpu0", gpus=("0",), gpu_memory_mib=4096))
    large = ledger.register(identity("l", name="beta:gpu0", gpus=("0",), gpu_memory_mib=24576))
    ledger.fail(claim(ledger, small).token, failure(outcome=Outcome.OOM))

    ledger.stand_back(large.nonce, "suspect, cools down 60 s")
    assert isinstance(ledger.claim(small), NothingToDo)
    ledger.stand_back(large.nonce, "GPU 0 is gone")
    assert claim(ledger, small).number == 2


def test_slow_failures_make_nobody_suspect(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=5, pause_after=0))
    worker = ledger.register(identity("a"))
    ledger.register(identity("b", host="beta"))

    ended = [ledger.fail(claim(ledger, worker).token, failure(duration_s=600.0)) for _ in range(3)]

    assert not any(one.suspect for one in ended)


def test_a_sweep_that_fails_everywhere_is_paused_and_a_retry_lets_it_go_on(
    ledger: Ledger,
) -> None:
    ledger.add_sweep(spec(points=10, max_attempts=1))
    worker = ledger.register(identity())

    ended = [ledger.fail(claim(ledger, worker).token, failure()) for _ in range(5)]

    assert [one.sweep_paused is not None for one in ended] == [False] * 4 + [True]
    assert ledger.claim(worker) == NothingToDo(broken=("exp",))
    assert "KeyError: 'x'" in (ledger.snapshot().sweeps[0].paused or "")
    assert ledger.retry(Selection(states=frozenset({TaskState.FAILED}))).resumed == ("exp",)
    assert claim(ledger, worker).number == 2


def grid(*, points: int, **settings: Any) -> Any:
    """A grid of `lr` and `model`, `lr` varying slowest, of two models."""
    values = [{"lr": n // 2, "model": n % 2} for n in range(points)]

    def tasks() -> Any:
        return iter(TaskSpec(point=n, seed=0, params=one) for n, one in enumerate(values))

    return replace(spec(points=points, **settings), tasks=tasks)


def test_one_bad_value_of_a_grid_pauses_nothing(ledger: Ledger) -> None:
    ledger.add_sweep(replace_seeds(grid(points=6, max_attempts=1), 5))
    worker = ledger.register(identity())
    for _ in range(10):
        ledger.complete(claim(ledger, worker).token)

    ended = [ledger.fail(claim(ledger, worker).token, failure()) for _ in range(10)]

    assert {ledger.task(f"exp_{n}_0").params["lr"] for n in (2, 3)} == {1}
    assert not any(one.sweep_paused for one in ended), "lr 1 is to blame, nothing else"
    ledger.complete(claim(ledger, worker).token)


def test_no_value_is_to_blame_for_very_many(ledger: Ledger) -> None:
    ledger.add_sweep(replace_seeds(grid(points=4, max_attempts=1, pause_after=2), 30))
    worker = ledger.register(identity())
    for _ in range(60):
        ledger.complete(claim(ledger, worker).token)

    ended = [ledger.fail(claim(ledger, worker).token, failure()) for _ in range(20)]

    assert [one.sweep_paused is not None for one in ended] == [False] * 19 + [True]


def test_a_sweep_that_breaks_after_some_successes_is_paused(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=20, max_attempts=1))
    worker = ledger.register(identity())
    for _ in range(3):
        ledger.complete(claim(ledger, worker).token)

    ended = [ledger.fail(claim(ledger, worker).token, failure()) for _ in range(5)]

    assert "5 tasks failed in a row, none succeeded meanwhile" in str(ended[4].sweep_paused)


def replace_seeds(given: SweepSpec, seeds: int) -> SweepSpec:
    """Return the sweep with so many seeds for each of its points."""
    points = list(given.tasks())

    def tasks() -> Iterator[TaskSpec]:
        return (replace(point, seed=seed) for point in points for seed in range(seeds))

    return replace(given, tasks=tasks, task_count=len(points) * seeds)


def test_one_success_shows_that_a_sweep_is_not_broken(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=20, max_attempts=1))
    worker = ledger.register(identity())
    for _ in range(3):
        for _ in range(4):
            ledger.fail(claim(ledger, worker).token, failure())
        ledger.complete(claim(ledger, worker).token)

    assert ledger.snapshot().sweeps[0].paused is None


# --- operators --------------------------------------------------------------------------------


def test_init_again_adds_what_is_new_and_keeps_the_rest(ledger: Ledger) -> None:
    ledger.add_sweep(spec(values=["a", "b", "c"]))
    worker = ledger.register(identity())
    ledger.complete(claim(ledger, worker).token)

    change = ledger.add_sweep(spec(values=["d", "a", "b"], timeout_s=5.0, seeds=(0, 1)))

    assert (change.added, change.kept, change.missing, change.pruned) == (4, 2, 1, 0)
    assert change.settings_changed == ("timeout_s",)
    assert change.completed_before == 1
    named = {task.task: (task.params["lr"], str(task.state)) for task in ledger.tasks()}
    assert named == {
        "exp_0_0": ("a", "completed"),
        "exp_1_0": ("b", "pending"),
        "exp_2_0": ("c", "pending"),
        "exp_3_0": ("d", "pending"),
        "exp_3_1": ("d", "pending"),
        "exp_0_1": ("a", "pending"),
        "exp_1_1": ("b", "pending"),
    }
    assert claim(ledger, worker).settings.timeout_s == 5.0
    assert_consistent(ledger)


def test_init_with_more_seeds_finds_a_name_for_each_after_a_correction(ledger: Ledger) -> None:
    ledger.add_sweep(spec(values=[0.1], seeds=(1, 2), max_attempts=1))
    worker = ledger.register(identity())
    ledger.fail(claim(ledger, worker).token, failure())
    ledger.retry(Selection(names=("exp_0_1",)), params={"lr": 0.5})

    change = ledger.add_sweep(spec(values=[0.5], seeds=(0, 1, 2), max_attempts=1))

    assert (change.added, change.kept, change.missing) == (2, 1, 1)
    assert {(task.params["lr"], task.task.rpartition("_")[2]) for task in ledger.tasks()} == {
        (0.5, "0"), (0.5, "1"), (0.5, "2"), (0.1, "2")
    }  # fmt: skip
    assert_consistent(ledger)


def test_a_plan_says_what_init_would_do_and_does_nothing(ledger: Ledger) -> None:
    ledger.add_sweep(spec(values=["a", "b"]))
    before = ledger.store.path.read_bytes()

    change = ledger.plan_sweep(spec(values=["b", "c", "d"]), prune=True)

    assert (change.added, change.kept, change.missing, change.pruned) == (2, 1, 1, 1)
    assert ledger.store.path.read_bytes() == before


def test_prune_cancels_only_what_is_pending(ledger: Ledger) -> None:
    ledger.add_sweep(spec(values=["a", "b", "c"]))
    worker = ledger.register(identity())
    ledger.complete(claim(ledger, worker).token)

    change = ledger.add_sweep(spec(values=["c", "new"]), prune=True)

    assert (change.added, change.missing, change.pruned) == (1, 2, 1)
    assert state(ledger, "exp_3_0") is TaskState.PENDING
    assert state(ledger, "exp_0_0") is TaskState.COMPLETED
    assert state(ledger, "exp_1_0") is TaskState.CANCELLED


def test_a_corrected_parameter_keeps_name_and_history_and_makes_no_twin(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1, max_attempts=1))
    worker = ledger.register(identity())
    ledger.fail(claim(ledger, worker).token, failure())

    ledger.retry(Selection(names=("exp_0_0",)), params={"lr": 7})

    task = ledger.task("exp_0_0")
    assert (task.params, task.state, len(task.attempts)) == ({"lr": 7}, TaskState.PENDING, 1)
    assert ledger.add_sweep(spec(points=1)).added == 0
    assert ledger.add_sweep(spec(values=[7])).added == 0


def test_retry_forgives_but_touches_nothing_that_runs_or_succeeded(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=3, max_attempts=1))
    worker = ledger.register(identity())
    ledger.complete(claim(ledger, worker).token)
    ledger.fail(claim(ledger, worker).token, failure())
    claim(ledger, worker)

    change = ledger.retry(Selection())

    assert (change.changed, change.running, change.names) == (1, 1, ("exp_1_0",))
    assert change.skipped == {TaskState.COMPLETED: 1}
    assert ledger.task("exp_1_0").failures == 0
    assert ledger.retry(Selection(), completed=True).names == ("exp_0_0",)
    assert_consistent(ledger)


def test_tasks_can_be_chosen_by_the_text_of_their_error(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=2, max_attempts=1))
    worker = ledger.register(identity())
    ledger.fail(claim(ledger, worker).token, failure("OSError: disk"))
    ledger.fail(claim(ledger, worker).token, failure("KeyError: model"))

    assert ledger.retry(Selection(error="keyerror")).names == ("exp_1_0",)


def test_cancel_takes_pending_tasks_out_and_asks_running_ones(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=3))
    worker = ledger.register(identity())
    first = claim(ledger, worker)

    change = ledger.cancel(Selection(sweep="exp"))

    assert (change.changed, change.running) == (2, 1)
    assert not ledger.stop_requested(first.token)
    assert ledger.fail(first.token, failure()).state is TaskState.CANCELLED


def test_cancel_with_kill_reaches_the_worker(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1))
    first = claim(ledger, ledger.register(identity()))
    before = ledger.store.last_nudge()

    ledger.cancel(Selection(names=("exp_0_0",)), kill=True)

    assert ledger.store.last_nudge() != before
    assert ledger.stop_requested(first.token)
    ended = ledger.release(first.token, Ending(outcome=Outcome.CANCELLED))
    assert ended.state is TaskState.CANCELLED


def test_a_task_that_completes_although_cancelled_is_completed(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1))
    first = claim(ledger, ledger.register(identity()))
    ledger.cancel(Selection(names=("exp_0_0",)))

    assert ledger.complete(first.token).state is TaskState.COMPLETED


def test_a_paused_sweep_is_held(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=2))
    worker = ledger.register(identity())

    assert ledger.pause("exp") == ("exp",)
    assert ledger.pause("exp") == ()
    assert ledger.claim(worker) == NothingToDo(held=2)
    assert ledger.resume(None) == ("exp",)
    assert claim(ledger, worker).task == "exp_0_0"


@pytest.mark.parametrize("name", ["exp_9_9", "exp_0", "nothing", "exp_0_00", "exp_-0_0", ""])
def test_a_task_that_is_not_there_is_said_so(ledger: Ledger, name: str) -> None:
    ledger.add_sweep(spec())

    with pytest.raises(UnknownTask, match="no task is named"):
        ledger.task(name)


def test_an_unknown_sweep_comes_with_the_nearest_name(ledger: Ledger) -> None:
    ledger.add_sweep(spec(name="resnet"))

    with pytest.raises(UnknownTask) as caught:
        ledger.pause("resent")
    assert caught.value.hint == "did you mean resnet?"


def test_reading_changes_no_byte(ledger: Ledger) -> None:
    ledger.add_sweep(spec())
    claim(ledger, ledger.register(identity()))
    before = {path.name: path.read_bytes() for path in ledger.folder.glob("ledger.db*")}

    ledger.snapshot()
    ledger.tasks()
    ledger.events()
    ledger.task_names()
    ledger.live_workers()

    after = {path.name: path.read_bytes() for path in ledger.folder.glob("ledger.db*")}
    assert after == before


# --- what the database itself refuses ---------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE attempt SET outcome = 'failed' WHERE outcome = 'completed'",
        "UPDATE task SET state = 'running' WHERE state = 'pending'",
        "UPDATE task SET state = 'pending' WHERE state = 'running'",
        "INSERT INTO attempt (task_id, number, worker, nonce, started_at)"
        " SELECT task_id, number + 1, worker, nonce, 0 FROM attempt WHERE outcome IS NULL",
        "UPDATE attempt SET ended_at = 1 WHERE outcome IS NULL",
        "UPDATE task SET state = 'nonsense'",
        "INSERT INTO worker SELECT 'other', name, host, machine, pid, pid_start, gpus,"
        " gpu_memory_mib, gpu_name, started_at, ended_at, ending, details FROM worker",
    ],
)
def test_the_database_refuses_what_must_never_be(ledger: Ledger, statement: str) -> None:
    ledger.add_sweep(spec(points=3))
    worker = ledger.register(identity())
    ended = ledger.complete(claim(ledger, worker).token, then=worker)
    assert isinstance(ended.next, Claim)

    with pytest.raises(sqlite3.IntegrityError):
        ledger.store.write(lambda db: db.execute(statement), operation="mistake")
    assert_consistent(ledger)


# --- status -----------------------------------------------------------------------------------


def test_the_eta_counts_what_is_left_over_the_workers(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=5))
    one, two = ledger.register(identity("a")), ledger.register(identity("b", host="beta"))
    ledger.complete(claim(ledger, one).token, duration_s=10.0)
    claim(ledger, one)
    claim(ledger, two)

    snapshot = ledger.snapshot()

    assert snapshot.eta_s == pytest.approx((2 * 10 + 2 * 10) / 2)
    assert snapshot.counts.completed == 1
    assert [worker.task for worker in snapshot.workers] == ["exp_1_0", "exp_2_0"]


def test_the_rate_is_that_of_the_last_hour_or_of_the_time_since_the_first_began(
    ledger: Ledger, clock: ManualClock
) -> None:
    ledger.add_sweep(spec(points=6))
    ledger.add_sweep(spec(name="other", points=1, priority=-1))
    worker = ledger.register(identity())
    assert ledger.snapshot().per_hour == 0
    for _ in range(3):
        token = claim(ledger, worker).token
        clock.advance(300.0)
        ledger.complete(token, duration_s=300.0)

    assert ledger.snapshot().per_hour == pytest.approx(12.0)
    assert ledger.snapshot(sweep="exp").per_hour == pytest.approx(12.0)
    assert ledger.snapshot(sweep="other").per_hour == 0

    clock.advance(3600.0 - 400.0)
    assert ledger.snapshot().per_hour == pytest.approx(2.0)  # of the last hour; one is older


def test_two_tasks_in_a_second_tell_no_rate_yet(ledger: Ledger, clock: ManualClock) -> None:
    ledger.add_sweep(spec(points=3))
    worker = ledger.register(identity())
    for _ in range(2):
        token = claim(ledger, worker).token
        clock.advance(0.5)
        ledger.complete(token, duration_s=0.5)
    assert ledger.snapshot().per_hour == 0
    clock.advance(11.0)
    assert ledger.snapshot().per_hour == pytest.approx(2 / (12 / 3600))


def test_the_rate_of_many_tasks_is_that_of_the_latest(
    ledger: Ledger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuledger.snapshots.RATED", 2)
    ledger.add_sweep(spec(points=3))
    worker = ledger.register(identity())
    for pause_s in (600.0, 600.0, 60.0):
        token = claim(ledger, worker).token
        clock.advance(pause_s)
        ledger.complete(token, duration_s=pause_s)
    clock.advance(60.0)

    assert ledger.snapshot().per_hour == pytest.approx(2 / (120 / 3600))


def test_failures_are_shown_until_they_are_mended(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=2, max_attempts=1))
    worker = ledger.register(identity())
    for _ in range(2):
        ledger.fail(claim(ledger, worker).token, failure(traceback="Traceback ..."))
    assert {one.task for one in ledger.snapshot().failures} == {"exp_0_0", "exp_1_0"}

    ledger.retry(Selection(names=("exp_0_0",)))

    assert [one.task for one in ledger.snapshot().failures] == ["exp_1_0"]


def test_events_tell_the_story_in_order(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=1, max_attempts=1))
    worker = ledger.register(identity())
    ledger.fail(claim(ledger, worker).token, failure())
    ledger.leave(worker.nonce)

    kinds = [event.kind for event in ledger.events()]

    assert kinds == ["sweep_added", "worker_started", "started", "failed", "worker_left"]
    assert ledger.events(after=ledger.latest_event()) == []


def test_two_tasks_that_a_correction_would_make_equal_are_both_named(ledger: Ledger) -> None:
    ledger.add_sweep(spec(points=2, max_attempts=1))
    worker = ledger.register(identity())
    for _ in range(2):
        ledger.fail(claim(ledger, worker).token, failure())
    with pytest.raises(BadSweepFile) as told:
        ledger.retry(Selection(states=frozenset({TaskState.FAILED})), params={"lr": 7})
    assert told.value.problem == (
        "exp_1_0 would have the same parameters as exp_0_0; nothing was changed"
    )
    assert [task.params for task in ledger.tasks()] == [{"lr": 0}, {"lr": 1}]
