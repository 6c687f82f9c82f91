"""What is left: as long as the longest running task takes, however many workers help."""

from __future__ import annotations

from typing import Any

import pytest

from gpuledger.eta import with_etas
from gpuledger.views import Counts, Snapshot, SweepView, WorkerView


def running(task: str = "exp_0_0", **values: Any) -> WorkerView:
    return WorkerView(name="a:cpu", task=task, **{"number": 1, "elapsed_s": 0.0, **values})


def idle(count: int = 1) -> list[WorkerView]:
    return [WorkerView(name="idle:cpu")] * count


def exp(*, mean_s: float | None = 100.0, name: str = "exp", **counts: Any) -> SweepView:
    paused = counts.pop("paused", None)
    return SweepView(
        name=name, created_at=0.0, counts=Counts(**counts), mean_s=mean_s, paused=paused
    )


def left(sweeps: list[SweepView], workers: list[WorkerView]) -> float | None:
    known = Snapshot(
        taken_at=0.0, ledger="/lab", counts=Counts(), sweeps=tuple(sweeps), workers=tuple(workers)
    )
    return with_etas(known).eta_s


def test_work_is_shared_by_the_workers() -> None:
    assert left([exp(running=2, pending=6)], [running()] * 2) == pytest.approx(400.0)
    assert left([exp(running=1, pending=1)], [running(elapsed_s=60.0)]) == pytest.approx(140.0)


def test_a_worker_that_is_perhaps_dead_promises_nothing() -> None:
    dead = running(elapsed_s=3000.0, step=1, total=20, heartbeat_age_s=3000.0)
    assert left([exp(running=1, pending=5)], [dead]) is None
    alive = running(task="exp_1_0", elapsed_s=50.0, heartbeat_age_s=1.0)
    assert left([exp(running=2, pending=1)], [dead, alive]) == pytest.approx(150.0)


def test_idle_workers_do_not_hurry_the_task_that_is_running() -> None:
    alone = [running(elapsed_s=30.0), *idle(7)]
    assert left([exp(running=1)], alone) == pytest.approx(70.0)
    assert left([exp(running=1, pending=2)], alone) == pytest.approx(100.0)


def test_with_all_busy_the_next_starts_when_the_first_is_free() -> None:
    workers = [running(elapsed_s=90.0), running(elapsed_s=20.0)]
    assert left([exp(running=2, pending=1)], workers) == pytest.approx(110.0)


def test_a_task_that_reports_its_steps_is_believed_about_itself() -> None:
    slow = running(elapsed_s=90.0, step=30, total=60)
    assert left([exp(running=1)], [slow]) == pytest.approx(90.0)
    assert left([exp(running=1, mean_s=None)], [slow]) == pytest.approx(90.0)
    assert left([exp(running=1, pending=1, mean_s=None)], [slow]) == pytest.approx(270.0)


@pytest.mark.parametrize(
    "values",
    [
        {"number": 2, "step": 30, "total": 60},  # maybe from a checkpoint
        {"step": 1, "total": 60},
        {"step": 0, "total": 60},
        {"step": 61, "total": 60},
        {"step": 5, "total": 0},
        {"step": -5, "total": 60},
        {"step": float("nan"), "total": 60},
        {"step": 10**400, "total": 1},
    ],
)
def test_steps_that_tell_nothing_are_not_believed(values: dict[str, Any]) -> None:
    worker = running(elapsed_s=90.0, **values)
    assert left([exp(running=1)], [worker]) == pytest.approx(10.0)
    assert left([exp(running=1, mean_s=None)], [worker]) is None


def test_several_sweeps_share_the_workers() -> None:
    long = running("long_0_0", elapsed_s=0.0)
    sweeps = [exp(running=1), exp(name="long", running=1, mean_s=500.0)]
    assert left(sweeps, [running(), long]) == pytest.approx(500.0)
    assert left([exp(pending=4), exp(name="long", pending=4)], idle(2)) == pytest.approx(400.0)


def test_nothing_is_said_without_knowledge_or_workers_and_paused_sweeps_do_not_count() -> None:
    assert left([exp(pending=3)], []) is None
    assert left([exp(pending=3, mean_s=None)], idle()) is None
    assert left([exp(pending=3), exp(name="new", pending=1, mean_s=None)], idle()) is None
    paused = exp(name="new", pending=1, mean_s=None, paused="by hand")
    assert left([exp(pending=3), paused], idle()) == pytest.approx(300.0)
