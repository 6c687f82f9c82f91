"""Several workers of one machine under one parent: starts them, passes signals on, waits."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

from gpuledger.process import WorkerProcess
from gpuledger.signals import Signals

POLL_S = 1.0


def run_fleet(
    workers: Sequence[WorkerProcess],
    signals: Signals,
    *,
    on_poll: Callable[[], None] | None = None,
    on_suspend: Callable[[bool], None] | None = None,
    poll_s: float = POLL_S,
) -> int:
    """Wait for all workers, passing on what the operator asks; return the exit code.

    Args:
        workers: Started already, each in a process group of its own.
        signals: Of this process.
        on_poll: Called each time this process wakes, to draw.
        on_suspend: Called with True before this process is suspended (Ctrl-Z), with False after.
        poll_s: Longest time between two such calls.

    Returns:
        0 when all ended with 0, else the highest of their exit codes (a signal counts as 1).
    """
    passed_on = {signal.SIGINT: 0, signal.SIGTERM: 0, signal.SIGUSR1: 0}
    running = list(workers)
    while running:
        signals.wait(poll_s, also=[worker.fileno() for worker in running])
        running = [worker for worker in running if worker.poll() is None]
        came = {
            signal.SIGINT: signals.interrupts,
            signal.SIGTERM: signals.terminates,
            signal.SIGUSR1: signals.drain,
        }
        for number, times in came.items():
            for _ in range(times - passed_on[number]):
                _send(running, number)
            passed_on[number] = times
        if signals.take_suspend():
            _send(running, signal.SIGTSTP)
            if on_suspend is not None:
                on_suspend(True)
            signals.suspend_self()
            if on_suspend is not None:
                on_suspend(False)
            _send(running, signal.SIGCONT)
        if on_poll is not None:
            on_poll()
    return max((_exit_code(worker) for worker in workers), default=0)


def _send(workers: Sequence[WorkerProcess], number: int) -> None:
    for worker in workers:
        worker.send(number)


def _exit_code(worker: WorkerProcess) -> int:
    code = worker.exit_code()
    return 1 if code < 0 else code
