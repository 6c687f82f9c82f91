"""Turns the filters of a command line into a selection: the same for every command."""

from __future__ import annotations

from collections.abc import Iterable

from gpuledger.errors import BadUsage
from gpuledger.model import TaskState
from gpuledger.selection import Selection
from gpuledger.where import BadWhere, Where, parse_where


def selection_of(
    *,
    names: Iterable[str] | None = None,
    sweep: str | None = None,
    states: Iterable[TaskState] | None = None,
    error: str | None = None,
    worker: str | None = None,
    where: str | None = None,
) -> Selection:
    """Return what the options mean; raise BadUsage for a condition that cannot be read."""
    return Selection(
        names=tuple(names or ()),
        sweep=sweep,
        states=frozenset(states or ()),
        error=error,
        worker=worker,
        where=None if where is None else _condition(where),
    )


def _condition(text: str) -> Where:
    try:
        return parse_where(text)
    except BadWhere as error:
        raise BadUsage(
            f"--where {error}; no task was selected",
            hint=error.hint or "for example --where 'lr > 0.01 and model == \"resnet18\"'",
        ) from error
