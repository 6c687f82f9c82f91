"""Decides when a worker's GPUs may take the next task, and what a task did to them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from gpuledger import gpu_rules as rules
from gpuledger.clock import Clock
from gpuledger.gpu_watch import GpuWatch, Sample

SETTLE_S = 30.0
"""How long the memory of a task that ended may take to come back, before the GPU is dirty."""

LOOK_S = 2.0
"""How long a fresh look at the GPUs may take; a driver that hangs must not stop the worker."""

LOST_S = 10.0
"""How long a GPU must be gone until the task on it is ended: it may still write something."""

STARTING_S = 120.0
"""Longest start-up of a task that keeps others from starting on the same GPU."""

STEADY_S = 10.0
"""A task whose memory did not change for so long has what it needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOptions:
    """What the operator asked for.

    Attributes:
        wait_free: Claim only while no other process is on the GPUs.
        free_mib: With `wait_free`: memory that must be free on each; None means nearly all.
        sharing: How many workers share the GPUs; each task gets so much less memory.
        settle_s: See `SETTLE_S`.
    """

    wait_free: bool = False
    free_mib: int | None = None
    sharing: int = 1
    settle_s: float = SETTLE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Whether the next task may start.

    Attributes:
        closed: Why not, or None.
        note: What should be shown although it may, or None.
        lost: A GPU is gone: it will not come back by itself.
        dirty: A GPU kept memory of the task before.
    """

    closed: str | None = None
    note: str | None = None
    lost: bool = False
    dirty: bool = False


class GpuGate:
    """The GPUs of one worker, between its tasks and while one runs."""

    def __init__(
        self, watch: GpuWatch, *, clock: Clock, options: GateOptions, turn: Turn | None = None
    ) -> None:
        self._watch = watch
        self._clock = clock
        self._options = options
        self._turn = turn
        self._attempt: _Attempt | None = None
        self._left: _Left | None = None
        self._lost_since_s: float | None = None
        self._owner = ""
        watch.start(self._look)

    def known_as(self, nonce: str) -> None:
        """Let the gate know which processes on a GPU are this worker's."""
        self._owner = nonce

    def stop(self) -> None:
        """End the watching."""
        self._watch.stop()
        self.let_others_start()

    # --- between tasks ------------------------------------------------------------------------

    def standing(self, ours: Collection[str]) -> Standing:
        """Look at the GPUs now and tell whether the next task may start.

        Args:
            ours: Nonces of the workers that share these GPUs, this one included.
        """
        sample = self._watch.fresh(timeout_s=LOOK_S)
        lost = rules.lost(sample)
        if lost is not None:
            return Standing(closed=lost, lost=True)
        if sample is None:
            silent = "the NVIDIA driver does not answer"
            return Standing(closed=silent) if self._options.wait_free else Standing(note=silent)
        standing = self._after_the_last(sample)
        if standing.closed is None and self._options.wait_free:
            for gpu in sample.gpus:
                why = rules.not_free(gpu, ours=ours, free_mib=self._options.free_mib)
                if why is not None:
                    return Standing(closed=why)
        if standing.closed is None and self._turn is not None and not self._turn.take():
            return Standing(closed="another task is starting on this GPU")
        return standing

    def _after_the_last(self, sample: Sample) -> Standing:
        """Tell whether the memory of the last task is back."""
        left = self._left
        if left is None:
            return Standing()
        for gpu, start, peak in zip(sample.gpus, left.start, left.peaks, strict=True):
            found = rules.remains(
                gpu, owner=left.owner, start=start, peak=peak, shared=self._is_shared()
            )
            if found is None:
                continue
            if self._clock.boottime() - left.ended_s < self._options.settle_s:
                return Standing(closed=f"waits for memory: {found.text}")
            note = f"dirty: {found.text}"
            return Standing(closed=note if found.certain else None, note=note, dirty=True)
        self._left = None
        return Standing()

    # --- one attempt --------------------------------------------------------------------------

    def begin(self) -> None:
        """A task is about to start: remember what is on its GPUs."""
        sample = self._watch.latest()
        gpus = sample.gpus if sample is not None else ()
        self._left = None
        self._attempt = _Attempt(
            owner=self._owner,
            start=tuple(rules.before(gpu) for gpu in gpus),
            shared=self._is_shared(),
            began_s=self._clock.boottime(),
        )

    def tick(self, report: Path) -> None:
        """Let the next one start on a shared GPU once this task has reported or settled."""
        attempt = self._attempt
        if self._turn is None or attempt is None or not self._turn.is_mine:
            return
        now_s = self._clock.boottime()
        steady_s = attempt.steady_since_s
        if (
            _size(report) > 0
            or (steady_s is not None and now_s - steady_s > STEADY_S)
            or now_s - attempt.began_s > STARTING_S
        ):
            self._turn.pass_on()

    def end(self) -> int | None:
        """The task and all its processes are gone: return the most memory it used, in MiB."""
        attempt, self._attempt = self._attempt, None
        self.let_others_start()
        if attempt is None:
            return None
        self._left = attempt.left(self._clock.boottime())
        return attempt.peak_mib()

    def let_others_start(self) -> None:
        """There is nothing to start now: others on the same GPUs need not wait for it."""
        if self._turn is not None:
            self._turn.pass_on()

    def lost_for_long(self) -> str | None:
        """Return which GPU of the running task has been gone for a while, or None; never waits."""
        since_s = self._lost_since_s
        if since_s is None or self._clock.boottime() - since_s < LOST_S:
            return None
        return rules.lost(self._watch.latest())

    def lost(self) -> str | None:
        """Look at the GPUs now and return which one is gone, or None."""
        return rules.lost(self._watch.fresh(timeout_s=LOOK_S))

    def _is_shared(self) -> bool:
        return self._options.sharing > 1

    def _look(self, sample: Sample) -> None:
        """Take a sample into account, in the watch's thread."""
        if rules.lost(sample) is None:
            self._lost_since_s = None
        elif self._lost_since_s is None:
            self._lost_since_s = sample.asked_s
        attempt = self._attempt
        if attempt is not None:
            attempt.saw(sample)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Left:
    """What to compare with after a task."""

    owner: str
    start: tuple[rules.Before, ...]
    peaks: tuple[rules.Peak, ...]
    ended_s: float


