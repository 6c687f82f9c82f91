"""Holds the outer of the ledger's two locks: who comes next, how one waits, who is told of whom.

The lock is `flock` on `ledger.lock`; the file is never removed and never replaced (one that
somebody removed is made anew: SQLite's own lock excludes whoever still holds the old one). Whoever
has just given a lock back wins it again, so under load everyone first takes the turn (`flock` on
`ledger.turn`), then the lock, then lets the turn go: at most one process at a time competes with
the one that comes back. Who finds the turn taken stands in line for it (`line.py`). Both are a
courtesy between processes that are well; nothing but fairness rests on them, and who stays in the
way for long is passed over.

tests/test_locks.py holds it to that: of 64 processes the slowest gets a fifth of the median.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor, unlock_descriptor

from gpuledger import mounts
from gpuledger.clock import Clock, iso
from gpuledger.errors import LedgerBusy
from gpuledger.line import stand
from gpuledger.modes import open_file
from gpuledger.revalidation import revalidate

GUARDED_FILE = "ledger.db"
LOCK_FILE = "ledger.lock"
TURN_FILE = "ledger.turn"

HOLDER_BYTES = 256
SHORTEST_POLL_S = 0.0005
LONGEST_POLL_S = 0.25
POLLS_PER_HOLD = 4
"""Polls of who comes next, in the time that somebody holds the lock; those behind it poll less."""

UNKNOWN_AHEAD = 8
"""How many are taken to come first where there is no line to stand in."""

FIRST_HOLD_S = 0.002
LONGEST_USUAL_HOLD_S = 0.1

PATIENCE_HOLDS = 4.0
PATIENCE_S = 1.0
"""So many holds in vain, and so long, mean that the holder hangs: poll more and more seldom."""

TURN_PATIENCE_S = 2.0
"""Who is in the way is passed over after this, and `PATIENCE_HOLDS` holds for each before us."""


class Pace:
    """How long to sleep between two polls: about as long as those before us need."""

    def __init__(self) -> None:
        self._usual_hold_s = FIRST_HOLD_S

    def shortest_s(self) -> float:
        """Return the pause of one that waits for what takes somebody else no time."""
        return self._pause_s(SHORTEST_POLL_S)

    def in_line_s(self, ahead: int) -> float:
        """Return the pause of one that has so many before it; of the first it is the shortest."""
        return self._pause_s(self._usual_hold_s * (ahead or 1 / POLLS_PER_HOLD))

    def at_the_door_s(self, waited_s: float) -> float:
        """Return the pause of the one that has the turn and waits for the lock itself."""
        pause_s = self._usual_hold_s / POLLS_PER_HOLD
        if waited_s > max(PATIENCE_HOLDS * self._usual_hold_s, PATIENCE_S):
            pause_s = max(pause_s, waited_s / 8)
        return self._pause_s(pause_s)

    def turn_patience_s(self, ahead: int) -> float:
        """Return after how long the turn is passed over by one that had so many before it."""
        return max(PATIENCE_HOLDS * self._usual_hold_s * (ahead + 2), TURN_PATIENCE_S)

    def learn(self, held_s: float) -> None:
        """Take the length of a hold into account."""
        usual_s = self._usual_hold_s  # one that was preempted says little about the usual
        self._usual_hold_s += (min(held_s, 2 * usual_s, LONGEST_USUAL_HOLD_S) - usual_s) / 16

    def _pause_s(self, pause_s: float) -> float:
        pause_s = min(max(pause_s, SHORTEST_POLL_S), LONGEST_POLL_S)
        return pause_s * random.uniform(0.5, 1.0)


class OuterLock:
    """The lock of one ledger, as one process uses it; at most one thread at a time."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.path = folder / LOCK_FILE
        self._folder = folder
        self._turn_path = folder / TURN_FILE
        self._clock = clock
        self.pace = Pace()
        self._network: bool | None = None
        self._idle = threading.Event()  # never set: its wait() is a pause

    @contextmanager
    def hold(self, *, operation: str, timeout_s: float, deadline_s: float) -> Iterator[None]:
        """Hold the lock.

        Args:
            operation: What for, shown to those who wait meanwhile.
            timeout_s: How long the caller waits in all, for the message.
            deadline_s: When that is over, on the boot-time clock.

        Raises:
            LedgerBusy: It was not free in time.
            OSError: The file system failed.
        """
        began_s = self._clock.boottime()
        descriptor, writable = self._locked(began_s, timeout_s, deadline_s)
        held_since_s = self._clock.boottime()
        try:
            if writable:
                self._sign(descriptor, operation)
            revalidate(self._folder)
            yield
        finally:
            # What was done under the lock is done, whatever giving it back says; closing does it
            # as well, and the descriptor is gone even when close() reports an error.
            with contextlib.suppress(OSError):
                unlock_descriptor(descriptor)
            with contextlib.suppress(OSError):
                os.close(descriptor)
            self.pace.learn(self._clock.boottime() - held_since_s)

    def pause(self, waited_s: float) -> None:
        """Sleep before the next try of something that somebody else holds."""
        self._idle.wait(self.pace.at_the_door_s(waited_s))

    def _locked(self, began_s: float, timeout_s: float, deadline_s: float) -> tuple[int, bool]:
        """Return a descriptor of the lock file, locked, and whether it can be written."""
        with self._turn(began_s, deadline_s):
            first_s = self._clock.boottime()
            while True:
                descriptor, writable = self._open()
                try:
                    while not lock_descriptor(descriptor, blocking=False):
                        now_s = self._clock.boottime()
                        if now_s >= deadline_s:
                            raise LedgerBusy(
                                self._folder, waited_s=timeout_s, holder=read_holder(self.path)
                            )
                        self.pause(now_s - first_s)
                    if is_still_at(descriptor, self.path):
                        return descriptor, writable
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)  # replaced while we waited: that lock excludes nobody

    @contextmanager
    def _turn(self, began_s: float, deadline_s: float) -> Iterator[None]:
        """Be the next in line, if that can be had; never an error."""
        try:
            descriptor = os.open(self._turn_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # an older ledger, a reader without permission: no fairness for these
            yield
            return
        try:
            with contextlib.suppress(OSError):
                if not lock_descriptor(descriptor, blocking=False):
                    self._wait_for_turn(descriptor, began_s, deadline_s)
            yield
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _wait_for_turn(self, turn: int, began_s: float, deadline_s: float) -> None:
        """Get the turn, or have waited long enough for it."""
        try:
            self._wait_in_line(turn, began_s, deadline_s)
        except OSError:  # no such locks here, no room, no permission: then by luck
            give_up_s = min(began_s + self.pace.turn_patience_s(UNKNOWN_AHEAD), deadline_s)
            while not lock_descriptor(turn, blocking=False):
                if self._clock.boottime() >= give_up_s:
                    return
                self._idle.wait(self.pace.in_line_s(UNKNOWN_AHEAD))

    def _wait_in_line(self, turn: int, began_s: float, deadline_s: float) -> None:
        """Wait behind those who came before; raise OSError where there is no line."""
        sync = self._others_read_the_server()
        with stand(self._folder) as place:
            give_up_s = min(began_s + TURN_PATIENCE_S, deadline_s)
            while not place.take(sync=sync):
                if self._clock.boottime() >= give_up_s:
                    return
                self._idle.wait(self.pace.shortest_s())
            ahead = place.ahead()
            give_up_s = min(began_s + self.pace.turn_patience_s(ahead), deadline_s)
            while ahead or not lock_descriptor(turn, blocking=False):
                if self._clock.boottime() >= give_up_s:
                    place.pass_over()
                    return
                self._idle.wait(self.pace.in_line_s(ahead))
                ahead = ahead and place.ahead()

    def _open(self) -> tuple[int, bool]:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self.path, os.O_RDWR | flags), True
        except FileNotFoundError:
            if not (self._folder / GUARDED_FILE).exists():
                raise
            return open_file(self.path, os.O_RDWR | flags), True
        except OSError as error:
            # A colleague without write permission, or a read-only mount, may still look.
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            return os.open(self.path, os.O_RDONLY | flags), False

    def _sign(self, descriptor: int, operation: str) -> None:
        """Leave a note for those who wait: who holds the lock, since when, for what."""
        note = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": iso(self._clock.now()),
            "operation": operation,
        }
        line = json.dumps(note).encode()[: HOLDER_BYTES - 1] + b"\n"
        with contextlib.suppress(OSError):  # a courtesy: a full disk must not stop a reader
            os.pwrite(descriptor, line.ljust(HOLDER_BYTES), 0)
            if self._others_read_the_server():
                os.fdatasync(descriptor)

    def _others_read_the_server(self) -> bool:
        """Tell whether a note must leave this machine to be seen: it costs 2 to 7 % of a
        transaction on NFS, and would be for nothing on a local disk.
        """
        if self._network is None:
            self._network = mounts.judge(mounts.mount_of(self._folder)).network
        return self._network


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold a lock file of a lesser matter (not the ledger's) if it is free; yield whether."""
    descriptor = open_file(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        yield lock_descriptor(descriptor, blocking=False)
    finally:
        os.close(descriptor)


def is_still_at(descriptor: int, path: Path) -> bool:
    """Tell whether the open file is the one that the path names now."""
    mine = os.fstat(descriptor)
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return mine.st_nlink > 0 and (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def read_holder(path: Path) -> str | None:
    """Return who signed the lock file last, for a message; None when nobody did.

    A fresh open: through a descriptor kept from before, NFS shows old contents.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            note = json.loads(os.pread(descriptor, HOLDER_BYTES, 0))
        finally:
            os.close(descriptor)
        return (
            f"process {int(note['pid'])} on {str(note['host'])[:64]!r} "
            f"('{str(note['operation'])[:32]}' since {str(note['since'])[:32]})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
