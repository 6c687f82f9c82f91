"""A worker's signs of life: its liveness file, its guard, and whether its lease still holds.

The pacemaker thread writes the file every few seconds; each write that reached the file system
is a renewal. What the file says is one immutable value that the main thread replaces.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gpuledger.clock import Clock
from gpuledger.heartbeat import Beat, HeartbeatFile, Pacemaker, beat_path, idle_pace_s
from gpuledger.model import Claim, WorkerIdentity
from gpuledger.process import CannotStart, Guard
from gpuledger.reports import read_last
from gpuledger.running_task import RunningTask
from gpuledger.views import GpuView

FENCE = 0.6
"""Share of the lease without a renewal after which the task must not go on unasked."""

WHOLE_EVERY = 20
"""Beats after which an idle worker writes the whole record again: somebody may have damaged it."""

GUARD_FENCE = 0.7
"""The same for the guard, later: it acts when the worker itself is stopped and cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """What a worker does now, as the others shall see it."""

    task: str | None = None
    number: int | None = None
    since_s: float = 0.0
    report: Path | None = None
    note: str | None = None


class Pulse:
    """The signs of life of one registered worker, from `start` to `stop`."""

    def __init__(
        self,
        folder: Path,
        worker: WorkerIdentity,
        *,
        lease_s: float,
        heartbeat_s: float,
        clock: Clock,
        sample_gpus: Callable[[], tuple[GpuView, ...]],
    ) -> None:
        self._worker = worker
        self._lease_s = lease_s
        self._clock = clock
        self._file = HeartbeatFile(beat_path(folder, worker.name, worker.nonce))
        self._doing = Doing()
        self._seq = 0
        self._written: tuple[Doing, tuple[GpuView, ...]] | None = None
        self._last_s = clock.boottime()
        self._lapsed = False
        idle_s = idle_pace_s(heartbeat_s=heartbeat_s, lease_s=lease_s)

        def interval_s() -> float:
            return heartbeat_s if self._doing.task else idle_s

        self._sampler = _Sampler(sample_gpus, interval_s=interval_s) if worker.gpus else None
        self._task: RunningTask | None = None
        self._guarding = threading.Lock()
        self._guard_rests = False
        self._guard = Guard.start(worker.nonce, fence_s=GUARD_FENCE * lease_s)
        self._pacemaker = Pacemaker(
            self._beat,
            interval_s=interval_s,
            clock=clock,
            on_renewed=self._renewed,
        )
        try:
            self._pacemaker.start()
        except RuntimeError as error:  # "can't start new thread"
            self._guard.close()
            raise CannotStart(
                f"no room for a worker: {error}", exit_code=126, machine_at_fault=True
            ) from error

    def show(self, claim: Claim | None, report: Path | None = None) -> None:
        """Tell the others what this worker runs now; None means nothing.

        Raises:
            CannotStart: There is no guard, and there cannot be one now: the task must not run.
        """
        if claim is None:
            self._doing = Doing()
            self.covers(None)
        else:
            self._doing = Doing(
                task=claim.task,
                number=claim.number,
                since_s=self._clock.boottime(),
                report=report,
            )
            with self._guarding:
                if self._guard_rests:
                    self._tell_guard()  # before anything of the task runs
        self._pacemaker.beat_soon()

    def covers(self, task: RunningTask | None) -> None:
        """Let the guard know the running task's processes, or that there are none."""
        with self._guarding:
            self._task = task
            self._guard.covers(task)

    def note(self, text: str | None) -> None:
        """Show a few words beside the worker in `status`."""
        if text == self._doing.note:
            return
        self._doing = replace(self._doing, note=text)
        self._pacemaker.beat_soon()

    def is_late(self) -> bool:
        """Tell whether the last renewal is so old that others may soon take the task."""
        return self._clock.boottime() - self._last_s > FENCE * self._lease_s

    def lapsed(self) -> bool:
        """Tell whether there was such a gap since `trust_again`: the lease may be gone."""
        if self._guard.froze():
            self._lapsed = True
        return self._lapsed or self.is_late()

    def trust_again(self) -> None:
        """The ledger said that the lease is still ours."""
        self._lapsed = False
        with self._guarding, suppress(CannotStart):  # the next beat tries again
            self._tell_guard()

    def stop(self) -> None:
        """End the thread and the guard, and remove the file."""
        self._pacemaker.stop()
        if self._sampler is not None:
            self._sampler.stop()
        self._guard.close()
        self._file.remove()

    def _beat(self) -> None:
        doing = self._doing
        gpus = self._sampler.latest if self._sampler else ()
        self._seq += 1
        is_known = self._written == (doing, gpus) and self._seq % WHOLE_EVERY
        if doing.task is None and is_known:
            with suppress(FileNotFoundError):
                self._file.tick(self._seq)
                return
        self._written = None
        report = read_last(doing.report) if doing.report is not None else None
        now_s = self._clock.boottime()
        self._file.write(
            Beat(
                nonce=self._worker.nonce,
                name=self._worker.name,
                host=self._worker.host,
                machine=self._worker.machine,
                pid=self._worker.pid,
                pid_start=self._worker.pid_start,
                seq=self._seq,
                task=doing.task,
                number=doing.number,
                elapsed_s=now_s - doing.since_s if doing.task else None,
                step=report.step if report else None,
                total=report.total if report else None,
                metrics=dict(report.metrics) if report else {},
                gpus=gpus,
                note=doing.note,
            )
        )
        self._written = (doing, gpus)

    def _renewed(self, at_s: float) -> None:
        """The file took the beat whose writing began at `at_s`."""
        if at_s - self._last_s > FENCE * self._lease_s:
            self._lapsed = True
        self._last_s = at_s
        with self._guarding, suppress(CannotStart):  # the next beat tries again
            self._tell_guard()

    def _tell_guard(self) -> None:
        """Say that the lease was renewed or, once, that nothing runs.

        Raises:
            CannotStart: Somebody killed the guard, and there cannot be another now.
        """
        rests = self._doing.task is None
        if rests and self._guard_rests:
            return
        self._guard_rests = False
        # After a rest, too: the others count from the last sign of life, not from the claim.
        if not (self._guard.rests() if rests else self._guard.renewed(self._last_s)):
            # Somebody killed it: the task must not be without one.
            self._guard.close()
            self._guard = Guard.start(self._worker.nonce, fence_s=GUARD_FENCE * self._lease_s)
            self._guard.covers(self._task)
            return
        self._guard_rests = rests


class _Sampler:
    """Asks NVML in a thread of its own: a driver that hangs must not stop the heartbeat."""

    def __init__(
        self, sample: Callable[[], tuple[GpuView, ...]], *, interval_s: Callable[[], float]
    ) -> None:
        self.latest: tuple[GpuView, ...] = ()
        self._sample = sample
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="gpu-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=1.0)

    def _loop(self) -> None:
        while True:
            self.latest = self._sample()
            if self._stopping.wait(self._interval_s()):
                return
