"""The only module that asks for the time."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What the code may know of time; tests pass one that they move by hand."""

    def now(self) -> float:
        """Return seconds since the epoch, UTC, for people to read; it may jump."""

    def boottime(self) -> float:
        """Return seconds since this machine started, sleep included; it never jumps back."""


class SystemClock:
    """This machine's clocks."""

    def now(self) -> float:
        """Return `time.time`."""
        return time.time()

    def boottime(self) -> float:
        """Return CLOCK_BOOTTIME: unlike CLOCK_MONOTONIC it goes on while a laptop sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


def iso(instant: float | None) -> str | None:
    """Return seconds since the epoch as ISO-8601 in UTC, milliseconds kept; None stays None."""
    if instant is None:
        return None
    text = datetime.fromtimestamp(instant, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
