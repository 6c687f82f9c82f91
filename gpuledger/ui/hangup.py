"""Ends the program when its terminal is gone, or takes nothing any more and it has to leave.

Textual waits until all it wrote is taken; a closed window or a dead connection takes nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import threading
from collections.abc import Iterator

from gpuledger.cli.live import INTERRUPTED
from gpuledger.signals import Signals

CHECK_S = 0.5
GRACE_CHECKS = 10
"""So often it is looked whether the program left by itself after it was told to."""


@contextlib.contextmanager
def leave_with_terminal(signals: Signals) -> Iterator[None]:
    """Watch over this process's terminal, and over its end once a signal asked for it."""
    terminal = sys.__stdin__.fileno() if sys.__stdin__ is not None else 0
    usual = termios.tcgetattr(terminal)
    left = threading.Event()

    def watch() -> None:
        told = 0
        while not left.wait(CHECK_S):
            told += signals.terminates > 0
            if is_gone(terminal) or told > GRACE_CHECKS:
                with contextlib.suppress(termios.error):
                    termios.tcsetattr(terminal, termios.TCSANOW, usual)
                os._exit(INTERRUPTED)  # whatever waits for the terminal would wait forever

    threading.Thread(target=watch, name="hangup", daemon=True).start()
    try:
        yield
    finally:
        left.set()


def is_gone(terminal: int) -> bool:
    """Tell whether nobody is at the other end of a terminal any more."""
    poll = select.poll()
    poll.register(terminal, 0)  # errors and hang-ups are told without being asked for
    return any(event & (select.POLLHUP | select.POLLNVAL) for _, event in poll.poll(0))
