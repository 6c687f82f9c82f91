"""Two hosts find out together what they share: `doctor --peer`, started on both at once.

They meet and talk through files in one folder, created exclusively: that works on every file
system worth the name, also where locks do not. No clock of one is compared with the other's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuledger import mounts
from gpuledger.clock import Clock
from gpuledger.errors import Unavailable
from gpuledger.findings import Finding, bad, good, warning
from gpuledger.machine import host_name, this_machine
from gpuledger.process import probe
from gpuledger.revalidation import revalidate
from gpuledger.store import connect

MEETING_FOLDER = "doctor-peer"
BEAT_S = 0.5
STALE_S = 8.0
STEP_TIMEOUT_S = 60.0
GOODBYE_S = 10.0
CONTEST_S = 4.0
INSIDE_S = 0.01
ROUNDS = 10
ROWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerResult:
    """What two hosts share.

    Attributes:
        findings: One line each.
        host: Name of the other host.
        boot_id: Of the other host.
        flock: Whether flock excludes the other host.
        fcntl: Whether fcntl locks do.
        leads: This host is the one that records first.
        exchange: Waits for the other at a named point.
    """

    findings: tuple[Finding, ...]
    host: str
    boot_id: str
    flock: bool
    fcntl: bool
    leads: bool
    exchange: Callable[[str, Any], Any]


def boot_id() -> str:
    """Return what tells this running kernel from every other one."""
    return this_machine().partition(":")[0]


@contextmanager
def meet(
    folder: Path, clock: Clock, *, wait_s: float, say: Callable[[str], None]
) -> Iterator[PeerResult]:
    """Find another host in the folder and try everything with it; both stay for the body.

    Args:
        folder: Where both are; a folder for the meeting is made in it, and removed.
        clock: This machine's.
        wait_s: How long to wait for the other to come.
        say: Prints one line.

    Raises:
        Unavailable: Nobody came, or the other left in the middle.
    """
    room = folder / MEETING_FOLDER
    room.mkdir(exist_ok=True)
    try:
        table, leads = _find_table(room, clock, wait_s=wait_s, say=say)
    except Unavailable:
        with contextlib.suppress(OSError):  # others may be there by now
            room.rmdir()
        raise
    talk = _Talk(table, "a" if leads else "b", clock)
    try:
        yield _examine(talk, leads=leads, say=say)
    finally:
        with contextlib.suppress(OSError):
            if leads:
                talk.wait_for("bye", timeout_s=GOODBYE_S)
                shutil.rmtree(table)
                for old in room.glob("left.*"):
                    old.unlink()
                room.rmdir()
            else:
                _say_at(table / "bye.b", "null")


def _examine(talk: _Talk, *, leads: bool, say: Callable[[str], None]) -> PeerResult:
    mine = {
        "host": os.uname().nodename,
        "name": host_name(),
        "boot_id": boot_id(),
        "client_id": _nfs_client_id(),
        "kind": mounts.mount_of(talk.table).kind,
    }
    other = talk.exchange("who", mine)
    say(f"Met {other['name']}; this takes about half a minute.")
    findings = [_judge_hosts(mine, other)]
    shared: dict[str, bool] = {}
    for kind, lock in (("flock", _flock), ("fcntl", _fcntl)):
        contest = _contest(talk, kind, lock)
        finding = _judge_contest(kind, contest, talk.exchange(f"{kind}-done", contest))
        shared[kind] = finding.level == "good"
        findings.append(finding)
    findings.append(_judge_both(shared))
    findings.append(_check_visibility(talk, leads=leads))
    findings.append(_check_recovery(talk, leads=leads))
    return PeerResult(
        findings=tuple(findings),
        host=str(other["name"]),
        boot_id=str(other["boot_id"]),
        flock=shared["flock"],
        fcntl=shared["fcntl"],
        leads=leads,
        exchange=talk.exchange,
    )


# --- meeting ----------------------------------------------------------------------------------


def _find_table(
    room: Path, clock: Clock, *, wait_s: float, say: Callable[[str], None]
) -> tuple[Path, bool]:
    """Return the folder where the two talk, and whether this host opened it."""
    idle = threading.Event()
    until_s = clock.boottime() + wait_s
    sign = room / "open"
    told = False
    while clock.boottime() < until_s:
        table = room / secrets.token_hex(6)
        if _create(sign, table.name.encode()):
            table.mkdir()
            if not told:
                say("Waiting for 'gpuledger doctor --peer' on another host ...")
                told = True
            try:
                if _wait_for_guest(sign, table, clock, until_s, idle):
                    return table, True
            finally:
                if _is_of(table, _read(sign)):
                    sign.unlink(missing_ok=True)
            shutil.rmtree(table, ignore_errors=True)
            continue
        joined = _join(room, sign, clock, idle)
        if joined is not None:
            return joined, False
    raise Unavailable(
        f"no other host came within {wait_s:g} s; nothing was tried",
        hint="start 'gpuledger doctor --peer' on two hosts at once, on the same folder",
    )


def _wait_for_guest(
    sign: Path, table: Path, clock: Clock, until_s: float, idle: threading.Event
) -> bool:
    """Show signs of life until a guest comes; False when none did, or the sign is not ours now.

    Two who find the sign of somebody long gone may both clear it away, the later one the fresh
    sign of the earlier.
    """
    beat = 0
    while clock.boottime() < until_s:
        beat += 1
        ours = _renew(sign, table, beat)
        if _heard_at(table / "hello") is not None:
            return True
        if not ours:
            return False
        idle.wait(BEAT_S)
    return False


def _renew(sign: Path, table: Path, beat: int) -> bool:
    """Show on the sign that its host is there; False when the sign is not that host's."""
    with contextlib.suppress(OSError), sign.open("r+b", buffering=0) as file:
        if not _is_of(table, file.read()):
            return False
        os.pwrite(file.fileno(), f"{table.name} {beat:09}".encode(), 0)
        return True
    return False


