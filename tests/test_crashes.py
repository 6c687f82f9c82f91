"""Killed at any statement and at any call of the file system: nothing is lost or half done."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from gpuledger import ledger as ledger_module
from gpuledger.ledger import Ledger
from gpuledger.model import Claim, TaskState
from gpuledger.store import Store
from tests.helpers import identity, spec
from tests.test_ledger import assert_consistent

T = TypeVar("T")

SETUP = {
    "register": "",
    "claim": "",
    "complete": "claim",
    "complete_and_claim": "claim",
    "fail": "claim",
    "release": "claim",
    "leave": "claim",
    "reap": "claim",
    "retry": "fail",
    "cancel": "claim",
    "pause": "",
    "resume": "pause",
    "add_sweep": "",
}
"""Each verb, and what must have happened before it."""

VERBS = """
import sys
from pathlib import Path
from gpuledger.ledger import Ledger
from gpuledger.model import Ending, Outcome, Token
from gpuledger.selection import Selection
from tests.helpers import failure, identity, spec

def do(verb, ledger):
    worker = identity("victim")
    token = Token(task="exp_0_0", number=1, nonce="victim")
    {
        "register": lambda: ledger.register(identity("another")),
        "claim": lambda: ledger.claim(worker),
        "complete": lambda: ledger.complete(token),
        "complete_and_claim": lambda: ledger.complete(token, then=worker),
        "fail": lambda: ledger.fail(token, failure(traceback="x" * 20000)),
        "release": lambda: ledger.release(token),
        "leave": lambda: ledger.leave("victim"),
        "reap": lambda: ledger.reap({"victim": lambda: True}),
        "retry": lambda: ledger.retry(Selection(), completed=True),
        "cancel": lambda: ledger.cancel(Selection(sweep="exp"), kill=True),
        "pause": lambda: ledger.pause("exp"),
        "resume": lambda: ledger.resume("exp"),
        "add_sweep": lambda: ledger.add_sweep(spec(points=60, seeds=(0, 1), timeout_s=9.0)),
    }[verb]()
"""

AT_CALL = VERBS + "do(sys.argv[2], Ledger.open(Path(sys.argv[1])))"


def do(verb: str, ledger: Ledger) -> None:
    """Run one verb."""
    namespace: dict[str, Callable[[str, Ledger], None]] = {}
    exec(VERBS, namespace)
    namespace["do"](verb, ledger)


class Dying(Store):
    """A store whose process is killed before its n-th statement."""

    left: int

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def traced(db: sqlite3.Connection) -> T:
            db.set_trace_callback(self._count_down)
            return work(db)

        return super()._transaction(traced)

    def _count_down(self, statement: str) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def exit_code_of_child(work: Callable[[], None]) -> int:
    """Return the exit code of a forked process that does this, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(statement: int, folder: Path, verb: str) -> None:
    """Run a verb that is killed before that statement, if it gets so far."""
    store = Dying(folder)
    store.left = 1_000_000
    ledger = Ledger(store)
    store.left = statement
    do(verb, ledger)


def prepare(folder: Path, verb: str) -> Ledger:
    """Make a ledger in the state in which the verb makes sense."""
    ledger = Ledger.create(folder)
    ledger.add_sweep(spec(points=3, max_attempts=1))
    ledger.register(identity("victim"))
    chain = []
    step = SETUP[verb]
    while step:
        chain.append(step)
        step = SETUP[step]
    for step in reversed(chain):
        do(step, ledger)
    return ledger


def check(ledger: Ledger, verb: str, told: str) -> None:
    """After a crash: whole, and every task can still come to its end."""
    assert_consistent(ledger)
    ledger.reap({"victim": lambda: True})
    ledger.resume(None)
    heir = ledger.register(identity("heir", host="beta"))
    found = ledger.claim(heir)
    while isinstance(found, Claim):
        following = ledger.complete(found.token, then=heir).next
        assert following is not None
        found = following
    stuck = [
        task.task for task in ledger.tasks() if task.state in (TaskState.PENDING, TaskState.RUNNING)
    ]
    assert stuck == [], f"{verb} killed {told}: stuck"
    assert_consistent(ledger)


