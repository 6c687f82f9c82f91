"""The rule which worker takes a task that failed before: another one, or one with more memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpuledger.model import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class PastFailure:
    """A counted failure of a task, as far as `may_run_on` needs it.

    Attributes:
        worker: Name of the worker that failed it.
        outcome: One of `COUNTED_AS_FAILURE`.
        age_s: Seconds since it was recorded; only meaningful for the asking worker's own
            failures, since clocks of two machines are never compared. Negative after the
            machine's clock was set back.
        gpu_memory_mib: Memory of the GPU it ran on, or None.
    """

    worker: str
    outcome: Outcome
    age_s: float
    gpu_memory_mib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A live worker, as far as `may_run_on` needs it.

    `is_suspect`: it cools down, and claims again in a while.
    """

    name: str
    gpu_memory_mib: int | None = None
    is_suspect: bool = False


def may_run_on(
    worker: Candidate,
    past: Sequence[PastFailure],
    *,
    others: Sequence[Candidate],
    avoid_s: float,
) -> bool:
    """Tell whether `worker` may take a task with these past failures now.

    A task that failed goes to others first: for `avoid_s` after its failure the worker that
    failed it leaves it alone, as long as some other live worker has not failed it. A task that
    ran out of memory goes to a GPU with more memory while a live worker has one, else to another
    worker within the same window, else to any. A suspect worker is waited for only by a task that
    ran out of memory: others would be kept from the well ones.

    Args:
        worker: Who asks.
        past: The task's counted failures since it was last retried by an operator.
        others: The other live workers that may take tasks of this sweep.
        avoid_s: Length of the window.
    """
    ran_out = [failure for failure in past if failure.outcome is Outcome.OOM]
    if not ran_out:
        others = [other for other in others if not other.is_suspect]
    too_small = max((failure.gpu_memory_mib or 0 for failure in ran_out), default=0)
    if too_small:
        if (worker.gpu_memory_mib or 0) > too_small:
            return True
        if any((other.gpu_memory_mib or 0) > too_small for other in others):
            return False
    mine = [f for f in past if f.worker == worker.name and -avoid_s < f.age_s < avoid_s]
    if not mine:
        return True
    blamed = {failure.worker for failure in past}
    return all(other.name in blamed for other in others)
