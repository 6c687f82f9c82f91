"""A damaged ledger comes back from a backup and the workers' diaries, and nobody is fooled."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from gpuledger import backups, recovery, schema
from gpuledger.backups import Keeper, existing, take
from gpuledger.clock import SystemClock
from gpuledger.diary import Diary
from gpuledger.errors import (
    LeaseLost,
    LedgerDamaged,
    LedgerReplaced,
    LedgerUnreachable,
    Unavailable,
)
from gpuledger.ledger import Ledger
from gpuledger.model import Claim, Ending, Outcome, TaskState, WorkerIdentity
from gpuledger.recovery import recover
from gpuledger.selection import Selection
from gpuledger.store import Store, connect
from tests.helpers import ManualClock, failure, identity, spec
from tests.test_ledger import assert_consistent

COMPLETED = Ending(outcome=Outcome.COMPLETED, exit_code=0, metrics={"loss": 0.5}, duration_s=1.0)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger.create(tmp_path / ".gpuledger")
    ledger.add_sweep(spec(points=6))
    return ledger


class NotingWorker:
    """Does to the ledger what a worker does, and keeps its diary."""

    def __init__(self, ledger: Ledger, nonce: str, *, host: str = "alpha") -> None:
        self.ledger = ledger
        self.me: WorkerIdentity = ledger.register(identity(nonce * 8, host=host))
        self.diary = Diary(ledger.folder, self.me)

    def claim(self) -> Claim:
        found = self.ledger.claim(self.me)
        assert isinstance(found, Claim)
        self.diary.started(found, at=1.0)
        return found

    def end(self, claim: Claim, ending: Ending = COMPLETED) -> None:
        self.diary.ended(claim.token, ending, at=2.0)
        if ending.outcome is Outcome.COMPLETED:
            self.ledger.complete(claim.token, metrics=ending.metrics, duration_s=1.0)
        else:
            self.ledger.fail(claim.token, ending)


def state_of(ledger: Ledger, task: str) -> TaskState:
    return ledger.task(task).state


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database" * 3000)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def removed(path: Path) -> None:
    path.unlink()


def index_torn(path: Path) -> None:
    """Keeps every page readable: only an integrity check sees that an index misses its rows."""
    whole = path.read_bytes()
    backup = existing(path.parent)[-1].path.read_bytes()
    page = int.from_bytes(whole[16:18], "big")
    with path.open("r+b") as file:
        for number in range(2, min(len(whole), len(backup)) // page):
            at = number * page
            if whole[at : at + page] != backup[at : at + page] and whole[at] in (2, 10):
                file.seek(at)
                file.write(backup[at : at + page])


@pytest.mark.parametrize("harm", [garbage, truncated, emptied, removed, index_torn])
def test_what_happened_since_the_backup_is_replayed(
    ledger: Ledger, harm: Callable[[Path], None]
) -> None:
    first = NotingWorker(ledger, "a")
    before = first.claim()
    take(ledger.store, clock=SystemClock())
    first.end(before)
    failed = first.claim()
    first.end(failed, failure("ValueError: boom", traceback="Traceback ..."))
    second = NotingWorker(ledger, "b", host="beta")
    running = second.claim()
    harm(ledger.store.path)

    done = recover(ledger.folder, clock=SystemClock())

    assert done.problem is not None
    assert done.quarantine is not None
    assert harm is removed or (done.quarantine / "ledger.db").exists()
    assert done.replayed == recovery.Replayed(started=2, ended=2)
    again = Ledger.open(ledger.folder)
    assert_consistent(again)
    assert again.task(before.task).result == {"loss": 0.5}
    task = again.task(failed.task)
    assert running.task == failed.task, "another worker took it on"
    assert (task.state, task.failures) == (TaskState.RUNNING, 1)
    assert task.attempts[0].traceback == "Traceback ..."
    assert state_of(again, running.task) is TaskState.RUNNING
    again.complete(running.token, metrics={})  # its worker lives, and ends it as if nothing was
    assert state_of(again, running.task) is TaskState.COMPLETED


def test_a_result_is_restored_with_the_parameters_that_it_is_of(ledger: Ledger) -> None:
    worker = NotingWorker(ledger, "a")
    failed = worker.claim()
    worker.end(failed, failure(fatal=True))
    take(ledger.store, clock=SystemClock())
    ledger.retry(Selection(names=(failed.task,)), params={"lr": 77})
    again = worker.claim()
    assert again.task == failed.task
    worker.end(again)
    garbage(ledger.store.path)

    recover(ledger.folder, clock=SystemClock())

    task = Ledger.open(ledger.folder).task(failed.task)
    assert (task.params, task.state, task.result) == (
        {"lr": 77},
        TaskState.COMPLETED,
        {"loss": 0.5},
    )


def test_results_of_corrections_in_a_chain_are_restored(ledger: Ledger) -> None:
    """One task has got the parameters that another one has in the backup."""
    worker = NotingWorker(ledger, "a")
    one = worker.claim()
    worker.end(one, failure(fatal=True))
    two = worker.claim()
    worker.end(two, failure(fatal=True))
    take(ledger.store, clock=SystemClock())
    ledger.cancel(Selection(states=frozenset({TaskState.PENDING})))
    for name, lr in ((two.task, 77), (one.task, two.params["lr"])):
        ledger.retry(Selection(names=(name,)), params={"lr": lr})
    worker.end(worker.claim())
    worker.end(worker.claim())
    garbage(ledger.store.path)

    recover(ledger.folder, clock=SystemClock())

    again = Ledger.open(ledger.folder)
    assert [again.task(name).state for name in (one.task, two.task)] == [TaskState.COMPLETED] * 2
    assert again.task(one.task).params == {"lr": two.params["lr"]}
    assert again.task(two.task).params == {"lr": 77}


def test_a_whole_ledger_is_left_alone(ledger: Ledger) -> None:
    take(ledger.store, clock=SystemClock())
    before = ledger.store.path.stat().st_ino

    assert recover(ledger.folder, clock=SystemClock()).problem is None
    assert ledger.store.path.stat().st_ino == before

    forced = recover(ledger.folder, clock=SystemClock(), force=True)
    assert forced.backup is not None
    assert ledger.store.path.stat().st_ino != before


def test_late_writers_of_the_old_epoch_are_refused_until_they_look_again(ledger: Ledger) -> None:
    worker = NotingWorker(ledger, "a")
    claim = worker.claim()
    take(ledger.store, clock=SystemClock())
    garbage(ledger.store.path)
    assert recover(ledger.folder, clock=SystemClock()).epoch == 2

    with pytest.raises(LedgerReplaced, match="recovered from a backup"):
        ledger.complete(claim.token)
    assert state_of(ledger, claim.task) is TaskState.RUNNING

    ledger.reopen()
    ledger.complete(claim.token)
    assert state_of(ledger, claim.task) is TaskState.COMPLETED
    garbage(ledger.store.path)
    assert recover(ledger.folder, clock=SystemClock()).epoch == 3, "an older backup, a newer epoch"


def test_an_attempt_that_nobody_noted_is_refused(ledger: Ledger) -> None:
    take(ledger.store, clock=SystemClock())
    lost = ledger.register(identity("n" * 8))
    claim = ledger.claim(lost)
    assert isinstance(claim, Claim)
    garbage(ledger.store.path)
    recover(ledger.folder, clock=SystemClock())
    ledger.reopen()
    assert not ledger.is_open(claim.token)

    other = NotingWorker(ledger, "b", host="beta")
    assert other.claim().task == claim.task
    with pytest.raises(LeaseLost):
        ledger.complete(claim.token)


def test_a_refused_ending_is_not_replayed(ledger: Ledger) -> None:
    take(ledger.store, clock=SystemClock())
    slow, quick = NotingWorker(ledger, "a"), NotingWorker(ledger, "b", host="beta")
    claim = slow.claim()
    ledger.reap({slow.me.nonce: lambda: True})
    again = quick.claim()
    assert again.number == 2
    slow.diary.ended(claim.token, COMPLETED, at=3.0)
    slow.diary.refused(claim.token, at=3.0)
    garbage(ledger.store.path)
    recover(ledger.folder, clock=SystemClock())

    task = Ledger.open(ledger.folder).task(claim.task)
    assert (task.state, [attempt.number for attempt in task.attempts]) == (TaskState.RUNNING, [2])


def test_tasks_that_no_backup_has_are_named(ledger: Ledger) -> None:
    take(ledger.store, clock=SystemClock())
    ledger.add_sweep(spec(name="later", points=1, priority=5))
    worker = NotingWorker(ledger, "a")
    worker.end(worker.claim())
    garbage(ledger.store.path)

    assert recover(ledger.folder, clock=SystemClock()).replayed.unknown == ("later_0_0",)


def test_a_damaged_backup_is_passed_over(ledger: Ledger) -> None:
    good = take(ledger.store, clock=SystemClock())
    ledger.pause("exp")
    bad = take(ledger.store, clock=SystemClock())
    garbage(bad.path)
    garbage(ledger.store.path)

    done = recover(ledger.folder, clock=SystemClock())
    assert done.backup is not None
    assert done.backup.path == good.path
    assert bad.path.exists(), "nothing is ever deleted by a recovery"


def overwritten(path: Path, text: bytes, by: bytes) -> None:
    """Damage what a page holds, not its structure."""
    whole = path.read_bytes()
    assert text in whole
    path.write_bytes(whole.replace(text, by))


@pytest.mark.parametrize(
    ("text", "by"),
    [
        (b"an error to find", b"an er\xff\xfe to find"),
        (b'{"lr": 2}', b'{"lr\x7f: 2}'),
        (b"CREATE TABLE task (", b"CREATE TABLE t\xbek ("),
    ],
)
def test_damage_within_a_text_is_damage(ledger: Ledger, text: bytes, by: bytes) -> None:
    worker = NotingWorker(ledger, "w")
    worker.end(worker.claim(), Ending(outcome=Outcome.FAILED, error="an error to find"))
    good = take(ledger.store, clock=SystemClock())
    assert ledger.task("exp_0_0").last_error == "an error to find"
    before = [(task.task, task.params, task.last_error) for task in ledger.tasks()]
    overwritten(ledger.store.path, text, by)

    with pytest.raises(LedgerDamaged):
        ledger.tasks()
    with pytest.raises(LedgerDamaged):
        take(ledger.store, clock=SystemClock())
    done = recover(ledger.folder, clock=SystemClock())
    assert done.backup == good
    assert [(task.task, task.params, task.last_error) for task in ledger.tasks()] == before


def test_what_only_python_calls_json_is_no_damage(ledger: Ledger) -> None:
    worker = NotingWorker(ledger, "w")
    nan = replace(COMPLETED, metrics={"loss": float("nan"), "acc": float("inf")})
    worker.end(worker.claim(), nan)
    assert take(ledger.store, clock=SystemClock()).path.exists()
    assert recover(ledger.folder, clock=SystemClock()).backup is None


def test_without_a_good_backup_nothing_is_touched(ledger: Ledger) -> None:
    garbage(ledger.store.path)
    before = ledger.store.path.read_bytes()

    with pytest.raises(Unavailable, match=r"no good backup.*nothing was changed"):
        recover(ledger.folder, clock=SystemClock())
    assert ledger.store.path.read_bytes() == before
    assert not (ledger.folder / "damaged").exists()


@pytest.mark.parametrize("step", range(6))
def test_a_recovery_that_was_killed_is_finished_by_the_next(
    ledger: Ledger, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = NotingWorker(ledger, "a")
    take(ledger.store, clock=SystemClock())
    worker.end(worker.claim())
    garbage(ledger.store.path)
    hot = ledger.folder / "ledger.db-journal"
    hot.write_bytes(bytes.fromhex("d9d505f920a163d7") + b"\xff" * 504)
    moves = iter(range(100))
    genuine_rename, genuine_copy = Path.rename, shutil.copyfile

    def rename(path: Path, target: Path) -> Path:
        if next(moves) == step:
            raise KeyboardInterrupt
        return genuine_rename(path, target)

    def copyfile(source: Path, target: Path) -> Path:
        if next(moves) == step:
            target.write_bytes(source.read_bytes()[:1000])
            target.with_name(target.name + "-journal").write_bytes(b"hot")
            raise KeyboardInterrupt
        return genuine_copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        patch.setattr(shutil, "copyfile", copyfile)
        try:
            recover(ledger.folder, clock=SystemClock())
            assert step >= 3, "there are three or four moves"
        except KeyboardInterrupt:
            recover(ledger.folder, clock=SystemClock())

    again = Ledger.open(ledger.folder)
    assert_consistent(again)
    assert again.snapshot().counts.completed == 1
    kept = [path.read_bytes() for path in (ledger.folder / "damaged").glob("*/ledger.db")]
    assert any(content.startswith(b"this is no database") for content in kept)
    assert not any((ledger.folder).glob("ledger.db.recovered*"))


# --- backups ----------------------------------------------------------------------------------


def test_a_backup_of_a_damaged_ledger_is_none(ledger: Ledger) -> None:
    take(ledger.store, clock=SystemClock())
    index_page_lost(ledger.store.path)
    with pytest.raises(LedgerDamaged):
        take(ledger.store, clock=SystemClock())
    assert len(existing(ledger.folder)) == 1


class Watch:
    """A worker's keeper, whose time is moved by hand."""

    def __init__(self, ledger: Ledger) -> None:
        self.said: list[str] = []
        self._folder = ledger.folder
        self._clock = ManualClock()
        self._later_s = 0.0
        self._keeper = Keeper(
            ledger.store,
            clock=self._clock,
            now_there=lambda: time.time() + self._later_s,
            say=self.said.append,
        )

    def look(self, later_s: float) -> int:
        """Let time pass, look whether a backup is due, and return how many there are then."""
        self._clock.advance(later_s)
        self._later_s += later_s
        self._keeper.see_to_it()
        for thread in threading.enumerate():
            if thread.name == "backup":
                thread.join()
        return len(existing(self._folder))


