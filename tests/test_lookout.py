"""Who watches whom: nobody is left out, and what takes a machine down does not blind the rest."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuledger.clock import SystemClock
from gpuledger.heartbeat import beat_path
from gpuledger.lookout import FEW, WATCHERS, Lookout, share_of
from gpuledger.machine import pid_start, this_machine
from gpuledger.model import WorkerIdentity
from tests.helpers import ManualClock, identity


def fleet(*sizes: int) -> tuple[WorkerIdentity, ...]:
    return tuple(
        identity(f"{machine * 7919 + n * 104729:08x}", host=f"m{machine}", name=f"m{machine}:{n}")
        for machine, size in enumerate(sizes)
        for n in range(size)
    )


@pytest.mark.parametrize("sizes", [(8, 8), (1, 20), (3, 1, 5), (25,) * 8, (5,), (2,)])
def test_each_worker_is_watched_from_another_machine_where_there_is_one(
    sizes: tuple[int, ...],
) -> None:
    live = fleet(*sizes)
    machine = {worker.nonce: worker.machine for worker in live}
    readers: dict[str, list[str]] = {worker.nonce: [] for worker in live}
    for reader in live:
        for watched in share_of(reader.nonce, live):
            readers[watched.nonce].append(reader.nonce)
    for worker in live:
        candidates = [n for n, its in machine.items() if its != worker.machine]
        if not candidates:
            candidates = [n for n in machine if n != worker.nonce]
        there = set(readers[worker.nonce]) & set(candidates)
        assert len(there) >= min(WATCHERS, len(candidates))
        assert len(readers[worker.nonce]) <= WATCHERS + 1


def test_the_last_one_alive_finds_all_who_died_one_after_another() -> None:
    live = fleet(*(1,) * 40)
    for survivor in live:
        left = live
        while len(left) > 1:
            found = {worker.nonce for worker in share_of(survivor.nonce, left)}
            assert found
            left = tuple(worker for worker in left if worker.nonce not in found)


def test_the_work_of_watching_is_shared_evenly() -> None:
    live = fleet(*(8,) * 25)

    load = Counter(len(share_of(worker.nonce, live)) for worker in live)

    reads_in_all = sum(reads * workers for reads, workers in load.items())
    assert WATCHERS * len(live) <= reads_in_all <= (WATCHERS + 1) * len(live)
    assert max(load) <= 8 * WATCHERS + 1


@pytest.mark.parametrize(("others", "all_read"), [(FEW - 1, True), (FEW + 4, False)])
def test_a_few_idle_workers_read_all_files_and_many_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int, all_read: bool
) -> None:
    live = fleet(1, others)
    (tmp_path / "workers").mkdir()
    read: set[Path] = set()

    def note(path: Path) -> bytes:
        read.add(path)
        return b"x"

    monkeypatch.setattr("gpuledger.lookout.read_known", note)
    lookout = Lookout(tmp_path, live[1].nonce, lease_s=60, heartbeat_s=5, clock=SystemClock())

    assert lookout.silent(live) == {}

    expected = live[:1] + live[2:] if all_read else share_of(live[1].nonce, live)
    assert len(read) == len(expected)
    assert (len(read) == len(live) - 1) is all_read


@pytest.fixture
def neighbour() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_the_end_of_a_worker_on_this_machine_wakes_and_is_told_once(
    tmp_path: Path, neighbour: subprocess.Popen[bytes]
) -> None:
    me = identity("me", machine=this_machine())
    it = identity(
        "it",
        machine=this_machine(),
        pid=neighbour.pid,
        pid_start=pid_start(neighbour.pid) or 0,
    )
    lookout = Lookout(tmp_path, me.nonce, lease_s=60, heartbeat_s=5, clock=SystemClock())
    live = (me, it)
    assert lookout.dead_here(live) == {}
    assert len(lookout.descriptors()) == 1

    neighbour.kill()

    assert select.select(lookout.descriptors(), [], [], 20)[0]
    assert set(lookout.dead_here(live)) == {"it"}
    assert lookout.descriptors() == ()  # else a worker that waits for it would spin
    assert set(lookout.dead_here(live)) == {"it"}, "until somebody recorded it"
    assert lookout.dead_here((me,)) == {}


LISTENER = """
from gpuledger.signals import listen
with listen() as signals:
    print("listens", flush=True)
    signals.wait(None)
    print("woken", flush=True)
