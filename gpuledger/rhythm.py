"""How many short tasks a worker holds at a time: measured, so that the ledger is no brake.

Tasks that take milliseconds would spend more time in the ledger than at work. A worker that has
just seen some takes several at once: as many as make the ledger's part small, and no more than
it can run in about a second, since what it holds nobody else can take, and what it has done
nobody else can see.
"""

from __future__ import annotations

from collections import deque

from gpuledger.clock import Clock

PERIOD_S = 1.0
"""Longest time between two visits to the ledger while short tasks run."""

FILL = 0.8
"""Share of the period that the held tasks may take, as far as is known."""

LEDGER_SHARE = 0.02
"""Share of the time that the ledger may take; more tasks are held until it does not take more."""

TASKS_SEEN = 4
TRUST_AFTER = 2


class Rhythm:
    """What one worker measured lately: its tasks, its visits to the ledger."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks_s: deque[float] = deque(maxlen=TASKS_SEEN)
        self._visit_s = 0.0
        self._visited_s = clock.boottime()

    def task_took(self, seconds: float) -> None:
        """Take a task into account, with all that its worker did around it."""
        self._tasks_s.append(seconds)

    def visit_took(self, seconds: float) -> None:
        """Take a visit to the ledger into account, which has just ended."""
        self._visit_s += (seconds - self._visit_s) / 4 if self._visit_s else seconds
        self._visited_s = self._clock.boottime()

    def count(self) -> int:
        """Return how many tasks to hold: 1 means to claim the next in the ordinary way."""
        if len(self._tasks_s) < TRUST_AFTER:
            return 1
        task_s = max(self._longest_s(), 1e-6)
        wanted = self._visit_s / (LEDGER_SHARE * task_s)
        return max(int(min(wanted, FILL * PERIOD_S / task_s)), 1)

    def has_time(self) -> bool:
        """Tell whether another held task will probably end before the next visit is due."""
        return self.due_in_s() > self._longest_s()

    def due_in_s(self) -> float:
        """Return the seconds until the ledger must hear of what happened."""
        return self._visited_s + PERIOD_S - self._clock.boottime()

    def _longest_s(self) -> float:
        return max(self._tasks_s, default=0.0)
