"""Watches the other workers and says which are dead; it changes nothing itself.

On this machine a worker is dead when its process is gone. Elsewhere only its liveness file
speaks: three readings over a whole lease that show no change (`heartbeat.Watcher`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gpuledger.clock import Clock
from gpuledger.heartbeat import Verdict, Watcher, beat_path, read_raw
from gpuledger.model import WorkerIdentity
from gpuledger.process import is_alive

NEIGHBOURS = 3
"""Workers that a busy one watches: the next by name, so that everyone is watched by some."""


class Lookout:
    """Remembers what one worker saw of the others.

    Attributes:
        folder: The ledger's folder.
        me: Nonce of the worker that looks.
    """

    def __init__(self, folder: Path, me: str, *, lease_s: float, clock: Clock) -> None:
        self.folder = folder
        self.me = me
        self._watcher = Watcher(clock=clock, lease_s=lease_s)

    def dead_here(self, live: Sequence[WorkerIdentity]) -> Mapping[str, Callable[[], bool]]:
        """Return the workers of this machine whose process is gone, by nonce; costs no I/O."""
        return {
            worker.nonce: _always
            for worker in live
            if worker.nonce != self.me
            and is_alive(worker.machine, worker.pid, worker.pid_start) is False
        }

    def silent(
        self, live: Sequence[WorkerIdentity], *, only_neighbours: bool = False
    ) -> Mapping[str, Callable[[], bool]]:
        """Read the others' files once; return who gave no sign of life for a whole lease.

        The value of each is a check to be made under the ledger's lock: is the file still as
        it was read last?
        """
        found: dict[str, Callable[[], bool]] = {}
        others = _after(live, self.me) if only_neighbours else live
        for worker in others:
            if worker.nonce == self.me:
                continue
            path = beat_path(self.folder, worker.name, worker.nonce)
            asked_s = self._watcher.now()
            raw = read_raw(path)
            if self._watcher.observe(worker.nonce, raw, asked_s=asked_s) is Verdict.DEAD:
                found[worker.nonce] = _unchanged(path, raw)
        self._watcher.forget_all_but({worker.nonce for worker in live})
        return found


def _after(live: Sequence[WorkerIdentity], me: str) -> list[WorkerIdentity]:
    ordered = sorted(live, key=lambda worker: worker.name)
    at = next((n for n, worker in enumerate(ordered) if worker.nonce == me), 0)
    return (ordered[at + 1 :] + ordered[:at])[:NEIGHBOURS]


def _always() -> bool:
    return True


def _unchanged(path: Path, raw: object) -> Callable[[], bool]:
    return lambda: read_raw(path) == raw
