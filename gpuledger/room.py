"""Whether the disk of the logs has room: where it has none tasks fail for no fault of their own."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

from gpuledger.clock import Clock

NEEDED_BYTES = 1 << 20
"""A disk that has not even this is full, whatever a task wanted to write."""

LOOK_AGAIN_S = 5.0
FULL = (errno.ENOSPC, errno.EDQUOT)


class Room:
    """The room below one folder; the disk is asked only after a failure, and while it is full."""

    def __init__(self, folder: Path, *, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._full_since_s: float | None = None
        self._looked_s = 0.0

    def is_full(self) -> bool:
        """Write a little, and tell whether that was too much."""
        is_full = not has_room(self._folder)
        self._looked_s = self._clock.boottime()
        if not is_full:
            self._full_since_s = None
        elif self._full_since_s is None:
            self._full_since_s = self._looked_s
        return is_full

    def full_for_s(self) -> float:
        """Return for how many seconds it has been full by now."""
        since_s = self._full_since_s
        return 0.0 if since_s is None else self._clock.boottime() - since_s

    def closed(self) -> str | None:
        """Return why no task should start, or None; costs nothing while nothing was full."""
        if self._full_since_s is None:
            return None
        if self._clock.boottime() - self._looked_s >= LOOK_AGAIN_S and not self.is_full():
            return None
        return f"the disk is full ({self._folder})"


def has_room(folder: Path) -> bool:
    """Tell whether NEEDED_BYTES can be written into a folder.

    It writes them: statvfs(2) knows neither quotas nor what root may still write. Any other
    problem of the folder is no lack of room.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".room-")
    except OSError as error:
        return error.errno not in FULL
    try:
        with contextlib.suppress(OSError):  # a kill leaves nothing from here on
            Path(name).unlink()
        return _write(descriptor)
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _write(descriptor: int) -> bool:
    data = os.urandom(NEEDED_BYTES)  # what compresses well would need no room
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)  # NFS and quotas may say it only now
    except OSError as error:
        return error.errno not in FULL
    return True
