"""The only module that locks and opens the ledger's file.

Every access, readers too, is one hold of two independent kernel locks: `flock` on `ledger.lock`
and SQLite's own fcntl lock on `ledger.db` (taken once a transaction by the unix-excl VFS). On
NFS the second is what makes a fresh open read fresh pages; on GPFS it is the only one that
reaches other machines. The connection is opened after the first lock is taken and closed before
it is given back; nothing is kept between two transactions.

A COMMIT that raised may have happened (an error while the journal is zeroed leaves a durable
transaction). So each change writes its id into a ring of recent operations, and `Store.write`
looks it up before it says that nothing was changed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import quote

from gpuledger import schema
from gpuledger.clock import Clock, SystemClock
from gpuledger.errors import (
    LedgerBusy,
    LedgerDamaged,
    LedgerError,
    LedgerReplaced,
    LedgerTooNew,
    LedgerUnreachable,
    NoLedger,
    NotAllowed,
    Unavailable,
)
from gpuledger.locks import GUARDED_FILE, LOCK_FILE, TURN_FILE, OuterLock
from gpuledger.modes import open_file
from gpuledger.revalidation import revalidate

DB_FILE = GUARDED_FILE
JOURNAL_FILE = "ledger.db-journal"

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

OLDEST_SQLITE = (3, 37, 0)  # STRICT tables; RETURNING is older
OPERATIONS_KEPT = 4096

MISSING = "its file is missing"
CONDEMNED = "a check after a crash found it so"

HOLD_BUDGET_S = 15.0
"""Longest hold of a worker's transaction, its machine's sleep included. File servers give locks of
a silent machine to others after 30 to 90 s (nfsd's lease is 90 s): a process that was stopped while
it held them must not commit when it wakes up."""

JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
"""First bytes of a journal that is not rolled back yet: sqlite.org/fileformat2.html, 'The Rollback
Journal'. In PERSIST mode they are zeroed by COMMIT."""

CHANGE_COUNTER_OFFSET = 24  # sqlite.org/fileformat2.html, "File change counter"
COUNTER_WAIT_S = 0.5  # of a thread that watches a running task

# One transaction at a time in this process: closing any descriptor of the db drops every fcntl
# lock that the process holds on it.
_mutex = threading.Lock()


def _fresh_mutex_after_fork() -> None:
    global _mutex
    _mutex = threading.Lock()


os.register_at_fork(after_in_child=_fresh_mutex_after_fork)


def is_of_this_version(folder: Path) -> bool:
    """Tell whether a ledger has this version's tables: the first access brings an older one up.

    The number is read from the file's header (https://sqlite.org/fileformat.html), without a lock.
    """
    try:
        with (folder / DB_FILE).open("rb") as file:
            header = file.read(64)
    except OSError:
        return False
    return int.from_bytes(header[60:], "big", signed=True) == len(schema.MIGRATIONS)


class Unchanged(Exception):
    """Raised by the work of `Store.write` to say that it changed nothing; holds its answer.

    Without a COMMIT the change counter stays, and nobody who polls it is woken for nothing.
    """

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer


class Store:
    """The ledger's folder: `read` and `write` run a function inside one transaction.

    Attributes:
        folder: Absolute path of the ledger's folder.
        lock_timeout_s: How long to wait for the lock before `LedgerBusy`.
        vfs: How SQLite locks the file: with one fcntl lock a transaction.
        epoch: Counts the recoveries from a backup. A change by somebody who knows another one
            is refused; None means any is fine.
    """

    vfs = "vfs=unix-excl"

    def __init__(
        self,
        folder: Path,
        *,
        lock_timeout_s: float = 60.0,
        clock: Clock | None = None,
        migrations: tuple[schema.Migration, ...] = schema.MIGRATIONS,
    ) -> None:
        self.folder = folder
        self.path = folder / DB_FILE
        self.lock_timeout_s = lock_timeout_s
        self._clock: Clock = clock or SystemClock()
        self._migrations = migrations
        self.epoch: int | None = None
        self.lock = OuterLock(folder, self._clock)

    def create(self, *, shared: bool = False) -> None:
        """Make the folder, an empty ledger and its first journal; harmless when they exist.

        Args:
            shared: Let the folder's group read and write, not only its owner.
        """
        _require_sqlite()
        mode = 0o2770 if shared else 0o700
        with self._translated():
            if self._lost_its_file():
                raise LedgerDamaged(self.path, MISSING)
            for folder in (self.folder, self.folder / "workers", self.folder / "runs"):
                with contextlib.suppress(FileExistsError):
                    folder.mkdir(parents=True)
                    folder.chmod(mode)
            for name in (LOCK_FILE, TURN_FILE, DB_FILE):
                self._make_file(name)
        self.write(lambda db: None, operation="create", creating=True)

    def _make_file(self, name: str) -> None:
        """Make an empty file; its mode follows the folder, whatever the first user's umask."""
        os.close(open_file(self.folder / name, os.O_RDWR))

    def read(self, question: Work[T]) -> T:
        """Return `question(connection)`, asked inside one read transaction; changes nothing."""

        def ask(db: sqlite3.Connection) -> T:
            db.execute("PRAGMA query_only = ON")
            db.execute("BEGIN")
            self._require_version(db)
            return question(db)

        for _ in range(2):
            try:
                return self._with_connection(ask, operation="read")
            except _NeedsMigration:
                self.write(lambda db: None, operation="migrate", creating=True)
        raise AssertionError("a migrated ledger is of the known version")

    def write(
        self, work: Work[T], *, operation: str, creating: bool = False, long: bool = False
    ) -> T:
        """Return `work(connection)`, all of its changes or none.

        Args:
            work: Makes the changes. It may be called again when it is certain that the first
                call's changes were rolled back.
            operation: Name of the change, shown to those who wait for the lock.
            creating: Allow an empty file (it gets its tables).
            long: It may hold the lock for longer than `HOLD_BUDGET_S`: an operator's change.

        Raises:
            LedgerReplaced: The ledger was recovered from a backup; nothing was changed.
            LedgerBusy: The lock was not free in time; nothing was changed.
            LedgerUnreachable: The file system failed. The message says whether nothing was
                changed or that this is not known.
        """
        operation_id = secrets.token_hex(12)
        done: list[T] = []

        def change(db: sqlite3.Connection) -> T:
            _persist_journal(db, self.path)
            db.execute("BEGIN IMMEDIATE")
            self._migrate(db, creating=creating)
            self._require_epoch(db)
            if done and _is_recorded(db, operation_id):
                return done[0]
            try:
                done[:] = [work(db)]
            except Unchanged as unchanged:
                return cast("T", unchanged.answer)
            _record(db, operation_id)
            held_s = self._clock.boottime() - self._held_since_s
            if held_s > HOLD_BUDGET_S and not (long or creating):
                raise _HeldTooLong(held_s)
            try:
                db.execute("COMMIT")
            except sqlite3.Error as error:
                raise _CommitRaised(error) from error
            return done[0]

        try:
            return self._with_connection(change, operation=operation)
        except _CommitRaised as raised:
            return self._after_commit_raised(change, operation, raised)
        except _HeldTooLong as held:
            raise LedgerUnreachable(
                f"'{operation}' on ledger {self.folder} took {held.held_s:.0f} s, longer than file "
                "servers keep a lock for a silent machine; nothing was changed",
                hint="was this machine asleep, or is the file system very slow? It is tried again",
            ) from held

    def _after_commit_raised(self, change: Work[T], operation: str, raised: _CommitRaised) -> T:
        """Find out by the operation's id what became of it; do it again only if it is not there."""
        try:
            return self._with_connection(change, operation=operation)
        except (LedgerError, _CommitRaised, _HeldTooLong) as error:
            first = self._explained(raised.error)
            raise LedgerUnreachable(
                f"{first.problem.removesuffix('; nothing was changed')}; "
                f"it is not known whether '{operation}' was recorded",
                hint=first.hint,
            ) from error

    def change_counter(self) -> int | None:
        """Return SQLite's counter of changes without any lock; None when it cannot be read.

        It is a hint that something changed, nothing more. A fresh descriptor is used each time,
        since NFS revalidates at open. Another thread in the ledger is not waited for for long: it
        may be waiting itself, and closing a descriptor now would release its locks.
        """
        if not _mutex.acquire(timeout=COUNTER_WAIT_S):
            return None
        try:
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return None
            try:
                raw = os.pread(descriptor, 4, CHANGE_COUNTER_OFFSET)
            except OSError:
                return None
            finally:
                os.close(descriptor)
        finally:
            _mutex.release()
        return int.from_bytes(raw, "big") if len(raw) == 4 else None

    def nudge(self) -> None:
        """Tell busy workers, who look at this file with each heartbeat, to read the ledger."""
        with self._translated():
            descriptor = open_file(self.folder / "nudge", os.O_WRONLY)
            try:
                os.pwrite(descriptor, secrets.token_hex(16).encode(), 0)
            finally:
                os.close(descriptor)

    def last_nudge(self) -> bytes:
        """Return what `nudge` wrote last; empty when it never did, or cannot be read now."""
        try:
            descriptor = os.open(self.folder / "nudge", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            return os.pread(descriptor, 32, 0)
        except OSError:
            return b""
        finally:
            os.close(descriptor)

    # --- one hold of both locks ---------------------------------------------------------------

    def _with_connection(self, work: Work[T], *, operation: str) -> T:
        _require_sqlite()
        deadline = self._clock.boottime() + self.lock_timeout_s
        if not _mutex.acquire(timeout=self.lock_timeout_s):
            raise LedgerBusy(self.path, waited_s=self.lock_timeout_s, holder="this very process")
        try:
            with self._translated():
                return self._until(deadline, work, operation)
        finally:
            _mutex.release()

    def _until(self, deadline: float, work: Work[T], operation: str) -> T:
        """Run `work` once both locks are free; retry while only others stand in the way."""
        began_s = self._clock.boottime()
        stale = 0
        while True:
            try:
                with self.lock.hold(
                    operation=operation, timeout_s=self.lock_timeout_s, deadline_s=deadline
                ):
                    self._held_since_s = self._clock.boottime()
                    return self._transaction(work)
            except sqlite3.OperationalError as error:
                # The outer lock is ours, so this is a foreign program on the file, a file system
                # on which flock stays on one machine (GPFS), or one without fcntl locks.
                if not _is_busy(error):
                    raise
                if self._clock.boottime() >= deadline:
                    raise LedgerBusy(
                        self.path,
                        waited_s=self.lock_timeout_s,
                        holder="a program that opened the file itself (a sqlite3 shell?), or a "
                        "file system without working locks",
                    ) from error
            except OSError as error:
                stale += 1
                if error.errno != errno.ESTALE or stale > 10:
                    raise
            self.lock.pause(self._clock.boottime() - began_s)

    def _transaction(self, work: Work[T]) -> T:
        crashed = self._was_left_in_the_middle()
        with closing(connect(self.path, vfs=self.vfs)) as db:
            if crashed:
                _require_whole(db, self.path)
            try:
                return work(db)
            finally:
                if db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):  # closing rolls back as well
                        db.execute("ROLLBACK")

    def _was_left_in_the_middle(self) -> bool:
        """Tell whether a journal waits to be rolled back: somebody died in a transaction."""
        try:
            journal = os.open(self.path.with_name(JOURNAL_FILE), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return os.pread(journal, len(JOURNAL_MAGIC), 0) == JOURNAL_MAGIC
        finally:
            os.close(journal)

    def _lost_its_file(self) -> bool:
        """Tell whether there was a ledger here once: backups of it, or what a recovery kept.

        The file is asked for last: a folder that was moved away and back has both.
        """
        with contextlib.suppress(OSError):
            backups, damaged = self.folder / "backups", self.folder / "damaged"
            if any(backups.glob("*.db")) or damaged.exists():
                revalidate(self.folder)
                return not self.path.exists()
        return False

    # --- versions -----------------------------------------------------------------------------

    def _require_version(self, db: sqlite3.Connection) -> None:
        found = schema.version(db)
        if found < 0:
            raise LedgerDamaged(self.path, CONDEMNED)
        if found > len(self._migrations):
            raise LedgerTooNew(self.path, found=found, known=len(self._migrations))
        if found == 0:
            raise LedgerDamaged(self.path, "it has no tables")
        if found < len(self._migrations):
            raise _NeedsMigration

    def _migrate(self, db: sqlite3.Connection, *, creating: bool) -> None:
        try:
            self._require_version(db)
        except LedgerDamaged:
            if not creating:
                raise
            schema.migrate(db, self._migrations)
        except _NeedsMigration:
            schema.migrate(db, self._migrations)
            self._make_file(TURN_FILE)  # the first version had none

    def _require_epoch(self, db: sqlite3.Connection) -> None:
        if self.epoch is None:
            return
        found = db.execute("SELECT epoch FROM ledger").fetchone()["epoch"]
        if found != self.epoch:
            raise LedgerReplaced(self.folder)

    # --- errors -------------------------------------------------------------------------------

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._explained(error) from error
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise LedgerDamaged(self.path, f"what it holds is no text: {error}") from error

    def _explained(self, error: sqlite3.Error | OSError) -> LedgerError:
        if isinstance(error, OSError):
            return self._explained_os_error(error)
        if isinstance(error, sqlite3.ProgrammingError | sqlite3.IntegrityError):
            raise error  # a bug: keep its traceback
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or schema.is_no_text(error):
            return LedgerDamaged(self.path, str(error))
        if code == sqlite3.SQLITE_FULL:
            return self._unreachable("its disk is full", "free some space, then try again")
        if code == sqlite3.SQLITE_READONLY:
            return NotAllowed(
                f"ledger {self.path} cannot be written by you; nothing was changed",
                hint="ask its owner, or make the ledger with 'gpuledger init --shared'",
            )
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            if not self.path.exists():
                return self._gone()
            return self._unreachable(
                f"the file system failed ({getattr(error, 'sqlite_errorname', error)})",
                "look at the mount and its free space (df, mount), then try again",
            )
        raise error

    def _explained_os_error(self, error: OSError) -> LedgerError:
        number = error.errno
        if number in (errno.ENOENT, errno.ENOTDIR):
            return self._gone()
        if number in (errno.EACCES, errno.EPERM):
            return NotAllowed(
                f"ledger {self.folder} is not open to you ({error.strerror}); nothing was changed",
                hint="ask its owner, or make the ledger with 'gpuledger init --shared'",
            )
        if number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return Unavailable(
                f"the file system of {self.folder} offers no file locks ({error.strerror}); "
                "nothing was changed",
                hint="put the ledger elsewhere, or mount with locks (NFS: without 'nolock')",
            )
        if number in (errno.ENOSPC, errno.EDQUOT):
            return self._unreachable(
                f"no space is left for it ({error.strerror})", "free some space, then try again"
            )
        return self._unreachable(
            f"the file system failed ({error.strerror})",
            "look at the mount (df, mount), then try again",
        )

    def _unreachable(self, what: str, hint: str) -> LedgerUnreachable:
        return LedgerUnreachable(
            f"ledger {self.folder} cannot be used: {what}; nothing was changed", hint=hint
        )

    def _gone(self) -> LedgerError:
        if self._lost_its_file():
            return LedgerDamaged(self.path, MISSING)
        return NoLedger(
            f"there is no ledger at {self.folder}; nothing was changed",
            hint="make one with 'gpuledger init SWEEP.toml', or say where it is with --ledger",
        )


class _NeedsMigration(Exception):
    """The ledger was written by an older gpuledger."""


class _HeldTooLong(Exception):
    """The lock was held for so long that it may be somebody else's by now."""

    def __init__(self, held_s: float) -> None:
        super().__init__(held_s)
        self.held_s = held_s


class _CommitRaised(Exception):
    """COMMIT reported an error: the transaction may have happened or not."""

    def __init__(self, error: sqlite3.Error) -> None:
        super().__init__(str(error))
        self.error = error


def connect(path: Path, *, vfs: str) -> sqlite3.Connection:
    """Open a ledger's file with the settings that every access needs; the caller closes it."""
    mode = "rw" if os.access(path, os.W_OK) else "ro"
    uri = f"file:{quote(str(path))}?mode={mode}&{vfs}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=0)
    try:
        db.row_factory = sqlite3.Row
        for pragma in ("synchronous = FULL", "mmap_size = 0", "cache_spill = OFF"):
            db.execute(f"PRAGMA {pragma}")
        for pragma in ("temp_store = MEMORY", "cell_size_check = ON"):
            db.execute(f"PRAGMA {pragma}")
        for pragma in ("trusted_schema = OFF", "foreign_keys = ON"):
            db.execute(f"PRAGMA {pragma}")
    except BaseException:
        db.close()
        raise
    return db


def _persist_journal(db: sqlite3.Connection, path: Path) -> None:
    """Keep the journal's file between transactions: a missing one is seen late on NFS."""
    mode = db.execute("PRAGMA journal_mode = PERSIST").fetchone()[0]
    if mode != "persist":
        raise LedgerUnreachable(
            f"ledger {path} cannot be used: its journal's mode stays '{mode}'; nothing was changed",
            hint="use another Python build, or ask whoever opened the file with another program",
        )


def _require_whole(db: sqlite3.Connection, path: Path) -> None:
    """Check all pages and indexes; the first statement rolls the journal back.

    With that the sign of the crash is gone, so damage is marked for the others to see.
    """
    found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        with contextlib.suppress(sqlite3.Error):  # a reader who may not write
            schema.condemn(db)
        raise LedgerDamaged(path, f"after a crash its check says '{found}'")


def _record(db: sqlite3.Connection, operation_id: str) -> None:
    """Count the change and remember its id; with this every write transaction writes."""
    row = db.execute("UPDATE ledger SET seq = seq + 1 RETURNING seq").fetchone()
    if row is not None:  # None: the tables were made just now, and nobody described the ledger
        db.execute(
            "INSERT OR REPLACE INTO operation VALUES (?, ?)",
            (row["seq"] % OPERATIONS_KEPT, operation_id),
        )


def _is_recorded(db: sqlite3.Connection, operation_id: str) -> bool:
    return (
        db.execute("SELECT 1 FROM operation WHERE id = ?", (operation_id,)).fetchone() is not None
    )


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _require_sqlite() -> None:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        needed = ".".join(map(str, OLDEST_SQLITE))
        raise Unavailable(
            f"this Python's SQLite is {sqlite3.sqlite_version}, gpuledger needs {needed}",
            hint="use a newer Python build (conda-forge or python.org)",
        )