class _Attempt:
    """What the watch's thread sees of a running task."""

    def __init__(
        self, *, owner: str, start: tuple[rules.Before, ...], shared: bool, began_s: float
    ) -> None:
        self.began_s = began_s
        self._owner = owner
        self._start = start
        self._shared = shared
        self._lock = threading.Lock()
        self._peaks: tuple[rules.Peak, ...] = ()
        self._settled = rules.Settled()

    @property
    def steady_since_s(self) -> float | None:
        """Since when the memory of the task has not changed; None while it has none."""
        return self._settled.since_s if any(self._settled.memory) else None

    def saw(self, sample: Sample) -> None:
        with self._lock:
            if len(self._start) != len(sample.gpus):
                self._start = tuple(rules.before(gpu) for gpu in sample.gpus)
            peaks = self._peaks or tuple(rules.Peak() for _ in sample.gpus)
            self._peaks = tuple(
                rules.peak_after(peak, gpu, owner=self._owner, start=start, shared=self._shared)
                for peak, gpu, start in zip(peaks, sample.gpus, self._start, strict=True)
            )
            held = [
                rules.held_by(gpu, self._owner, start)
                for gpu, start in zip(sample.gpus, self._start, strict=True)
            ]
            self._settled = self._settled.looked(held, now_s=sample.asked_s)

    def left(self, ended_s: float) -> _Left | None:
        with self._lock:
            if not self._peaks:
                return None
            return _Left(owner=self._owner, start=self._start, peaks=self._peaks, ended_s=ended_s)

    def peak_mib(self) -> int | None:
        with self._lock:
            known = [peak.memory_mib for peak in self._peaks if peak.memory_mib is not None]
        return max(known) if known else None


class Turn:
    """The right to start a task on a GPU that several workers of this machine share.

    It is a lock on a file of this machine: it goes on by itself when its holder dies.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @property
    def is_mine(self) -> bool:
        """Tell whether this worker has it."""
        return self._descriptor is not None

    def take(self) -> bool:
        """Take it if nobody else has it; a machine where no file can be made has no turns."""
        if self._descriptor is not None:
            return True
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            os.close(descriptor)
            return True
        self._descriptor = descriptor
        return True

    def pass_on(self) -> None:
        """Let the next one start."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
