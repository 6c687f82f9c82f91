"""Asks a ledger that may be out of reach: waits, tries again, and says so once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TypeVar

from gpuledger.clock import Clock
from gpuledger.errors import (
    LedgerBusy,
    LedgerError,
    LedgerReplaced,
    LedgerUnreachable,
    NoLedger,
    NotAllowed,
    Unavailable,
)
from gpuledger.ledger import Ledger
from gpuledger.signals import Signals

T = TypeVar("T")

OUT_OF_REACH = (LedgerBusy, LedgerUnreachable, NoLedger, NotAllowed, Unavailable)
"""What may mend itself, or be mended by somebody, while a worker waits."""

AT_THE_START = tuple(kind for kind in OUT_OF_REACH if kind is not NotAllowed)
"""The same for one that has done nothing yet: somebody who started it may be looking."""

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 30.0
HASTY_LOCK_S = 2.0
"""How long a worker that must leave waits for the ledger at least."""


class Patience:
    """One worker's way of asking the ledger, whatever becomes of it meanwhile."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        signals: Signals,
        clock: Clock,
        say: Callable[[str], None],
        leave_within_s: float,
    ) -> None:
        """Ask for one worker.

        Args:
            ledger: To ask.
            signals: What its operator asked of it.
            clock: This machine's.
            say: Prints one line.
            leave_within_s: How soon after a SIGTERM it must be out.
        """
        self._ledger = ledger
        self._signals = signals
        self._clock = clock
        self._say = say
        self._leave_within_s = leave_within_s

    def until_reached(
        self,
        operation: Callable[[], T],
        *,
        is_leaving: Callable[[], bool],
        waits_for: tuple[type[LedgerError], ...] = OUT_OF_REACH,
    ) -> T | None:
        """Repeat until the ledger can be reached; None when told to leave before that."""
        told: str | None = None
        for backoff_s in backoffs():
            try:
                answer = self.in_this_epoch(operation)
            except waits_for as error:
                if error.problem != told:
                    self._say(f"{error}; waiting until it is mended")
                    told = error.problem
            else:
                if told is not None:
                    self._say("the ledger is back, going on")
                return answer
            if is_leaving():
                return None
            self._signals.wait(backoff_s)
        raise AssertionError("the backoffs have no end")

    def in_this_epoch(self, operation: Callable[[], T]) -> T:
        """Ask; once more when the ledger was recovered from a backup since it was last read."""
        try:
            return operation()
        except LedgerReplaced:
            self._say("the ledger was recovered from a backup meanwhile, looking at it anew")
            self._ledger.reopen()
            return operation()

    def hasten(self) -> None:
        """Wait for the ledger only as long as there is time, if this worker must leave.

        Who presses Ctrl-C twice does not want to wait; whoever sends SIGTERM does, for a while.
        """
        if not self.is_over():
            return
        told_s = self._signals.terminated_s
        left_s = 0.0
        if told_s is not None and self._signals.interrupts < 2:
            left_s = told_s + self._leave_within_s - self._clock.boottime()
        self._ledger.store.lock_timeout_s = max(left_s, HASTY_LOCK_S)

    def is_over(self) -> bool:
        """Tell whether the worker must leave now, whatever it has not told the ledger."""
        return self._signals.must_leave


def backoffs() -> Iterator[float]:
    """Yield how long to wait until the next try, in seconds: ever longer, never the same."""
    longest_s = FIRST_BACKOFF_S
    while True:
        yield random.uniform(longest_s / 2, longest_s)
        longest_s = min(longest_s * 2, LONGEST_BACKOFF_S)
