"""Lets a verb meet one error at each of its calls in turn, in a fork each, and checks what is left.

LD_PRELOAD=failing_calls.so python -m tests.failing_calls FOLDER VERB ERROR [EVERY]

FOLDER/origin is the ledger; every n-th call is tried, or all. Prints how often the verb answered
what, as JSON.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from gpuledger.backups import existing, take
from gpuledger.clock import SystemClock
from gpuledger.errors import LedgerError
from gpuledger.ledger import Ledger
from gpuledger.recovery import recover
from gpuledger.store import Store
from tests.test_crashes import check, do
from tests.test_ledger import assert_consistent

ANSWERS = ("counted", "done", "refused", "unknown", "bug")
shim = ctypes.CDLL(None)
shim.failing_name.restype = ctypes.c_char_p


def run(verb: str, folder: Path) -> None:
    """Do it to the ledger in the folder."""
    if verb == "backup":
        take(Store(folder, lock_timeout_s=2.0), clock=SystemClock())
    elif verb == "recover":
        assert recover(folder, clock=SystemClock()).backup is not None
    elif verb == "create":
        Ledger.create(folder)
    elif verb == "look":
        Ledger.open(folder, lock_timeout_s=2.0).snapshot()
    else:
        do(verb, Ledger.open(folder, lock_timeout_s=2.0))


def in_child(work: Callable[[], str]) -> tuple[str, str]:
    """Return the answer of the work and the call that failed, from a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = work()
        except BaseException:
            answer = f"bug {traceback.format_exc()}"
        os.write(writer, answer.encode()[-60000:])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer, _, told = file.read().partition(" ")
    os.waitpid(child, 0)
    return answer, told


def try_at(folder: Path, verb: str, at: int, error: int) -> tuple[str, str]:
    """Run the verb; the call of that number fails (-1: none). Return the answer and more of it."""

    def work() -> str:
        shim.failing_arm(os.fsencode(folder), at, error)
        try:
            run(verb, folder)
            answer = "done"
        except LedgerError as problem:
            if problem.hint is None:
                raise  # it does not say what to do
            answer = "unknown" if "not known whether" in problem.problem else "refused"
            answer = f"{answer} {problem.problem};"
        finally:
            shim.failing_disarm()
        if at < 0:
            return f"counted {shim.failing_calls()}"
        name = shim.failing_name(at) if at < shim.failing_calls() else b"no call"
        return f"{answer} {name.decode()} {at}"

    return in_child(work)


def seq(folder: Path) -> int:
    """Return the number of the ledger's latest change."""
    return int(
        Store(folder).read(lambda db: db.execute("SELECT seq FROM ledger").fetchone()["seq"])
    )


def examine(folder: Path, verb: str, answer: str, before: int, told: str) -> None:
    """Check that what was said is true, and that everything can go on."""
    if verb == "create":
        Ledger.create(folder)
        assert_consistent(Ledger.open(folder))
    elif verb == "recover":
        again = recover(folder, clock=SystemClock())
        assert (again.backup is None) == (answer == "done"), told
        assert_consistent(Ledger.open(folder))
    elif verb in ("look", "backup"):
        assert_consistent(Ledger.open(folder))
        assert seq(folder) == before, told
        assert verb == "look" or len(existing(folder)) >= (2 if answer == "done" else 1), told
    else:
        changed = seq(folder) - before
        assert changed == {"done": 1, "refused": 0}.get(answer, changed), told
        check(Ledger.open(folder), verb, told)


def main(scratch: Path, verb: str, error: str, every: int) -> None:
    """Try the calls one after another."""
    origin, victim = scratch / "origin", scratch / f"victim-{verb}-{error}"
    number = getattr(errno, error)
    damaged = verb == "recover"
    before = 0 if damaged or verb == "create" else seq(origin)
    answers: Counter[str] = Counter()
    total = every
    for at in itertools.chain([-1], itertools.count(0, every)):
        if at >= total:
            break
        shutil.rmtree(victim, ignore_errors=True)
        if verb != "create":
            shutil.copytree(origin, victim)
        answer, more = try_at(victim, verb, at, number)
        assert answer in ANSWERS, (answer, more)
        assert answer != "bug", f"{error} at call {at} of {verb}: {more}"
        answers[answer] += 1
        if at < 0:
            total = int(more)
            continue
        examine(victim, verb, answer, before, f"{error} at call {at} of {verb}: {answer} {more}")
    shutil.rmtree(victim)
    print(json.dumps({"calls": total, **answers}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int((*sys.argv[4:], "1")[0]))
