"""Watches the other workers and says which are dead; it changes nothing itself.

On this machine a worker is dead when its process is gone. Elsewhere only its liveness file
speaks: three readings over a whole lease that show no change (`heartbeat.Watcher`).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gpuledger.clock import Clock
from gpuledger.guard import open_pidfd, signal_pidfd
from gpuledger.heartbeat import Verdict, Watcher, beat_path, read_known, read_raw, shows_idle
from gpuledger.machine import is_alive, this_machine
from gpuledger.model import WorkerIdentity
from gpuledger.revalidation import revalidate

WATCHERS = 3
"""How many read a worker's file where there is no need for everybody to read all."""

FEW = 16
"""Up to so many workers everybody who is idle reads all files."""

IDLE_LOOK = 0.4
"""Share of the lease after which files of workers that run nothing are read again: who reads them
more than half of it apart begins to measure anew (`heartbeat.Watcher`)."""

LATE_S = 1.1
"""A look may come so much later than it is due: who runs a task looks round each second."""

SLACK = 0.8
"""Of that time: then a file is read with the others, if they are read anyway."""


class Lookout:
    """Remembers what one worker saw of the others.

    Attributes:
        folder: The ledger's folder.
        me: Nonce of the worker that looks.
    """

    def __init__(
        self, folder: Path, me: str, *, lease_s: float, heartbeat_s: float, clock: Clock
    ) -> None:
        self.folder = folder
        self.me = me
        self._heartbeat_s = heartbeat_s
        self._idle_pace_s = max(heartbeat_s, min(IDLE_LOOK * lease_s, lease_s / 2 - LATE_S))
        self._rest_s = min(SLACK * self._idle_pace_s, self._idle_pace_s - heartbeat_s)
        self._watcher = Watcher(clock=clock, lease_s=lease_s)
        self._not_before_s: dict[str, float] = {}
        self._pace_s = self._idle_pace_s
        self._live: Sequence[WorkerIdentity] = ()
        self._share: Sequence[WorkerIdentity] | None = None
        self._neighbours: Sequence[WorkerIdentity] = ()
        self._descriptors: dict[str, int] = {}
        self._within_reach = 0

    def dead_here(self, live: Sequence[WorkerIdentity]) -> Mapping[str, Callable[[], bool]]:
        """Return the workers of this machine whose process is gone, by nonce; costs no I/O."""
        self._know(live)
        ended = self._take_ended()
        return {
            worker.nonce: _always
            for worker in self._neighbours
            if (worker.nonce in ended or worker.nonce not in self._descriptors)
            and is_alive(worker.machine, worker.pid, worker.pid_start) is False
        }

    def descriptors(self) -> tuple[int, ...]:
        """Return what becomes readable when another worker of this machine ends."""
        return tuple(self._descriptors.values())

    def wake_neighbours(self) -> None:
        """Let the waiting workers of this machine look at the ledger; to others it means nothing.

        SIGCHLD ends their wait (`signals.Signals.wait`) and no process ends of it.
        """
        for descriptor in self._descriptors.values():
            signal_pidfd(descriptor, signal.SIGCHLD)

    def within_reach(self) -> int:
        """Return how many workers of this machine `wake_neighbours` would reach."""
        return self._within_reach

    def must_ask(self) -> bool:
        """Tell whether the end of some worker of this machine would make nothing readable."""
        return len(self._descriptors) < len(self._neighbours)

    def close(self) -> None:
        """Close what `descriptors` returned."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _know(self, live: Sequence[WorkerIdentity]) -> None:
        """Work out what depends on who lives, and forget the others."""
        if live is self._live:  # the same until somebody came or went
            return
        self._live, self._share = live, None
        here = this_machine()
        self._neighbours = [
            worker for worker in live if worker.machine == here and worker.nonce != self.me
        ]
        self._follow_neighbours()
        nonces = {worker.nonce for worker in live}
        self._watcher.forget_all_but(nonces)
        for nonce in set(self._not_before_s).difference(nonces):
            del self._not_before_s[nonce]

    def _follow_neighbours(self) -> None:
        """Have a descriptor for each of their processes, where the kernel offers them."""
        wanted = {worker.nonce: worker for worker in self._neighbours}
        for nonce in set(self._descriptors).difference(wanted):
            os.close(self._descriptors.pop(nonce))
        for nonce in set(wanted).difference(self._descriptors):
            worker = wanted[nonce]
            with contextlib.suppress(ProcessLookupError):
                descriptor = open_pidfd(worker.pid)
                if descriptor is None:
                    continue
                if is_alive(worker.machine, worker.pid, worker.pid_start):
                    self._descriptors[nonce] = descriptor
                else:  # another process has that number now
                    os.close(descriptor)
        self._within_reach = sum(signal_pidfd(each, 0) for each in self._descriptors.values())

    def _take_ended(self) -> set[str]:
        """Return whose process ended, and forget its descriptor: it would stay readable."""
        poll = select.poll()
        for descriptor in self._descriptors.values():
            poll.register(descriptor, select.POLLIN)
        readable = {descriptor for descriptor, _ in poll.poll(0)} if self._descriptors else set()
        ended = {nonce for nonce, number in self._descriptors.items() if number in readable}
        for nonce in ended:
            os.close(self._descriptors.pop(nonce))
        return ended

    def silent(
        self, live: Sequence[WorkerIdentity], *, only_share: bool = False
    ) -> Mapping[str, Callable[[], bool]]:
        """Read the others' files once; return who gave no sign of life for a whole lease.

        The value of each is a check to be made under the ledger's lock: is the file still as
        it was read last?
        """
        found: dict[str, Callable[[], bool]] = {}
        self._know(live)
        can_read = self._can_read()
        looked_at = self._to_read(live, only_share=only_share or len(live) > FEW)
        for worker in looked_at:
            asked_s = self._watcher.now()
            if asked_s < self._not_before_s.get(worker.nonce, asked_s):
                continue
            path = beat_path(self.folder, worker.name, worker.nonce)
            raw = read_known(path) if can_read else None
            if self._watcher.observe(worker.nonce, raw, asked_s=asked_s) is Verdict.DEAD:
                found[worker.nonce] = _unchanged(path, raw)
            if shows_idle(raw):
                self._not_before_s[worker.nonce] = asked_s + self._rest_s
            else:
                self._not_before_s.pop(worker.nonce, None)
        busy = any(worker.nonce not in self._not_before_s for worker in looked_at)
        self._pace_s = self._heartbeat_s if busy else self._idle_pace_s
        return found

    def look_anew(self) -> None:
        """Look at everybody at the next occasion: who ran nothing may run something by now."""
        self._not_before_s.clear()
        self._pace_s = self._heartbeat_s

    def pace_s(self) -> float:
        """Return after how long the files want to be read again: later, when nobody runs a task."""
        return self._pace_s

    def _can_read(self) -> bool:
        """Once for all files, which are read at once then."""
        try:
            revalidate(self.folder / "workers")
        except OSError:
            return False
        return True

    def _to_read(
        self, live: Sequence[WorkerIdentity], *, only_share: bool
    ) -> Sequence[WorkerIdentity]:
        if not only_share:
            return [worker for worker in live if worker.nonce != self.me]
        if self._share is None:
            self._share = share_of(self.me, live)
        return self._share


def share_of(me: str, live: Sequence[WorkerIdentity]) -> list[WorkerIdentity]:
    """Return the workers whose files `me` reads, so that each file has `WATCHERS` readers.

    They are on other machines than the worker, if there are any: what takes a machine down must
    not take those who would notice it. One more reads it whatever its machine, so that the last
    one alive, of any number, always reads the file of somebody who is dead.
    """
    ordered = sorted(live, key=lambda worker: worker.nonce)
    elsewhere: dict[str, list[str]] = {}
    share = []
    for place, worker in enumerate(ordered):
        if worker.machine not in elsewhere:
            elsewhere[worker.machine] = [
                other.nonce for other in ordered if other.machine != worker.machine
            ]
        readers = elsewhere[worker.machine]
        if readers:
            first = zlib.crc32(worker.nonce.encode()) % len(readers)
        else:
            readers, first = [other.nonce for other in ordered], place + 1
        chosen = {readers[(first + n) % len(readers)] for n in range(WATCHERS)}
        chosen.add(ordered[place - 1].nonce)  # if all but one die, that one finds one after another
        if me in chosen and worker.nonce != me:
            share.append(worker)
    return share


def _always() -> bool:
    return True


def _unchanged(path: Path, raw: object) -> Callable[[], bool]:
    return lambda: read_raw(path) == raw
