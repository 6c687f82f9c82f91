"""Tells whether a worker may take its next task, by its disk and GPUs, and says so if not."""

from __future__ import annotations

from collections.abc import Callable, Collection

from gpuledger.clock import Clock
from gpuledger.errors import LedgerError
from gpuledger.gpu_gate import GpuGate, Standing
from gpuledger.ledger import Ledger
from gpuledger.model import WorkerIdentity
from gpuledger.pulse import Pulse
from gpuledger.room import Room

QUIET_S = 2.0
"""The memory of the last task needs a moment to come back: that is not worth a word."""

STAND_BACK_S = 10.0
"""A worker whose GPUs are not ready for so long says so in the ledger: nobody waits for it."""


class Readiness:
    """Asks before each task: the disk of the logs, and the gate (a worker for the CPU has none).

    Attributes:
        told: What is said of it now, here and in `status`; None: nothing.
    """

    def __init__(
        self,
        gate: GpuGate | None,
        room: Room,
        ledger: Ledger,
        *,
        clock: Clock,
        say: Callable[[str], None],
    ) -> None:
        self.told: str | None = None
        self._gate = gate
        self._room = room
        self._ledger = ledger
        self._clock = clock
        self._say = say
        self._not_ready_s: float | None = None
        self._stands_back = False
        self._tell_again_s = 0.0

    def known_as(self, me: WorkerIdentity, pulse: Pulse) -> None:
        """Speak for this worker from now on."""
        self._me = me
        self._pulse = pulse
        self._stands_back = False
        if self._gate is not None:
            self._gate.known_as(me.nonce)

    def is_open(self, sharers: Collection[str]) -> bool:
        """Tell whether the next task may start, without a word to anybody."""
        return self._standing(sharers).closed is None

    def may_start(self, sharers: Collection[str]) -> bool:
        """Tell whether the next task may start; if not, say why, here and in `status`."""
        standing = self._standing(sharers)
        now_s = self._clock.boottime()
        if standing.closed is None:
            self._not_ready_s = None
            self._show(standing)
            self._stand_back(None)
            return True
        if self._not_ready_s is None:
            self._not_ready_s = now_s
        waited_s = now_s - self._not_ready_s
        if standing.lost or waited_s > QUIET_S:
            self._show(standing)
        if standing.lost or waited_s > STAND_BACK_S:
            self._stand_back(standing.closed)
        return False

    def _standing(self, sharers: Collection[str]) -> Standing:
        full = self._room.closed()
        if full is not None:
            return Standing(closed=full)
        return Standing() if self._gate is None else self._gate.standing(sharers)

    def _show(self, standing: Standing) -> None:
        note = standing.closed or standing.note
        if note is not None or self.told is not None:
            self._pulse.note(note)
        if note == self.told:
            return
        if note is not None and _without_numbers(note) != _without_numbers(self.told or ""):
            self._say(f"{note}; {'claiming nothing' if standing.closed else 'going on'}")
        elif note is None:
            self._say("ready for the next task")
        self.told = note

    def _stand_back(self, why: str | None) -> None:
        """Record whether others should count on this worker; only when that changed."""
        now_s = self._clock.boottime()
        if self._stands_back == (why is not None) or now_s < self._tell_again_s:
            return
        try:
            self._ledger.stand_back(self._me.nonce, why)
        except LedgerError:  # not each time that somebody looks
            self._tell_again_s = now_s + STAND_BACK_S
        else:
            self._stands_back = why is not None


def _without_numbers(text: str) -> str:
    """Return what makes a sentence worth saying again: not that a process took 2 MB more."""
    return "".join(char for char in text if not char.isdigit() and char != ".")
