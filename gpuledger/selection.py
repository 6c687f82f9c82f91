"""Which tasks an operator means, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpuledger.model import TaskState
from gpuledger.where import Where


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which tasks an operator means; every field narrows it, an empty one does not.

    Attributes:
        names: Task names.
        sweep: Name of a sweep.
        states: Task states.
        error: Text that the last error or its traceback contains, case-insensitive.
        worker: Name of a worker that ran an attempt of it.
        text: Text that the name, a parameter (`lr=0.1`) or the last error contains,
            case-insensitive.
        where: A condition on parameters, facts and metrics.
    """

    names: tuple[str, ...] = ()
    sweep: str | None = None
    states: frozenset[TaskState] = frozenset()
    error: str | None = None
    worker: str | None = None
    text: str | None = None
    where: Where | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskChange:
    """What an operator's command did, in numbers of tasks.

    Attributes:
        changed: Tasks that are in the wanted state now.
        running: Tasks that run: left alone, or (cancel) asked to stop.
        withdrawn: Those of `running` that are not to be cancelled any more.
        skipped: By state, tasks that were selected but left as they were.
        names: The first few of the changed ones.
        resumed: Sweeps that gpuledger had paused and that go on now.
    """

    changed: int = 0
    running: int = 0
    withdrawn: int = 0
    skipped: Mapping[TaskState, int] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    resumed: tuple[str, ...] = ()