def _join(room: Path, sign: Path, clock: Clock, idle: threading.Event) -> Path | None:
    """Join whoever waits, once there is proof that it still does; clear away who does not."""
    first = _read(sign)
    seen_s = clock.boottime()
    while clock.boottime() - seen_s < STALE_S:
        idle.wait(BEAT_S)
        now = _read(sign)
        if now is None:
            return None
        if now and now != first and first is not None:
            table = room / now.decode("ascii", "replace").split(" ")[0]
            with contextlib.suppress(FileNotFoundError):  # it has just left
                if _create(table / "guest", b""):
                    _say_at(table / "hello", "here")
                    return table
            return None
    with contextlib.suppress(OSError):
        sign.rename(room / f"left.{secrets.token_hex(4)}")
    return None


def _is_of(table: Path, sign: bytes | None) -> bool:
    return sign is not None and sign.startswith(table.name.encode())


class _Talk:
    """Says something at a named point, and waits for what the other says there."""

    def __init__(self, table: Path, me: str, clock: Clock) -> None:
        self.table = table
        self._me = me
        self._other = "b" if me == "a" else "a"
        self.clock = clock
        self._idle = threading.Event()

    def exchange(self, point: str, value: Any) -> Any:
        """Return the other's value; raise Unavailable when it does not come."""
        _say_at(self.table / f"{point}.{self._me}", json.dumps(value))
        text = self.wait_for(point, timeout_s=STEP_TIMEOUT_S)
        if text is None:
            raise Unavailable(
                f"the other host said nothing at '{point}' for {STEP_TIMEOUT_S:g} s",
                hint="start 'gpuledger doctor --peer' on both once more",
            )
        return json.loads(text)

    def wait_for(self, point: str, *, timeout_s: float) -> str | None:
        """Return what the other said at that point, or None when it did not in time."""
        until_s = self.clock.boottime() + timeout_s
        while self.clock.boottime() < until_s:
            text = _heard_at(self.table / f"{point}.{self._other}")
            if text is not None:
                return text
            self._idle.wait(0.02)
        return None


