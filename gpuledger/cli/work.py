"""The command that runs tasks: one worker in this process, or one process for each GPU or slot."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from gpuledger.cli.devices import (
    Device,
    WorkCommand,
    free_memory,
    gpu_devices,
    guard_gpus,
    refuse_unless,
)
from gpuledger.cli.find import find_ledger
from gpuledger.cli.options import LedgerDir
from gpuledger.cli.output import note
from gpuledger.cli.trust import require_trusted
from gpuledger.errors import BadUsage

app = typer.Typer()

INTERRUPTED = 130
FAILED = 1


@app.command(cls=WorkCommand)
def work(
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            "-g",
            metavar="LIST",
            help="Run on these GPUs: indices or UUIDs, as in 2 or 0,1; one worker process each.",
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus",
            metavar="all|free",
            help="Run on every GPU that is visible here, or on those that nobody uses now.",
        ),
    ] = None,
    gpus_per_task: Annotated[
        int,
        typer.Option(
            "--gpus-per-task", min=1, max=1024, help="Workers of so many GPUs, for such tasks."
        ),
    ] = 1,
    wait_free: Annotated[
        str | None,
        typer.Option(
            "--wait-free",
            metavar="[SIZE]",
            help="Claim only while no other process is on the GPU, and (with a size, as in 10GB) "
            "so much of its memory is free.",
        ),
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Run on the CPU.")] = False,
    slots: Annotated[
        int,
        typer.Option(
            "--slots", min=1, max=1024, help="Workers on the CPU, or on each GPU, which they share."
        ),
    ] = 1,
    one_of: Annotated[int | None, typer.Option("--one-of", min=1, max=1024, hidden=True)] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", "-s", metavar="NAME", help="Only tasks of this sweep; repeatable."),
    ] = None,
    max_tasks: Annotated[
        int | None,
        typer.Option("--max-tasks", min=1, help="Leave after so many attempts (of each worker)."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay when the queue is empty, for tasks to come.")
    ] = False,
    on_failure: Annotated[
        str | None,
        typer.Option(
            "--on-failure",
            metavar="CMD",
            help="Shell command to run after each failed attempt, its JSON on standard input.",
        ),
    ] = None,
    unsafe: Annotated[
        bool,
        typer.Option("--unsafe", help="Work beside another host even where no lock is shared."),
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run commands of a ledger that others can write to.")
    ] = False,
    ledger: LedgerDir = None,
) -> None:
    """Claim tasks and run them, one after another, until none is left.

    The first Ctrl-C finishes the running task and leaves, the second hands it back, the third
    kills it. SIGTERM hands it back at once. A task that fails goes to another worker first.

    \b
    Examples:
      gpuledger work --gpu 2
      gpuledger work --gpus all --wait
      gpuledger work --gpu 0,1 --wait-free 10GB
      gpuledger work --cpu --slots 4 --sweep exp1
    """
    folder = find_ledger(ledger)
    require_trusted(folder, trust=trust)
    devices = choose_devices(
        gpu=gpu,
        gpus=gpus,
        cpu=cpu,
        slots=slots,
        environ=os.environ,
        gpus_per_task=gpus_per_task,
        one_of=one_of,
        wait_free=wait_free,
    )
    options = [f"--sweep={name}" for name in sweep or ()]
    options += [f"--max-tasks={max_tasks}"] if max_tasks is not None else []
    options += ["--wait"] if wait else []
    options += [f"--on-failure={on_failure}"] if on_failure is not None else []
    options += ["--trust"] if trust else []
    options += ["--unsafe"] if unsafe else []
    options += [f"--wait-free={wait_free}"] if wait_free is not None else []
    if len(devices) > 1:
        raise typer.Exit(work_on_all(folder, devices, options))
    code = work_on(
        folder,
        devices[0],
        sweeps=tuple(sweep or ()),
        max_tasks=max_tasks,
        stay=wait,
        on_failure=on_failure,
        unsafe=unsafe,
        wait_free=wait_free,
    )
    raise typer.Exit(code)


def choose_devices(
    *,
    gpu: str | None,
    gpus: str | None,
    cpu: bool,
    slots: int,
    environ: Mapping[str, str],
    gpus_per_task: int = 1,
    one_of: int | None = None,
    wait_free: str | None = None,
) -> list[Device]:
    """Return what to run on, one worker each; raise for what is not there."""
    if sum((gpu is not None, gpus is not None, cpu)) != 1:
        raise BadUsage(
            "say what to run on; nothing was started",
            hint="--gpu 0 (or 0,1), --gpus all, or --cpu",
        )
    if cpu:
        refuse_unless(gpus_per_task == 1 and wait_free is None, "--cpu", "options for GPUs")
        return [Device(label="cpu")] * slots
    return gpu_devices(
        gpu if gpu is not None else gpus or "",
        group=gpus is not None,
        per_task=gpus_per_task,
        slots=slots,
        one_of=one_of,
        free_mib=free_memory(wait_free),
        waits=wait_free is not None,
        environ=environ,
    )


def work_on(
    folder: Path,
    device: Device,
    *,
    sweeps: tuple[str, ...] = (),
    max_tasks: int | None = None,
    stay: bool = False,
    on_failure: str | None = None,
    unsafe: bool = False,
    wait_free: str | None = None,
) -> int:
    """Be one worker; return the exit code."""
    from gpuledger.cli.allocated import enter_allocation, find_allocation, leave_allocation
    from gpuledger.clock import SystemClock
    from gpuledger.hosts import doubts, require_shared_locks
    from gpuledger.ledger import Ledger
    from gpuledger.machine import host_name, pid_start, this_machine
    from gpuledger.model import WorkerIdentity
    from gpuledger.process import become_subreaper
    from gpuledger.pulse import Pulse
    from gpuledger.signals import listen
    from gpuledger.worker import Tools, Worker, WorkerOptions

    clock = SystemClock()
    allocation = find_allocation(clock)
    # Many allocations may begin at once, and nobody is there to start one again.
    ledger = Ledger.open(folder, lock_timeout_s=5.0 if allocation is None else 60.0)
    ledger.store.lock_timeout_s = 5.0
    require_shared_locks(ledger, unsafe=unsafe)
    if sweeps:
        ledger.require_sweeps(sweeps)
    for doubt in doubts(folder):
        note(f"Warning: {doubt}")

    def identify() -> WorkerIdentity:
        return WorkerIdentity(
            nonce=secrets.token_hex(8),
            name=f"{host_name()}:{device.label}",
            host=host_name(),
            machine=this_machine(),
            pid=os.getpid(),
            pid_start=pid_start(os.getpid()) or 0,
            gpus=device.visible,
            gpu_memory_mib=device.memory_mib,
            gpu_name=device.model,
            details=allocation.place.details() if allocation is not None else {},
        )

    watch, gate = guard_gpus(device, ledger.uuid, clock=clock, wait_free=wait_free)

    def pulse(worker: WorkerIdentity) -> Pulse:
        return Pulse(
            folder,
            worker,
            lease_s=ledger.lease_s,
            heartbeat_s=ledger.heartbeat_s,
            clock=clock,
            sample_gpus=watch.views if watch is not None else tuple,
        )

    become_subreaper()
    with listen() as signals:
        tools = Tools(
            signals=signals,
            clock=clock,
            say=note,
            environ=dict(os.environ),
            pulse=pulse,
            identify=identify,
            admit=lambda: require_shared_locks(ledger, unsafe=unsafe),
            gpus=gate,
            allocation=allocation,
        )
        options = WorkerOptions(
            sweeps=sweeps, max_tasks=max_tasks, stay=stay, on_failure=on_failure
        )
        worker = Worker(ledger, options, tools)
        try:
            if allocation is None or enter_allocation(ledger, identify(), sweeps, allocation):
                worker.run()
        finally:
            if gate is not None:
                gate.stop()
        if allocation is not None and not worker.gave_up:
            leave_allocation(ledger, identify(), sweeps, allocation, signals)
        if signals.interrupts or signals.terminates:
            return INTERRUPTED
    return FAILED if worker.failed_for_good else 0


def worker_command(folder: Path, device: Device, options: Sequence[str]) -> list[str]:
    """Return the command line of a worker process of its own."""
    program = [sys.executable, "-m", "gpuledger"]
    return [*program, "work", f"--ledger={folder}", *device.option, *options]


def work_on_all(folder: Path, devices: Sequence[Device], options: Sequence[str]) -> int:
    """Start one worker process a device, pass signals on, and wait; return the exit code."""
    from gpuledger.fleet import run_fleet
    from gpuledger.process import spawn_worker
    from gpuledger.signals import listen

    with listen() as signals:
        workers = [spawn_worker(worker_command(folder, device, options)) for device in devices]
        return run_fleet(workers, signals)
