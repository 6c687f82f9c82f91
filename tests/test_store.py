"""Two locks, one fresh connection, and what each failure of the file system becomes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest

from gpuledger import locks, schema, store
from gpuledger.errors import (
    LedgerBusy,
    LedgerDamaged,
    LedgerError,
    LedgerTooNew,
    LedgerUnreachable,
    NoLedger,
    Unavailable,
)
from gpuledger.ledger import Ledger
from gpuledger.store import Store
from tests.helpers import identity, spec, wait_until

HOLDER = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Ledger.create(tmp_path / ".gpuledger").folder


def impatient(folder: Path, **options: object) -> Store:
    return Store(folder, lock_timeout_s=0.3, **options)  # type: ignore[arg-type]


def touch(db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO event (at, kind) VALUES (0, 'touched')")


def touched(folder: Path) -> int:
    return Store(folder).read(
        lambda db: int(
            db.execute("SELECT COUNT(*) FROM event WHERE kind = 'touched'").fetchone()[0]
        )
    )


@pytest.fixture
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder / "ledger.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


# --- the locks --------------------------------------------------------------------------------


def test_a_busy_ledger_says_who_holds_it(folder: Path, held: subprocess.Popen[str]) -> None:
    note = {"host": "ada", "pid": held.pid, "since": "2026-01-01T00:00:00Z", "operation": "init"}
    (folder / "ledger.lock").write_text(json.dumps(note))

    with pytest.raises(LedgerBusy) as caught:
        impatient(folder).write(touch, operation="test")

    assert f"process {held.pid} on 'ada' ('init' since 2026-01-01T00:00:00Z)" in str(caught.value)
    assert "nothing was changed" in caught.value.problem


def test_a_hostile_note_in_the_lock_file_harms_nobody(
    folder: Path, held: subprocess.Popen[str]
) -> None:
    for note in (b"\xff\x00" * 100, b"[]", b'{"pid": "x"}', b'{"host": "\\u001b[31m"}', b""):
        (folder / "ledger.lock").write_bytes(note)
        with pytest.raises(LedgerBusy) as caught:
            impatient(folder).read(lambda db: None)
        assert "\x1b" not in str(caught.value)


def test_while_it_holds_the_lock_a_process_signs_it(folder: Path) -> None:
    seen = []
    Store(folder).write(
        lambda db: seen.append(json.loads((folder / "ledger.lock").read_text())), operation="look"
    )
    assert seen[0]["pid"] == os.getpid()
    assert seen[0]["operation"] == "look"


def test_a_lock_file_that_was_replaced_while_waiting_excludes_nobody(folder: Path) -> None:
    """The waiter must notice that what it locked is not the file at the path any more."""
    path = folder / "ledger.lock"
    replaced = threading.Event()
    genuine = filelock.lock_descriptor

    def replace_once(descriptor: int, *, blocking: bool = True) -> bool:
        got = genuine(descriptor, blocking=blocking)
        if got and not replaced.is_set():
            replaced.set()
            path.unlink()
            path.touch()
        return got

    locked: list[int] = []

    def check(db: sqlite3.Connection) -> None:
        locked.append(path.stat().st_ino)
        probe = subprocess.run(
            [sys.executable, "-c", "import fcntl,sys; f=open(sys.argv[1],'r+');"
             "fcntl.flock(f, fcntl.LOCK_EX|fcntl.LOCK_NB)", str(path)],
            capture_output=True, check=False,
        )  # fmt: skip
        assert probe.returncode != 0, "a second process got the lock meanwhile"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "lock_descriptor", replace_once)
        Store(folder).write(check, operation="test")
    assert replaced.is_set()
    assert locked


def test_a_lock_file_that_somebody_removed_is_made_anew(folder: Path) -> None:
    (folder / "ledger.lock").unlink()
    Store(folder).write(touch, operation="test")
    assert touched(folder) == 1
    assert (folder / "ledger.lock").exists()

    shutil.rmtree(folder)
    with pytest.raises(NoLedger):
        Store(folder).read(touch)
    assert not folder.exists(), "nothing is made where no ledger is"


def test_the_folder_is_opened_under_the_lock_and_the_file_after_it_and_nothing_stays_open(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a client remembers of names is asked for anew, before the journal is looked for."""
    steps: list[str] = []
    genuine_open, genuine_lock, genuine_connect = os.open, filelock.lock_descriptor, store.connect

    def opened(path: Path | str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECTORY or str(path).endswith("-journal"):
            steps.append(Path(path).name)
        return genuine_open(path, flags, *rest)

    def locked(descriptor: int, *, blocking: bool = True) -> bool:
        steps.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        return genuine_lock(descriptor, blocking=blocking)

    def connected(path: Path, *, vfs: str) -> sqlite3.Connection:
        steps.append(path.name)
        return genuine_connect(path, vfs=vfs)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(locks, "lock_descriptor", locked)
    monkeypatch.setattr(store, "connect", connected)
    Store(folder).write(touch, operation="test")
    monkeypatch.undo()
    assert steps == [
        "ledger.turn", "ledger.lock", ".gpuledger", "ledger.db-journal", "ledger.db",
    ]  # fmt: skip
    kept = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [path for path in kept if path.parent == folder]


def test_a_journal_that_cannot_be_kept_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "vfs", "mode=memory")  # has no journal but in memory
    with pytest.raises(LedgerUnreachable, match="mode stays 'memory'"):
        Store(folder).write(touch, operation="test")


