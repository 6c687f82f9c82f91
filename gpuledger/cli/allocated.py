"""What a worker that Slurm started does before its first task and after its last."""

from __future__ import annotations

import os

from gpuledger import slurm, slurm_jobs
from gpuledger.allocation import Allocation, parse_time_left, place_of
from gpuledger.cli.output import note
from gpuledger.clock import Clock
from gpuledger.errors import LedgerError
from gpuledger.ledger import Ledger
from gpuledger.worker import Worker


def find_allocation(clock: Clock) -> Allocation | None:
    """Return where and for how long Slurm lets this process run; None outside Slurm.

    The node's name becomes that of the host, as Slurm's own commands show it.
    """
    place = place_of(os.environ)
    if place is None:
        return None
    if place.node != "?":
        os.environ.setdefault("GPULEDGER_HOST", place.node)
    try:
        left_s = parse_time_left(slurm.time_left(place.job))
    except LedgerError as error:
        note(f"not known how much time Slurm allows: {error.problem}")
        left_s = None
    return Allocation(place, time_left_s=left_s, clock=clock)


def leave_allocation(
    ledger: Ledger, worker: Worker, allocation: Allocation, *, terminated: bool
) -> None:
    """Come back while work is left and time was what ended this; let allocations follow.

    A worker that ran nothing does not come back: its tasks need more than a whole allocation.
    """
    try:
        if (
            allocation.ends_soon()
            and worker.attempts_run
            and not slurm_jobs.is_stopped(ledger, allocation.place.job)
            and ledger.outlook(worker.me).pending
        ):
            note(f"work is left: Slurm starts {allocation.place.job} again")
            slurm.requeue(allocation.place.job)
            return
    except (LedgerError, OSError) as error:
        note(f"could not be requeued: {error}")
    if not terminated:
        slurm_jobs.balance(ledger, note)
