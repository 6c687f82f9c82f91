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

TAKING = 0
"""The byte that is locked while somebody takes a number."""

LAST_NUMBER = 1 << 48
"""Higher ones are none of ours: it begins with 1 again. (Offsets have 63 bits.)"""


class Place:
    """One process's place in line, once it has taken a number."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._number = 1
        self._passed = 0

    def take(self, *, sync: bool) -> bool:
        """Take a place at the end; False when somebody else is just taking one.

        Args:
            sync: Write to the server at once: others read it there.

        Raises:
            OSError: None can be had here.
        """
        if not self._lock(TAKING):
            return False
        latest, passed = self._read()
        number = latest + 1
        while not self._lock(number):  # its number was lost: the file was written over
            number += 1
        self._write(number, passed)
        if sync:
            os.fdatasync(self._descriptor)
        self._set(fcntl.F_UNLCK, TAKING)
        self._number, self._passed = number, passed if passed < number else 0
        return True

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
        """Let nobody who comes later wait for who is first in line: it was stopped, or hangs.

        Raises:
            OSError: It cannot be written down.
        """
        ahead = self.ahead()
        if ahead:
            self._write(self._read()[0], self._number - ahead)

    def _lock(self, number: int) -> bool:
        try:
            self._set(fcntl.F_WRLCK, number)
        except (BlockingIOError, PermissionError):  # POSIX allows both for one that is taken
            return False
        return True

    def _set(self, kind: int, number: int) -> None:
        lock = FLOCK.pack(kind, os.SEEK_SET, number, 1, 0)
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, lock)

    def _read(self) -> tuple[int, int]:
        """Return the last number taken, and the last that nobody waits for."""
        raw = os.pread(self._descriptor, RECORD.size, 0)
        magic, latest, passed = RECORD.unpack(raw) if len(raw) == RECORD.size else (b"", 0, 0)
        return (latest, passed) if magic == MAGIC and latest < LAST_NUMBER else (0, 0)

    def _write(self, latest: int, passed: int) -> None:
        os.pwrite(self._descriptor, RECORD.pack(MAGIC, latest, passed), 0)


@contextmanager
def stand(folder: Path) -> Iterator[Place]:
    """Come to the line; whoever leaves the context leaves the line.

    Args:
        folder: The ledger's.

    Raises:
        OSError: Its file cannot be opened.
    """
    descriptor = open_file(folder / LINE_FILE, os.O_RDWR | os.O_NOFOLLOW)
    try:
        yield Place(descriptor)
    finally:
        with suppress(OSError):  # it is closed all the same
            os.close(descriptor)