def test_threads_of_one_process_take_turns(folder: Path) -> None:
    inside = threading.Semaphore(1)

    def alone(db: sqlite3.Connection) -> None:
        assert inside.acquire(blocking=False)
        touch(db)
        inside.release()

    def many() -> None:
        for _ in range(20):
            Store(folder).write(alone, operation="test")

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert touched(folder) == 80


def test_a_forked_child_can_use_the_ledger_although_a_thread_of_its_parent_held_it(
    folder: Path,
) -> None:
    code = f"""
import os, threading, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from gpuledger.store import Store
folder = Path({str(folder)!r})
holding, done = threading.Event(), threading.Event()
def hold(db):
    holding.set()
    done.wait(10)
thread = threading.Thread(target=lambda: Store(folder).write(hold, operation="hold"))
thread.start()
holding.wait()
pid = os.fork()
if pid == 0:
    try:
        Store(folder, lock_timeout_s=5).read(lambda db: None)
    except BaseException as error:
        os.write(2, repr(error).encode())
        os._exit(1)
    os._exit(0)
done.set()
thread.join()
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_foreign_program_on_the_file_is_waited_for_and_named(folder: Path) -> None:
    other = sqlite3.connect(folder / "ledger.db")
    other.execute("BEGIN IMMEDIATE")
    # In a process of its own, since closing a descriptor here would drop the other's lock.
    code = (
        "from pathlib import Path; from gpuledger.store import Store; import sys\n"
        f"Store(Path({str(folder)!r}), lock_timeout_s=0.3).read(lambda db: None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    other.close()
    assert "LedgerBusy" in done.stderr
    assert "sqlite3 shell" in done.stderr


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused_with_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int, *, blocking: bool = True) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks, "lock_descriptor", refuse)
    with pytest.raises(Unavailable, match="offers no file locks"):
        Store(folder).read(lambda db: None)
    assert sorted(path.name for path in folder.glob("*.lock*")) == ["ledger.lock"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_failing_file_system_is_an_error_that_says_nothing_was_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int, *, blocking: bool = True) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks, "lock_descriptor", refuse)
    with pytest.raises(LedgerUnreachable, match="nothing was changed"):
        Store(folder).write(touch, operation="test")


def test_a_stale_handle_is_opened_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, stale = filelock.lock_descriptor, iter([True, True, False])

    def sometimes(descriptor: int, *, blocking: bool = True) -> bool:
        if next(stale, False):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return genuine(descriptor, blocking=blocking)

    monkeypatch.setattr(locks, "lock_descriptor", sometimes)
    Store(folder).write(touch, operation="test")
    assert touched(folder) == 1


# --- all or nothing ---------------------------------------------------------------------------


def test_an_error_in_the_middle_leaves_nothing_behind(folder: Path) -> None:
    def half(db: sqlite3.Connection) -> None:
        touch(db)
        raise KeyError("mistake")

    with pytest.raises(KeyError):
        Store(folder).write(half, operation="test")
    assert touched(folder) == 0


def test_reading_cannot_write(folder: Path) -> None:
    with pytest.raises((sqlite3.OperationalError, LedgerError)):
        Store(folder).read(touch)
    assert touched(folder) == 0


INJECT = shutil.which("strace") is None
CHANGE = """
import sys
from pathlib import Path
from gpuledger.errors import LedgerError
from gpuledger.store import Store
folder = Path(sys.argv[1])
try:
    Store(folder).write(
        lambda db: db.execute("INSERT INTO event (at, kind) VALUES (0, 'touched')") and None,
        operation="test",
    )
    print("recorded")
except LedgerError as error:
    print(error.problem)
