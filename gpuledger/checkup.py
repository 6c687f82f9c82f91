"""Examines one host for `doctor`: its mount, its locks, its disk, its GPUs.

Everything is tried in a folder of its own, made beside the ledger and removed at the end; the
ledger itself is not touched.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import platform
import shutil
import sqlite3
import stat
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpuledger import __version__, mounts
from gpuledger.backups import sync_folder
from gpuledger.clock import Clock
from gpuledger.errors import LedgerError
from gpuledger.findings import Finding, bad, good, warning
from gpuledger.gpu import Gpu, list_gpus
from gpuledger.ledger import Ledger
from gpuledger.machine import host_name
from gpuledger.process import probe
from gpuledger.store import OLDEST_SQLITE, Store

ANSWER_S = 10.0
TRANSACTIONS = 100
LONGEST_TIMING_S = 5.0
SLOW_TRANSACTION_S = 0.25
LITTLE_SPACE_BYTES = 1 << 30
HARDLY_SPACE_BYTES = 64 << 20
FOLDER_PREFIX = ".gpuledger-doctor-"


def check_up(folder: Path, clock: Clock) -> list[Finding]:
    """Return what was found about this host and a folder; it stops early when that hangs."""
    if probe("answer", folder, timeout_s=ANSWER_S) != "here":
        return [
            bad(
                "folder",
                f"{folder} cannot be looked into, or did not answer for {ANSWER_S:g} s",
                "look at the mount (mount, df, the file server), then try again",
            )
        ]
    found = [*check_mount(mounts.mount_of(folder)), *_check_folder(folder), *_check_space(folder)]
    try:
        with scratch_folder(folder) as scratch:
            found += [
                _check_lock("flock", scratch, lambda fd: fcntl.flock(fd, fcntl.LOCK_EX)),
                _check_lock("fcntl", scratch, lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX)),
                _check_names(scratch),
                _check_sync(scratch),
                _check_transactions(scratch, clock),
            ]
    except OSError as error:
        found.append(
            bad("write", f"nothing can be written in {folder}: {error.strerror}", "mend that first")
        )
    return [*found, *_check_gpus(), *_check_versions(), _host_line()]


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Make a folder to try things in, and remove it."""
    scratch = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=folder))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_mount(mount: mounts.Mount) -> list[Finding]:
    """Return what is known about the mount without trying it."""
    judgement = mounts.judge(mount)
    where = f"{mount.kind} {mount.source} at {mount.point}"
    found = [bad("mount", *problem) for problem in judgement.problems]
    found += [warning("mount", *known) for known in judgement.warnings]
    if found:
        return [good("file system", where), *found]
    if not judgement.network:
        return [good("file system", f"{where}: a disk of this host")]
    return [good("file system", f"{where}: locks reach the other hosts, as far as is known")]


def _check_folder(folder: Path) -> list[Finding]:
    mode = folder.stat().st_mode
    if mode & stat.S_ISVTX:
        return [
            warning(
                "folder",
                f"{folder} is sticky: members of a group could not use each other's files",
                "keep a shared ledger in a folder without the sticky bit (chmod -t)",
            )
        ]
    shared = bool(mode & stat.S_IWGRP)
    mask = os.umask(0o077)
    os.umask(mask)
    said = f"mode {stat.S_IMODE(mode):o}, umask {mask:03o}"
    if shared and not mode & stat.S_ISGID:
        return [
            warning("folder", f"{said}: new files do not get its group", "chmod g+s the folder")
        ]
    if shared and mask & 0o070:
        return [
            warning(
                "folder",
                f"{said}: other members cannot use all of what your tasks write there",
                "umask 007 (or 002) before you start workers",
            )
        ]
    return [good("folder", said)]


def _check_space(folder: Path) -> list[Finding]:
    space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize
    says = f"{free / (1 << 30):,.1f} GiB free"
    if free < HARDLY_SPACE_BYTES:
        return [bad("space", says, "free some space: the ledger and its logs need it")]
    if free < LITTLE_SPACE_BYTES:
        return [warning("space", says, "logs, checkpoints and backups need room")]
    if space.f_files and space.f_favail < 1000:
        return [warning("space", f"{says}, but only {space.f_favail} files", "remove some files")]
    return [good("space", says)]