def test_workers_make_a_backup_every_ten_minutes_in_which_something_changed(
    ledger: Ledger,
) -> None:
    watch = Watch(ledger)
    assert watch.look(61) == 1, "there was none"
    ledger.pause("exp")
    assert watch.look(500) == 1
    assert watch.look(101) == 2
    assert watch.look(700) == 2, "nothing changed"
    ledger.resume("exp")
    assert watch.look(61) == 3

    backups._note_latest(ledger.folder / "backups", None, 0, took_s=20.0)  # a slow disk
    ledger.pause("exp")
    assert Watch(ledger).look(1900) == 3, "a hundredth of the time is the most"
    assert Watch(ledger).look(2031) == 4


def test_a_backup_that_fails_is_not_tried_again_at_once_by_anybody(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def fail(store: Store, *, clock: object) -> None:
        tries.append(1)
        raise LedgerUnreachable("no room")

    monkeypatch.setattr(backups, "take", fail)
    (ledger.folder / "backups").mkdir()
    first, second = Watch(ledger), Watch(ledger)
    first.look(61)
    assert len(tries) == 1
    for later_s in (61, 61, 340):
        first.look(later_s)
        second.look(later_s)
    assert len(tries) == 1
    second.look(200)
    assert len(tries) == 2
    assert first.said == second.said == ["no room"]


def index_page_lost(path: Path) -> None:
    whole = path.read_bytes()
    page = int.from_bytes(whole[16:18], "big")
    leaf = next(at for at in range(page, len(whole), page) if whole[at] == 10 and whole[at + 4])
    with path.open("r+b") as file:  # an index leaf that says it has no cells
        file.seek(leaf + 3)
        file.write(b"\x00\x00")


def test_after_a_crash_the_ledger_is_checked_before_it_is_used(ledger: Ledger) -> None:
    """A journal that waits for its rollback says that somebody died in a transaction."""
    index_page_lost(ledger.store.path)
    ledger.snapshot()  # without a crash nobody pays for a check
    journal = ledger.folder / "ledger.db-journal"
    with journal.open("r+b") as file:
        file.write(bytes.fromhex("d9d505f920a163d7"))

    with pytest.raises(LedgerDamaged, match="after a crash") as caught:
        ledger.snapshot()
    assert "gpuledger recover" in (caught.value.hint or "")
    assert caught.value.exit_code == 74
    assert "\n" not in caught.value.problem
    with pytest.raises(LedgerDamaged):  # the journal is rolled back by now: the mark stays
        Ledger.open(ledger.folder)


def test_what_was_saved_from_a_marked_file_can_be_restored(ledger: Ledger, tmp_path: Path) -> None:
    saved = tmp_path / "saved.db"
    shutil.copy(ledger.store.path, saved)
    with closing(connect(saved, vfs="vfs=unix")) as db:
        schema.condemn(db)
    garbage(ledger.store.path)
    recover(ledger.folder, clock=SystemClock(), source=saved)
    assert Ledger.open(ledger.folder).snapshot().counts.total == 6


def test_a_ledger_that_lost_its_file_is_damaged_and_is_not_made_anew(ledger: Ledger) -> None:
    take(ledger.store, clock=SystemClock())
    ledger.store.path.unlink()
    with pytest.raises(LedgerDamaged, match="missing"):
        ledger.snapshot()
    with pytest.raises(LedgerDamaged, match="missing"):
        Ledger.create(ledger.folder)
    (ledger.folder / "ledger.lock").unlink()
    recover(ledger.folder, clock=SystemClock())
    assert Ledger.open(ledger.folder).snapshot().counts.total == 6


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_recovery_on_a_failing_disk_keeps_everything_and_goes_on_later(
    ledger: Ledger, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(ledger.store, clock=SystemClock())
    garbage(ledger.store.path)
    before = ledger.store.path.read_bytes()

    def refuse(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", refuse)
        with pytest.raises(LedgerUnreachable, match="still there"):
            recover(ledger.folder, clock=SystemClock())
    assert ledger.store.path.read_bytes() == before
    assert recover(ledger.folder, clock=SystemClock()).backup is not None


CHILD = """
import sys
from pathlib import Path
from gpuledger.backups import take
from gpuledger.clock import SystemClock
from gpuledger.recovery import recover
from gpuledger.store import Store, connect
from gpuledger.store import Store
folder = Path(sys.argv[1])
open(sys.argv[3], "w").close()  # from here on
if sys.argv[2] == "recover":
    print(recover(folder, clock=SystemClock()).problem)
else:
    take(Store(folder), clock=SystemClock())
"""
CALLS = ("openat", "rename", "unlink", "mkdir", "pwrite64", "fdatasync", "fsync", "close")
ROOT = Path(__file__).parent.parent


def test_of_two_recoveries_at_once_one_finds_nothing_left_to_do(ledger: Ledger) -> None:
    take(ledger.store, clock=SystemClock())
    garbage(ledger.store.path)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(ledger.folder), "recover", os.devnull],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = sorted(process.communicate()[0].strip() for process in both)
    assert said == ["None", "file is not a database"]
    assert len(list((ledger.folder / "damaged").iterdir())) == 1


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", ["recover", "backup"])
def test_a_kill_at_every_call_leaves_what_the_next_try_can_use(
    ledger: Ledger, what: str, tmp_path: Path
) -> None:
    worker = NotingWorker(ledger, "a")
    take(ledger.store, clock=SystemClock())
    worker.end(worker.claim())
    if what == "recover":
        garbage(ledger.store.path)
    victim, trace, mark = tmp_path / "victim", tmp_path / "trace", tmp_path / "mark"

    def killed_at(*options: str) -> None:
        shutil.rmtree(victim, ignore_errors=True)
        shutil.copytree(ledger.folder, victim)
        subprocess.run(
            ["strace", "-f", "-qq", "-y", *options,
             sys.executable, "-c", CHILD, str(victim), what, str(mark)],
            capture_output=True, check=False, cwd=ROOT,
        )  # fmt: skip

    killed_at("-o", str(trace), "-e", f"trace={','.join(CALLS)}")
    numbered = dict.fromkeys(CALLS, 0)
    points: list[tuple[str, int]] = []
    for line in trace.read_text().splitlines():
        call = line.split(maxsplit=1)[1].partition("(")[0]
        if call in numbered:
            numbered[call] += 1
            if str(mark) in line:
                points.clear()
            elif str(victim) in line:
                points.append((call, numbered[call]))
    assert len(points) > 25
    for call, when in points:
        inject = f"inject={call}:signal=SIGKILL:when={when}"
        killed_at("-o", os.devnull, "-e", f"trace={call}", "-e", inject)
        if what == "recover":
            recover(victim, clock=SystemClock())
        else:
            take(Store(victim), clock=SystemClock())
        assert_consistent(Ledger.open(victim))
        assert Ledger.open(victim).snapshot().counts.completed == 1, (call, when)
        good = [backup for backup in existing(victim) if backups.examine(backup.path) is None]
        assert good == existing(victim), "a half-made one is never taken for one"


def test_the_last_ten_and_hourly_ones_are_kept(ledger: Ledger) -> None:
    folder = ledger.folder / "backups"
    folder.mkdir()
    for change in range(60 * 30):  # every minute, thirty hours
        hour, minute = divmod(change, 60)
        day, hour = divmod(hour, 24)
        (folder / f"202601{day + 1:02}T{hour:02}{minute:02}00Z-1-{change}.db").touch()

    backups.prune(folder)

    kept = sorted(backup.change for backup in existing(ledger.folder))
    assert kept[-10:] == list(range(1790, 1800))
    assert kept[:-10] == [60 * hour for hour in range(6, 30)]


def killed_while_copying(place: Path) -> Path:
    """Kill somebody who makes a backup; return what that left behind, as if long ago."""
    program = """
import os, signal
from gpuledger import backups
with backups._scratch() as scratch:
    (scratch / "ledger.db").write_bytes(b"half of it")
    print(scratch, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environ = {**os.environ, "TMPDIR": str(place)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    left = Path(done.stdout.strip())
    assert (left / "ledger.db").exists()
    os.utime(left, (1, 1))
    return left


def test_what_a_killed_maker_left_is_removed_by_the_next_and_nothing_else(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    left, other = killed_while_copying(place), place / "other"
    other.mkdir()
    somebodys = place / f"{backups.SCRATCH}kept"
    somebodys.mkdir()
    (somebodys / "ledger.db").touch()
    empty = place / f"{backups.SCRATCH}empty"
    empty.mkdir()
    for folder in (somebodys, empty):
        os.utime(folder, (1, 1))
    link = place / f"{backups.SCRATCH}link"
    link.symlink_to(other)
    os.utime(link, (1, 1), follow_symlinks=False)
    young = place / f"{backups.SCRATCH}young"
    young.mkdir()
    with backups._scratch() as at_work:
        (at_work / "ledger.db").touch()
        os.utime(at_work, (1, 1))
        take(ledger.store, clock=SystemClock())
        assert (at_work / "ledger.db").exists(), "its maker lives"

    assert not left.exists()
    assert sorted(place.iterdir()) == sorted([other, link, young, somebodys])
    assert [path.name for path in somebodys.iterdir()] == ["ledger.db"]
    assert not list(other.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
def test_what_another_user_left_is_not_touched(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = killed_while_copying(tmp_path)
    os.chown(left, 12345, 12345)
    take(ledger.store, clock=SystemClock())
    assert left.exists()


def test_drafts_of_killed_makers_are_removed_after_an_hour(ledger: Ledger) -> None:
    backup = take(ledger.store, clock=SystemClock())
    old, young = (backup.path.with_suffix(f".{number}.part") for number in (1, 2))
    young.touch()
    old.touch()
    os.utime(old, (1, 1))
    take(ledger.store, clock=SystemClock())
    assert not old.exists()
    assert young.exists()


def test_diaries_older_than_every_backup_are_removed(ledger: Ledger) -> None:
    old, young = NotingWorker(ledger, "a"), NotingWorker(ledger, "b", host="beta")
    old.end(old.claim())
    os.utime(old.diary.path, (1, 1))
    take(ledger.store, clock=SystemClock())
    young.end(young.claim())
    take(ledger.store, clock=SystemClock())

    assert not old.diary.path.exists()
    assert young.diary.path.exists()