def _create(path: Path, content: bytes) -> bool:
    """Create a file exclusively: the one thing that excludes on every file system."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o660)
    except FileExistsError:
        return False
    os.write(descriptor, content)
    os.close(descriptor)
    return True


def _say_at(path: Path, text: str) -> None:
    """Write into a file that the other may have made already, in place: no rename (see below)."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o660)
    try:
        os.write(descriptor, text.encode() + b"\n")
    finally:
        os.close(descriptor)


def _heard_at(path: Path) -> str | None:
    """Return what the other said at that file, once it is whole.

    An NFS client may believe for a minute that a file is missing, and show a replaced one as it
    was; an open with O_CREAT asks the server, and growth is seen by every client.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o660)
    except OSError:
        return None
    try:
        said = os.read(descriptor, 1 << 16)
    finally:
        os.close(descriptor)
    return said.decode() if said.endswith(b"\n") else None


def _read(path: Path) -> bytes | None:
    """Return a file's content, freshly asked for; None when it is not there."""
    with contextlib.suppress(OSError):
        revalidate(path.parent)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, 1 << 16)
        finally:
            os.close(descriptor)
    return None


# --- what is tried ----------------------------------------------------------------------------


def _flock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _fcntl(descriptor: int) -> None:
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _contest(talk: _Talk, kind: str, lock: Callable[[int], None]) -> dict[str, Any]:
    """Take the lock again and again while the other does; count who was inside at once."""
    idle = threading.Event()
    path, inside = talk.table / f"{kind}.lock", talk.table / f"{kind}.inside"
    counts: dict[str, Any] = {"got": 0, "refused": 0, "overlaps": 0, "error": None}
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
    os.close(descriptor)
    talk.exchange(f"{kind}-ready", None)
    until_s = talk.clock.boottime() + CONTEST_S
    while talk.clock.boottime() < until_s and counts["error"] is None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            lock(descriptor)
            counts["got"] += 1
            if _create(inside, b""):
                idle.wait(INSIDE_S)
                inside.unlink(missing_ok=True)
            else:
                counts["overlaps"] += 1
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                counts["refused"] += 1
            else:
                counts["error"] = errno.errorcode.get(error.errno or 0, str(error))
        finally:
            os.close(descriptor)  # gives the lock back
        idle.wait(random.uniform(0, INSIDE_S / 2))
    return counts


def _judge_contest(kind: str, mine: Mapping[str, Any], other: Mapping[str, Any]) -> Finding:
    what = f"{kind} between hosts"
    for counts in (mine, other):
        if counts["error"] is not None:
            return bad(what, f"does not work: {counts['error']}", "mount with locks")
    got, refused = mine["got"] + other["got"], mine["refused"] + other["refused"]
    overlaps = mine["overlaps"] + other["overlaps"]
    told = f"taken {got} times, refused {refused} times, both inside {overlaps} times"
    if overlaps:
        return bad(what, f"does not exclude the other host: {told}")
    if not refused or not mine["got"] or not other["got"]:
        return bad(what, f"no contention was seen, so it is not shared: {told}")
    return good(what, f"excludes the other host: {told}")


def _judge_both(shared: Mapping[str, bool]) -> Finding:
    if all(shared.values()):
        return good("exclusion", "both kinds of lock are shared")
    if any(shared.values()):
        kind = next(kind for kind, value in shared.items() if value)
        return warning(
            "exclusion",
            f"only {kind} is shared; that is enough for safety, with nothing in reserve",
        )
    return bad(
        "exclusion",
        "no lock is shared: two hosts would destroy the ledger",
        "NFS: mount without nolock and local_lock; else keep the ledger on another file system",
    )


