"""The command that does it all in one terminal: init, a worker on every GPU, a live status."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gpuledger.cli.devices import Device
from gpuledger.cli.find import folder_to_use, has_database
from gpuledger.cli.options import LedgerDir
from gpuledger.cli.output import echo, echo_table, is_dumb, is_terminal, make_console, note
from gpuledger.cli.sweeps import back_up, limits_told, open_or_make, told
from gpuledger.cli.trust import require_trusted
from gpuledger.cli.work import INTERRUPTED, choose_devices, worker_command
from gpuledger.display.text import several
from gpuledger.fleet import run_fleet
from gpuledger.ledger import Ledger
from gpuledger.process import WorkerProcess, print_when_killed, spawn_worker
from gpuledger.signals import Signals, listen
from gpuledger.sweep import read_sweep

app = typer.Typer()

DRAW_S = 0.5


@app.command()
def run(
    file: Annotated[
        Path, typer.Argument(metavar="SWEEP.toml", help="The sweep file.", show_default=False)
    ],
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu", "-g", metavar="LIST", help="Only these GPUs: indices or UUIDs, as in 0,1."
        ),
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="The CPU, even where there are GPUs.")] = False,
    slots: Annotated[
        int, typer.Option("--slots", min=1, max=1024, help="Workers on the CPU, or on each GPU.")
    ] = 1,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Accept an unusually large sweep.")
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run commands of a ledger that others can write to.")
    ] = False,
    ledger: LedgerDir = None,
) -> None:
    """Make the tasks of a sweep and run them here, with a live status.

    It starts one worker on every GPU that is visible here, or on the CPU when there is none, and
    ends when nothing of the sweep is left. Other machines may help with 'gpuledger work' meanwhile.

    The first Ctrl-C lets running tasks finish, the second hands them back, the third kills them.

    \b
    Examples:
      gpuledger run sweep.toml
      gpuledger run sweep.toml --cpu --slots 4
    """
    spec = read_sweep(file, allow_large=yes)
    folder = folder_to_use(ledger)
    if has_database(folder):
        require_trusted(folder, trust=trust)
    devices = _devices(gpu=gpu, cpu=cpu, slots=slots, per_task=spec.settings.gpus)
    opened = open_or_make(folder)
    change = opened.add_sweep(spec)
    back_up(opened)
    for line in (*told(change), limits_told(spec.settings)):
        note(line)
    options = [f"--sweep={spec.name}", *(["--trust"] if trust else [])]
    code = _run(opened, devices, options, sweep=spec.name)
    (view,) = opened.snapshot(sweep=spec.name).sweeps
    counts = view.counts
    if view.paused is not None:
        echo(f"Sweep {spec.name} is paused: {view.paused}.")
        echo(f"'gpuledger resume {spec.name}' lets its {several(counts.pending, 'task')} go on.")
    elif counts.pending:
        echo(f"{several(counts.pending, 'task')} left to run: the same command goes on with them.")
    if counts.failed:
        echo(f"{counts.failed} of {counts.total} tasks failed; 'gpuledger show TASK' says why,")
        echo("'gpuledger retry --failed' puts them back after the fix.")
    is_well = not counts.failed and view.paused is None
    raise typer.Exit(code if is_well else max(code, 1))


def _devices(*, gpu: str | None, cpu: bool, slots: int, per_task: int | None) -> list[Device]:
    """Return what to run on: for tasks that need several GPUs, workers of so many."""
    environ, each = os.environ, max(per_task or 1, 1)
    if gpu is not None:
        return choose_devices(
            gpu=gpu, gpus=None, cpu=cpu, slots=slots, environ=environ, gpus_per_task=each
        )
    if cpu or per_task == 0:
        return choose_devices(gpu=None, gpus=None, cpu=True, slots=slots, environ=environ)
    from gpuledger.gpu import list_gpus  # NVML is not touched with --cpu
    from gpuledger.gpu_choice import hides_all

    report = list_gpus()
    if report.gpus and not hides_all(environ, report):
        return choose_devices(
            gpu=None, gpus="all", cpu=False, slots=slots, environ=environ, gpus_per_task=each
        )
    return choose_devices(gpu=None, gpus=None, cpu=True, slots=slots, environ=environ)


def _run(ledger: Ledger, devices: list[Device], options: list[str], *, sweep: str) -> int:
    """Start the workers and wait for them; return the exit code."""
    live = is_terminal() and not is_dumb()
    log = ledger.folder / "run.log" if live else None
    with listen() as signals:
        workers = [
            spawn_worker(worker_command(ledger.folder, device, options), log=log)
            for device in devices
        ]
        code = _watch(ledger, workers, signals, sweep) if live else run_fleet(workers, signals)
        if signals.interrupts or signals.terminates:
            return INTERRUPTED
    return code


def _watch(ledger: Ledger, workers: list[WorkerProcess], signals: Signals, sweep: str) -> int:
    """Draw the status while the workers run; leave the last one on the normal screen."""
    from rich.live import Live

    from gpuledger.cli.live import USUAL_SCREEN, Reader, frame

    console = make_console()
    with Reader(ledger, sweep=sweep) as reader:
        with (
            print_when_killed(USUAL_SCREEN),
            Live(console=console, screen=True, auto_refresh=False) as view,
        ):

            def draw() -> None:
                view.update(frame(reader, console, starting=len(workers)), refresh=True)

            def suspend(now: bool) -> None:
                if now:
                    view.stop()
                else:
                    view.start(refresh=True)

            code = run_fleet(workers, signals, on_poll=draw, on_suspend=suspend, poll_s=DRAW_S)
        reader.read(at_once=True)
        echo_table(frame(reader, make_console()))
    return code