"""


def traced(inject: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={inject}",
         sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.skipif(INJECT, reason="strace is not installed")
@pytest.mark.parametrize("call", ["fdatasync", "fsync", "pwrite64"])
@pytest.mark.parametrize("number", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("when", [1, 2, 3, 4, 5])
def test_what_is_said_of_a_failing_disk_is_true(
    folder: Path, call: str, number: str, when: int
) -> None:
    """Whatever call fails: recorded means once, an error means not at all."""
    done = traced(f"{call}:error={number}:when={when}", CHANGE, str(folder))

    assert done.returncode == 0, done.stderr
    said = done.stdout.strip()
    assert touched(folder) == (1 if said == "recorded" else 0), said
    if said != "recorded":
        assert "nothing was changed" in said or "not known" in said


@pytest.mark.skipif(INJECT, reason="strace is not installed")
def test_a_commit_that_raised_but_happened_is_found_out(folder: Path) -> None:
    """Zeroing the journal's header is the last step: when it fails, the change is durable."""
    raised = 0
    for when in range(1, 9):
        code = CHANGE.replace("Store(folder)", "Spy(folder)").replace(
            "folder = Path",
            "class Spy(Store):\n"
            "    def _after_commit_raised(self, *a):\n"
            "        print('raised', end=' ')\n"
            "        return super()._after_commit_raised(*a)\n"
            "folder = Path",
        )
        before = touched(folder)
        done = traced(f"fdatasync:error=EIO:when={when}", code, str(folder))
        raised += done.stdout.startswith("raised recorded")
        assert touched(folder) - before == int(done.stdout.strip().endswith("recorded"))
    assert raised >= 1, "no COMMIT raised: the guard was not tried"


# --- versions, damage, permissions ------------------------------------------------------------

NEXT = ("ALTER TABLE ledger ADD COLUMN motto TEXT",)


def test_a_newer_ledger_is_refused_and_an_older_one_is_brought_up_to_date(folder: Path) -> None:
    newer = Store(folder, migrations=(*schema.MIGRATIONS, NEXT))
    assert newer.read(lambda db: db.execute("SELECT motto FROM ledger").fetchone()[0]) is None

    for use in (Store(folder).read, lambda work: Store(folder).write(work, operation="test")):
        with pytest.raises(LedgerTooNew) as caught:
            use(lambda db: None)
        assert f"version {len(schema.MIGRATIONS) + 1}" in caught.value.problem
        assert "upgrade" in (caught.value.hint or "")


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database" * 1000)


def truncated(path: Path) -> None:
    os.truncate(path, 5000)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("harm", [garbage, truncated, emptied])
def test_a_damaged_file_is_said_so(folder: Path, harm: Callable[[Path], None]) -> None:
    Ledger.open(folder).add_sweep(spec(points=100))
    harm(folder / "ledger.db")

    with pytest.raises(LedgerDamaged, match=r"damaged.*nothing was changed"):
        Ledger.open(folder).tasks()


def test_a_folder_that_is_gone_is_said_so(folder: Path) -> None:
    opened = Ledger.open(folder)
    folder.rename(folder.with_name("moved"))

    with pytest.raises(NoLedger, match="there is no ledger at"):
        opened.snapshot()
    assert opened.store.change_counter() is None
    assert opened.store.last_nudge() == b""


def test_wal_that_somebody_switched_on_is_switched_off(folder: Path) -> None:
    foreign = sqlite3.connect(folder / "ledger.db")
    foreign.execute("PRAGMA journal_mode = WAL")
    foreign.close()

    Store(folder).write(touch, operation="test")

    mode = sqlite3.connect(folder / "ledger.db")
    assert mode.execute("PRAGMA journal_mode").fetchone()[0] != "wal"
    mode.close()
    assert touched(folder) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_stranger_gets_a_sentence_and_no_traceback(folder: Path) -> None:
    for path in folder.parents[:3]:
        if path != Path("/tmp"):
            path.chmod(0o755)
    code = (
        "import os, sys; from pathlib import Path; from gpuledger.store import Store\n"
        "from gpuledger.errors import LedgerError\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: Store(Path(sys.argv[1])).read(lambda db: None)\n"
        "except LedgerError as error: print(type(error).__name__, error.problem)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("NotAllowed"), done.stdout + done.stderr


# --- the counter ------------------------------------------------------------------------------


def test_the_change_counter_moves_with_changes_only(folder: Path) -> None:
    opened = Ledger.open(folder)
    before = opened.store.change_counter()
    opened.snapshot()
    assert opened.store.change_counter() == before

    opened.register(identity())
    assert opened.store.change_counter() != before


def test_a_holder_that_was_killed_leaves_the_lock_free(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder / "ledger.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    wait_until(
        lambda: Store(folder, lock_timeout_s=5).read(lambda db: True), because="still locked"
    )
