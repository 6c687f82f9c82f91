"""The commands about whole sweeps: init, pause, resume."""

from __future__ import annotations

import itertools
import os
import shlex
import stat
from pathlib import Path
from typing import Annotated

import typer

from gpuledger.cli.find import FOLDER_NAME, folder_to_use, has_database, open_ledger
from gpuledger.cli.options import AsJson, LedgerDir, SweepName
from gpuledger.cli.output import echo, echo_json, note
from gpuledger.cli.shapes import sweep_change_shape
from gpuledger.clock import SystemClock
from gpuledger.display.text import duration, several
from gpuledger.errors import BadUsage, LedgerError
from gpuledger.ledger import Ledger
from gpuledger.queries import task_name
from gpuledger.spec import RunSettings, SweepChange, SweepSpec
from gpuledger.store import is_of_this_version
from gpuledger.sweep import read_sweep
from gpuledger.sweep_run import render_command
from gpuledger.sweep_words import parse_duration

app = typer.Typer()

COMMANDS_SHOWN = 3
PLANNED = 100_000
"""A plan of more tasks would keep the ledger from the others for seconds."""

LEASE_S = 60.0
HEARTBEAT_S = 5.0
BEATS_PER_LEASE = 3


@app.command()
def init(
    file: Annotated[
        Path, typer.Argument(metavar="SWEEP.toml", help="The sweep file.", show_default=False)
    ],
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Cancel pending tasks that are no longer in the file."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the first commands and change nothing.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Accept an unusually large sweep.")
    ] = False,
    shared: Annotated[
        bool, typer.Option("--shared", help="Open a new ledger to the folder's group.")
    ] = False,
    lease: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="New ledger: a worker silent for so long loses its task [default: 60s].",
        ),
    ] = None,
    heartbeat: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="New ledger: time between two signs of life of a worker [default: 5s].",
        ),
    ] = None,
    ledger: LedgerDir = None,
    as_json: AsJson = False,
) -> None:
    """Turn every point of a sweep file into a task.

    The tasks go into the ledger found here or in a folder above; without
    one, a new .gpuledger is made in the current folder. Run again after a
    change of the file, it adds the new points; equal ones keep their name,
    state and history, and run settings change for all that is not completed.

    \b
    Examples:
      gpuledger init sweep.toml --dry-run
      gpuledger init sweep.toml
      gpuledger init sweep.toml --prune
    """
    spec = read_sweep(file, allow_large=yes)
    folder = folder_to_use(ledger)
    if not as_json:
        for line in _doubts(spec, file, folder):
            note(f"Warning: {line}")
    if dry_run:
        _show_plan(spec, folder, prune=prune, as_json=as_json)
        return
    lease_s, heartbeat_s = _times(lease, heartbeat)
    is_new = not has_database(folder)
    opened = open_or_make(folder, lease_s=lease_s, heartbeat_s=heartbeat_s, shared=shared)
    change = opened.add_sweep(spec, prune=prune)
    back_up(opened)
    if as_json:
        echo_json({"ledger": str(opened.folder), **sweep_change_shape(change)})
        return
    echo(f"Ledger: {opened.folder}{' (new)' if is_new else ''}")
    for line in (*told(change), limits_told(spec.settings)):
        echo(line)
    if change.added:
        note("Next: gpuledger work --gpu 0 (or --gpus all, or --cpu), and gpuledger status")


def back_up(ledger: Ledger) -> None:
    """Copy the ledger after its tasks were made: no worker's diary knows of them."""
    from gpuledger.backups import take

    try:
        take(ledger.store, clock=SystemClock())
    except LedgerError as error:
        note(error.problem)


