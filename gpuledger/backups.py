"""Copies of the ledger that were found whole, for the day its file is damaged.

A copy is made under the ledger's lock onto this machine's own disk, checked there without the
lock, and only then put beside the ledger as `backups/<time>-<epoch>-<change>.db`. Workers do it
while they work: every ten minutes in which something changed, and never for more than a hundredth
of the time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gpuledger import schema
from gpuledger.clock import Clock
from gpuledger.diary import FOLDER as DIARIES
from gpuledger.errors import LedgerDamaged, LedgerError, LedgerUnreachable
from gpuledger.locks import try_lock
from gpuledger.modes import make_folder, open_file
from gpuledger.store import Store, connect

FOLDER = "backups"
LATEST = "latest.json"
DRAFT = ".part"
MAKING = "making.lock"

INTERVAL_S = 600.0
SHARE_OF_TIME = 0.01
LOOK_S = 60.0
KEPT = 10
HOURLY_KEPT = 24

SCRATCH = ".gpuledger-scratch-"
SCRATCH_LOCK = "lock"
COPY = "ledger.db"
YOUNG_S = 60.0
"""A scratch folder so young may be one that its maker has not locked yet."""

LOST_S = 3600.0
"""No copy takes so long: a draft that is older was left by somebody killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """One good copy.

    Attributes:
        path: Of the file.
        stamp: When it was made, as in `20261124T101500Z`, on its maker's clock.
        epoch: The ledger's epoch at that time: it counts recoveries.
        change: Number of the ledger's latest change in it.
        size_bytes: Of the file.
    """

    path: Path
    stamp: str
    epoch: int
    change: int
    size_bytes: int


def take(store: Store, *, clock: Clock) -> Backup:
    """Make a copy, check it, and remove what is older than is kept.

    Raises:
        LedgerDamaged: The copy is not whole, so the ledger is not.
        LedgerUnreachable: No room for it, here or beside the ledger.
    """
    folder = store.folder / FOLDER
    began_s = clock.boottime()
    try:
        make_folder(folder)
        with _scratch() as scratch:
            copy = scratch / COPY
            copy.touch(mode=0o600)
            counter = store.change_counter()  # before the copy: it may be newer, never older
            epoch, change = store.read(lambda db: _copy(db, copy))
            problem = examine(copy)
            if problem is not None:
                raise LedgerDamaged(store.path, problem)
            backup = _put(copy, folder, clock.now(), epoch, change)
        _note_latest(folder, backup.path.name, counter, took_s=clock.boottime() - began_s)
        prune(folder)
    except (OSError, _NoRoom) as error:
        why = f"{tempfile.gettempdir()} is full" if isinstance(error, _NoRoom) else error.strerror
        raise LedgerUnreachable(
            f"no backup of ledger {store.folder} could be made: {why or error}; "
            "the ledger itself is as it was",
            hint="free some space there and in this machine's temporary folder (TMPDIR)",
        ) from error
    return backup


class _NoRoom(Exception):
    """This machine's temporary folder is full."""


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """Yield an empty folder of this machine, after removing those whose makers were killed."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as name:
        folder = Path(name)
        with try_lock(folder / SCRATCH_LOCK):  # held as long as its maker lives
            _remove_abandoned(folder.parent, before=folder.stat().st_mtime - YOUNG_S)
            yield folder


def _remove_abandoned(place: Path, *, before: float) -> None:
    """Remove this user's scratch folders that nobody locks; who makes one has a moment to.

    Only what is put into them: whoever kept something else there finds it again.
    """
    for path in place.glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                continue
            if status.st_mtime >= before:
                continue
            if (path / SCRATCH_LOCK).exists():
                with try_lock(path / SCRATCH_LOCK) as is_abandoned:
                    if not is_abandoned:
                        continue
                    for name in (COPY, f"{COPY}-journal", SCRATCH_LOCK):
                        (path / name).unlink(missing_ok=True)
            path.rmdir()


def examine(path: Path) -> str | None:
    """Return what is wrong with a copy of a ledger, or None when it is whole."""
    try:
        with closing(connect(path, vfs="vfs=unix")) as db:
            found = str(db.execute("PRAGMA integrity_check(1)").fetchone()[0])
            if found != "ok":
                return found
            if db.execute("SELECT 1 FROM ledger").fetchone() is None:
                return "it describes no ledger"
            return schema.unreadable(db)
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter by damage to the schema
        return str(error)


def existing(folder: Path) -> list[Backup]:
    """Return the backups below the ledger's folder, the newest first."""
    found = []
    for path in (folder / FOLDER).glob("*.db"):
        with contextlib.suppress(ValueError, OSError):
            stamp, epoch, change = path.stem.split("-")
            found.append(
                Backup(
                    path=path,
                    stamp=stamp,
                    epoch=int(epoch),
                    change=int(change),
                    size_bytes=path.stat().st_size,
                )
            )
    return sorted(found, key=lambda backup: (backup.epoch, backup.change), reverse=True)


