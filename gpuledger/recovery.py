"""Puts a backup in the place of a damaged ledger, and replays what the workers noted since.

All of it happens under the ledger's lock. The damaged files are moved aside together, never
deleted. The new file gets the next epoch, so that whoever opened the old one is refused until it
has opened the new one; what it was doing is then judged by its token, as always. A recovery that
is itself killed is finished by the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gpuledger import claims, endings, operations, queries, schema
from gpuledger.backups import Backup, examine, existing, sync_folder
from gpuledger.clock import Clock
from gpuledger.diary import Entry, read_diaries
from gpuledger.errors import LeaseLost, LedgerDamaged, LedgerUnreachable, NotAllowed, Unavailable
from gpuledger.locks import LOCK_FILE, OuterLock
from gpuledger.model import Ending, Outcome, WorkerIdentity
from gpuledger.modes import make_folder, open_file
from gpuledger.spec import Params, params_digest
from gpuledger.store import CONDEMNED, DB_FILE, JOURNAL_FILE, MISSING, connect

DAMAGED = "damaged"
NEW_FILE = "ledger.db.recovered"
NOTE_FILE = "recovery.json"
LOCK_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What the diaries added to a backup, in numbers of attempts.

    Attributes:
        started: That the backup did not know.
        ended: That were open, or not known, in the backup.
        unknown: Names of tasks that the backup does not have: their sweep was added later.
    """

    started: int = 0
    ended: int = 0
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What `recover` did.

    Attributes:
        problem: What was wrong with the ledger; None: nothing, and nothing was done.
        backup: What was restored, or None.
        replayed: From the diaries.
        quarantine: Folder of the damaged files, or None.
        epoch: The ledger's epoch now.
    """

    problem: str | None
    backup: Backup | None = None
    replayed: Replayed = Replayed()
    quarantine: Path | None = None
    epoch: int = 0


def recover(
    folder: Path, *, clock: Clock, source: Path | None = None, force: bool = False
) -> Recovery:
    """Examine the ledger and, when it is damaged, restore it.

    Args:
        folder: The ledger's.
        clock: This machine's.
        source: Restore this file instead of the newest good backup.
        force: Restore even though nothing seems wrong.

    Raises:
        Unavailable: There is no good backup; nothing was changed.
        LedgerBusy: Somebody works with the ledger all the time; nothing was changed.
        LedgerUnreachable: The file system failed; nothing is lost, the next try goes on.
    """
    try:
        os.close(open_file(folder / LOCK_FILE, os.O_RDWR))  # somebody may have removed it
        return _recover_alone(folder, clock=clock, source=source, force=force)
    except (OSError, sqlite3.DatabaseError) as error:
        if isinstance(error, sqlite3.ProgrammingError | sqlite3.IntegrityError):
            raise  # a bug: keep its traceback
        why = error.strerror if isinstance(error, OSError) else str(error)
        if isinstance(error, PermissionError):
            raise NotAllowed(
                f"ledger {folder} cannot be restored by you ({why}); nothing was changed",
                hint="ask its owner",
            ) from error
        raise LedgerUnreachable(
            f"ledger {folder} could not be restored ({why}); its files are all still there",
            hint="free some space, look at the mount (df, mount), then try again: it goes on",
        ) from error


def _recover_alone(folder: Path, *, clock: Clock, source: Path | None, force: bool) -> Recovery:
    """Do it under the ledger's lock."""
    lock = OuterLock(folder, clock)
    deadline_s = clock.boottime() + LOCK_TIMEOUT_S
    with lock.hold(operation="recover", timeout_s=LOCK_TIMEOUT_S, deadline_s=deadline_s):
        problem = diagnose(folder)
        if problem is None and not force:
            return Recovery(problem=None)
        backup = _chosen(folder, source)
        new = folder / NEW_FILE
        for leftover in (new, folder / f"{NEW_FILE}-journal"):  # of a recovery that was killed
            leftover.unlink(missing_ok=True)
        os.close(open_file(new, os.O_RDWR))
        shutil.copyfile(backup.path, new)
        replayed, epoch = _rebuild(new, folder)
        quarantine = _quarantine(folder, clock)
        new.rename(folder / DB_FILE)
        with contextlib.suppress(OSError):  # it is restored, whatever the disk says of the name
            sync_folder(folder)
        done = Recovery(
            problem=problem or "nothing (it was replaced by request)",
            backup=backup,
            replayed=replayed,
            quarantine=quarantine,
            epoch=epoch,
        )
        _leave_note(done, quarantine)
    return done