@app.command()
def pause(
    sweep: SweepName = None,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why; 'gpuledger status' shows it.")
    ] = "by an operator",
    ledger: LedgerDir = None,
    as_json: AsJson = False,
) -> None:
    """Hold a sweep, or all: running tasks go on, no other one is started.

    \b
    Examples:
      gpuledger pause
      gpuledger pause exp1 --reason "the data set is being moved"
    """
    names = open_ledger(ledger).pause(sweep, reason=reason)
    if as_json:
        echo_json({"paused": list(names)})
    elif names:
        echo(f"Paused: {', '.join(names)}. 'gpuledger resume' lets it go on.")
    else:
        echo("Paused nothing: it is paused already.")


@app.command()
def resume(sweep: SweepName = None, ledger: LedgerDir = None, as_json: AsJson = False) -> None:
    """Let a paused sweep, or all, go on.

    \b
    Examples:
      gpuledger resume
      gpuledger resume exp1
    """
    names = open_ledger(ledger).resume(sweep)
    if as_json:
        echo_json({"resumed": list(names)})
    elif names:
        echo(f"Resumed: {', '.join(names)}.")
    else:
        echo("Resumed nothing: it is not paused.")


def _times(lease: str | None, heartbeat: str | None) -> tuple[float | None, float | None]:
    """Return lease and heartbeat in seconds, as far as the user gave them."""
    lease_s = _duration(lease, "--lease")
    heartbeat_s = _duration(heartbeat, "--heartbeat")
    longest_s = (LEASE_S if lease_s is None else lease_s) / BEATS_PER_LEASE
    if heartbeat_s is not None and not 0 < heartbeat_s <= longest_s:
        raise BadUsage(
            f"a heartbeat of {heartbeat_s:g} s is too slow for this lease; nothing was changed",
            hint=f"a third of the lease at most: --heartbeat {longest_s:g}s",
        )
    if lease_s is not None and lease_s < 1:
        raise BadUsage(
            f"a lease of {lease_s:g} s is too short; nothing was changed",
            hint="at least 1s; the usual 60s survives a busy file server",
        )
    return lease_s, heartbeat_s


def _duration(text: str | None, option: str) -> float | None:
    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise BadUsage(f"{option}: {error}; nothing was changed") from error


def open_or_make(
    folder: Path,
    *,
    lease_s: float | None = None,
    heartbeat_s: float | None = None,
    shared: bool = False,
) -> Ledger:
    """Open the ledger at `folder`, made when there is none.

    Args:
        folder: See `folder_to_use`.
        lease_s: For a new ledger; None means the usual one, or what the old one has.
        heartbeat_s: The same.
        shared: Open a new ledger to the folder's group.

    Raises:
        BadUsage: The ledger is there already, and differs from what is asked for.
    """
    if has_database(folder):
        opened = Ledger.open(folder)
        _require_same(opened, lease_s, heartbeat_s, shared=shared)
        return opened
    lease_s = LEASE_S if lease_s is None else lease_s
    if heartbeat_s is None:
        heartbeat_s = min(HEARTBEAT_S, lease_s / BEATS_PER_LEASE)
    return Ledger.create(folder, lease_s=lease_s, heartbeat_s=heartbeat_s, shared=shared)


def _require_same(
    opened: Ledger, lease_s: float | None, heartbeat_s: float | None, *, shared: bool
) -> None:
    """Refuse what only a new ledger can be given, unless it is so already."""
    asked = {
        "--lease": lease_s not in (None, opened.lease_s),
        "--heartbeat": heartbeat_s not in (None, opened.heartbeat_s),
        "--shared": shared and not opened.folder.stat().st_mode & stat.S_ISGID,
    }
    for option, differs in asked.items():
        if differs:
            raise BadUsage(
                f"{option} is for a new ledger, {opened.folder} is there already; "
                "nothing was changed",
                hint=f"leave {option} out, or begin a new ledger elsewhere with --ledger DIR",
            )