"""


def test_a_neighbour_that_waits_is_woken_and_one_that_ended_is_out_of_reach(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", LISTENER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listens\n"
        it = identity(
            "it", machine=this_machine(), pid=process.pid, pid_start=pid_start(process.pid) or 0
        )
        lookout = Lookout(tmp_path, "me", lease_s=60, heartbeat_s=5, clock=SystemClock())
        assert lookout.within_reach() == 0
        lookout.dead_here((it, identity("me", machine=this_machine())))
        assert lookout.within_reach() == 1
        assert not lookout.must_ask()

        lookout.wake_neighbours()
        assert process.stdout.readline() == "woken\n"
    lookout.wake_neighbours()
    lookout.dead_here((it,))
    assert lookout.must_ask(), "until somebody recorded its end"
    lookout.dead_here(())
    assert lookout.within_reach() == 0
    lookout.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start another user's process")
def test_another_users_worker_is_out_of_reach(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        asking = f"""
import os, sys
from pathlib import Path
from gpuledger.clock import SystemClock
from gpuledger.lookout import Lookout
from gpuledger.machine import pid_start, this_machine
from tests.helpers import identity
it = identity("it", machine=this_machine(), pid={process.pid}, pid_start=pid_start({process.pid}))
def look():
    lookout = Lookout(Path("/"), "me", lease_s=60, heartbeat_s=5, clock=SystemClock())
    lookout.dead_here((it,))
    print(len(lookout.descriptors()), lookout.within_reach())
look()
os.setuid(12345)
look()
"""
        try:
            told = subprocess.run(
                [sys.executable, "-c", asking], stdout=subprocess.PIPE, check=True
            )
        finally:
            process.kill()
    assert told.stdout == b"1 1\n1 0\n"


def test_a_process_that_only_has_the_same_number_is_not_followed(tmp_path: Path) -> None:
    me = identity("me", machine=this_machine())
    stranger = identity("it", machine=this_machine(), pid=1, pid_start=1)
    lookout = Lookout(tmp_path, me.nonce, lease_s=60, heartbeat_s=5, clock=SystemClock())

    assert set(lookout.dead_here((me, stranger))) == {"it"}

    assert lookout.descriptors() == ()


def test_descriptors_are_closed_when_workers_go(
    tmp_path: Path, neighbour: subprocess.Popen[bytes]
) -> None:
    start = pid_start(neighbour.pid) or 0
    it = identity("it", machine=this_machine(), pid=neighbour.pid, pid_start=start)
    lookout = Lookout(tmp_path, "me", lease_s=60, heartbeat_s=5, clock=SystemClock())
    lookout.dead_here((it,))
    (descriptor,) = lookout.descriptors()

    lookout.dead_here(())

    assert lookout.descriptors() == ()
    assert not Path(f"/proc/self/fd/{descriptor}").exists()


def test_who_runs_nothing_is_looked_at_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    (tmp_path / "workers").mkdir()
    live = tuple(identity(nonce, host=f"on-{nonce}") for nonce in ("me", "idle", "busy"))
    read: list[str] = []

    def note(path: Path) -> bytes:
        read.append(path.name.partition(".")[2])
        return b'"task": null' if path.name.endswith("idle") else b'"task": "a_0_0"'

    monkeypatch.setattr("gpuledger.lookout.read_known", note)
    lookout = Lookout(tmp_path, "me", lease_s=60, heartbeat_s=5, clock=clock)
    for _ in range(4):
        lookout.silent(live)
        clock.advance(5)
    assert read == ["idle", "busy", "busy", "busy", "busy"]
    lookout.silent(live)
    assert read[5:] == ["idle", "busy"]
    assert lookout.pace_s() == 5
    assert lookout.silent(live[:2]) == {}
    assert lookout.pace_s() == 24

    lookout.look_anew()
    assert lookout.pace_s() == 5
    read.clear()
    lookout.silent(live)
    assert read == ["idle", "busy"]


def test_who_died_while_it_ran_nothing_is_found_nevertheless(tmp_path: Path) -> None:
    clock = ManualClock()
    (tmp_path / "workers").mkdir()
    live = tuple(identity(nonce, host=f"on-{nonce}") for nonce in ("me", "idle"))
    beat_path(tmp_path, live[1].name, "idle").write_bytes(b'"task": null')
    lookout = Lookout(tmp_path, "me", lease_s=60, heartbeat_s=5, clock=clock)
    dead = lookout.silent(live)
    waited_s = 0.0
    while not dead and waited_s < 200:
        clock.advance(lookout.pace_s() + 4)
        waited_s += lookout.pace_s() + 4
        dead = lookout.silent(live)
    assert set(dead) == {"idle"}
    assert 60 <= waited_s <= 60 + 2 * 28
