"""The command that shows how everything stands: status."""

from __future__ import annotations

from typing import Annotated

import typer

from gpuledger.cli.find import open_ledger
from gpuledger.cli.options import AsJson, LedgerDir, Sweep
from gpuledger.cli.output import echo_json, echo_table, is_dumb, is_terminal, make_console
from gpuledger.cli.shapes import status_shape

app = typer.Typer()


@app.command()
def status(
    once: Annotated[bool, typer.Option("--once", help="Print it once and exit.")] = False,
    sweep: Sweep = None,
    ledger: LedgerDir = None,
    as_json: AsJson = False,
) -> None:
    """Show tasks by state, workers with their GPUs, and the latest failures.

    On a terminal it stays and keeps itself up to date until Ctrl-C; it only
    looks, and ending it ends nothing else. In a pipe it prints once.

    \b
    Examples:
      gpuledger status
      gpuledger status --once --sweep exp1
      gpuledger status --json
    """
    opened = open_ledger(ledger)
    if as_json:
        echo_json(status_shape(opened.snapshot(sweep=sweep)))
    elif once or not is_terminal() or is_dumb():
        from gpuledger.display.status import status_view  # rich: only for those who draw

        width = make_console().width
        echo_table(status_view(opened.snapshot(sweep=sweep), width=width))
    else:
        from gpuledger.cli.live import watch

        watch(opened, sweep=sweep)
