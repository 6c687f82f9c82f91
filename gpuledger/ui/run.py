"""Runs the application on this process's terminal, and gives it back as it was."""

from __future__ import annotations

from gpuledger.cli.live import INTERRUPTED, READ_S, Reader
from gpuledger.ledger import Ledger
from gpuledger.signals import listen
from gpuledger.ui.app import LedgerApp
from gpuledger.ui.hangup import leave_with_terminal


def look(ledger: Ledger, *, sweep: str | None, mouse: bool) -> int:
    """Show the ledger until the user leaves; return the exit code."""
    # Lists and tasks are read, too: together as often as the status alone.
    with Reader(ledger, sweep=sweep, every_s=2 * READ_S) as reader, listen() as signals:
        app = LedgerApp(ledger, reader, signals, sweep=sweep)
        with leave_with_terminal(signals):
            app.run(mouse=mouse)
        if signals.terminates:
            return INTERRUPTED
        return app.return_code or 0
