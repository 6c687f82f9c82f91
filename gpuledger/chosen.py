"""Which tasks a condition (`--where`) means: asked of each, inside the caller's transaction.

SQL narrows the tasks first (`queries.where`); what the condition asks is JSON, read here.
"""

from __future__ import annotations

import difflib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gpuledger.errors import BadUsage
from gpuledger.where import FACTS, Name, Task, Where

Condition = tuple[str, tuple[Any, ...]]
"""SQL about `task`, and its values."""

PAGE = 20_000
"""Tasks asked in one transaction of a reader: a tenth of a second or two."""

LOOKED_AT = 1000
"""Tasks whose names are offered to somebody who mistyped one."""

RESULT = (
    "CASE task.state WHEN 'completed' THEN (SELECT metrics FROM attempt WHERE task_id = task.id"
    " AND outcome = 'completed' ORDER BY number DESC LIMIT 1) END"
)
ATTEMPTS = "(SELECT COUNT(*) FROM attempt WHERE task_id = task.id)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What was found among a page of tasks.

    Attributes:
        ids: Of those that meet the condition, in order.
        last: The last id that was looked at.
        is_all: No further task is left to look at.
    """

    ids: tuple[int, ...]
    last: int
    is_all: bool


def ids_where(db: sqlite3.Connection, where: Where, condition: Condition) -> list[int]:
    """Return the ids of all tasks that meet both conditions.

    Raises:
        BadUsage: A name in it is one that no task has, or that means two things.
    """
    require_names(db, where, condition)
    return [task_id for task_id, holds in _asked(db, where, condition, after=0) if holds]


def next_ids(
    db: sqlite3.Connection, where: Where, condition: Condition, *, after: int, limit: int
) -> Chosen:
    """Return the next ids above `after` that meet both conditions, at most `limit`.

    It looks at `PAGE` tasks at most, so that a reader does not keep the ledger for long.
    """
    found: list[int] = []
    last, seen = after, 0
    for task_id, holds in _asked(db, where, condition, after=after):
        last, seen = task_id, seen + 1
        if holds:
            found.append(task_id)
        if len(found) >= limit or seen >= PAGE:
            return Chosen(ids=tuple(found), last=last, is_all=False)
    return Chosen(ids=tuple(found), last=last, is_all=True)


def _asked(
    db: sqlite3.Connection, where: Where, condition: Condition, *, after: int
) -> Iterator[tuple[int, bool]]:
    """Yield every task's id and whether it meets the condition, in the order of ids."""
    text, values = condition
    result = RESULT if any(_may_be_result(name) for name in where.names) else "NULL"
    attempts = ATTEMPTS if any(name.name == "attempts" for name in where.names) else "NULL"
    last_text, params = None, {}
    for row in db.execute(
        "SELECT task.id, task.point, task.seed, task.state, task.priority, task.failures,"
        f" task.losses, task.params, sweep.name AS sweep, {result} AS metrics,"
        f" {attempts} AS attempts FROM task CROSS JOIN sweep ON sweep.id = task.sweep_id"
        f" WHERE {text} AND task.id > ? ORDER BY task.id",
        (*values, after),
    ):
        if row["params"] != last_text:  # the seeds of a point are neighbours
            last_text = row["params"]
            params = json.loads(last_text)
        yield row["id"], where.holds(_task(row, params))


def _task(row: sqlite3.Row, params: Mapping[str, Any]) -> Task:
    facts = {name: row[name] for name in FACTS if name != "task"}
    facts["task"] = f"{row['sweep']}_{row['point']}_{row['seed']}"

    def result() -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(row["metrics"]) if row["metrics"] else {}
        return found

    return Task(params=params, facts=facts, result=result)


def _may_be_result(name: Name) -> bool:
    return name.scope == "result" or (name.scope is None and name.name not in FACTS)


# --- names that no task has -------------------------------------------------------------------


def require_names(db: sqlite3.Connection, where: Where, condition: Condition) -> None:
    """Raise BadUsage for a name that no selected task has, or that means two things in one.

    Without any task nothing is said: there is nothing to be wrong about.
    """
    text, values = condition
    if db.execute(f"SELECT 1 FROM task WHERE {text} LIMIT 1", values).fetchone() is None:
        return
    for name in where.names:
        if name.scope is None and name.name in FACTS:
            _require_one_meaning(db, name, condition)
        elif name.scope != "task":
            _require_known(db, name, condition)


def _require_one_meaning(db: sqlite3.Connection, name: Name, condition: Condition) -> None:
    if _is_parameter(db, name.name, condition):
        raise BadUsage(
            f"--where: {name.name!r} is a parameter of these tasks, and something that every task"
            " has; no task was selected",
            hint=f"say params.{name.name} or task.{name.name}",
        )


def _require_known(db: sqlite3.Connection, name: Name, condition: Condition) -> None:
    if name.scope != "result" and _is_parameter(db, name.name, condition):
        return
    if name.scope != "params" and _is_metric(db, name.name, condition):
        return
    params = _names_of(db, "SELECT task.params AS json FROM task", condition)
    metrics = _names_of(db, f"SELECT {RESULT} AS json FROM task", condition)
    if name.scope == "result" and not metrics:
        return  # none has a result yet
    kinds = {"params": "parameter", "result": "metric", None: "parameter or metric"}
    known = {"params": params, "result": metrics, None: [*params, *FACTS, *metrics]}[name.scope]
    near = difflib.get_close_matches(name.name, known, n=1)
    if name.scope is not None:
        has = f"they have {', '.join(known) or 'none'}"
    else:
        has = f"they have {', '.join([*params, *metrics]) or 'none'}"
        has += "; a text stands in quotes" if "." not in name.name else ""
    raise BadUsage(
        f"--where: no task has a {kinds[name.scope]} {name.name!r}; no task was selected",
        hint=f"did you mean {near[0]}? {has}" if near else has,
    )


def _is_parameter(db: sqlite3.Connection, name: str, condition: Condition) -> bool:
    text, values = condition
    rows = db.execute(
        f"SELECT params AS json FROM task WHERE {text} AND instr(params, ?) > 0",
        (*values, _key(name)),
    )
    return any(name in json.loads(row["json"]) for row in rows)


def _is_metric(db: sqlite3.Connection, name: str, condition: Condition) -> bool:
    text, values = condition
    rows = db.execute(
        f"SELECT json FROM (SELECT {RESULT} AS json FROM task WHERE {text})"
        " WHERE instr(json, ?) > 0",
        (*values, _key(name)),
    )
    return any(name in json.loads(row["json"]) for row in rows)


def _key(name: str) -> str:
    """Return a key as it stands in kept JSON; not through SQLite's own, which knows no NaN."""
    return f"{json.dumps(name)}:"


def _names_of(db: sqlite3.Connection, question: str, condition: Condition) -> list[str]:
    """Return the names in the first tasks' JSON, in the order of first sight."""
    text, values = condition
    names: dict[str, None] = {}
    for row in db.execute(f"{question} WHERE {text} LIMIT ?", (*values, LOOKED_AT)):
        if row["json"]:
            names.update(dict.fromkeys(json.loads(row["json"])))
    return list(names)
