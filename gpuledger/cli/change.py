"""The commands that change tasks: retry, cancel, set."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gpuledger.cli.find import open_ledger
from gpuledger.cli.options import (
    AsJson,
    Condition,
    ErrorText,
    LedgerDir,
    States,
    Sweep,
    TaskNames,
    WorkerName,
)
from gpuledger.cli.output import echo, echo_json
from gpuledger.cli.select import selection_of
from gpuledger.cli.shapes import task_change_shape
from gpuledger.display.text import several
from gpuledger.errors import BadUsage
from gpuledger.model import TaskState
from gpuledger.selection import TaskChange
from gpuledger.sweep import parse_assignment

app = typer.Typer()

NAMES_TOLD = 5


@app.command()
def retry(
    tasks: TaskNames = None,
    failed: Annotated[bool, typer.Option("--failed", help="All failed tasks.")] = False,
    completed: Annotated[
        bool, typer.Option("--completed", help="Completed ones, too: their results are redone.")
    ] = False,
    state: States = None,
    error: ErrorText = None,
    sweep: Sweep = None,
    worker: WorkerName = None,
    where: Condition = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Give the tasks another value of a parameter; may be repeated.",
        ),
    ] = None,
    ledger: LedgerDir = None,
    as_json: AsJson = False,
) -> None:
    """Put ended tasks back into the queue, their failures forgiven.

    Names mean failed and cancelled tasks. Running ones are never touched, completed ones only
    with --completed. The history of earlier attempts stays.

    \b
    Examples:
      gpuledger retry --failed
      gpuledger retry --failed --error "CUDA out of memory"
      gpuledger retry --where 'lr > 0.01 and model == "resnet18"'
      gpuledger retry exp1_0_42 --set model.name=resnet18
    """
    wanted = [*(state or ()), *([TaskState.FAILED] if failed else ())]
    narrowed = False
    if not wanted:
        narrowed = error is not None or worker is not None or where is not None
        wanted = _states_to_retry(tasks, completed=completed, narrowed=narrowed, sweep=sweep)
    elif completed:
        wanted.append(TaskState.COMPLETED)
    selection = selection_of(
        names=tasks, sweep=sweep, states=wanted, error=error, worker=worker, where=where
    )
    params: dict[str, Any] = dict(parse_assignment(text) for text in assignments or ())
    change = open_ledger(ledger).retry(selection, completed=completed, params=params)
    if as_json:
        echo_json(task_change_shape(change))
        return
    _tell("Retried", change)
    if narrowed and not completed and not change.changed:
        echo("Without --state that means failed tasks only; --state cancelled takes those.")
    if change.skipped.get(TaskState.COMPLETED):
        echo("Completed tasks are retried with --completed.")
    if change.withdrawn:
        echo(f"{several(change.withdrawn, 'task')} running: not cancelled any more.")
    for name in change.resumed:
        echo(f"Sweep {name}, paused because of its failures, goes on.")


@app.command()
def cancel(
    tasks: TaskNames = None,
    sweep: Sweep = None,
    state: States = None,
    error: ErrorText = None,
    worker: WorkerName = None,
    where: Condition = None,
    kill: Annotated[
        bool, typer.Option("--kill", help="Stop running tasks now, instead of after this attempt.")
    ] = False,
    ledger: LedgerDir = None,
    as_json: AsJson = False,
) -> None:
    """Take tasks out of the queue; 'gpuledger retry TASK' puts them back.

    A running task goes on until its attempt ends, or is stopped with --kill. Completed tasks
    stay completed.

    \b
    Examples:
      gpuledger cancel exp1_0_42 exp1_1_42
      gpuledger cancel --sweep exp1 --kill
      gpuledger cancel --state pending --where 'lr > 0.1'
    """
    _require_filter("cancel", tasks, sweep, state, error, worker, where)
    selection = selection_of(
        names=tasks, sweep=sweep, states=state, error=error, worker=worker, where=where
    )
    change = open_ledger(ledger).cancel(selection, kill=kill)
    if as_json:
        echo_json(task_change_shape(change))
        return
    if change.changed or not change.running:
        _tell("Cancelled", change, running_is_left=False)
    if change.running and kill:
        echo(f"{several(change.running, 'task')} running: the workers were told to stop now.")
    elif change.running:
        echo(
            f"{several(change.running, 'task')} running: cancelled when the attempt ends badly"
            " (--kill stops it now)."
        )


@app.command("set")
def set_(
    tasks: TaskNames = None,
    priority: Annotated[
        int | None,
        typer.Option(
            "--priority",
            "-p",
            metavar="N",
            help="Higher runs first; 0 is usual.",
            show_default=False,
        ),
    ] = None,
    sweep: Sweep = None,
    state: States = None,
    error: ErrorText = None,
    worker: WorkerName = None,
    where: Condition = None,
    ledger: LedgerDir = None,
    as_json: AsJson = False,
) -> None:
    """Give tasks another priority: the highest is claimed first.

    \b
    Examples:
      gpuledger set exp1_0_42 --priority 10
      gpuledger set --sweep exp1 --priority -1
      gpuledger set --where 'model == "vgg"' --priority 5
    """
    if priority is None:
        raise BadUsage(
            "nothing says what to set; nothing was changed", hint="add --priority NUMBER"
        )
    _require_filter("set", tasks, sweep, state, error, worker, where)
    if abs(priority) > 2**31:
        raise BadUsage(
            f"a priority is a number of at most {2**31}, not {priority}; nothing was changed",
            hint="small numbers do: 0 is usual, higher runs first",
        )
    selection = selection_of(
        names=tasks, sweep=sweep, states=state, error=error, worker=worker, where=where
    )
    changed = open_ledger(ledger).set_priority(selection, priority)
    if as_json:
        echo_json({"changed": changed, "priority": priority})
    else:
        echo(f"{several(changed, 'task')} now of priority {priority}; ended ones are left alone.")


def _require_filter(verb: str, *filters: object) -> None:
    """A command without any would mean every task there is: too much for a slip of the hand."""
    if all(given is None or given == [] for given in filters):
        raise BadUsage(
            f"nothing says which tasks to {verb}; nothing was changed",
            hint="name them, or say --sweep NAME, --state, --where, --error TEXT or --worker NAME",
        )


def _states_to_retry(
    tasks: list[str] | None, *, completed: bool, narrowed: bool, sweep: str | None
) -> list[TaskState]:
    """Return the states that are meant when none is said; empty means all that are ended."""
    if tasks:
        return []
    if narrowed:
        return [TaskState.FAILED, *([TaskState.COMPLETED] if completed else [])]
    if completed and sweep:
        return [TaskState.COMPLETED]
    raise BadUsage(
        "nothing says which tasks to retry; nothing was changed",
        hint="say --failed, --where or --error, name tasks, or say --completed with --sweep NAME",
    )


def _tell(did: str, change: TaskChange, *, running_is_left: bool = True) -> None:
    """Print what was done, and what was left alone."""
    if change.changed:
        names = ", ".join(change.names[:NAMES_TOLD])
        more = change.changed - len(change.names[:NAMES_TOLD])
        rest = f" and {more} more" if more else ""
        echo(f"{did} {several(change.changed, 'task')}: {names}{rest}.")
    else:
        echo(f"{did} no task: none of those selected was in a state for it.")
    left = {str(state): count for state, count in change.skipped.items() if count}
    if change.running and running_is_left:
        left = {"running": change.running, **left}
    if left:
        echo("Left alone: " + ", ".join(f"{count} {state}" for state, count in left.items()) + ".")
