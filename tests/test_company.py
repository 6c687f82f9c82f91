"""The dead are found, whatever the lease and the heartbeat are, and whoever looks."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gpuledger import company as company_module
from gpuledger import worker as worker_module
from gpuledger.company import Company
from gpuledger.heartbeat import Beat, HeartbeatFile, beat_path
from gpuledger.model import Claim, WorkerIdentity
from gpuledger.worker import idle_wait_s
from tests.helpers import ManualClock, identity

TICK_S = 1.0
"""Seconds between two looks round of a worker that runs a task; see `runner`."""

LATE_S = 0.01
"""What everything takes."""

IN_TIME = 1.35
"""Leases in which one that died is found; a short one has few ticks."""


class PretendedLedger:
    """A ledger in which nothing changes; it notes who was called dead and when."""

    def __init__(
        self, folder: Path, live: tuple[WorkerIdentity, ...], lease_s: float, heartbeat_s: float
    ) -> None:
        self.folder = folder
        self.lease_s = lease_s
        self.heartbeat_s = heartbeat_s
        self.store = self
        self.dead: list[str] = []
        self._live = live

    def change_counter(self) -> int:
        return 7

    def live_workers(self) -> tuple[WorkerIdentity, ...]:
        return self._live

    def reap(self, dead: Mapping[str, Callable[[], bool]]) -> list[Claim]:
        self.dead += [nonce for nonce, is_so in dead.items() if is_so()]
        return []


def beat(worker: WorkerIdentity, seq: int, task: str | None) -> Beat:
    return Beat(
        nonce=worker.nonce, name=worker.name, host=worker.host, machine=worker.machine,
        pid=1, pid_start=1, seq=seq, task=task,
    )  # fmt: skip


def among(workers: int, within_reach: int) -> Callable[[Company], float]:
    """Return what tells how long one of so many idle workers waits."""
    return lambda company: idle_wait_s(
        workers=workers, within_reach=within_reach, look_in_s=company.look_in_s()
    )


@pytest.mark.parametrize(
    ("busy", "pause_s"),
    [(True, lambda company: TICK_S), (False, among(3, 0)), (False, among(200, 7))],
    ids=["busy", "idle", "one of many idle"],
)
@pytest.mark.parametrize("other", [None, "exp_0_0"])
@pytest.mark.parametrize(
    ("lease_s", "heartbeat_s"),
    [
        *((600, 5), (600, 200), (60, 5), (60, 15), (60, 18), (60, 20), (30, 5), (15, 5)),
        *((10, 10 / 3), (8, 2), (6, 2), (6, 1), (6, 0.5)),
    ],
)
def test_who_died_while_it_ran_nothing_is_found_and_nobody_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lease_s: float,
    heartbeat_s: float,
    other: str | None,
    busy: bool,
    pause_s: Callable[[Company], float],
) -> None:
    (tmp_path / "workers").mkdir()
    me, alive, died = (identity(nonce, host=f"on-{nonce}") for nonce in ("me", "alive", "died"))
    ledger = PretendedLedger(tmp_path, (me, alive, died), lease_s, heartbeat_s)
    dice = random.Random(lease_s + heartbeat_s)
    for module in (company_module, worker_module):
        monkeypatch.setattr(module, "random", dice)
    clock = ManualClock()
    company = Company(ledger, clock=clock, say=print, admit=lambda: None)  # type: ignore[arg-type]
    company.known_as(me)
    HeartbeatFile(beat_path(tmp_path, died.name, died.nonce)).write(beat(died, 1, None))
    file = HeartbeatFile(beat_path(tmp_path, alive.name, alive.nonce))
    began_s = beat_s = looked_s = clock.boottime()
    while not ledger.dead and looked_s - began_s < 3 * lease_s:
        while beat_s <= clock.boottime():
            file.write(beat(alive, int(10 * beat_s), other))
            beat_s += heartbeat_s
        looked_s = clock.boottime()
        company.reap(busy=busy, changes=7)
        clock.advance(pause_s(company) + LATE_S)
    assert ledger.dead == ["died"]
    assert lease_s <= looked_s - began_s <= IN_TIME * lease_s + 2 * TICK_S


def test_a_busy_worker_sees_at_once_who_came_to_this_machine(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    me, other = (identity(nonce, host=f"on-{nonce}") for nonce in ("me", "other"))
    ledger = PretendedLedger(tmp_path, (me,), 60, 5)
    counter = iter(range(100))
    ledger.change_counter = lambda: next(counter)  # type: ignore[method-assign]
    clock = ManualClock()
    company = Company(ledger, clock=clock, say=print, admit=lambda: None)  # type: ignore[arg-type]
    company.known_as(me)

    def seen() -> list[str]:
        return [worker.nonce for worker in company.live]

    company.reap(busy=True)
    ledger._live = (me, other)
    clock.advance(6)
    company.reap(busy=True)
    assert seen() == ["me"], "nothing says that anybody came"

    HeartbeatFile(beat_path(tmp_path, other.name, other.nonce)).write(beat(other, 1, None))
    company.reap(busy=True)

    assert seen() == ["me", "other"]
    ledger._live = (me,)
    clock.advance(59)
    company.reap(busy=True)
    assert seen() == ["me", "other"]
    clock.advance(2)
    company.reap(busy=True)
    assert seen() == ["me"], "once a lease it is asked anyway"
