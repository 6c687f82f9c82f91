"""Keeps outcomes that the ledger could not take yet on this machine's own disk.

A task that ends while the shared file system is away has ended all the same. Its worker writes
the outcome here first, tries again until the ledger takes it, and removes it then. When the
worker dies meanwhile, the next worker on this machine delivers what it finds.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from gpuledger.model import Finished, Token, WorkerIdentity, ending_from


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One outcome on its way to the ledger, and whose it is."""

    path: Path
    worker: str
    finished: Finished
    machine: str
    pid: int
    pid_start: int

    @property
    def token(self) -> Token:
        """The attempt's."""
        return self.finished.token


def outbox_folder(ledger_uuid: str) -> Path | None:
    """Return this user's folder for that ledger on the local disk, made when there is none.

    None means that there is no safe place: the name in the shared temporary folder belongs to
    somebody else, or the disk is full.
    """
    folder = _of_this_user()
    try:
        for path in (folder, folder / ledger_uuid):
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                return None
            if found.st_mode & 0o077:
                return None
    except OSError:
        return None
    return folder / ledger_uuid


def tidy(ledger_uuid: str) -> None:
    """Remove that folder, and the one of all ledgers, where nothing is in them."""
    parent = _of_this_user()
    with contextlib.suppress(OSError):  # somebody's outcome is there, or nothing
        (parent / ledger_uuid).rmdir()
        parent.rmdir()


def _of_this_user() -> Path:
    return Path(tempfile.gettempdir()) / f"gpuledger-{os.getuid()}"


def post(folder: Path, worker: WorkerIdentity, finished: Finished) -> Letter:
    """Keep one outcome; it is on the disk, whole, when this returns. May raise OSError."""
    token = finished.token
    letter = Letter(
        path=folder / f"{token.nonce}-{token.task}-{token.number}.json",
        worker=worker.name,
        finished=finished,
        machine=worker.machine,
        pid=worker.pid,
        pid_start=worker.pid_start,
    )
    path = letter.path
    text = json.dumps({**asdict(letter), "path": str(path)})
    draft = path.with_suffix(".draft")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    return letter


def letters(folder: Path) -> Iterator[Letter]:
    """Yield the outcomes that wait; drafts and what cannot be read are left alone."""
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(path.read_text(encoding="utf-8"))
            finished = kept["finished"]
            values = {
                "token": Token(**finished["token"]),
                "ending": ending_from(finished["ending"]),
            }
            kept["finished"] = Finished(**{**finished, **values})
            yield Letter(**{**kept, "path": path})


def forget(letter: Letter) -> None:
    """Remove an outcome that the ledger knows now."""
    with contextlib.suppress(OSError):
        letter.path.unlink()
