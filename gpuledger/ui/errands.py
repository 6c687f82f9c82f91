"""Lets threads wait for the ledger, so that the screen never does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from gpuledger.errors import LedgerError

T = TypeVar("T")
Deliver = Callable[..., Any]
Errand = tuple[Callable[[], Any], Callable[[Any], None]]


class Errands:
    """Does work in threads and brings each answer to the thread of the screen.

    The threads are daemons: one that hangs in the kernel keeps nobody from leaving.
    """

    def __init__(self, deliver: Deliver) -> None:
        """Prepare; `deliver` calls a function with its arguments in the screen's thread."""
        self._deliver = deliver
        self._lock = threading.Lock()
        self._busy: set[Hashable] = set()
        self._waiting: dict[Hashable, Errand] = {}

    def ask(
        self, key: Hashable, work: Callable[[], T], then: Callable[[T | LedgerError], None]
    ) -> None:
        """Do `work`, then hand its answer, or the error that a user can act on, to `then`.

        Args:
            key: One errand a key is under way at a time; of those that come meanwhile only the
                newest is done.
            work: Called in a thread.
            then: Called in the thread of the screen.
        """
        with self._lock:
            if key in self._busy:
                self._waiting[key] = (work, then)
                return
            self._busy.add(key)
        threading.Thread(
            target=self._run, args=(key, work, then), name=f"errand-{key}", daemon=True
        ).start()

    def is_busy(self, key: Hashable) -> bool:
        """Tell whether such an errand is under way."""
        with self._lock:
            return key in self._busy

    def _run(self, key: Hashable, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        while True:
            try:
                self._deliver(then, work())
            except LedgerError as error:
                self._deliver(then, error)
            except Exception as error:  # a mistake of ours: it ends the screen, not just a thread
                self._deliver(_raise, error)
            with self._lock:
                following = self._waiting.pop(key, None)
                if following is None:
                    self._busy.discard(key)
                    return
            work, then = following


def _raise(error: Exception) -> None:
    raise error
