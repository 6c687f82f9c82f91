"""Real processes at once, also with one of the two locks faked: each task is claimed once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuledger import locks
from gpuledger.ledger import Ledger
from gpuledger.model import Claim
from gpuledger.store import Store
from tests.helpers import identity, spec

WORKERS = 6
TASKS = 150


def as_it_is() -> None:
    """Both locks work."""


def without_fcntl() -> None:
    """The file system's byte-range locks do nothing."""
    Store.vfs = "nolock=1"


def without_flock() -> None:
    """The file system's flock says yes to everybody."""
    setattr(locks, "lock_descriptor", lambda descriptor, *, blocking=True: True)  # noqa: B010


def claim_until_empty(folder: Path, number: int, start: Any, fake: Callable[[], None]) -> list[str]:
    """Claim and complete until nothing is left; runs in a process of its own."""
    fake()
    ledger = Ledger.open(folder)
    worker = ledger.register(identity(f"n{number}", host=f"host{number}"))
    start.wait()
    claimed = []
    found = ledger.claim(worker)
    while isinstance(found, Claim):
        claimed.append(found.task)
        following = ledger.complete(found.token, then=worker).next
        assert following is not None
        found = following
    return claimed


@pytest.mark.parametrize("fake", [as_it_is, without_fcntl, without_flock])
def test_every_task_is_claimed_exactly_once(tmp_path: Path, fake: Callable[[], None]) -> None:
    ledger = Ledger.create(tmp_path / ".gpuledger")
    ledger.add_sweep(spec(points=TASKS))

    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(WORKERS) as pool:
        start = manager.Barrier(WORKERS)
        claimed = pool.starmap(
            claim_until_empty,
            [(ledger.folder, number, start, fake) for number in range(WORKERS)],
            chunksize=1,
        )
        pool.close()
        pool.join()

    assert sorted(task for batch in claimed for task in batch) == sorted(
        f"exp_{point}_0" for point in range(TASKS)
    )
    assert ledger.snapshot().counts.completed == TASKS
    assert all(len(task.attempts) == 1 for task in ledger.tasks())
