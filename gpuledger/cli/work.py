"""The command that runs tasks: one worker in this process, or one process for each GPU or slot."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gpuledger.cli.find import find_ledger
from gpuledger.cli.options import LedgerDir
from gpuledger.cli.output import note
from gpuledger.cli.trust import require_trusted
from gpuledger.errors import BadUsage

app = typer.Typer()

INTERRUPTED = 130
FAILED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What one worker runs on.

    Attributes:
        label: Last part of the worker's name: `gpu2`, `cpu`.
        visible: For CUDA_VISIBLE_DEVICES; empty means CPU.
        option: How another process is told to use it.
        memory_mib: Of the GPU; None when unknown or CPU.
        model: Of the GPU; None when unknown or CPU.
    """

    label: str
    visible: tuple[str, ...] = ()
    option: tuple[str, ...] = ("--cpu",)
    memory_mib: int | None = None
    model: str | None = None


@app.command()
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
        typer.Option("--gpus", metavar="all", help="Run on every GPU that is visible here."),
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Run on the CPU.")] = False,
    slots: Annotated[int, typer.Option("--slots", min=1, max=1024, help="Workers with --cpu.")] = 1,
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
      gpuledger work --cpu --slots 4 --sweep exp1
    """
    folder = find_ledger(ledger)
    require_trusted(folder, trust=trust)
    devices = choose_devices(gpu=gpu, gpus=gpus, cpu=cpu, slots=slots, environ=os.environ)
    options = [f"--sweep={name}" for name in sweep or ()]
    options += [f"--max-tasks={max_tasks}"] if max_tasks is not None else []
    options += ["--wait"] if wait else []
    options += [f"--on-failure={on_failure}"] if on_failure is not None else []
    options += ["--trust"] if trust else []
    if len(devices) > 1:
        raise typer.Exit(work_on_all(folder, devices, options))
    code = work_on(
        folder,
        devices[0],
        sweeps=tuple(sweep or ()),
        max_tasks=max_tasks,
        stay=wait,
        on_failure=on_failure,
    )
    raise typer.Exit(code)


def choose_devices(
    *,
    gpu: str | None,
    gpus: str | None,
    cpu: bool,
    slots: int,
    environ: Mapping[str, str],
) -> list[Device]:
    """Return what to run on, one worker each; raise for what is not there."""
    if sum((gpu is not None, gpus is not None, cpu)) != 1:
        raise BadUsage(
            "say what to run on; nothing was started",
            hint="--gpu 0 (or 0,1), --gpus all, or --cpu",
        )
    if gpus is not None and gpus != "all":
        raise BadUsage(
            f"--gpus takes 'all', not {gpus!a}; nothing was started", hint="for some: --gpu 0,1"
        )
    if slots > 1 and not cpu:
        raise BadUsage("--slots goes with --cpu; nothing was started", hint="leave one of them out")
    if cpu:
        return [Device(label="cpu")] * slots
    from gpuledger.gpu import list_gpus, resolve  # NVML is not touched without need

    return [
        Device(
            label=f"gpu{chosen.label}",
            visible=(chosen.visible,),
            option=(f"--gpu={chosen.selector}",),
            memory_mib=chosen.memory_mib,
            model=chosen.model,
        )
        for chosen in resolve(gpu or "all", environ=environ, report=list_gpus())
    ]


def work_on(
    folder: Path,
    device: Device,
    *,
    sweeps: tuple[str, ...] = (),
    max_tasks: int | None = None,
    stay: bool = False,
    on_failure: str | None = None,
) -> int:
    """Be one worker; return the exit code."""
    from gpuledger.clock import SystemClock
    from gpuledger.ledger import Ledger
    from gpuledger.model import GpuView, WorkerIdentity
    from gpuledger.process import become_subreaper, host_name, pid_start, this_machine
    from gpuledger.pulse import Pulse
    from gpuledger.signals import listen
    from gpuledger.worker import Tools, Worker, WorkerOptions

    ledger = Ledger.open(folder, lock_timeout_s=5.0)
    clock = SystemClock()

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
        )

    def sample() -> tuple[GpuView, ...]:
        from gpuledger.gpu import sample

        return sample(device.visible)

    def pulse(worker: WorkerIdentity) -> Pulse:
        return Pulse(
            folder,
            worker,
            lease_s=ledger.lease_s,
            heartbeat_s=ledger.heartbeat_s,
            clock=clock,
            sample_gpus=sample,
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
        )
        options = WorkerOptions(
            sweeps=sweeps, max_tasks=max_tasks, stay=stay, on_failure=on_failure
        )
        worker = Worker(ledger, options, tools)
        worker.run()
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