def _check_lock(kind: str, scratch: Path, take: Callable[[int], object]) -> Finding:
    """Hold a lock here and let another process try it."""
    path = scratch / f"{kind}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        take(descriptor)
        answer = probe(kind, path, timeout_s=ANSWER_S)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        return bad(kind, f"no such locks here ({name})", "mount with locks, or use another disk")
    finally:
        os.close(descriptor)
    if answer == "refused":
        return good(kind, "excludes another process of this host")
    if answer == "got":
        return bad(kind, "two processes of one host got it at once", "use another file system")
    return bad(kind, f"another process could not try it: {answer or 'no answer'}", "see the mount")


def _check_names(scratch: Path) -> Finding:
    """Exclusive creation and renaming, which the ledger and its backups rest on."""
    first, second = scratch / "first", scratch / "second"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    os.close(os.open(first, flags, 0o600))
    try:
        os.close(os.open(first, flags, 0o600))
    except FileExistsError:
        pass
    else:
        return bad("names", "O_EXCL creates a file twice", "use another file system")
    second.write_text("second", encoding="ascii")
    second.rename(first)
    if first.read_text(encoding="ascii") != "second" or second.exists():
        return bad("names", "a rename does not replace", "use another file system")
    return good("names", "exclusive creation and renaming work")


def _check_sync(scratch: Path) -> Finding:
    path = scratch / "synced"
    try:
        with path.open("wb") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(scratch)
    except OSError as error:
        return bad("fsync", f"refused ({error.strerror})", "use another file system")
    return good("fsync", "of files and folders works")


def _check_transactions(scratch: Path, clock: Clock) -> Finding:
    """Time real transactions on a ledger of its own."""
    try:
        ledger = Ledger.create(scratch / "trial")
        times = _times(ledger.store, clock)
    except LedgerError as error:
        return bad("transaction", error.problem, error.hint)
    p50, p99 = statistics.median(times), times[math.ceil(0.99 * len(times)) - 1]
    says = f"p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms; about {1 / p50:,.0f} a second"
    if p50 > SLOW_TRANSACTION_S:
        return warning("transaction", says, "a slow file server: keep tasks long, workers few")
    return good("transaction", says)


def _times(store: Store, clock: Clock) -> list[float]:
    """Return how long transactions took, shortest first."""
    until_s = clock.boottime() + LONGEST_TIMING_S
    times = [_timed(store, clock)]
    while len(times) < TRANSACTIONS and clock.boottime() < until_s:
        times.append(_timed(store, clock))
    return sorted(times)


def _timed(store: Store, clock: Clock) -> float:
    began_s = clock.boottime()
    store.write(lambda db: db.execute("UPDATE ledger SET lease_s = lease_s"), operation="doctor")
    return clock.boottime() - began_s


def _check_gpus() -> list[Finding]:
    report = list_gpus()
    if report.problem is not None and not Path("/proc/driver/nvidia").exists():
        return [good("GPUs", "none on this host: 'gpuledger work --cpu'")]
    if report.problem is not None:
        return [bad("GPUs", f"none to be used: {report.problem}", "nvidia-smi, dmesg (Xid)")]
    return [_about(gpu) for whole in report.gpus for gpu in whole.instances or (whole,)]


def _about(gpu: Gpu) -> Finding:
    """Say what a GPU, or a MIG instance, is."""
    memory = f"{gpu.memory_total_mib / 1024:.0f} GiB" if gpu.memory_total_mib else "memory ?"
    if gpu.problem is not None:
        return bad(f"GPU {gpu.label}", gpu.problem, "nvidia-smi, dmesg (Xid)")
    known = [gpu.name or "?", memory]
    return good(
        f"GPU {gpu.label}", ", ".join([*known, *([gpu.uuid] if gpu.instance is not None else [])])
    )


def _check_versions() -> list[Finding]:
    says = (
        f"gpuledger {__version__}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, Linux {platform.release()}"
    )
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        needed = ".".join(map(str, OLDEST_SQLITE))
        return [bad("versions", says, f"SQLite {needed} is needed: use a newer Python")]
    return [good("versions", says)]


def _host_line() -> Finding:
    return good("host", f"{host_name()} (each host needs a name of its own)")
