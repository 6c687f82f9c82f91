"""What waiting costs: idle workers' CPU and locks, one worker's memory, one sign of life.

Most of the idle workers are simulated: their loops, lookouts and pacemakers are the real ones, as
threads of one process, on pretended machines of eight; their guards are left out. One more is a
real process with a real guard beside them, on the machine of seven of the simulated; its own CPU
and its guard's are counted by the kernel and stand for everybody's.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from gpuledger import locks
from gpuledger.clock import SystemClock
from gpuledger.heartbeat import Beat, HeartbeatFile, Pacemaker, beat_path, idle_pace_s
from gpuledger.ledger import Ledger
from gpuledger.machine import pid_start, this_machine
from gpuledger.model import WorkerIdentity
from gpuledger.signals import Signals
from gpuledger.worker import Tools, Worker, WorkerOptions
from tests.benchmarks.measure import spread

ROOT = Path(__file__).resolve().parent.parent.parent
A_MACHINE = 8
SETTLE_S = 80.0
"""All have signed on, looked at each other and for a backup, and found it by then."""
BEATS = 2000


class PretendedSignals:
    """Signals that never come until `leave` is set and `wake` closed; waiting is the real one."""

    interrupts = 0
    drain = 0

    def __init__(self, leave: threading.Event, wake: int) -> None:
        self._leave = leave
        self._signals = Signals(wake)

    @property
    def terminates(self) -> int:
        return int(self._leave.is_set())

    def wait(self, timeout_s: float, also: Iterable[int] = ()) -> frozenset[int]:
        return self._signals.wait(timeout_s, also)


class PulseWithoutGuard:
    """The pacemaker and the file of `pulse.Pulse`, no guard process."""

    def __init__(self, folder: Path, worker: WorkerIdentity, interval_s: float) -> None:
        self._worker = worker
        self._seq = 0
        self._file = HeartbeatFile(beat_path(folder, worker.name, worker.nonce))
        self._pacemaker = Pacemaker(
            self._beat,
            interval_s=lambda: interval_s,
            clock=SystemClock(),
            on_renewed=lambda at_s: None,
        )
        self._pacemaker.start()

    def note(self, text: str | None) -> None:
        """Nobody reads it."""

    def stop(self) -> None:
        self._pacemaker.stop()
        self._file.remove()

    def _beat(self) -> None:
        self._seq += 1
        if self._seq > 1:  # as every idle worker whose GPUs show nothing new
            self._file.tick(self._seq)
        else:
            self._file.write(beat_of(self._worker, self._seq))


def beat_of(worker: WorkerIdentity, seq: int) -> Beat:
    """Return a beat of an idle worker."""
    return Beat(
        nonce=worker.nonce,
        name=worker.name,
        host=worker.host,
        machine=worker.machine,
        pid=worker.pid,
        pid_start=worker.pid_start,
        seq=seq,
    )


def run(*, workers: int, seconds: float) -> dict[str, Any]:
    """Let so many workers wait for so many seconds, and measure."""
    with tempfile.TemporaryDirectory(prefix="gpuledger-bench-") as scratch:
        folder = Path(scratch) / "ledger"
        Ledger.create(folder)
        beat_ms = heartbeat_cpu_ms(folder)
        with Simulation(folder, workers - 1) as simulation:
            real = _start_real(folder)
            try:
                time.sleep(SETTLE_S)
                figures = _measure(simulation, real.pid, seconds)
            finally:
                real.send_signal(signal.SIGTERM)
                real.wait(30)
    return {"workers": workers, "seconds": seconds, "heartbeat_cpu_ms": beat_ms, **figures}


def _measure(simulation: Simulation, pid: int, seconds: float) -> dict[str, Any]:
    guard = _children(pid)[0]
    before = (simulation.cpu_s(), simulation.locks, _cpu_s(pid), _cpu_s(guard))
    began = time.monotonic()
    time.sleep(seconds)
    took_s = time.monotonic() - began
    simulation.check()
    after = (simulation.cpu_s(), simulation.locks, _cpu_s(pid), _cpu_s(guard))
    simulated, locks, worker, guarding = (
        (new - old) / took_s for new, old in zip(after, before, strict=True)
    )
    count = simulation.count + 1
    return {
        "cpu_share_simulated": round(simulated * count / simulation.count, 5),
        "cpu_share_real": round(worker * count, 5),
        "cpu_share_guards": round(guarding * count, 5),
        "locks_per_s": round(locks * count / simulation.count, 2),
        "memory_mib": {"worker": _memory_mib(pid), "guard": _memory_mib(guard)},
    }


def heartbeat_cpu_ms(folder: Path) -> dict[str, Any]:
    """Return the CPU time of making and writing one beat."""
    worker = _identity(0, "h")
    file = HeartbeatFile(beat_path(folder, worker.name, worker.nonce))
    times = []
    for seq in range(BEATS):
        began = time.thread_time()
        file.write(beat_of(worker, seq))
        times.append(1000 * (time.thread_time() - began))
    file.remove()
    return spread(times)


class Simulation:
    """Idle workers as threads of this process, from `__enter__` to `__exit__`."""

    def __init__(self, folder: Path, count: int) -> None:
        self.ledger = ledger = Ledger.open(folder)
        self.idle_s = idle_pace_s(heartbeat_s=ledger.heartbeat_s, lease_s=ledger.lease_s)
        self.count = count
        self.locks = 0
        self._folder = folder
        self._leave = threading.Event()
        self._wake, self._waker = os.pipe()
        self._threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True)
            for number in range(count)
        ]
        self._lock_descriptor = lock_descriptor

    def __enter__(self) -> Simulation:
        def counted(*args: Any, **options: Any) -> bool:
            self.locks += 1
            return bool(self._lock_descriptor(*args, **options))

        setattr(locks, "lock_descriptor", counted)  # noqa: B010 - not exported, by design
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._leave.set()
        os.close(self._waker)
        for thread in self._threads:
            thread.join(30)
        os.close(self._wake)
        setattr(locks, "lock_descriptor", self._lock_descriptor)  # noqa: B010

    def check(self) -> None:
        """Raise when a simulated worker is not there any more: nobody waits then."""
        gone = sum(not thread.is_alive() for thread in self._threads)
        assert gone == 0, f"{gone} of {self.count} simulated workers ended"

    def cpu_s(self) -> float:
        """Return the CPU time of this process so far."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    def _work(self, number: int) -> None:
        tools = Tools(
            signals=PretendedSignals(self._leave, self._wake),  # type: ignore[arg-type]
            clock=SystemClock(),
            say=lambda line: None,
            environ={},
            pulse=lambda me: PulseWithoutGuard(  # type: ignore[arg-type,return-value]
                self._folder, me, self.idle_s
            ),
            identify=lambda: _identity(number, f"{number:08x}"),
        )
        Worker(Ledger.open(self._folder), WorkerOptions(stay=True), tools).run()


def _identity(number: int, nonce: str) -> WorkerIdentity:
    """Return a simulated worker; the first seven share this machine with the real one."""
    host = number // A_MACHINE
    here = number < A_MACHINE - 1
    return WorkerIdentity(
        nonce=nonce + os.urandom(8).hex(),
        name=f"host{host}:gpu{number % A_MACHINE}",
        host=f"host{host}",
        machine=this_machine() if here else f"machine{host}",
        pid=os.getpid(),
        pid_start=pid_start(os.getpid()) or 0,
    )


def _start_real(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gpuledger", "work", "--cpu", "--wait", "--ledger"]
    return subprocess.Popen(
        [*command, str(folder)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(number) for number in text.split()]


def _cpu_s(pid: int) -> float:
    """Return the CPU time of all of a process's threads, as the scheduler counted it."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text(encoding="ascii").split()[0]) for file in files) / 1e9


def _memory_mib(pid: int) -> dict[str, float]:
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, kib = line.split()[:2]
        if name in ("Rss:", "Pss:"):
            found[name[:-1].lower()] = round(int(kib) / 1024, 1)
    return found
