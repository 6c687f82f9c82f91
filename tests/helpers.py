"""What several tests need: waiting for a condition, and a clock that is moved by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], *, because: str, timeout_s: float = 20.0) -> T:
    """Return the first true value of `condition`; fail with `because` when none comes in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain: {because}"
        time.sleep(0.01)


@dataclass
class ManualClock:
    """A clock that stands still until `advance` is called."""

    wall: float = 1_700_000_000.0
    boot: float = 1_000.0

    def now(self) -> float:
        return self.wall

    def boottime(self) -> float:
        return self.boot

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.boot += seconds
