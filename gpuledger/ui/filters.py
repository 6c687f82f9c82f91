"""Understands what is typed after `/`."""

from __future__ import annotations

from gpuledger.model import TaskState
from gpuledger.selection import Selection
from gpuledger.where import parse_where


def selection_of(text: str) -> Selection:
    """Return the tasks that are meant.

    A state, or `state:STATE`, narrows to it, as `sweep:NAME`, `worker:NAME` and `error:TEXT` do;
    what follows `where:` is a condition as that of `--where`; raises BadWhere where it is none
    (yet). All else, taken together, is looked for in names, parameters (`lr=0.1`) and errors.
    """
    text, _, condition = text.partition("where:")
    states = set()
    named: dict[str, str] = {}
    rest = []
    for word in text.split():
        name, colon, value = word.partition(":")
        state = word.lower().removeprefix("state:")
        if state in set(TaskState):
            states.add(TaskState(state))
        elif name in ("sweep", "worker", "error") and colon and value:
            named[name] = value
        else:
            rest.append(word)
    return Selection(
        sweep=named.get("sweep"),
        worker=named.get("worker"),
        error=named.get("error"),
        states=frozenset(states),
        text=" ".join(rest) or None,
        where=parse_where(condition.strip()) if condition.strip() else None,
    )
