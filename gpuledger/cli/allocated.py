"""What a worker that Slurm started does before its first task and after its last."""

from __future__ import annotations

import os

from gpuledger import slurm, slurm_jobs
from gpuledger.allocation import (
    Allocation,
    Span,
    parse_kill_wait,
    parse_shares_signals,
    parse_span,
    place_of,
)
from gpuledger.cli.output import note
from gpuledger.clock import Clock
from gpuledger.errors import LedgerError
from gpuledger.ledger import Ledger
from gpuledger.model import WorkerIdentity
from gpuledger.signals import Signals


def find_allocation(clock: Clock) -> Allocation | None:
    """Return where and for how long Slurm lets this process run; None outside Slurm.

    The node's name becomes that of the host, as Slurm's own commands show it.
    """
    place = place_of(os.environ)
    if place is None:
        return None
    if place.node != "?":
        os.environ.setdefault("GPULEDGER_HOST", place.node)
    configuration = _configuration()
    return Allocation(
        place,
        ask=lambda: _span(place.job),
        clock=clock,
        kill_wait_s=parse_kill_wait(configuration),
        shares_signals=parse_shares_signals(configuration),
    )


def _span(job: str) -> Span | None:
    try:
        return parse_span(slurm.describe(job))
    except LedgerError as error:
        note(f"not known how much time Slurm allows: {error.problem}")
        return None


def _configuration() -> str:
    try:
        return slurm.configuration()
    except LedgerError:
        return ""


def enter_allocation(
    ledger: Ledger, me: WorkerIdentity, sweeps: tuple[str, ...], allocation: Allocation
) -> bool:
    """Let allocations follow what is pending; False: an operator has stopped this one."""
    try:
        own = slurm_jobs.submission_of(ledger, allocation.place.job)
        workers = os.environ.get("SLURM_ARRAY_TASK_MAX", "")
        if own is None and workers.isdigit():
            slurm_jobs.adopt(
                ledger,
                allocation.place,
                script=slurm.script_of(allocation.place.job),
                workers=int(workers),
            )
    except LedgerError:
        return True  # the worker waits for the ledger, and says so
    if own is not None and own.stopped:
        note("stopped by 'gpuledger slurm stop' before it began")
        return False
    slurm_jobs.balance(ledger, me, sweeps, allocation, note, leaving=False)
    return True


def leave_allocation(
    ledger: Ledger,
    me: WorkerIdentity,
    sweeps: tuple[str, ...],
    allocation: Allocation,
    signals: Signals,
) -> None:
    """Come back while work is left and time was what ended this; let allocations follow.

    Work that needs more than a whole allocation is none. A job that Slurm told to leave is
    Slurm's to start again.
    """
    if signals.terminates or signals.interrupts:
        return
    if signals.drain:
        allocation.warn()
    try:
        if slurm_jobs.may_come_back(ledger, me, sweeps, allocation, drained=bool(signals.drain)):
            note(f"work is left: Slurm starts {allocation.place.job} again")
            slurm.requeue(allocation.place.job)
            return
    except (LedgerError, OSError) as error:
        note(f"could not be requeued: {error}")
    slurm_jobs.balance(ledger, me, sweeps, allocation, note, leaving=True)
