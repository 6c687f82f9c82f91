"""Tells those who follow when there is something new, without taking the ledger's lock."""

from __future__ import annotations

import threading

from gpuledger.clock import Clock, SystemClock
from gpuledger.store import Store

LOOK_ANYWAY_S = 30.0
"""The counter is a hint; at this pace nothing depends on it."""

POLL_S = 0.5


class Changes:
    """Compares the change counter in the ledger's header with the last one seen."""

    def __init__(self, store: Store, clock: Clock | None = None) -> None:
        self._store = store
        self._clock: Clock = clock or SystemClock()
        self._seen: int | None = None
        self._looked_at_s = self._clock.boottime()
        self._idle = threading.Event()  # never set: its wait() is a pause that Ctrl-C ends

    def came(self) -> bool:
        """Tell whether something may have changed since this last said so; at first it has.

        Ask before reading the ledger, so that a change during the reading comes up again.
        """
        now_s = self._clock.boottime()
        counter = self._store.change_counter()
        same = counter is not None and counter == self._seen
        if same and now_s - self._looked_at_s < LOOK_ANYWAY_S:
            return False
        self._seen = counter
        self._looked_at_s = now_s
        return True

    def forget(self) -> None:
        """What was said to have changed could not be read: say it again."""
        self._seen = None

    def pause(self) -> None:
        """Wait as long as a person does not notice."""
        self._idle.wait(POLL_S)
