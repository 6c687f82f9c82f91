"""Watches the other workers and says which are dead; it changes nothing itself.

On this machine a worker is dead when its process is gone. Elsewhere only its liveness file
speaks: three readings over a whole lease that show no change (`heartbeat.Watcher`).
"""

from __future__ import annotations

import contextlib
import os
import select
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gpuledger.clock import Clock
from gpuledger.guard import open_pidfd
from gpuledger.heartbeat import (
    Verdict,
    Watcher,
    beat_path,
    idle_pace_s,
    read_known,
    read_raw,
    revalidate,
    shows_idle,
)
from gpuledger.model import WorkerIdentity
from gpuledger.process import is_alive, this_machine

WATCHERS = 3
"""How many read a worker's file where there is no need for everybody to read all."""

FEW = 16
"""Up to so many workers everybody who is idle reads all files."""


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
        self._idle_pace_s = idle_pace_s(heartbeat_s=heartbeat_s, lease_s=lease_s)
        self._not_before_s: dict[str, float] = {}
        self._paths: dict[str, Path] = {}
        self._looked_at: Sequence[WorkerIdentity] = ()
        self._remembered: Sequence[WorkerIdentity] = ()
        self._watcher = Watcher(clock=clock, lease_s=lease_s)
        self._shared_of: Sequence[WorkerIdentity] = ()
        self._share: Sequence[WorkerIdentity] = ()
        self._followed: Sequence[WorkerIdentity] = ()
        self._neighbours: Sequence[WorkerIdentity] = ()
        self._descriptors: dict[str, int] = {}

    def dead_here(self, live: Sequence[WorkerIdentity]) -> Mapping[str, Callable[[], bool]]:
        """Return the workers of this machine whose process is gone, by nonce; costs no I/O."""
        self._follow(live)
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

    def close(self) -> None:
        """Close what `descriptors` returned."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _follow(self, live: Sequence[WorkerIdentity]) -> None:
        """Have a descriptor for each process of this machine, where the kernel offers them."""
        if live is self._followed:  # the same until somebody came or went
            return
        here = this_machine()
        self._followed = live
        self._neighbours = [
            worker for worker in live if worker.machine == here and worker.nonce != self.me
        ]
        wanted = {worker.nonce: worker for worker in self._neighbours}
        for nonce in set(self._descriptors).difference(wanted):
            os.close(self._descriptors.pop(nonce))
        for nonce in set(wanted).difference(self._descriptors):
            worker = wanted[nonce]
            with contextlib.suppress(ProcessLookupError):
                descriptor = open_pidfd(worker.pid)
                if descriptor is None:
                    continue
                if is_alive(here, worker.pid, worker.pid_start):
                    self._descriptors[nonce] = descriptor
                else:  # another process has that number now
                    os.close(descriptor)

    def _take_ended(self) -> set[str]:
        """Return whose process ended, and forget its descriptor: it would stay readable."""
        if not self._descriptors:
            return set()
        poll = select.poll()
        for descriptor in self._descriptors.values():
            poll.register(descriptor, select.POLLIN)
        readable = {descriptor for descriptor, _ in poll.poll(0)}
        if not readable:
            return set()
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
        can_read = revalidate(self.folder / "workers")
        self._looked_at = self._to_read(live, only_share=only_share or len(live) > FEW)
        for worker in self._looked_at:
            asked_s = self._watcher.now()
            if asked_s < self._not_before_s.get(worker.nonce, asked_s):
                continue
            path = self._paths.get(worker.nonce)
            if path is None:
                path = beat_path(self.folder, worker.name, worker.nonce)
                self._paths[worker.nonce] = path
            raw = read_known(path) if can_read else None
            if self._watcher.observe(worker.nonce, raw, asked_s=asked_s) is Verdict.DEAD:
                found[worker.nonce] = _unchanged(path, raw)
            if shows_idle(raw):
                self._not_before_s[worker.nonce] = asked_s + self._idle_pace_s
            else:
                self._not_before_s.pop(worker.nonce, None)
        self._forget_all_but(live)
        return found

    def look_anew(self) -> None:
        """Look at everybody at the next occasion: who ran nothing may run something by now."""
        self._not_before_s.clear()

    def pace_s(self) -> float:
        """Return after how long the files want to be read again: later, when nobody runs a task."""
        busy = any(worker.nonce not in self._not_before_s for worker in self._looked_at)
        return self._heartbeat_s if busy else self._idle_pace_s

    def _forget_all_but(self, live: Sequence[WorkerIdentity]) -> None:
        if live is self._remembered:  # the same until somebody came or went
            return
        self._remembered = live
        nonces = {worker.nonce for worker in live}
        self._watcher.forget_all_but(nonces)
        for known in (self._not_before_s, self._paths):
            for nonce in set(known).difference(nonces):
                del known[nonce]

    def _to_read(
        self, live: Sequence[WorkerIdentity], *, only_share: bool
    ) -> Sequence[WorkerIdentity]:
        if not only_share:
            return [worker for worker in live if worker.nonce != self.me]
        if live is not self._shared_of:  # the same until somebody came or went
            self._shared_of, self._share = live, share_of(self.me, live)
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
