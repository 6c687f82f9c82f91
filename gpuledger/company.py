"""The live workers as one of them sees them: who is there, who died, who must not be there."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

from gpuledger.clock import Clock
from gpuledger.errors import LedgerError, NotShared
from gpuledger.heartbeat import changed_at
from gpuledger.ledger import Ledger
from gpuledger.lookout import Lookout
from gpuledger.model import WorkerIdentity
from gpuledger.process import kill_marked

LONG_AGO_S = -1e9

COMING_AND_GOING_S = 0.1
"""So many seconds for each live worker, busy ones leave between two looks at who came and went:
ten locks a second in all, where workers come and go all the time."""

SPREAD = 0.9
"""Who began to look at the same time does not go on looking at the same time."""

LEFT_WAIT_S = 1.0
"""What the dead left behind may hang in the kernel: a task that runs here is not left alone."""


class Company:
    """What one worker knows of the others, and does about those that died.

    Attributes:
        live: All live workers, as last read from the ledger.
        is_unwelcome: A host has come that shares no lock with this one.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        clock: Clock,
        say: Callable[[str], None],
        admit: Callable[[], None],
    ) -> None:
        self.live: tuple[WorkerIdentity, ...] = ()
        self.is_unwelcome = False
        self._ledger = ledger
        self._clock = clock
        self._say = say
        self._admit = admit
        self._hosts: set[str] = set()
        self._live_seen: int | None = None
        self._live_at_s = self._looked_at_s = LONG_AGO_S
        self._folder_at: int | None = None
        self._spread = 1.0

    def known_as(self, me: WorkerIdentity) -> None:
        """Look at the others as this worker from now on."""
        self._me = me
        self._lookout = Lookout(
            self._ledger.folder,
            me.nonce,
            lease_s=self._ledger.lease_s,
            heartbeat_s=self._ledger.heartbeat_s,
            clock=self._clock,
        )

    def close(self) -> None:
        """Stop looking."""
        self._lookout.close()

    def descriptors(self) -> tuple[int, ...]:
        """Return what becomes readable when another worker of this machine ends."""
        return self._lookout.descriptors()

    def look_in_s(self) -> float:
        """Return after how many seconds the others want to be looked at again."""
        due_s = self._looked_at_s + self._spread * self._lookout.pace_s()
        return max(due_s - self._clock.boottime(), 0.0)

    def within_reach(self) -> int:
        """Return how many workers of this machine `wake_neighbours` would reach."""
        return self._lookout.within_reach()

    def wake_neighbours(self) -> None:
        """Let the waiting workers of this machine look at the ledger now."""
        self._lookout.wake_neighbours()

    def is_due(self, changes: int | None) -> bool:
        """Tell whether `reap` could find anything although no descriptor is readable.

        Args:
            changes: The ledger's change counter.
        """
        if changes is None or changes != self._live_seen or self._lookout.must_ask():
            return True
        return not self.look_in_s()

    def sharers(self) -> frozenset[str]:
        """Return the nonces of the workers whose tasks may be on the same GPUs, this one's too."""
        me = self._me
        here = (me.machine, me.gpus)
        others = {other.nonce for other in self.live if (other.machine, other.gpus) == here}
        return frozenset({me.nonce} | others)

    def reap(self, *, busy: bool = False, changes: int | None = None) -> bool:
        """Look at the other workers and end what the dead ones had.

        Args:
            busy: This worker runs a task: it looks less often, and at its share of them only.
            changes: The ledger's change counter, if it was read just now.

        Returns:
            Whether tasks went back.
        """
        now_s = self._clock.boottime()
        self._refresh(now_s, busy=busy, changes=changes)
        dead = dict(self._lookout.dead_here(self.live))
        here = set(dead)
        if not self.look_in_s():
            self._looked_at_s = now_s
            self._spread = random.uniform(SPREAD, 1.0)
            dead |= self._lookout.silent(self.live, only_share=busy)
        if not dead:
            return False
        for nonce in here:
            # Whatever a dead worker's task left running on this machine; its guard goes on with it.
            kill_marked(nonce, wait_s=LEFT_WAIT_S)
        try:
            lost = self._ledger.reap(dead)
        except LedgerError:
            return False
        self.live = tuple(worker for worker in self.live if worker.nonce not in dead)
        for claim in lost:
            self._say(f"{claim.task}: its worker died in attempt {claim.number}; it goes back")
        return bool(lost)

    def _refresh(self, now_s: float, *, busy: bool, changes: int | None) -> None:
        """Ask the ledger who is there, but seldom, and only when it changed.

        Who runs a task asks once a lease, or when a file came or went where workers give their
        signs of life: what this machine did there is seen at once.
        """
        since_s = now_s - self._live_at_s
        is_early = busy and since_s < self._ledger.lease_s
        pace_s = COMING_AND_GOING_S * len(self.live) if is_early else 0.0
        if since_s < max(self._ledger.heartbeat_s, pace_s):
            return
        folder_at = changed_at(self._ledger.folder / "workers")
        if is_early and folder_at == self._folder_at:
            return
        self._live_at_s, self._folder_at = now_s, folder_at
        if changes is None:
            changes = self._ledger.store.change_counter()
        if changes is None or changes == self._live_seen:
            return
        self._lookout.look_anew()
        with contextlib.suppress(LedgerError):
            live = self._ledger.live_workers()
            if live != self.live:  # what is worked out from it stays good as long as it is this one
                self.live = live
            self._live_seen = changes
            self._look_for_strangers()

    def _look_for_strangers(self) -> None:
        """Leave, after the running task, when a host has come that shares no lock with this one."""
        hosts = {worker.machine.partition(":")[0] for worker in self.live}
        if hosts == self._hosts:
            return
        try:
            self._admit()
            self._hosts = hosts
        except NotShared as error:
            self._say(f"{error}; leaving")
            self.is_unwelcome = True
