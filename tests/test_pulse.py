"""A worker's signs of life: what the others see of it, and when its guard must be awake."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpuledger.clock import SystemClock
from gpuledger.heartbeat import beat_path, decode, read_raw
from gpuledger.ledger import Ledger
from gpuledger.model import Claim, WorkerIdentity
from gpuledger.process import CannotStart, Guard
from gpuledger.pulse import Pulse
from gpuledger.running_task import RunningTask
from gpuledger.views import GpuView
from tests.helpers import identity, spec, wait_until
from tests.test_guard import gone, state


class NotingGuard:
    """Notes what it is told; starts no process."""

    told: list[str]
    is_there = True
    renewals: list[float]

    def __init__(self) -> None:
        self.told = []
        self.renewals = []

    def renewed(self, at_s: float) -> bool:
        self.told.append("renewed")
        self.renewals.append(at_s)
        return self.is_there

    def rests(self) -> bool:
        self.told.append("rests")
        return self.is_there

    def covers(self, task: RunningTask | None) -> bool:
        self.told.append("covers nothing" if task is None else "covers")
        return self.is_there

    def froze(self) -> bool:
        return False

    def close(self) -> None:
        self.told.append("close")


@pytest.fixture
def me(ledger: Ledger) -> WorkerIdentity:
    return ledger.register(identity())


@pytest.fixture
def claim(ledger: Ledger, me: WorkerIdentity) -> Claim:
    ledger.add_sweep(spec())
    claim = ledger.claim(me)
    assert isinstance(claim, Claim)
    return claim


@contextmanager
def beating(
    folder: Path,
    me: WorkerIdentity,
    sample_gpus: Callable[[], tuple[GpuView, ...]] = tuple,
) -> Iterator[Pulse]:
    pulse = Pulse(
        folder, me, lease_s=4, heartbeat_s=0.05, clock=SystemClock(), sample_gpus=sample_gpus
    )
    try:
        yield pulse
    finally:
        pulse.stop()


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> list[NotingGuard]:
    """Return the guards that were started, the last one last."""
    started: list[NotingGuard] = []

    def start(nonce: str, *, fence_s: float) -> NotingGuard:
        started.append(NotingGuard())
        return started[-1]

    monkeypatch.setattr(Guard, "start", start)
    return started


def records(path: Path, count: int) -> list[bytes]:
    """Return so many different contents of a liveness file, one after the other."""
    found: list[bytes] = []

    def look() -> bool:
        raw = read_raw(path)
        if raw and raw not in found:
            found.append(raw)
        return len(found) >= count

    wait_until(look, because="no sign of life")
    return found


def test_an_idle_worker_repeats_its_beat(
    ledger: Ledger, me: WorkerIdentity, guards: list[NotingGuard]
) -> None:
    path = beat_path(ledger.folder, me.name, me.nonce)
    with beating(ledger.folder, me) as pulse:
        seen = [decode(raw) for raw in records(path, 40)]
        assert {beat.seq for beat in seen if beat} == {1, 20, 40}, "but for some, only a part of it"
        assert all(seen)

        pulse.note("waits")
        wait_until(lambda: note_in(path) == "waits", because="what changed must be shown")
        path.unlink()
        wait_until(lambda: note_in(path) == "waits", because="a whole record must come back")
    assert not path.exists()


def note_in(path: Path) -> str | None:
    beat = decode(read_raw(path) or b"")
    return None if beat is None else beat.note


def test_the_guard_of_an_idle_worker_is_told_once_to_rest_and_woken_before_a_task(
    ledger: Ledger, me: WorkerIdentity, claim: Claim, guards: list[NotingGuard]
) -> None:
    path = beat_path(ledger.folder, me.name, me.nonce)
    with beating(ledger.folder, me) as pulse:
        records(path, 5)
        assert guards[0].told == ["rests"]

        now_s = SystemClock().boottime()
        pulse.show(claim)
        assert guards[0].told[:2] == ["rests", "renewed"], "before anything of the task runs"
        assert now_s - 1 < guards[0].renewals[0] <= now_s, "as of the last sign of life"
        records(path, 3)
        assert set(guards[0].told[1:]) == {"renewed"}

        pulse.show(None)
        wait_until(lambda: guards[0].told[-1] == "rests", because="nothing runs")
        assert "covers nothing" in guards[0].told


def test_a_guard_that_was_killed_while_nothing_ran_is_replaced_before_a_task_runs(
    ledger: Ledger, me: WorkerIdentity, claim: Claim, guards: list[NotingGuard]
) -> None:
    with beating(ledger.folder, me) as pulse:
        wait_until(lambda: guards[0].told == ["rests"], because="nothing runs")
        guards[0].is_there = False
        pulse.show(claim)
        assert len(guards) == 2
        wait_until(lambda: guards[1].told[-1] == "renewed", because="this one is there")


def test_without_a_guard_no_task_runs_and_the_signs_of_life_go_on(
    ledger: Ledger,
    me: WorkerIdentity,
    claim: Claim,
    guards: list[NotingGuard],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_room(nonce: str, *, fence_s: float) -> NotingGuard:
        raise CannotStart("no memory", exit_code=126, machine_at_fault=True)

    path = beat_path(ledger.folder, me.name, me.nonce)
    with beating(ledger.folder, me) as pulse:
        wait_until(lambda: guards[0].told == ["rests"], because="nothing runs")
        guards[0].is_there = False
        with monkeypatch.context() as patch:
            patch.setattr(Guard, "start", no_room)
            with pytest.raises(CannotStart):
                pulse.show(claim)
            pulse.trust_again()  # what runs already goes on
            records(path, 3)
        wait_until(lambda: len(guards) == 2, because="the next beat tries again")


WORKER = """
import os, signal, sys
from pathlib import Path
from gpuledger.clock import SystemClock
from gpuledger.ledger import Ledger
from gpuledger.process import become_subreaper, start
from gpuledger.pulse import Pulse
from tests.helpers import identity, wait_until
become_subreaper()
ledger = Ledger.open(Path(sys.argv[1]))
me = ledger.register(identity())
pulse = Pulse(
    ledger.folder, me, lease_s=2, heartbeat_s=0.1, clock=SystemClock(), sample_gpus=tuple
)
wait_until(lambda: pulse._guard_rests, because="nothing runs")
claim = ledger.claim(me)
pulse.show(claim)
env = {**os.environ, "GPULEDGER_MARK": me.nonce + ".exp_0_1.1"}
task = start(["sleep", "60"], cwd=Path.cwd(), env=env, log=Path("log"))
print(task.pid, flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_task_is_frozen_although_its_worker_stopped_before_the_guard_knew_of_it(
    ledger: Ledger, tmp_path: Path
) -> None:
    ledger.add_sweep(spec())
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(ledger.folder)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
    ) as worker:
        try:
            assert worker.stdout is not None
            task = int(worker.stdout.readline())
            wait_until(lambda: state(worker.pid) == "T", because="it stops itself")
            wait_until(lambda: state(task) == "T", because="the guard must freeze the task")
        finally:
            worker.kill()
    wait_until(lambda: gone(task), because="the guard kills what a dead worker left")


def test_a_beat_shows_the_gpus_as_they_are_now(ledger: Ledger, guards: list[NotingGuard]) -> None:
    me = ledger.register(identity(gpus=("0",)))
    free = [1000]

    def sample() -> tuple[GpuView, ...]:
        return (GpuView(index="0", name="A100", memory_total_mib=40960, memory_used_mib=free[0]),)

    path = beat_path(ledger.folder, me.name, me.nonce)

    def used() -> int | None:
        beat = decode(read_raw(path) or b"")
        return beat.gpus[0].memory_used_mib if beat and beat.gpus else None

    with beating(ledger.folder, me, sample):
        wait_until(lambda: used() == 1000, because="as first sampled")
        free[0] = 2000
        wait_until(lambda: used() == 2000, because="as sampled since")


def test_where_no_thread_can_be_started_no_guard_is_left(
    ledger: Ledger,
    me: WorkerIdentity,
    guards: list[NotingGuard],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with (
        pytest.raises(CannotStart, match="no room for a worker: can't start new thread"),
        beating(ledger.folder, me),
    ):
        pass
    assert guards[0].told == ["close"]
