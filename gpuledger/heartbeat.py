"""The only module that writes and reads liveness files, and judges by them who is dead.

A worker rewrites one small record of fixed size in place, without any lock. A reader opens the
file by its path each time (that is when NFS revalidates) and measures with its own clock how
long the bytes have not changed; no two machines' clocks are ever compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from gpuledger.clock import Clock
from gpuledger.modes import open_file
from gpuledger.revalidation import revalidate
from gpuledger.views import GpuView

RECORD_BYTES = 4096
TICK_BYTES = 16
"""At the end of the record: what changes when nothing else does."""

MAGIC = b"gpuledger-beat-1 "
READS_UNTIL_DEAD = 3

IDLE_BEATS = 4
"""A worker that runs nothing gives every fourth sign of life: nothing is lost with it."""

SILENT_S = 25.0
"""Who gave no sign of life for so long is called silent: longer than idle workers usually pause."""

SOONEST_S = 0.25
"""Shortest time between two beats: a worker of many short tasks shows those of this moment."""

MISSING = b""
"""What a reader gets for a file that is not there although its folder can be read."""


def is_silent(age_s: float | None) -> bool:
    """Tell whether a last sign of life is so old that its worker may be dead; None: not known."""
    return age_s is not None and age_s > SILENT_S


class Verdict(Enum):
    """What a reader may conclude."""

    ALIVE = "alive"
    UNKNOWN = "unknown"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """One sign of life.

    Attributes:
        nonce: The worker's, new for each process.
        seq: Counts up with every beat, so that no two are equal.
        task: What it runs, or None.
        number: Number of that attempt, or None.
        elapsed_s: How long that attempt runs, by the worker's clock.
        step: Last reported `step`, or None.
        total: Last reported `total`, or None.
        metrics: Last reported other values; left out when they do not fit.
        gpus: As the worker last saw them; left out when they do not fit.
        note: Anything unusual in a few words, or None.
    """

    nonce: str
    name: str
    host: str
    machine: str
    pid: int
    pid_start: int
    seq: int
    task: str | None = None
    number: int | None = None
    elapsed_s: float | None = None
    step: float | None = None
    total: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    gpus: tuple[GpuView, ...] = ()
    note: str | None = None


NAMES = tuple(each.name for each in fields(Beat))


def encode(beat: Beat) -> bytes:
    """Return the record of a beat, always `RECORD_BYTES` long; details that do not fit are cut."""
    for cut in (beat, replace(beat, metrics={}), replace(beat, metrics={}, gpus=())):
        values = {name: getattr(cut, name) for name in NAMES}  # asdict() copies all of it, slowly
        values["gpus"] = [asdict(gpu) for gpu in cut.gpus]
        payload = json.dumps(values).encode()
        record = MAGIC + b"%08x %06d " % (zlib.crc32(payload), len(payload)) + payload
        if len(record) <= RECORD_BYTES - TICK_BYTES:
            return record.ljust(RECORD_BYTES)
    raise ValueError(f"the names of worker {beat.nonce} do not fit into {RECORD_BYTES} bytes")


def decode(raw: bytes) -> Beat | None:
    """Return the beat of a record; None when it is torn, cut or not one at all."""
    header = len(MAGIC) + 16
    if not raw.startswith(MAGIC) or len(raw) != RECORD_BYTES:
        return None
    try:
        checksum, length = raw[len(MAGIC) : header].split()
        payload = raw[header : header + int(length)]
        if zlib.crc32(payload) != int(checksum, 16):
            return None
        values = json.loads(payload)
        gpus = tuple(GpuView(**gpu) for gpu in values.pop("gpus"))
        return Beat(**values, gpus=gpus)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def idle_pace_s(*, heartbeat_s: float, lease_s: float) -> float:
    """Return the seconds between two signs of life of a worker that runs nothing.

    Never so long that a reader would not get `READS_UNTIL_DEAD` readings well within a lease.
    """
    return max(heartbeat_s, min(IDLE_BEATS * heartbeat_s, lease_s / READS_UNTIL_DEAD))


def shows_idle(raw: bytes | None) -> bool:
    """Tell whether the record is that of a worker that ran nothing; cheaper than `decode`."""
    return raw is not None and b'"task": null' in raw


def beat_path(folder: Path, name: str, nonce: str) -> Path:
    """Return the path of a worker's file; a successor of the same name has another one."""
    safe = "".join(char if char.isalnum() or char in "._-#:" else "_" for char in name)
    return folder / "workers" / f"{safe}.{nonce[:8]}"


class HeartbeatFile:
    """A worker's own file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, beat: Beat) -> None:
        """Rewrite the record in place; raise OSError when it did not reach the file system.

        Closing flushes it to the server on NFS, and reports what went wrong there.
        """
        descriptor = open_file(self.path, os.O_WRONLY)
        try:
            if os.pwrite(descriptor, encode(beat), 0) != RECORD_BYTES:
                raise OSError("the file system took only a part of the record")
        finally:
            os.close(descriptor)

    def tick(self, seq: int) -> None:
        """Give a sign of life that repeats the last one, for a small part of the price.

        Raises:
            FileNotFoundError: Somebody removed the file: write a whole record.
            OSError: It did not reach the file system.
        """
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, b"%*d" % (TICK_BYTES, seq), RECORD_BYTES - TICK_BYTES)
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the file at a clean end."""
        with contextlib.suppress(OSError):
            self.path.unlink()


