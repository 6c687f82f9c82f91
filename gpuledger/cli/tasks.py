"""The commands that look at tasks: tasks, show."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gpuledger.cli.find import open_ledger
from gpuledger.cli.options import (
    AsJson,
    Condition,
    ErrorText,
    LedgerDir,
    States,
    Sweep,
    TaskName,
    WorkerName,
)
from gpuledger.cli.output import echo, echo_json, echo_table, is_terminal, note
from gpuledger.cli.select import selection_of
from gpuledger.cli.shapes import task_shape, whole_origin_shape
from gpuledger.errors import BadUsage
from gpuledger.model import TaskState
from gpuledger.views import TaskRecord
from gpuledger.why import why_pending

if TYPE_CHECKING:
    from gpuledger.ledger import Ledger

app = typer.Typer()

ROWS_ON_A_TERMINAL = 200


@app.command()
def tasks(
    state: States = None,
    failed: Annotated[bool, typer.Option("--failed", help="The same as --state failed.")] = False,
    sweep: Sweep = None,
    error: ErrorText = None,
    worker: WorkerName = None,
    where: Condition = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            "-n",
            metavar="N",
            min=0,
            help=f"At most so many; 0 for all. A terminal gets {ROWS_ON_A_TERMINAL} unless told.",
        ),
    ] = None,
    names: Annotated[
        bool, typer.Option("--names", help="Only the names, one a line, as for xargs.")
    ] = False,
    ledger: LedgerDir = None,
    as_json: AsJson = False,
) -> None:
    """List tasks, in the order in which they were made.

    A CONDITION compares (== != < <= > >= in, not in; and, or, not, parentheses) numbers, texts in
    quotes, true, false and null with parameters (lr, optimizer.lr), with what every task has
    (task, sweep, state, seed, priority, failures, losses, attempts), and with the metrics of
    completed tasks (result.val_acc, or val_acc). What a task lacks is only equal to null.

    \b
    Examples:
      gpuledger tasks --failed --error "CUDA out of memory"
      gpuledger tasks --state pending --state running --sweep exp1
      gpuledger tasks --where 'lr > 0.01 and result.val_acc < 0.5'
      gpuledger tasks --failed --names | xargs gpuledger retry --set lr=0.1
    """
    if names and as_json:
        raise BadUsage("--names and --json do not go together", hint="leave one of them out")
    states = frozenset([*(state or ()), *([TaskState.FAILED] if failed else ())])
    selection = selection_of(sweep=sweep, states=states, error=error, worker=worker, where=where)
    whole = names or as_json or not is_terminal()
    most = limit if limit is not None else (0 if whole else ROWS_ON_A_TERMINAL)
    found = open_ledger(ledger).tasks(selection, limit=most + 1 if most else None)
    shown = found[:most] if most else found
    if as_json:
        echo_json([task_shape(record) for record in shown])
    elif names:
        for record in shown:
            echo(record.task)
    elif shown:
        from gpuledger.display.tasks import tasks_table  # rich: only for those who draw

        echo_table(tasks_table(shown))
    else:
        note("No task is like that.")
    if len(shown) < len(found) and limit is None:
        sys.stdout.flush()
        note(f"The first {len(shown)}; --limit 0 lists all.")


@app.command()
def show(
    task: TaskName,
    env: Annotated[
        bool,
        typer.Option("--env", help="What the last attempt came from: code, command, packages."),
    ] = False,
    ledger: LedgerDir = None,
    as_json: AsJson = False,
) -> None:
    """Show one task: parameters, result, and every attempt with its whole traceback.

    Of a pending task it says why it does not run.

    \b
    Examples:
      gpuledger show exp1_0_42
      gpuledger show exp1_0_42 --env
      gpuledger show exp1_0_42 --json | jq .why_pending
    """
    opened = open_ledger(ledger)
    record = opened.task(task)
    if env:
        _show_origin(opened, record, as_json=as_json)
        return
    waiting = opened.waiting(task) if record.state is TaskState.PENDING else None
    why = () if waiting is None else why_pending(waiting)
    if as_json:
        echo_json({**task_shape(record), **({"why_pending": list(why)} if why else {})})
        return
    from gpuledger.display.show import task_detail  # rich: only for those who draw

    echo_table(task_detail(record, why=why))


def _show_origin(ledger: Ledger, record: TaskRecord, *, as_json: bool) -> None:
    origins = [attempt.origin for attempt in record.attempts if attempt.origin is not None]
    digests = {origin.environment for origin in origins if origin.environment is not None}
    found = {digest: ledger.packages(digest) for digest in sorted(digests)}
    packages = {digest: each for digest, each in found.items() if each is not None}
    if as_json:
        echo_json(whole_origin_shape(record, packages))
        return
    from gpuledger.display.origin import origin_detail  # rich: only for those who draw

    echo_table(origin_detail(record, packages, diffs=ledger.folder / "diffs"))
