"""Watches a worker's GPUs in a thread of its own: what they do, who holds their memory.

The newest sample is one immutable value. A driver that hangs stops the thread and nothing else:
the sample grows old, and whoever asks sees that.
"""

from __future__ import annotations

import contextlib
import pwd
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuledger.clock import Clock
from gpuledger.gpu import Driver, Gpu, GpuProcess, GpuReport
from gpuledger.gpu_choice import Chosen
from gpuledger.views import GpuView

SAMPLE_S = 1.0
STALE_S = 15.0
"""A sample older than this says nothing about now."""

MARK = b"GPULEDGER_MARK="
SHARED_SERVER = "nvidia-cuda-mps"
"""The daemon that lets others share a GPU: it is on the list, but nobody's work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that computes on a GPU.

    Attributes:
        pid: Its number, as the driver knows it.
        memory_mib: What it holds; None when the driver does not say.
        owner: Nonce of the worker whose task it belongs to; None when it is not known to be one.
        name: Of the program, or None (it is gone, or in another container).
        user: Who runs it, or None.
    """

    pid: int
    memory_mib: int | None = None
    owner: str | None = None
    name: str | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedGpu:
    """One GPU of the worker at one moment.

    Attributes:
        view: What `status` shows.
        holders: Who computes on it; None when that is not permitted, or not known.
        free_mib: Memory that a task could have; None when not known.
        service_mib: Memory of daemons that let others share the GPU, and are nobody's work.
        lost: Why it will not come back by itself, or None.
    """

    view: GpuView
    holders: tuple[Holder, ...] | None = None
    free_mib: int | None = None
    service_mib: int = 0
    lost: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """All GPUs of the worker; `asked_s` is the machine's clock before the driver was asked."""

    asked_s: float
    gpus: tuple[WatchedGpu, ...]


class GpuWatch:
    """Samples the GPUs of one worker from `start` to `stop`."""

    def __init__(
        self,
        chosen: Sequence[Chosen],
        *,
        clock: Clock,
        report: Callable[[], GpuReport] | None = None,
        interval_s: float = SAMPLE_S,
    ) -> None:
        """Prepare the thread.

        Args:
            chosen: The worker's GPUs.
            clock: This machine's.
            report: Asks the driver about these GPUs; by default one that is kept open.
            interval_s: Seconds between two samples.
        """
        self._chosen = tuple(chosen)
        self._clock = clock
        self._report = report or Driver(only=_indices(chosen)).report
        self._interval_s = interval_s
        self._sampled = threading.Condition()
        self._latest: Sample | None = None
        self._listener: Callable[[Sample], None] | None = None
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="gpu-watch", daemon=True)

    def start(self, listener: Callable[[Sample], None] | None = None) -> None:
        """Begin; `listener` is called in the watch's thread with every sample."""
        self._listener = listener
        self._thread.start()

    def stop(self) -> None:
        """End the thread; one that hangs in the driver is not waited for."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=1.0)

    def latest(self) -> Sample | None:
        """Return the newest sample; None when there is none, or only one that is too old."""
        sample = self._latest
        if sample is None or self._clock.boottime() - sample.asked_s > STALE_S:
            return None
        return sample

    def fresh(self, *, timeout_s: float) -> Sample | None:
        """Return a sample that was begun after this call; None when none came in time."""
        now_s = self._clock.boottime()

        def is_fresh() -> bool:
            return self._latest is not None and self._latest.asked_s >= now_s

        self._wake.set()
        with self._sampled:
            return self._latest if self._sampled.wait_for(is_fresh, timeout_s) else None

    def views(self) -> tuple[GpuView, ...]:
        """Return the GPUs for `status`; what is not known now is None."""
        sample = self.latest()
        if sample is not None:
            return tuple(gpu.view for gpu in sample.gpus)
        silent = None if self._latest is None else "the driver does not answer"
        return tuple(
            GpuView(index=one.label, name=one.model, problem=silent) for one in self._chosen
        )

    def _loop(self) -> None:
        while not self._stopping:
            self._wake.clear()
            asked_s = self._clock.boottime()
            report = self._report()
            sample = Sample(asked_s=asked_s, gpus=tuple(watched(c, report) for c in self._chosen))
            if self._listener is not None:
                self._listener(sample)
            with self._sampled:
                self._latest = sample
                self._sampled.notify_all()
            self._wake.wait(self._interval_s)


def _indices(chosen: Sequence[Chosen]) -> frozenset[int]:
    """Return the places of GPUs: another one that moves to such a place is not taken for it."""
    places = (one.label.partition(".")[0] for one in chosen)
    return frozenset(int(place) for place in places if place.isdecimal())


def watched(chosen: Chosen, report: GpuReport) -> WatchedGpu:
    """Return what a report says about one of the worker's GPUs."""
    gpu = report.find(chosen.uuid or chosen.visible)
    if gpu is None:
        return _not_found(chosen, report)
    view = GpuView(
        index=gpu.label,
        name=gpu.name,
        memory_total_mib=gpu.memory_total_mib,
        memory_used_mib=gpu.memory_used_mib,
        utilisation_percent=gpu.utilisation_percent,
        temperature_c=gpu.temperature_c,
        power_w=gpu.power_w,
        problem=gpu.problem,
    )
    holders = holders_of(gpu)
    services = [holder for holder in holders or () if is_service(holder)]
    return WatchedGpu(
        view=view,
        holders=None if holders is None else tuple(h for h in holders if not is_service(h)),
        free_mib=gpu.memory_free_mib,
        service_mib=sum(service.memory_mib or 0 for service in services),
        lost=(gpu.problem or "GPU is lost") if gpu.lost else None,
    )


def _not_found(chosen: Chosen, report: GpuReport) -> WatchedGpu:
    """It was there when the worker started: is it gone, or does the driver just not say?"""
    there = next((gpu for gpu in report.gpus if chosen.label.split(".")[0] == gpu.label), None)
    problem = report.problem or (there.problem if there is not None else None)
    lost = None
    if chosen.uuid and report.problem is None:
        if there is not None and there.lost:
            lost = there.problem or "GPU is lost"
        elif there is None:
            lost = problem = "the driver does not list it any more"
        elif there.problem is None:
            lost = problem = "the driver has another one in its place"
    return WatchedGpu(
        view=GpuView(index=chosen.label, name=chosen.model, problem=problem), lost=lost
    )


# --- who holds a GPU --------------------------------------------------------------------------


def holders_of(gpu: Gpu) -> tuple[Holder, ...] | None:
    """Return who computes on a GPU; None when that is not known."""
    if gpu.processes is None:
        return None
    return tuple(_holder(process) for process in gpu.processes)


def is_service(holder: Holder) -> bool:
    """Tell whether it is on the list only because others share the GPU through it."""
    return (holder.name or "").startswith(SHARED_SERVER)


def _holder(process: GpuProcess) -> Holder:
    place = Path("/proc") / str(process.pid)
    name = user = owner = None
    with contextlib.suppress(OSError):
        name = (place / "comm").read_text(encoding="utf-8", errors="replace").strip()
    with contextlib.suppress(OSError):
        user = _user(place.stat().st_uid)
    with contextlib.suppress(OSError):
        for entry in (place / "environ").read_bytes().split(b"\0"):
            if entry.startswith(MARK):
                owner = entry.removeprefix(MARK).split(b".")[0].decode(errors="replace")
    return Holder(pid=process.pid, memory_mib=process.memory_mib, owner=owner, name=name, user=user)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
