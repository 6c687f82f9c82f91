"""Runs the application on this process's terminal, and gives it back as it was."""

from __future__ import annotations

from gpuledger.cli.live import INTERRUPTED, READ_S, USUAL_SCREEN, Reader
from gpuledger.ledger import Ledger
from gpuledger.process import print_when_killed
from gpuledger.signals import listen
from gpuledger.ui.app import LedgerApp
from gpuledger.ui.hangup import leave_with_terminal

# Textual asks for the mouse, for who has the focus, and for other codes of keys.
USUAL_TERMINAL = "\x1b[?1000l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?1004l\x1b[<u" + USUAL_SCREEN


def look(ledger: Ledger, *, sweep: str | None, mouse: bool) -> int:
    """Show the ledger until the user leaves; return the exit code."""
    # Lists and tasks are read, too: together as often as the status alone.
    with Reader(ledger, sweep=sweep, every_s=2 * READ_S) as reader, listen() as signals:
        app = LedgerApp(ledger, reader, signals, sweep=sweep)
        with print_when_killed(USUAL_TERMINAL), leave_with_terminal(signals):
            app.run(mouse=mouse)
        if signals.terminates:
            return INTERRUPTED
        return app.return_code or 0
