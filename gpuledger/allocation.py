"""The place and the time that a cluster's scheduler lent to a worker.

Slurm says where a worker is by its environment (sbatch(1), 'OUTPUT ENVIRONMENT VARIABLES') and
how much time is left when it is asked. Nothing here starts anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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


class Allocation:
    """How much time a worker has left.

    Attributes:
        place: Where it is.
    """

    def __init__(self, place: Place, *, time_left_s: float | None, clock: Clock) -> None:
        self.place = place
        self._clock = clock
        self._ends_s = None if time_left_s is None else clock.boottime() + time_left_s

    def time_left_s(self) -> float | None:
        """Return the seconds until the allocation ends; None: no end is known."""
        return None if self._ends_s is None else self._ends_s - self._clock.boottime()

    def ends_soon(self) -> bool:
        """Tell whether the end is so near that a warning means it."""
        left_s = self.time_left_s()
        return left_s is not None and left_s < WARNING_S + EARLY_S

    def verdict(self, *, usual_s: float | None, elapsed_s: float, warned: bool) -> str | None:
        """Return why a running task must be handed back now; None: let it go on.

        Args:
            usual_s: How long such a task takes; None when nobody knows.
            elapsed_s: How long this one runs.
            warned: Whether the scheduler gave its warning.
        """
        left_s = self.time_left_s()
        if left_s is None:
            return None
        if left_s < LAST_CALL_S:
            return "its allocation ends now"
        if not warned or not self.ends_soon() or usual_s is None:
            return None
        if usual_s - elapsed_s < left_s - LAST_CALL_S:
            return None
        return "its allocation ends soon, and it would not be done by then"


def parse_time_left(text: str) -> float | None:
    """Return the seconds of Slurm's `[days-][[hours:]minutes:]seconds`; None for UNLIMITED."""
    days, _, clock = text.strip().rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts) or (days and not days.isdigit()):
        return None
    seconds = 0
    for part in parts:
        seconds = seconds * 60 + int(part)
    return float(seconds + int(days or 0) * 86400)
