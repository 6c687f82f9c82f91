"""The place and the time that a cluster's scheduler lent to a worker.

Slurm says where a worker is by its environment (sbatch(1), 'OUTPUT ENVIRONMENT VARIABLES') and
how much time is left when it is asked. Nothing here starts anything.

The end is asked for again when the warning comes: an operator may have moved it, and a preemption
with a grace time brings the warning, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from gpuledger.clock import Clock

WARNING_S = 120.0
EARLY_S = 90.0
"""SIGUSR1 comes `WARNING_S` before the end, up to a minute early; one that comes sooner is from
somebody who wants this worker to finish its task and leave."""

LAST_CALL_S = 45.0
"""What is not done by then is handed back, warned or not: ended, recorded, and out in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which job of Slurm a worker is.

    Attributes:
        job: `123_4` of an array, else `123`: what scancel and requeue take for this one alone
            (the last task of an array has the array's own number as its SLURM_JOB_ID).
        node: Name of the node.
        restarts: How often it was requeued.
    """

    job: str
    node: str
    restarts: int = 0

    def details(self) -> dict[str, Any]:
        """Return what the ledger keeps of it in the worker's record."""
        return {"slurm": asdict(self)}


def place_of(environ: Mapping[str, str]) -> Place | None:
    """Return the place that an environment tells of; None outside Slurm."""
    job = environ.get("SLURM_JOB_ID", "")
    array, task = environ.get("SLURM_ARRAY_JOB_ID", ""), environ.get("SLURM_ARRAY_TASK_ID", "")
    if array.isdigit() and task.isdigit():
        job = f"{array}_{task}"
    if not job or not job.replace("_", "").isdigit():
        return None
    restarts = environ.get("SLURM_RESTART_COUNT", "0")
    return Place(
        job=job,
        node=environ.get("SLURMD_NODENAME", "?"),
        restarts=int(restarts) if restarts.isdigit() else 0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """How long a job may run in all, and how much of that is left, as Slurm says."""

    whole_s: float
    left_s: float


class Allocation:
    """How much time a worker has left.

    Attributes:
        place: Where it is.
        grace_s: How long a task may take to end when its worker was told to leave.
        leave_within_s: How soon after that its worker must be out.
        shares_signals: Whether Slurm may signal the task as well as its worker.
        whole_s: How much time the whole allocation had for its worker, once that had begun: what
            another like it would have. None: no end is known.
    """

    def __init__(
        self,
        place: Place,
        *,
        ask: Callable[[], Span | None],
        clock: Clock,
        kill_wait_s: float | None = None,
        shares_signals: bool = True,
    ) -> None:
        """Ask a first time.

        Args:
            place: Where it is.
            ask: Returns what Slurm says now; None: no end is known. Does not raise.
            clock: This machine's.
            kill_wait_s: Between Slurm's SIGTERM and its SIGKILL; None: not known.
            shares_signals: See above; True where nobody knows.
        """
        self.place = place
        self.grace_s = leaving_grace_s(kill_wait_s)
        self.leave_within_s = leave_within_s(kill_wait_s)
        self.shares_signals = shares_signals
        self._ask = ask
        self._clock = clock
        self._warned = False
        self._ends_s: float | None = None
        span = self._look()
        self.whole_s = span.left_s if span is not None else None

    def _look(self) -> Span | None:
        span = self._ask()
        if span is not None:
            self._ends_s = self._clock.boottime() + span.left_s
        return span

    def warn(self) -> None:
        """Take note of the scheduler's warning: ask once more when the end is."""
        if not self._warned:
            self._warned = True
            span = self._look()
            if self.whole_s is None and span is not None:  # nobody could say it in the beginning
                self.whole_s = span.whole_s

    def time_left_s(self) -> float | None:
        """Return the seconds until the allocation ends; None: no end is known."""
        return None if self._ends_s is None else self._ends_s - self._clock.boottime()

    def ends_soon(self) -> bool:
        """Tell whether the end is so near that a warning means it."""
        left_s = self.time_left_s()
        return left_s is not None and left_s < WARNING_S + EARLY_S

    def is_over(self) -> bool:
        """Tell whether what would be begun now had to be handed back at once."""
        left_s = self.time_left_s()
        return left_s is not None and left_s < LAST_CALL_S

    def verdict(self, *, usual_s: float | None, elapsed_s: float, warned: bool) -> str | None:
        """Return why a running task must be handed back now; None: let it go on.

        Args:
            usual_s: How long such a task takes; None when nobody knows.
            elapsed_s: How long this one runs.
            warned: Whether the scheduler gave its warning.
        """
        if warned:
            self.warn()
        left_s = self.time_left_s()
        if left_s is None:
            return None
        if self.is_over():
            return "its allocation ends now"
        if not warned or not self.ends_soon() or usual_s is None:
            return None
        if usual_s - elapsed_s < left_s - LAST_CALL_S:
            return None
        return "its allocation ends soon, and it would not be done by then"


LONGEST_GRACE_S = 15.0
LEAVE_WITHIN_S = 22.0
"""After a SIGTERM: it is out within 25 s. Many that are told at once have to queue meanwhile."""


def leaving_grace_s(kill_wait_s: float | None) -> float:
    """Return how long a task may take to end, so that its worker can record it and be out."""
    if kill_wait_s is None:
        return LONGEST_GRACE_S
    return min(max(kill_wait_s - max(kill_wait_s / 3, 3.0), 0.5), LONGEST_GRACE_S)


def leave_within_s(kill_wait_s: float | None) -> float:
    """Return when a worker that was told to leave must be out, a margin before it is killed."""
    if kill_wait_s is None:
        return LEAVE_WITHIN_S
    return max(kill_wait_s - max(kill_wait_s / 10, 1.0), 1.0)


def parse_shares_signals(configuration: str) -> bool:
    """Tell whether Slurm signals all processes of a job, by `scontrol show config`.

    With control groups a batch script that `exec`s is signalled alone; by its other ways to
    follow processes all that it finds are.
    """
    return re.search(r"^ProctrackType\s*=\s*proctrack/cgroup", configuration, re.MULTILINE) is None


def parse_span(job: str) -> Span | None:
    """Return the time of a job that `scontrol show job` describes; None when it has no end.

    All of it is Slurm's clock. The end is moved by a preemption and by a changed limit, the
    limit itself says nothing of the first.
    """
    facts = dict(re.findall(r"(?:^|\s)(StartTime|EndTime|RunTime|TimeLimit)=(\S+)", job))
    ran_s = parse_duration(facts.get("RunTime", ""))
    if ran_s is None or parse_duration(facts.get("TimeLimit", "")) is None:
        return None
    try:
        began, ends = (datetime.fromisoformat(facts[name]) for name in ("StartTime", "EndTime"))
    except (KeyError, ValueError):
        return None
    # Local times, without their offset: astimezone minds that the clocks may be put back.
    whole_s = (ends.astimezone() - began.astimezone()).total_seconds()
    return Span(whole_s=whole_s, left_s=whole_s - ran_s)


def parse_kill_wait(configuration: str) -> float | None:
    """Return the seconds between SIGTERM and SIGKILL of `scontrol show config`."""
    found = re.search(r"^KillWait\s*=\s*(\d+) sec", configuration, re.MULTILINE)
    return float(found[1]) if found else None


def parse_duration(text: str) -> float | None:
    """Return the seconds of Slurm's `[days-][[hours:]minutes:]seconds`; None for UNLIMITED."""
    days, _, clock = text.strip().rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts) or (days and not days.isdigit()):
        return None
    seconds = 0
    for part in parts:
        seconds = seconds * 60 + int(part)
    return float(seconds + int(days or 0) * 86400)
