"""The options and arguments that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpuledger.cli.complete import sweep_names, task_names, worker_names
from gpuledger.model import TaskState

LedgerDir = Annotated[
    Path | None,
    typer.Option(
        "--ledger",
        "-l",
        metavar="DIR",
        envvar="GPULEDGER_DIR",
        help="The ledger's folder; else the .gpuledger here, or in a folder above.",
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")]

Sweep = Annotated[
    str | None,
    typer.Option(
        "--sweep",
        "-s",
        metavar="NAME",
        autocompletion=sweep_names,
        help="Only the tasks of this sweep.",
    ),
]

ErrorText = Annotated[
    str | None,
    typer.Option(
        "--error",
        metavar="TEXT",
        help="Only tasks whose last error or its traceback contains this text (any case).",
    ),
]

WorkerName = Annotated[
    str | None,
    typer.Option(
        "--worker",
        metavar="NAME",
        autocompletion=worker_names,
        help="Only tasks that this worker ran (as in host:gpu0).",
    ),
]

States = Annotated[
    list[TaskState] | None,
    typer.Option("--state", help="Only tasks in this state; may be repeated."),
]

Condition = Annotated[
    str | None,
    typer.Option(
        "--where",
        "-w",
        metavar="CONDITION",
        help="Only tasks that meet it: 'lr > 0.01 and model == \"resnet18\"'.",
    ),
]

TaskName = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        autocompletion=task_names,
        help="Name of a task: <sweep>_<point>_<seed>, as in exp1_0_42.",
        show_default=False,
    ),
]

TaskNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TASK",
        autocompletion=task_names,
        help="Names of tasks: <sweep>_<point>_<seed>, as in exp1_0_42.",
        show_default=False,
    ),
]

SweepName = Annotated[
    str | None,
    typer.Argument(
        metavar="SWEEP",
        autocompletion=sweep_names,
        help="Name of a sweep; all of them when left out.",
        show_default=False,
    ),
]
