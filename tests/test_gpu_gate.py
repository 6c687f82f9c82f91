"""When a GPU may take the next task: samples made by hand, and a clock that is moved by hand."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpuledger import gpu_rules as rules
from gpuledger.gpu import Gpu, GpuProcess, GpuReport
from gpuledger.gpu_choice import Chosen
from gpuledger.gpu_gate import LOST_S, GateOptions, GpuGate, Turn
from gpuledger.gpu_watch import GpuWatch, Holder, WatchedGpu, holders_of, watched
from gpuledger.views import GpuView
from tests.helpers import ManualClock, wait_until

ME = "n1"
CHOSEN = Chosen(
    label="0", visible="0", selector="0", memory_mib=24000, model="A100", uuid="GPU-aaaa"
)
GPU = Gpu(
    index=0, uuid="GPU-aaaa", name="A100", memory_total_mib=24000, memory_used_mib=500, processes=()
)


def seen(
    *held: tuple[int, int | None, str | None], used: int = 500, known: bool = True
) -> WatchedGpu:
    """Return a GPU with processes (number, memory, owner) on it."""
    holders = tuple(Holder(pid=p, memory_mib=m, owner=o, name="python") for p, m, o in held)
    view = GpuView(index="0", memory_total_mib=24000, memory_used_mib=used)
    return WatchedGpu(view=view, holders=holders if known else None)


# --- rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "free_mib", "why"),
    [
        (seen(), None, None),
        (seen((7, 3000, None), used=3500), None, "in use by python (pid 7, 3.1 GB)"),
        (seen((7, None, None), used=3500), None, "in use by python (pid 7)"),
        (seen((7, 3000, ME), used=3500), None, None),
        (seen((7, 3000, "n2"), used=3500), None, "in use by"),
        (seen(used=9000), None, "has 9.4 GB of 25 GB in use"),
        (seen(used=9000, known=False), None, "has 9.4 GB of 25 GB in use"),
        (seen(used=9000), 15000, None),
        (seen(used=9000), 15001, "has 16 GB of 25 GB free"),
        (seen(used=24500), 1, "free"),
    ],
)
def test_a_gpu_is_free_when(gpu: WatchedGpu, free_mib: int | None, why: str | None) -> None:
    found = rules.not_free(gpu, ours={ME}, free_mib=free_mib)
    assert found is None if why is None else why in (found or "")


def test_free_is_what_the_driver_calls_so() -> None:
    gpu = replace(seen(used=4000), free_mib=19000)  # the driver keeps 1000 for itself
    assert rules.not_free(gpu, ours=(), free_mib=19000) is None
    assert "has 20 GB of 25 GB free" in (rules.not_free(gpu, ours=(), free_mib=19500) or "")


def test_the_daemon_of_mps_is_nobodys_work(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Holder(pid=7, memory_mib=700, name="nvidia-cuda-mps-server")
    monkeypatch.setattr("gpuledger.gpu_watch.holders_of", lambda gpu: (daemon,))
    found = watched(CHOSEN, GpuReport(gpus=(replace(GPU, memory_used_mib=1200),)))
    assert found.holders == ()
    assert rules.unexplained(found) == 500


def test_a_gpu_that_does_not_say_its_memory_is_not_free() -> None:
    silent = WatchedGpu(view=GpuView(index="0"), holders=None)
    assert "does not say" in (rules.not_free(silent, ours=(), free_mib=None) or "")


def peak(*samples: WatchedGpu, shared: bool = False) -> int | None:
    start = rules.before(samples[0])
    found = rules.Peak()
    for sample in samples:
        found = rules.peak_after(found, sample, owner=ME, start=start, shared=shared)
    return found.memory_mib


def test_the_peak_is_that_of_the_tasks_processes_or_else_of_the_gpu() -> None:
    stranger = (9, 7000, None)
    mine = seen(stranger, (1, 3000, ME), (2, 1000, ME), used=11500)
    assert peak(seen(stranger, used=7500), mine, seen((1, 10, ME))) == 4000
    assert peak(seen(known=False), seen(used=3500, known=False), seen(known=False)) == 3500
    assert peak(seen(known=False), seen(used=3500, known=False), shared=True) is None
    assert peak(seen(), seen((1, None, ME), used=3500)) == 3500
    assert peak(seen(), seen((1, None, ME), used=3500), shared=True) is None
    assert peak(seen(), seen(used=3500)) == 3500  # a container that hides processes
    assert peak(seen(), seen(used=600)) is None  # a task that never uses the GPU


def left(now: WatchedGpu, *, start: WatchedGpu, named: bool = True) -> rules.Remains | None:
    return rules.remains(
        now, owner=ME, start=rules.before(start), peak=rules.Peak(named=named), shared=False
    )


def test_memory_is_back_when_nothing_of_the_task_is_left() -> None:
    assert left(seen(), start=seen()) is None
    assert left(seen((9, 7000, None), used=7500), start=seen()) is None  # somebody came meanwhile
    mine = left(seen((7, 3000, ME), used=3500), start=seen())
    assert mine is not None
    assert mine.certain
    assert "python (pid 7, 3.1 GB)" in mine.text
    nobodys = left(seen(used=5000), start=seen())
    assert nobodys is not None
    assert nobodys.certain
    assert "no process is seen" in nobodys.text
    hidden = left(seen(used=5000), start=seen(), named=False)
    assert hidden is not None
    assert not hidden.certain
    untold = left(seen(used=5000, known=False), start=seen(known=False))
    assert untold is not None
    assert not untold.certain


def test_processes_have_names_and_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    me = GpuProcess(pid=os.getpid(), memory_mib=5)
    (holder,) = holders_of(replace(GPU, processes=(me,))) or ()
    assert (holder.owner, holder.memory_mib) == (None, 5)
    assert holder.name
    assert holder.user
    (gone,) = holders_of(replace(GPU, processes=(GpuProcess(pid=2**22 + 1),))) or ()
    assert (gone.name, gone.user, gone.owner) == (None, None, None)
    assert rules.told([gone]) == f"a process (pid {2**22 + 1})"
    assert holders_of(replace(GPU, processes=None)) is None


def test_what_is_gone_and_what_is_only_not_known() -> None:
    def look(*gpus: Gpu, problem: str | None = None) -> WatchedGpu:
        return watched(CHOSEN, GpuReport(gpus=gpus, problem=problem))

    assert look(GPU).lost is None
    assert look(Gpu(index=0, uuid="", problem="GPU is lost", lost=True)).lost == "GPU is lost"
    assert look(Gpu(index=0, uuid="", problem="Timeout")).lost is None
    assert look(Gpu(index=0, uuid="", problem="Timeout")).view.problem == "Timeout"
    assert look(problem="the driver failed").lost is None
    assert look(replace(GPU, uuid="GPU-zzzz")).lost is not None  # the next one moved up
    assert look().lost is not None


# --- the gate ---------------------------------------------------------------------------------


class Machine:
    """One GPU that is what a test says, and its gate."""

    def __init__(self, *, sharing: int = 1, turn: Turn | None = None, **options: object) -> None:
        self.clock = ManualClock()
        self.gpu = GPU
        self.samples = 0
        self.hangs = threading.Event()
        self.goes_on = threading.Event()
        watch = GpuWatch([CHOSEN], clock=self.clock, report=self.report, interval_s=0.01)
        known = GateOptions(sharing=sharing, **options)  # type: ignore[arg-type]
        self.gate = GpuGate(watch, clock=self.clock, options=known, turn=turn)
        self.watch = watch
        self.gate.known_as(ME)

    def report(self) -> GpuReport:
        if self.hangs.is_set():
            self.goes_on.wait()
        self.samples += 1
        return GpuReport(gpus=(self.gpu,))

    def becomes(self, **values: object) -> None:
        """Change the GPU and wait until the watch has seen it."""
        self.gpu = replace(self.gpu, **values)  # type: ignore[arg-type]
        self.clock.advance(0.001)
        before = self.samples
        wait_until(lambda: self.samples >= before + 3, because="the watch stands still")

    def closed(self) -> str | None:
        return self.gate.standing({ME}).closed


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.goes_on.set()
    made.gate.stop()


def test_memory_that_stays_makes_a_gpu_dirty_until_it_is_back(machine: Machine) -> None:
    assert machine.closed() is None
    machine.gate.begin()
    machine.becomes(memory_used_mib=9000)
    machine.gate.end()
    assert "waits for memory: GPU 0: 8.9 GB not given back" in (machine.closed() or "")
    machine.clock.advance(31)
    machine.becomes()
    standing = machine.gate.standing({ME})
    # The driver never listed a process of ours: whose memory it is cannot be told, so it goes on.
    assert standing.closed is None
    assert standing.dirty
    assert "dirty: GPU 0: 8.9 GB not given back" in (standing.note or "")
    machine.becomes(memory_used_mib=500)
    assert machine.gate.standing({ME}).note is None


def test_a_gpu_that_keeps_the_last_tasks_memory_gets_no_other(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Holder(pid=77, memory_mib=8500, owner=ME, name="python")
    monkeypatch.setattr(
        "gpuledger.gpu_watch.holders_of", lambda gpu: (mine,) if gpu.processes else ()
    )
    machine.gate.begin()
    machine.becomes(memory_used_mib=9000, processes=(GpuProcess(pid=77),))
    assert machine.gate.end() == 8500
    machine.becomes(processes=())  # gone, but the memory is not back
    machine.clock.advance(31)
    machine.becomes()
    standing = machine.gate.standing({ME})
    assert standing.dirty
    assert "no process is seen to hold it" in (standing.closed or "")
    machine.becomes(memory_used_mib=500)
    assert machine.closed() is None


def test_a_running_task_is_ended_only_when_its_gpu_stays_away(machine: Machine) -> None:
    machine.gate.begin()
    machine.becomes(lost=True, problem="GPU is lost")
    assert machine.gate.lost_for_long() is None
    assert machine.gate.lost() == "GPU 0 is gone (GPU is lost)"
    machine.clock.advance(LOST_S + 1)
    machine.becomes()
    assert machine.gate.lost_for_long() == "GPU 0 is gone (GPU is lost)"
    machine.becomes(lost=False, problem=None)
    assert machine.gate.lost_for_long() is None


def test_a_driver_that_hangs_is_unknown(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuledger.gpu_gate.LOOK_S", 0.05)
    machine.becomes()
    assert machine.watch.views()[0].memory_used_mib == 500
    machine.hangs.set()
    machine.clock.advance(20)
    assert machine.gate.standing({ME}).note == "the NVIDIA driver does not answer"
    assert machine.closed() is None
    (view,) = machine.watch.views()
    assert (view.memory_used_mib, view.problem) == (None, "the driver does not answer")


def test_who_waits_for_a_free_gpu_waits_for_a_driver_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gpuledger.gpu_gate.LOOK_S", 0.05)
    machine = Machine(wait_free=True)
    machine.becomes()
    machine.hangs.set()
    machine.clock.advance(20)
    assert machine.closed() == "the NVIDIA driver does not answer"
    machine.goes_on.set()
    machine.gate.stop()


def test_a_turn_ends_with_a_report_with_steady_memory_or_after_a_while(tmp_path: Path) -> None:
    report = tmp_path / "report"
    machine = Machine(sharing=2, turn=Turn(tmp_path / "turn"))
    other = Turn(tmp_path / "turn")

    def starts() -> None:
        other.pass_on()
        machine.becomes(memory_used_mib=500)
        assert machine.closed() is None
        machine.gate.begin()
        machine.gate.tick(report)
        assert not other.take()

    starts()
    report.write_text("{}")
    machine.gate.tick(report)
    assert other.take()
    machine.gate.end()
    report.unlink()

    starts()
    machine.becomes(memory_used_mib=4000)
    machine.gate.tick(report)
    assert not other.take()
    machine.clock.advance(11)
    machine.becomes()
    machine.gate.tick(report)
    assert other.take()
    machine.gate.end()

    starts()  # it never uses the GPU
    machine.clock.advance(60)
    machine.gate.tick(report)
    assert not other.take()
    machine.clock.advance(61)
    machine.gate.tick(report)
    assert other.take()
    assert machine.closed() == "another task is starting on this GPU"
    machine.gate.stop()
    other.pass_on()
