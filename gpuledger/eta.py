"""Estimates when everything will be done, from what tasks took and how far running ones are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpuledger.heartbeat import is_silent
from gpuledger.views import Snapshot, SweepView, WorkerView

TELLING_SHARE = 0.05
"""Before a task is so far, its first steps (and loading its data) say little about the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How long a sweep still takes.

    Attributes:
        work_s: Over all of its tasks.
        until_s: Until the last one ends, if nothing else had to be done.
    """

    work_s: float
    until_s: float


def with_etas(bare: Snapshot) -> Snapshot:
    """Return the snapshot with the time that is left, for each sweep and for all of them."""
    # Who is silent may be dead: what it runs gets no further, as far as anybody knows.
    workers = [worker for worker in bare.workers if not is_silent(worker.heartbeat_age_s)]
    estimates = [estimate(view, workers) for view in bare.sweeps]
    sweeps = tuple(
        replace(view, eta_s=None if left is None else left.until_s)
        for view, left in zip(bare.sweeps, estimates, strict=True)
    )
    awaited = [
        left
        for view, left in zip(bare.sweeps, estimates, strict=True)
        if view.counts.remaining and view.paused is None
    ]
    known = [left for left in awaited if left is not None]
    eta_s = None
    if known and len(known) == len(awaited):
        shared_s = sum(left.work_s for left in known) / len(workers)
        eta_s = max(shared_s, *(left.until_s for left in known))
    return replace(bare, sweeps=sweeps, eta_s=eta_s)


def estimate(view: SweepView, workers: Sequence[WorkerView]) -> Estimate | None:
    """Return how long a sweep still takes on these workers; None when nothing is known yet."""
    if not view.counts.remaining:
        return Estimate(work_s=0.0, until_s=0.0)
    running = [w for w in workers if w.task and w.task.rsplit("_", 2)[0] == view.name]
    mean_s = _mean_s(view, running)
    if mean_s is None or not workers:
        return None
    lefts_s = [_left_s(worker, mean_s) for worker in running]
    pending = view.counts.pending
    work_s = sum(lefts_s) + pending * mean_s
    # The last one to start, and the one that runs longest, set the end however many workers help.
    soonest_s = min(lefts_s, default=0.0) if len(running) >= len(workers) else 0.0
    last_s = soonest_s + mean_s if pending else 0.0
    return Estimate(work_s=work_s, until_s=max(work_s / len(workers), last_s, *lefts_s))


def _mean_s(view: SweepView, running: Sequence[WorkerView]) -> float | None:
    """Return how long one task takes: as the completed ones, else as the running ones promise."""
    if view.mean_s is not None:
        return view.mean_s
    promised = [whole_s for whole_s in map(_promised_s, running) if whole_s is not None]
    return sum(promised) / len(promised) if promised else None


def _left_s(worker: WorkerView, mean_s: float) -> float:
    whole_s = _promised_s(worker)
    return max((mean_s if whole_s is None else whole_s) - (worker.elapsed_s or 0.0), 0.0)


def _promised_s(worker: WorkerView) -> float | None:
    """Return how long its task will have taken, by its steps; None when they do not tell.

    Of a later attempt they do not: it may have begun at a checkpoint.
    """
    step, total, elapsed_s = worker.step, worker.total, worker.elapsed_s
    if worker.number != 1 or step is None or not total or not elapsed_s:
        return None
    try:
        share = step / total
    except OverflowError:  # numbers that a task made up
        return None
    return elapsed_s / share if TELLING_SHARE <= share <= 1 else None