def diagnose(folder: Path) -> str | None:
    """Return what is wrong with the ledger's file, or None; the caller holds the lock."""
    path = folder / DB_FILE
    if not path.exists():
        return MISSING
    try:
        with closing(connect(path, vfs="vfs=unix-excl")) as db:
            version = schema.version(db)
            if version > len(schema.MIGRATIONS):
                return None  # a newer gpuledger's: not for this one to judge
            if version < 0:
                return CONDEMNED
    except (sqlite3.Error, UnicodeDecodeError) as error:
        return str(error)
    return examine(path)


def replay(db: sqlite3.Connection, entries: Iterable[Entry]) -> Replayed:
    """Add what the diaries know to a restored ledger, inside the caller's transaction.

    Attempts that run on stay open: their workers' signs of life decide, as always.
    """
    attempts: dict[str, dict[tuple[int, str], list[Entry]]] = defaultdict(dict)
    for entry in entries:
        key = (entry.token.number, entry.token.nonce)
        attempts[entry.token.task].setdefault(key, []).append(entry)
    paused = _paused_by_itself(db)
    started = ended = 0
    unknown = []
    for task in sorted(attempts):
        if queries.find_task(db, task) is None:
            unknown.append(task)
            continue
        for key in sorted(attempts[task]):
            began, over = _replay_attempt(db, attempts[task][key])
            started += began
            ended += over
    for sweep_id in _paused_by_itself(db) - paused:
        db.execute("UPDATE sweep SET paused = NULL, paused_by = NULL WHERE id = ?", (sweep_id,))
    return Replayed(started=started, ended=ended, unknown=tuple(unknown))


def _replay_attempt(db: sqlite3.Connection, entries: Sequence[Entry]) -> tuple[bool, bool]:
    """Return whether the attempt was new to the ledger, and whether it was ended now."""
    kinds: Mapping[str, Entry] = {entry.kind: entry for entry in entries}
    if "refused" in kinds:
        return False, False
    token = entries[0].token
    task = endings.task_row(db, token)
    began = False
    if "started" in kinds and not _is_known(db, task["id"], token.number):
        began = _start(db, task, kinds["started"])
    if "ended" not in kinds or kinds["ended"].ending is None:
        return began, False
    open_before = endings.is_open(db, token)
    with contextlib.suppress(LeaseLost):
        endings.end(db, token, kinds["ended"].ending, now=kinds["ended"].at)
    return began, open_before


def _start(db: sqlite3.Connection, task: sqlite3.Row, entry: Entry) -> bool:
    worker, token = entry.worker, entry.token
    if worker is None:
        return False
    _give_params(db, task, entry.params)
    _end_what_is_open(db, task["id"], now=entry.at)
    _ensure_worker(db, worker, now=entry.at)
    db.execute(
        "INSERT INTO attempt (task_id, number, worker, nonce, gpu_memory_mib, started_at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (task["id"], token.number, worker.name, worker.nonce, worker.gpu_memory_mib, entry.at),
    )
    db.execute("UPDATE task SET state = 'running', stop = NULL WHERE id = ?", (task["id"],))
    return True


def _give_params(db: sqlite3.Connection, task: sqlite3.Row, params: Params | None) -> None:
    """Give a task the values that an operator corrected since the backup: its result is theirs.

    Where another task has them in the backup, `init` goes on to know the task by its former ones.
    """
    if params is None or params_digest(params) == task["digest"]:
        return
    try:
        operations.put_params(db, task["id"], params)
    except sqlite3.IntegrityError:
        values = (json.dumps(dict(params)), task["id"])
        db.execute("UPDATE task SET params = ? WHERE id = ?", values)


def _end_what_is_open(db: sqlite3.Connection, task_id: int, *, now: float) -> None:
    """A later attempt began, so this one was over; how, nobody noted."""
    for row in db.execute(
        "SELECT number, nonce FROM attempt WHERE task_id = ? AND outcome IS NULL", (task_id,)
    ).fetchall():
        claim = claims.claim_of(db, task_id, row["number"], row["nonce"])
        ending = Ending(outcome=Outcome.INTERRUPTED, error="not known: the ledger was recovered")
        endings.end(db, claim.token, ending, now=now)