@pytest.mark.parametrize("verb", SETUP)
@pytest.mark.timeout(300)
def test_a_kill_at_every_statement_leaves_a_whole_ledger(tmp_path: Path, verb: str) -> None:
    prepare(tmp_path / "origin", verb)
    for statement in itertools.count(0, 40 if verb == "add_sweep" else 1):
        folder = tmp_path / str(statement)
        shutil.copytree(tmp_path / "origin", folder)
        code = exit_code_of_child(partial(die_at, statement, folder, verb))
        check(Ledger.open(folder), verb, f"before statement {statement}")
        shutil.rmtree(folder)
        if code == 0:
            break  # it outlived its last statement: every one has been tried
        assert code == -signal.SIGKILL
    assert statement >= 4, "BEGIN, a change, the operation's id, COMMIT"


def make_and_die_at(statement: int, folder: Path) -> None:
    """Make a ledger, killed before that statement."""
    Dying.left = statement
    setattr(ledger_module, "Store", Dying)  # noqa: B010 - in a child of its own
    Ledger.create(folder)


def test_a_kill_while_a_ledger_is_made_leaves_one_that_can_be_made(tmp_path: Path) -> None:
    for statement in itertools.count():
        folder = tmp_path / str(statement)
        code = exit_code_of_child(partial(make_and_die_at, statement, folder))
        ledger = Ledger.create(folder)
        ledger.add_sweep(spec())
        assert_consistent(ledger)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert statement > 20, "every table is a statement"


CALLS = ("pwrite64", "fdatasync", "fsync", "close", "ftruncate", "unlink")


def calls_of(folder: Path, verb: str, scratch: Path) -> list[tuple[str, int]]:
    """Return the file-system calls that a verb makes on the ledger, numbered by kind."""
    copy = scratch / "counted"
    shutil.copytree(folder, copy)
    trace = scratch / "trace"
    subprocess.run(
        ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(trace), "-y",
         "-e", f"trace={','.join(CALLS)}",
         sys.executable, "-c", AT_CALL, str(copy), verb],
        capture_output=True, check=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    numbered: dict[str, int] = dict.fromkeys(CALLS, 0)
    found = []
    for line in trace.read_text().splitlines():
        call = line.split(maxsplit=1)[1].partition("(")[0]
        if call in numbered:
            numbered[call] += 1
            if str(copy) in line:
                found.append((call, numbered[call]))
    shutil.rmtree(copy)
    return found


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def kill_at(points: list[tuple[str, int]], origin: Path, verb: str, scratch: Path) -> None:
    """Kill the verb at each of these calls, on copies of the ledger, and check what is left."""
    for call, when in points:
        folder = scratch / "victim"
        shutil.copytree(origin, folder)
        subprocess.run(
            ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null",
             "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={when}",
             sys.executable, "-c", AT_CALL, str(folder), verb],
            capture_output=True, check=False, cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        check(Ledger.open(folder), verb, f"at {call} {when}")
        shutil.rmtree(folder)


@needs_strace
@pytest.mark.exhaustive
@pytest.mark.parametrize("verb", SETUP)
@pytest.mark.timeout(300)
def test_a_kill_at_every_file_system_call_leaves_a_whole_ledger(tmp_path: Path, verb: str) -> None:
    prepare(tmp_path / "origin", verb)
    points = calls_of(tmp_path / "origin", verb, tmp_path)
    assert len(points) > 8, "the verb wrote nothing"
    kill_at(points, tmp_path / "origin", verb, tmp_path)


@needs_strace
@pytest.mark.timeout(120)
def test_a_kill_while_the_change_is_written_leaves_a_whole_ledger(tmp_path: Path) -> None:
    """A few of the calls that `-m exhaustive` tries all of."""
    verb = "complete_and_claim"
    prepare(tmp_path / "origin", verb)
    points = calls_of(tmp_path / "origin", verb, tmp_path)
    kill_at(points[len(points) // 2 :: 3], tmp_path / "origin", verb, tmp_path)


def test_a_torn_write_is_rolled_back_by_the_next_reader(tmp_path: Path) -> None:
    """The journal is what makes a half-written change harmless: without it the file is torn."""
    ledger = Ledger.create(tmp_path / ".gpuledger")
    ledger.add_sweep(spec(points=50))
    db = sqlite3.connect(f"file:{ledger.store.path}?vfs=unix-excl", uri=True, isolation_level=None)
    db.execute("PRAGMA journal_mode = PERSIST")
    db.execute("PRAGMA cache_size = 1")  # writes pages before the COMMIT
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE task SET params = printf('%.*c', 3000, 'x')")
    copy = tmp_path / "copy"
    shutil.copytree(ledger.folder, copy)
    db.execute("ROLLBACK")
    db.close()

    survivor = Ledger.open(copy)
    assert_consistent(survivor)
    assert survivor.task("exp_0_0").params == {"lr": 0}
