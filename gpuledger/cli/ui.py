"""The command that shows the ledger on a whole terminal, to look into and to act on: ui."""

from __future__ import annotations

import importlib.util
import sys
from typing import Annotated

import typer

from gpuledger.cli.find import open_ledger
from gpuledger.cli.options import LedgerDir, Sweep
from gpuledger.cli.output import is_dumb
from gpuledger.errors import BadUsage, Unavailable

app = typer.Typer()

LOCK_TIMEOUT_S = 20.0
"""Who presses a key wants an answer, if only that the ledger is busy."""

INTERRUPTED = 130


@app.command()
def ui(
    sweep: Sweep = None,
    mouse: Annotated[
        bool,
        typer.Option("--mouse/--no-mouse", help="Take clicks and the wheel, or leave them alone."),
    ] = True,
    ledger: LedgerDir = None,
) -> None:
    """Look into everything on a whole terminal: failures, tasks, workers, logs.

    Keys: f failures, t tasks, w workers, Enter opens a task with its log, /
    filters, r retries, c cancels, p pauses (each asks first), ? explains, q
    quits; quitting ends nothing else.

    \b
    Examples:
      gpuledger ui
      gpuledger ui --sweep exp1
    """
    if importlib.util.find_spec("textual") is None:
        raise Unavailable(
            "gpuledger ui needs Textual, which is not installed",
            hint="pip install 'gpuledger[ui]'; 'gpuledger status' works without it",
        )
    if not (sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()) or is_dumb():
        raise BadUsage(
            "gpuledger ui needs a terminal that can be drawn on",
            hint="'gpuledger status --once' prints everywhere",
        )
    opened = open_ledger(ledger, lock_timeout_s=LOCK_TIMEOUT_S)
    from gpuledger.ui.run import look  # Textual: only for those who want it

    code = look(opened, sweep=sweep, mouse=mouse)
    if code:
        raise typer.Exit(code)
