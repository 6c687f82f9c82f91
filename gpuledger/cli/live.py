"""Keeps the status on the screen; a file server that hangs stops the reading, not the screen."""

from __future__ import annotations

import contextlib
import os
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from dataclasses import replace

import typer
from rich.console import Console, RenderableType
from rich.live import Live

from gpuledger.cli.changes import POLL_S, Changes
from gpuledger.cli.output import echo_table, make_console
from gpuledger.clock import Clock, SystemClock
from gpuledger.display.status import status_view
from gpuledger.errors import LedgerError
from gpuledger.ledger import Ledger
from gpuledger.process import print_when_killed
from gpuledger.signals import Signals, listen
from gpuledger.views import Snapshot

INTERRUPTED = 130
USUAL_SCREEN = "\x1b[?1049l\x1b[?25h"
"""Back to the normal screen, cursor shown: what whoever is killed cannot say any more."""

READING_SHARE = 0.1
"""Of its time a reader may hold the ledger's lock for so much: others work with it."""

PROMPT_LINES = 2
"""What the shell needs below the last status."""

READ_S = 1.25
"""Where changes never end, the lock is taken not more often than this."""

LATE_S = 5.0
"""An answer that takes longer is said to be missing."""


def watch(ledger: Ledger, *, sweep: str | None) -> None:
    """Draw the status until Ctrl-C or `q`; then leave the last one on the normal screen."""
    with Reader(ledger, sweep=sweep) as reader, listen() as signals:
        while not _draw(reader, signals):
            signals.suspend_self()
        if signals.terminates:
            raise typer.Exit(INTERRUPTED)
        echo_table(frame(reader, make_console(), spare=PROMPT_LINES))


def _draw(reader: Reader, signals: Signals) -> bool:
    """Draw until it is time to end; return False when it is only time to be suspended (Ctrl-Z)."""
    console = make_console()
    with (
        print_when_killed(USUAL_SCREEN),
        _keys() as keyboard,
        Live(console=console, screen=True, auto_refresh=False) as view,
    ):
        while not (signals.interrupts or signals.terminates):
            view.update(frame(reader, console), refresh=True)
            ready = signals.wait(POLL_S, also=[keyboard])
            if keyboard in ready and os.read(keyboard, 64) in (b"q", b"Q", b""):
                break
            if signals.take_suspend():
                return False
    return True


def frame(reader: Reader, console: Console, *, spare: int = 0, starting: int = 0) -> RenderableType:
    """Return the newest status, fitted to the console but for `spare` lines."""
    height = max(console.height - spare, 1)
    latest = reader.latest()
    return status_view(latest, width=console.width, height=height, starting=starting)


def pause_after(reading_s: float) -> float:
    """Return how long to leave the ledger alone after a reading that took so long."""
    return max(POLL_S, reading_s / READING_SHARE)


class Reader:
    """A thread that reads the ledger when it changed, and else only the signs of life."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        sweep: str | None,
        clock: Clock | None = None,
        every_s: float = READ_S,
    ) -> None:
        """Read a first time, in the caller's thread; raises what `Ledger.snapshot` raises.

        Args:
            ledger: To read.
            sweep: Only this one; None means all.
            clock: This machine's, unless a test moves time by hand.
            every_s: Least time between two readings under the lock.
        """
        self._ledger = ledger
        self._sweep = sweep
        self._clock: Clock = clock or SystemClock()
        self._changes = Changes(ledger.store, self._clock)
        self._changes.came()
        self._every_s = every_s
        self._latest = ledger.snapshot(sweep=sweep)
        self.readings = 1
        """How often the ledger itself was read: the tasks changed only when this did."""
        self._answered_s = self._locked_s = self._clock.boottime()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="status-reader", daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join(timeout=1.0)  # one that hangs in the kernel is not waited for

    def latest(self) -> Snapshot:
        """Return the newest answer; its `unreachable` says when none comes any more."""
        latest = self._latest
        silent_s = self._clock.boottime() - self._answered_s
        if latest.unreachable is None and silent_s > LATE_S:
            return replace(latest, unreachable=f"no answer for {silent_s:.0f} s")
        return latest

    def read(self, *, at_once: bool = False) -> None:
        """Bring the answer up to date, or keep the last one and say why it is not.

        Args:
            at_once: Take the lock although it was taken a moment ago: it is the last time.
        """
        try:
            if (at_once or self._may_lock()) and self._changes.came():
                self._locked_s = self._clock.boottime()
                self._latest = self._ledger.snapshot(sweep=self._sweep)
                self.readings += 1
            elif self._latest.unreachable is None:
                self._latest = self._ledger.refresh(self._latest)
        except LedgerError as error:
            self._changes.forget()
            self._latest = replace(self._latest, unreachable=error.problem)
        self._answered_s = self._clock.boottime()

    def _may_lock(self) -> bool:
        return self._clock.boottime() - self._locked_s >= self._every_s

    def _loop(self) -> None:
        pause_s = POLL_S
        while not self._stopping.wait(pause_s):
            began_s = self._clock.boottime()
            self.read()
            pause_s = pause_after(self._clock.boottime() - began_s)


@contextlib.contextmanager
def _keys() -> Iterator[int]:
    """Take single keys, unseen, from the terminal; yield its descriptor, -1 when there is none."""
    keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
    if keyboard < 0 or os.tcgetpgrp(keyboard) != os.getpgrp():  # in the background it is not ours
        yield -1
        return
    usual = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard, termios.TCSADRAIN)
    try:
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, usual)
