"""The other process that `doctor` needs: a program of its own, one small job each.

python -m gpuledger.probe flock PATH     try a lock that another process may hold
python -m gpuledger.probe fcntl PATH
python -m gpuledger.probe answer PATH    look at a folder that may hang
python -m gpuledger.probe die PATH       die in the middle of a transaction
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
from pathlib import Path


def try_flock(path: Path) -> str:
    """Return `got`, `refused`, or the name of the error."""
    return _try(path, lambda descriptor: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB))


def try_fcntl(path: Path) -> str:
    """Return `got`, `refused`, or the name of the error."""
    return _try(path, lambda descriptor: fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB))


def answer(path: Path) -> str:
    """Return `here` once the folder could be read."""
    os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
    os.statvfs(path)
    return "here"


def die_in_transaction(path: Path) -> str:
    """Write half of a change into the file, and die: a journal is left that must be rolled back."""
    from gpuledger.store import connect

    db = connect(path, vfs="vfs=unix-excl")
    db.execute("PRAGMA journal_mode = PERSIST")
    db.execute("PRAGMA cache_spill = ON")
    db.execute("PRAGMA cache_size = 2")  # so that changed pages reach the file before COMMIT
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE probe SET value = value + 1")
    db.execute("SELECT COUNT(*) FROM probe").fetchone()
    signal.raise_signal(signal.SIGKILL)
    return "alive"


def _try(path: Path, lock: object) -> str:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        lock(descriptor)  # type: ignore[operator]
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return "refused"
        return errno.errorcode.get(error.errno or 0, str(error))
    finally:
        os.close(descriptor)
    return "got"


JOBS = {"flock": try_flock, "fcntl": try_fcntl, "answer": answer, "die": die_in_transaction}

if __name__ == "__main__":
    sys.stdout.write(JOBS[sys.argv[1]](Path(sys.argv[2])))