def _check_visibility(talk: _Talk, *, leads: bool) -> Finding:
    """What one wrote and closed, the other must read at once through a fresh open."""
    path = talk.table / "shown"
    late = 0
    for number in range(ROUNDS):
        writes = leads == (number % 2 == 0)
        if writes:
            path.write_text(f"{number:09}", encoding="ascii")
        talk.exchange(f"written-{number}", None)
        if not writes and _read(path) != f"{number:09}".encode():
            late += 1
        talk.exchange(f"looked-{number}", None)
    late += talk.exchange("late", late)
    if late:
        return bad(
            "visibility",
            f"{late} of {ROUNDS} times the other's closed file was read as it was before",
            "NFS: mount without nocto; else keep the ledger on another file system",
        )
    return good("visibility", f"a closed file was seen at once, {ROUNDS} of {ROUNDS} times")


def _check_recovery(talk: _Talk, *, leads: bool) -> Finding:
    """One dies in the middle of a change; the other must roll it back, both ways round."""
    torn = 0
    for turn in ("a", "b"):
        path = talk.table / f"probe-{turn}.db"
        dies = leads == (turn == "a")
        if dies:
            _make_probe(path)
        talk.exchange(f"made-{turn}", None)
        if not dies:
            _sum_of(path)  # so that this host remembers the file as it was
        talk.exchange(f"known-{turn}", None)
        if dies:
            probe("die", path, timeout_s=STEP_TIMEOUT_S / 2)
        talk.exchange(f"dead-{turn}", None)
        if not dies and _sum_of(path) != 0:
            torn += 1
        talk.exchange(f"mended-{turn}", None)
    torn += talk.exchange("torn", torn)
    if torn:
        return bad("recovery", "a change half made by a host that died was not rolled back")
    return good("recovery", "each host rolled back what the other had half done when it died")


def _make_probe(path: Path) -> None:
    path.touch()
    with closing(connect(path, vfs="vfs=unix-excl")) as db:
        db.execute("PRAGMA journal_mode = PERSIST")
        db.execute("BEGIN IMMEDIATE")
        db.execute("CREATE TABLE probe (value INTEGER, padding TEXT)")
        db.executemany("INSERT INTO probe VALUES (0, ?)", [("x" * 200,)] * ROWS)
        db.execute("COMMIT")


def _sum_of(path: Path) -> int:
    """Return 0 for a whole, unchanged file."""
    revalidate(path.parent)
    try:
        with closing(connect(path, vfs="vfs=unix-excl")) as db:
            if db.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
                return -1
            return int(db.execute("SELECT SUM(value) + COUNT(*) FROM probe").fetchone()[0]) - ROWS
    except sqlite3.Error:
        return -1


# --- who they are -----------------------------------------------------------------------------


def _judge_hosts(mine: Mapping[str, Any], other: Mapping[str, Any]) -> Finding:
    if mine["boot_id"] == other["boot_id"]:
        return warning(
            "hosts",
            "both ran on one machine: this proves nothing about others",
            "start it on two different machines",
        )
    same_name = mine["host"] == other["host"] or mine["name"] == other["name"]
    same_client = mine["client_id"] and mine["client_id"] == other["client_id"]
    if same_client or (same_name and mine["kind"] == "nfs4" and not mine["client_id"]):
        return bad(
            "hosts",
            f"both are '{other['host']}' to the NFSv4 server: they take each other's locks away",
            "give each host a name of its own, or an nfs4_unique_id (nfs kernel module)",
        )
    if same_name:
        return warning(
            "hosts", f"both are named '{other['name']}'", "set GPULEDGER_HOST on one of them"
        )
    return good("hosts", f"{mine['name']} and {other['name']}, two machines")


def _nfs_client_id() -> str:
    with contextlib.suppress(OSError):
        path = Path("/sys/fs/nfs/net/nfs_client/identifier")
        text = path.read_text(encoding="ascii").strip()
        return "" if text == "(null)" else text
    return ""
