"""Lets those who wait for the ledger come to it in the order in which they arrived.

Who finds the turn taken takes the next number from `ledger.line`, and locks the byte of that
number there; first in line is who finds no lower byte locked. Nobody keeps a list, and the kernel
gives back the byte of a process that ended. The locks are those of an open file description
(fcntl(2), F_OFD_SETLK): no other descriptor that is closed drops them.

It is a courtesy between processes that are well: nothing but fairness rests on it, and who waited
too long passes over who is first, once for all who come later.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpuledger.modes import open_file

LINE_FILE = "ledger.line"

RECORD = struct.Struct("=8sQQ")
MAGIC = b"line 1\n\0"
"""The file's content: then the last number taken, and the last one that nobody waits for."""

FLOCK = struct.Struct("@hhqqi4x")
"""`struct flock` of 64-bit Linux: type, whence, start, length, pid."""

TRIES = 8
"""How often a number may be snatched away before one does without."""

LAST_NUMBER = 1 << 48
"""Higher ones are none of ours: it begins with 1 again. (Offsets have 63 bits.)"""


class Place:
    """One process's place in line."""

    def __init__(self, descriptor: int, number: int, passed: int) -> None:
        self._descriptor = descriptor
        self._number = number
        self._passed = passed

    def ahead(self) -> int:
        """Return how far it is to the first in line, 0 for being that; one system call.

        Raises:
            OSError: It cannot be known.
        """
        length = self._number - 1 - self._passed
        if length <= 0:
            return 0
        wanted = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, self._passed + 1, length, 0)
        kind, _, start, _, _ = FLOCK.unpack(
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, wanted)
        )
        return 0 if kind == fcntl.F_UNLCK else max(self._number - start, 1)

    def pass_over(self) -> None:
        """Let nobody wait any more for who is first in line: it was stopped, or hangs.

        Raises:
            OSError: It cannot be written down.
        """
        ahead = self.ahead()
        if ahead:
            _write(self._descriptor, _read(self._descriptor)[0], self._number - ahead)


@contextmanager
def stand(folder: Path, *, sync: bool) -> Iterator[Place | None]:
    """Have a place in line, at its end; None where none can be had.

    Args:
        folder: The ledger's.
        sync: Write to the server at once: others read it there.
    """
    try:
        descriptor = open_file(folder / LINE_FILE, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        yield None
        return
    try:
        yield _take_number(descriptor, sync=sync)
    finally:
        with suppress(OSError):  # it is closed all the same
            os.close(descriptor)


def _take_number(descriptor: int, *, sync: bool) -> Place | None:
    """Return the next place; one that is being taken just now is somebody else's."""
    snatched = 0
    with suppress(OSError):  # no room, no such locks, no server: one does without
        for _ in range(TRIES):
            latest, passed = _read(descriptor)
            number = (latest if latest < LAST_NUMBER else 0) + 1 + snatched
            if not _lock(descriptor, number):
                snatched += 1
            elif _read(descriptor)[0] == latest:
                _write(descriptor, number, passed)
                if sync:
                    os.fdatasync(descriptor)
                return Place(descriptor, number, passed if passed < number else 0)
            else:
                _unlock(descriptor, number)
                snatched = 0
    return None


def _lock(descriptor: int, number: int) -> bool:
    try:
        _set(descriptor, fcntl.F_WRLCK, number)
    except (BlockingIOError, PermissionError):  # POSIX allows both for one that is taken
        return False
    return True


def _unlock(descriptor: int, number: int) -> None:
    _set(descriptor, fcntl.F_UNLCK, number)


def _set(descriptor: int, kind: int, number: int) -> None:
    lock = FLOCK.pack(kind, os.SEEK_SET, number, 1, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)


def _read(descriptor: int) -> tuple[int, int]:
    """Return the last number taken, and the last that nobody waits for; what is no record is 0."""
    raw = os.pread(descriptor, RECORD.size, 0)
    if len(raw) != RECORD.size:
        return 0, 0
    magic, latest, passed = RECORD.unpack(raw)
    return (latest, passed) if magic == MAGIC else (0, 0)


def _write(descriptor: int, latest: int, passed: int) -> None:
    os.pwrite(descriptor, RECORD.pack(MAGIC, latest, passed), 0)