def read_raw(path: Path) -> bytes | None:
    """Return the file's bytes, `MISSING` when it is not there, None when that is not known."""
    try:
        revalidate(path.parent)
    except OSError:
        return None
    return read_known(path)


def read_known(path: Path) -> bytes | None:
    """Return the same as `read_raw` where the folder has just been revalidated."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return MISSING
    except OSError:
        return None
    try:
        return os.pread(descriptor, RECORD_BYTES, 0)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def written_at(path: Path) -> float | None:
    """Return when the file was written last, by the file server's clock; None when unknown."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return os.fstat(descriptor).st_mtime
    except OSError:
        return None
    finally:
        os.close(descriptor)


def changed_at(folder: Path) -> int | None:
    """Return when a file came into a folder, or left it, in ns of the server's clock, or None."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None


def read_sign_of_life(path: Path, *, now: float) -> tuple[Beat | None, float | None]:
    """Return the last beat and about how many seconds ago it came; for people, not for judging.

    Args:
        path: Of the worker's file.
        now: Seconds since the epoch on this machine; compared with the file server's times.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None, None
    try:
        written_at = os.fstat(descriptor).st_mtime
        return decode(os.pread(descriptor, RECORD_BYTES, 0)), max(now - written_at, 0.0)
    except OSError:
        return None, None
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class _Seen:
    raw: bytes
    first_s: float
    last_s: float
    reads: int


class Watcher:
    """Measures how long the files of others have not changed.

    A worker is dead after three readings that show the same bytes, the first and the last a
    whole lease apart. A reading that failed, or a pause in which nobody read (this machine
    slept, the server hung), starts the measurement anew.
    """

    def __init__(self, *, clock: Clock, lease_s: float) -> None:
        self._clock = clock
        self._lease_s = lease_s
        self._seen: dict[str, _Seen] = {}

    def now(self) -> float:
        """Return the time to pass to `observe`, asked before the file is read."""
        return self._clock.boottime()

    def observe(self, nonce: str, raw: bytes | None, *, asked_s: float) -> Verdict:
        """Take one reading into account.

        A file that stays missing counts as one that does not change: its owner would make it
        again with the next beat.

        Args:
            nonce: Of the worker.
            raw: As `read_raw` returned it; None means unreadable.
            asked_s: `now()` from before the reading.
        """
        if raw is None:
            self._seen.pop(nonce, None)
            return Verdict.UNKNOWN
        seen = self._seen.get(nonce)
        if seen is None or asked_s - seen.last_s > self._lease_s / 2:
            self._seen[nonce] = _Seen(raw=raw, first_s=self.now(), last_s=asked_s, reads=1)
            return Verdict.UNKNOWN
        if raw != seen.raw:
            self._seen[nonce] = _Seen(raw=raw, first_s=self.now(), last_s=asked_s, reads=1)
            return Verdict.ALIVE
        seen.last_s = asked_s
        seen.reads += 1
        if seen.reads >= READS_UNTIL_DEAD and asked_s - seen.first_s >= self._lease_s:
            return Verdict.DEAD
        return Verdict.UNKNOWN

    def forget_all_but(self, nonces: Collection[str]) -> None:
        """Forget workers that are not among the live any more."""
        self._seen = {nonce: seen for nonce, seen in self._seen.items() if nonce in nonces}


class Pacemaker:
    """A thread that gives a sign of life at a steady pace, and never dies of an error."""

    def __init__(
        self,
        beat: Callable[[], None],
        *,
        interval_s: Callable[[], float],
        clock: Clock,
        on_renewed: Callable[[float], None],
    ) -> None:
        """Prepare the thread.

        Args:
            beat: Writes one; OSError means that it did not reach the file system.
            interval_s: Returns the seconds until the next one.
            clock: This machine's.
            on_renewed: Called after each that did, with the time from before it was written.
        """
        self._beat = beat
        self._interval_s = interval_s
        self._clock = clock
        self._on_renewed = on_renewed
        self._asleep = threading.Lock()  # to wait for one costs half as much as for an Event
        self._asleep.acquire()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="pacemaker", daemon=True)

    def start(self) -> None:
        """Begin, with a first beat at once."""
        self._thread.start()

    def beat_soon(self) -> None:
        """Let the next beat come now, or `SOONEST_S` after the last; returns at once."""
        with contextlib.suppress(RuntimeError):  # it was woken already
            self._asleep.release()

    def stop(self) -> None:
        """End the thread; a beat that hangs in the kernel is not waited for."""
        self._stopping.set()
        self.beat_soon()
        self._thread.join(timeout=2.0)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            asked_s = self._clock.boottime()
            with contextlib.suppress(OSError):
                self._beat()
                self._on_renewed(asked_s)
            if self._asleep.acquire(timeout=random.uniform(0.9, 1.0) * self._interval_s()):
                self._stopping.wait(asked_s + SOONEST_S - self._clock.boottime())
                self._asleep.acquire(blocking=False)  # whoever woke it meanwhile gets the same beat