def _ensure_worker(db: sqlite3.Connection, worker: WorkerIdentity, *, now: float) -> None:
    known = db.execute("SELECT 1 FROM worker WHERE nonce = ?", (worker.nonce,)).fetchone()
    if known is not None:
        return
    # A live worker of that name is its predecessor: the name was free when this one came.
    for row in db.execute(
        "SELECT nonce FROM worker WHERE name = ? AND ended_at IS NULL", (worker.name,)
    ).fetchall():
        ending = Ending(outcome=Outcome.INTERRUPTED, error="not known: the ledger was recovered")
        endings.end_worker(db, row["nonce"], "left", ending, now=now)
    claims.register(db, worker, now=now)


def _is_known(db: sqlite3.Connection, task_id: int, number: int) -> bool:
    return (
        db.execute(
            "SELECT 1 FROM attempt WHERE task_id = ? AND number >= ?", (task_id, number)
        ).fetchone()
        is not None
    )


def _paused_by_itself(db: sqlite3.Connection) -> set[int]:
    rows = db.execute("SELECT id FROM sweep WHERE paused_by = 'gpuledger'")
    return {int(row["id"]) for row in rows}


def _chosen(folder: Path, source: Path | None) -> Backup:
    if source is not None:
        problem = examine(source) if source.exists() else "there is no such file"
        if problem is not None:
            raise LedgerDamaged(source, problem)
        return Backup(path=source, stamp="", epoch=0, change=0, size_bytes=source.stat().st_size)
    for backup in existing(folder):
        if examine(backup.path) is None:
            return backup
    raise Unavailable(
        f"ledger {folder} has no good backup to restore; nothing was changed",
        hint="copy the folder aside; 'sqlite3 ledger.db .recover' may save the rows, then "
        "'gpuledger recover --from FILE' takes the result",
    )


def _rebuild(new: Path, folder: Path) -> tuple[Replayed, int]:
    """Bring the copy up to date and give it the next epoch."""
    with closing(connect(new, vfs="vfs=unix-excl")) as db:
        db.execute("PRAGMA journal_mode = DELETE")  # leaves no journal beside the new name
        db.execute("BEGIN IMMEDIATE")
        schema.absolve(db)  # what an operator saved from a condemned file
        schema.migrate(db)
        replayed = replay(db, read_diaries(folder))
        latest = max([backup.epoch for backup in existing(folder)] + _epochs_noted(folder))
        row = db.execute(
            "UPDATE ledger SET epoch = MAX(epoch, ?) + 1 RETURNING epoch", (latest,)
        ).fetchone()
        db.execute("COMMIT")
    problem = examine(new)
    if problem is not None:
        raise LedgerDamaged(new, problem)
    return replayed, int(row["epoch"])


def _quarantine(folder: Path, clock: Clock) -> Path:
    """Move the file and its journal aside; the file first, so that nobody uses it without."""
    stamp = datetime.fromtimestamp(clock.now(), UTC).strftime("%Y%m%dT%H%M%SZ")
    target = folder / DAMAGED / stamp
    ordinal = 1
    while target.exists():
        ordinal += 1
        target = folder / DAMAGED / f"{stamp}-{ordinal}"
    make_folder(target.parent)
    make_folder(target)
    for name in (DB_FILE, JOURNAL_FILE):
        if (folder / name).exists():
            (folder / name).rename(target / name)
    sync_folder(target)
    sync_folder(folder)
    return target


def _epochs_noted(folder: Path) -> list[int]:
    """Return the epochs of earlier recoveries: the next one must be newer than all of them."""
    found = [0]
    for path in (folder / DAMAGED).glob(f"*/{NOTE_FILE}"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found.append(int(json.loads(path.read_text(encoding="utf-8"))["epoch"]))
    return found


def _leave_note(done: Recovery, quarantine: Path) -> None:
    note = {
        "problem": done.problem,
        "restored": str(done.backup.path) if done.backup else None,
        "attempts_started": done.replayed.started,
        "attempts_ended": done.replayed.ended,
        "unknown_tasks": list(done.replayed.unknown),
        "epoch": done.epoch,
    }
    with contextlib.suppress(OSError):
        (quarantine / NOTE_FILE).write_text(json.dumps(note, indent=2), encoding="utf-8")
