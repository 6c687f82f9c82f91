"""Each error of the file system at each call: a clear, bounded answer, and never half a change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpuledger.backups import take
from gpuledger.clock import SystemClock
from tests import failing_calls
from tests.test_crashes import prepare

ERRORS = ("ESTALE", "EIO", "ENOLCK", "ENOSYS", "EACCES", "EDQUOT", "ENOSPC")
VERBS = ("complete_and_claim", "fail", "claim", "register", "look", "create", "backup", "recover")
SHORT = 11
"""Of the calls of each verb so few are tried, of the errors one: `-m exhaustive` tries all."""


class AMinuteAgo(SystemClock):
    """A clock by which another backup has another name."""

    def now(self) -> float:
        return super().now() - 60.0


def fail(scratch: Path, verb: str, error: str, *, every: int = 1) -> dict[str, int]:
    """Let every n-th call of the verb fail, one at a time; return how often it answered what."""
    library = failing_calls.build(scratch)
    others = {"look": "claim", "create": "claim", "backup": "claim", "recover": "claim"}
    ledger = prepare(scratch / "origin", others.get(verb, verb))
    if verb in ("backup", "recover"):
        take(ledger.store, clock=AMinuteAgo())  # two of one second have one name
    if verb == "recover":
        ledger.store.path.write_bytes(b"this is no database" * 3000)
    done = subprocess.run(
        [sys.executable, "-m", "tests.failing_calls", str(scratch), verb, error, str(every)],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    answers: dict[str, int] = json.loads(done.stdout)
    return answers


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("verb", VERBS)
def test_every_error_at_every_call(tmp_path: Path, verb: str, error: str) -> None:
    answers = fail(tmp_path, verb, error)
    assert answers["calls"] > 90
    assert answers["refused"] > 20


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("verb", "error"), list(zip(VERBS, (*ERRORS, "EIO"), strict=True)))
def test_some_errors_at_some_calls(tmp_path: Path, verb: str, error: str) -> None:
    """A few of the cases that `-m exhaustive` tries all of."""
    answers = fail(tmp_path, verb, error, every=SHORT)
    assert answers["calls"] > 90