def _doubts(spec: SweepSpec, file: Path, folder: Path) -> list[str]:
    """Return what the user may have overlooked."""
    doubts = []
    script = _script_of(spec.settings)
    if script is not None and not os.path.exists(path := Path(spec.settings.workdir, script)):  # noqa: PTH110
        doubts.append(f"there is no {path}.")
    beside = Path(os.path.realpath(file)).parent / FOLDER_NAME
    if str(beside) != os.path.realpath(folder) and os.path.isdir(beside):  # noqa: PTH112
        doubts.append(f"{beside} is a ledger, too; --ledger takes that one.")
    return doubts


def _script_of(settings: RunSettings) -> str | None:
    """Return the script that a command has Python run, where that is plain to see."""
    program, *rest = settings.command
    if Path(program).name not in ("python", "python3") or not rest:
        return None
    script = next((word for word in rest if word != "-u"), "")
    return script if script.endswith(".py") and "{" not in script else None


def _planned(spec: SweepSpec, folder: Path, *, prune: bool) -> SweepChange | None:
    """Return what would become of the ledger's tasks, where that can be told without a change."""
    if not has_database(folder):
        return None
    if spec.task_count > PLANNED or not is_of_this_version(folder):
        note("What would become of the ledger's tasks is not looked up: it is large, or old.")
        return None
    try:
        return Ledger.open(folder).plan_sweep(spec, prune=prune)
    except LedgerError as error:
        note(f"What would become of the ledger's tasks is not known: {error.problem}.")
        return None


def _show_plan(spec: SweepSpec, folder: Path, *, prune: bool, as_json: bool) -> None:
    """Print the first commands, and what would become of the ledger's tasks."""
    change = _planned(spec, folder, prune=prune)
    commands = []
    for task in itertools.islice(spec.tasks(), COMMANDS_SHOWN):
        name = task_name(spec.name, task.point, task.seed)
        commands.append(
            render_command(
                spec.settings,
                params=task.params,
                seed=task.seed,
                task=name,
                task_dir=str(folder / "runs" / name / "files"),
            )
        )
    if as_json:
        plan = {"sweep": spec.name, "tasks": spec.task_count, "workdir": spec.settings.workdir}
        would = None if change is None else sweep_change_shape(change)
        echo_json({**plan, "commands": [list(command) for command in commands], "would": would})
        return
    echo(f"Sweep {spec.name}: {several(spec.task_count, 'task')}, run in {spec.settings.workdir}")
    for command in commands:
        echo(f"  {shlex.join(command)}")
    if spec.task_count > len(commands):
        echo(f"  ... and {spec.task_count - len(commands)} more")
    echo(limits_told(spec.settings))
    if change is not None:
        echo(f"Ledger {folder} would become:")
        for line in told(change):
            echo(f"  {line}")
    note("Nothing was changed (--dry-run).")


def limits_told(settings: RunSettings) -> str:
    """Return how long and how often a task may run: nobody should find that out at night."""
    attempts = several(settings.max_attempts, "attempt")
    if settings.timeout_s is None:
        return f"An attempt may take as long as it needs; a task has {attempts}."
    limit = duration(settings.timeout_s)
    return f"An attempt is ended after {limit} ([run] timeout); a task has {attempts}."


def told(change: SweepChange) -> list[str]:
    """Return what `init` did, in numbers."""
    added = several(change.added, "task")
    if change.created:
        return [f"Sweep {change.name}: {added} added."]
    lines = [f"Sweep {change.name}: {added} added, {change.kept} kept as they are."]
    if change.missing:
        left = change.missing - change.pruned
        lines.append(
            f"{several(change.missing, 'task')} no longer in the file: {change.pruned} cancelled,"
            f" {left} kept{'' if change.pruned else ' (--prune cancels the pending ones)'}."
        )
    if change.settings_changed:
        lines.append(f"Run settings changed: {', '.join(change.settings_changed)}.")
        if change.completed_before:
            before = several(change.completed_before, "task")
            lines.append(f"{before} completed with the former settings.")
    return lines