def prune(folder: Path) -> None:
    """Keep the latest ones and, of a day, one an hour, and nothing that only the others needed.

    Args:
        folder: Of the backups, below the ledger's.
    """
    found = existing(folder.parent)
    if not found:
        return
    hourly = {backup.stamp[:11]: backup for backup in found}  # the first of each hour
    kept = {*found[:KEPT], *list(hourly.values())[:HOURLY_KEPT]}
    for backup in found:
        if backup not in kept:
            backup.path.unlink(missing_ok=True)
    times = [backup.path.stat().st_mtime for backup in kept]
    _remove_older(folder.glob(f"*{DRAFT}"), max(times) - LOST_S)
    _remove_older((folder.parent / DIARIES).glob("*.jsonl"), min(times))


def _remove_older(paths: Iterable[Path], before: float) -> None:
    """Remove the files written before a time, by the file server's clock as theirs is."""
    for path in paths:
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < before:
                path.unlink()


class Keeper:
    """Sees to it, from within a worker, that there is a recent backup.

    Args:
        store: Of the ledger.
        now_there: The file server's time in seconds, as of this worker's last sign of life;
            None when not known.
        say: Prints one line.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        now_there: Callable[[], float | None],
        say: Callable[[str], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._now_there = now_there
        self._say = say
        self._looked_s = clock.boottime()
        self._rests_until_s = self._looked_s
        self._thread: threading.Thread | None = None
        self._told: str | None = None

    def see_to_it(self) -> None:
        """Start a backup in a thread of its own when one is due; cheap, call it often."""
        now_s = self._clock.boottime()
        if now_s - self._looked_s < LOOK_S or (self._thread and self._thread.is_alive()):
            return
        self._looked_s = now_s
        if self._is_due():
            self._thread = threading.Thread(target=self._make, name="backup", daemon=True)
            self._thread.start()

    def _is_due(self) -> bool:
        now_there = self._now_there()
        if now_there is None or self._clock.boottime() < self._rests_until_s:
            return False
        latest = _latest(self._store.folder / FOLDER)
        if latest is None:
            return True
        written_at, took_s, counter = latest
        pause_s = max(INTERVAL_S, took_s / SHARE_OF_TIME)
        return now_there - written_at >= pause_s and self._store.change_counter() != counter

    def _make(self) -> None:
        began_s = self._clock.boottime()
        folder = self._store.folder / FOLDER
        try:
            make_folder(folder)
            with try_lock(folder / MAKING) as mine:
                if mine and self._is_due():
                    take(self._store, clock=self._clock)
            self._told = None
        except (LedgerError, OSError) as error:
            self._rest(took_s=self._clock.boottime() - began_s)
            if str(error) != self._told:
                self._say(str(error))
                self._told = str(error)

    def _rest(self, *, took_s: float) -> None:
        """After a failure nobody tries again at once: that would cost more than its share."""
        self._rests_until_s = self._clock.boottime() + max(INTERVAL_S, took_s / SHARE_OF_TIME)
        folder = self._store.folder / FOLDER
        latest = _latest(folder)
        with contextlib.suppress(OSError):
            _note_latest(folder, None, latest[2] if latest else None, took_s=took_s)


def _copy(db: sqlite3.Connection, path: Path) -> tuple[int, int]:
    row = db.execute("SELECT epoch, seq FROM ledger").fetchone()
    with closing(connect(path, vfs="vfs=unix")) as copy:
        try:
            db.backup(copy)
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_FULL:
                raise
            raise _NoRoom from error  # only the copy is written
    return int(row["epoch"]), int(row["seq"])


def _put(copy: Path, folder: Path, now: float, epoch: int, change: int) -> Backup:
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    path = folder / f"{stamp}-{epoch}-{change}.db"
    draft = path.with_suffix(f".{os.getpid()}{DRAFT}")
    try:
        with copy.open("rb") as source, draft.open("wb") as target:
            os.fchmod(target.fileno(), folder.stat().st_mode & 0o660)
            shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        draft.rename(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    return Backup(
        path=path, stamp=stamp, epoch=epoch, change=change, size_bytes=path.stat().st_size
    )


def sync_folder(folder: Path) -> None:
    """Make renames within the folder outlive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _note_latest(folder: Path, name: str | None, counter: int | None, *, took_s: float) -> None:
    """Rewrite in place: others look at this file, and a replaced one is seen late on NFS.

    A try that failed is noted, too (without a name): it costs time as well.
    """
    text = json.dumps({"name": name, "took_s": took_s, "counter": counter})
    descriptor = open_file(folder / LATEST, os.O_WRONLY)
    try:
        os.pwrite(descriptor, text.encode().ljust(256), 0)
    finally:
        os.close(descriptor)


def _latest(folder: Path) -> tuple[float, float, int] | None:
    """Return when the latest backup was noted (the server's time), how long it took, its state."""
    try:
        descriptor = os.open(folder / LATEST, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        note = json.loads(os.pread(descriptor, 256, 0))
        return os.fstat(descriptor).st_mtime, float(note["took_s"]), int(note["counter"] or 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    finally:
        os.close(descriptor)


def good_ones(folder: Path) -> Iterator[Backup]:
    """Yield the backups that are whole, the newest first."""
    for backup in existing(folder):
        if examine(backup.path) is None:
            yield backup
