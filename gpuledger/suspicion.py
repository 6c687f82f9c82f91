"""The rules by which a worker, or a sweep, is taken to be broken rather than its tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from gpuledger.model import Outcome, WorkerIdentity
from gpuledger.spec import Params

SUSPECT_AFTER = 3
"""Failures in a row that make a worker suspect."""

SUSPECT = "suspect"
"""What a worker says that cools down: its reason for standing back begins with it."""

QUICK_S = 60.0
"""A failure sooner than this after the start is quick: the machine may be what is broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentEnding:
    """One of a worker's latest endings, as far as `is_suspect` needs it.

    `task_to_blame`: it failed elsewhere, too, or no other attempt makes sense.
    """

    task: str
    outcome: Outcome
    duration_s: float
    task_to_blame: bool


def cools_down(worker: WorkerIdentity) -> bool:
    """Tell whether a worker stands back in the ledger because it is suspect."""
    return str(worker.details.get("stands_back")).startswith(SUSPECT)


def is_suspect(latest: Sequence[RecentEnding], *, others: int) -> bool:
    """Tell whether a worker, rather than its tasks, seems to be what is broken.

    Args:
        latest: Its latest endings, newest first; interruptions left out.
        others: Number of other live workers; without one the tasks have no better place.
    """
    if others < 1 or len(latest) < SUSPECT_AFTER:
        return False
    streak = latest[:SUSPECT_AFTER]
    return len({ending.task for ending in streak}) == SUSPECT_AFTER and all(
        ending.outcome is Outcome.FAILED
        and ending.duration_s < QUICK_S
        and not ending.task_to_blame
        for ending in streak
    )


def is_broken(
    *, failed_tasks: int, failed_on: frozenset[str], live: frozenset[str], pause_after: int
) -> bool:
    """Tell whether a sweep, rather than its tasks or workers, seems to be what is broken.

    Args:
        failed_tasks: Different tasks that failed since the sweep's last success.
        failed_on: Names of the workers they failed on.
        live: Names of the live workers.
        pause_after: See `RunSettings`.
    """
    return pause_after > 0 and failed_tasks >= pause_after and live <= failed_on


def is_value_to_blame(failed: Sequence[Params], completed: Sequence[Params]) -> bool:
    """Tell whether failed tasks share a value of a parameter that no completed one has.

    In a grid the points with one bad value are neighbours: they fail in a row, and nothing but
    that value is broken.

    Args:
        failed: Parameters of the tasks that failed.
        completed: Those of tasks of the same sweep that completed.
    """
    if not failed or not completed:
        return False
    shared = set.intersection(*map(_values, failed))
    return bool(shared.difference(*map(_values, completed)))


def _values(params: Params) -> set[tuple[str, str]]:
    """Return names and values, as texts: lists and tables can be compared, too."""
    return {(name, json.dumps(value, sort_keys=True)) for name, value in params.items()}
