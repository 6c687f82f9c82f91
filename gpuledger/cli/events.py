"""The command that tells what happened: events."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from gpuledger.cli.changes import Changes
from gpuledger.cli.find import open_ledger
from gpuledger.cli.options import AsJson, LedgerDir
from gpuledger.cli.output import echo, echo_json
from gpuledger.cli.shapes import event_shape
from gpuledger.display.lines import event_line
from gpuledger.errors import LedgerBusy, LedgerUnreachable
from gpuledger.ledger import Ledger
from gpuledger.views import Event

app = typer.Typer()

PAGE = 1000


@app.command()
def events(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what happens next, until Ctrl-C.")
    ] = False,
    count: Annotated[
        int,
        typer.Option("--lines", "-n", metavar="N", min=0, help="Begin with so many of the latest."),
    ] = 20,
    ledger: LedgerDir = None,
    as_json: AsJson = False,
) -> None:
    """Print what happened, on all workers: starts, failures, retries, lost workers.

    With --json and --follow together, one JSON object is printed a line.

    \b
    Examples:
      gpuledger events -n 100
      gpuledger events -f | grep failed
    """
    opened = open_ledger(ledger)
    after = max(opened.latest_event() - count, 0)
    if as_json and not follow:
        echo_json([event_shape(event) for event in _since(opened, after)])
        return
    for event in followed(opened, after) if follow else _since(opened, after):
        if as_json:
            sys.stdout.write(json.dumps(event_shape(event)) + "\n")
        else:
            echo(event_line(event))
        sys.stdout.flush()


def _since(ledger: Ledger, after: int) -> Iterator[Event]:
    """Yield the events with a number above `after`, page by page."""
    while page := ledger.events(after=after, limit=PAGE):
        yield from page
        after = page[-1].id


def followed(ledger: Ledger, after: int) -> Iterator[Event]:
    """Yield the events above `after`, and every further one when it comes; never ends."""
    changes = Changes(ledger.store)
    while True:
        if changes.came():
            try:
                for event in _since(ledger, after):
                    yield event
                    after = event.id
            except (LedgerBusy, LedgerUnreachable):  # who follows waits until it is back
                changes.forget()
        changes.pause()
