"""Each error of the file system at each call: a clear, bounded answer, and never half a change."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gpuledger.ledger import Ledger
from tests.test_crashes import VERBS, check, prepare
from tests.test_ledger import assert_consistent

ERRORS = ("ESTALE", "EIO", "ENOLCK", "ENOSYS", "EACCES", "EDQUOT", "ENOSPC")

CALLS = (
    "openat", "newfstatat", "access", "faccessat", "faccessat2", "flock", "fcntl", "pread64",
    "read", "pwrite64", "fdatasync", "fsync", "ftruncate", "unlink", "close",
)  # fmt: skip

CHILD = (
    VERBS
    + """
from gpuledger.errors import LedgerError
ledger = Ledger.open(Path(sys.argv[1]), lock_timeout_s=2.0)
open(sys.argv[3], "w").close()  # from here on
try:
    if sys.argv[2] == "look":
        ledger.snapshot()
    else:
        do(sys.argv[2], ledger)
    print("done")
except LedgerError as error:
    assert error.hint, error
    print("unknown" if "not known whether" in error.problem else "refused", "-", error)
"""
)


def strace(options: Sequence[str], folder: Path, verb: str, mark: Path) -> str:
    """Run the verb under strace, whose calls after `mark` was made are the verb's own."""
    done = subprocess.run(
        ["strace", "-f", "-qq", "-y", *options,
         sys.executable, "-c", CHILD, str(folder), verb, str(mark)],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def calls_of(origin: Path, verb: str, scratch: Path) -> list[tuple[str, int]]:
    """Return the calls that the verb makes on the ledger's files, numbered by kind."""
    copy, trace, mark = scratch / "counted", scratch / "trace", scratch / "mark"
    shutil.copytree(origin, copy)
    strace(["-o", str(trace), "-e", f"trace={','.join(CALLS)}"], copy, verb, mark)
    numbered: dict[str, int] = dict.fromkeys(CALLS, 0)
    found: list[tuple[str, int]] = []
    for line in trace.read_text().splitlines():
        call = line.split(maxsplit=1)[1].partition("(")[0]
        if call not in numbered:
            continue
        numbered[call] += 1
        if str(mark) in line:
            found.clear()
        elif str(copy) in line:
            found.append((call, numbered[call]))
    shutil.rmtree(copy)
    return found


def seq(ledger: Ledger) -> int:
    return int(ledger.store.read(lambda db: db.execute("SELECT seq FROM ledger").fetchone()[0]))


def fail_at(
    points: list[tuple[str, int, str]], origin: Path, verb: str, scratch: Path
) -> dict[str, int]:
    """Let each of these calls fail, on copies of the ledger; count what was answered."""
    answers: dict[str, int] = {"done": 0, "refused": 0, "unknown": 0}
    for call, when, error in points:
        folder = scratch / "victim"
        shutil.copytree(origin, folder)
        before = seq(Ledger.open(folder))
        answer = strace(
            ["-o", "/dev/null", "-e", f"trace={call}",
             "-e", f"inject={call}:error={error}:when={when}"],
            folder, verb, scratch / "mark",
        )  # fmt: skip
        said = answer.split(maxsplit=1)[0]
        answers[said] += 1
        changed = seq(Ledger.open(folder)) - before
        told = f"{error} at {call} {when}: {answer.strip()}"
        assert changed == {"done": int(verb != "look"), "refused": 0}.get(said, changed), told
        if verb == "look":
            assert_consistent(Ledger.open(folder))
        else:
            check(Ledger.open(folder), verb, told)
        shutil.rmtree(folder)
    return answers


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@needs_strace
@pytest.mark.exhaustive
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("verb", ["complete_and_claim", "claim", "look"])
@pytest.mark.timeout(600)
def test_every_error_at_every_call(tmp_path: Path, verb: str, error: str) -> None:
    prepare(tmp_path / "origin", "claim" if verb == "look" else verb)
    calls = calls_of(tmp_path / "origin", verb, tmp_path)
    assert len(calls) > 20
    answers = fail_at([(*call, error) for call in calls], tmp_path / "origin", verb, tmp_path)
    assert answers["refused"] > 5


@needs_strace
@pytest.mark.timeout(120)
def test_some_error_at_every_third_call(tmp_path: Path) -> None:
    """A few of the cases that `-m exhaustive` tries all of."""
    prepare(tmp_path / "origin", "complete_and_claim")
    calls = calls_of(tmp_path / "origin", "complete_and_claim", tmp_path)[::3]
    points = [(*call, error) for call, error in zip(calls, itertools.cycle(ERRORS), strict=False)]
    answers = fail_at(points, tmp_path / "origin", "complete_and_claim", tmp_path)
    assert answers["refused"] > 2
