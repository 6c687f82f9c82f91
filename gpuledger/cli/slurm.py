"""The commands that let Slurm start workers: slurm start, slurm status, slurm stop."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from gpuledger.cli.find import find_ledger
from gpuledger.cli.options import AsJson, LedgerDir
from gpuledger.cli.output import echo, echo_json, echo_table, note
from gpuledger.cli.trust import require_trusted
from gpuledger.display.text import several
from gpuledger.errors import BadUsage, LedgerError, Unavailable

app = typer.Typer()
slurm = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(slurm, name="slurm")


@slurm.callback()
def slurm_commands() -> None:
    """Let a Slurm cluster start workers that pull tasks from the ledger.

    \b
    Examples:
      gpuledger slurm start --workers 8 --time 4:00:00 --partition gpu
      gpuledger slurm status
      gpuledger slurm stop
    """


@slurm.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": False})
def start(
    context: typer.Context,
    workers: Annotated[
        int, typer.Option("--workers", "-n", min=1, max=100_000, help="Allocations, one each.")
    ],
    gpus_per_worker: Annotated[
        int, typer.Option("--gpus-per-worker", min=0, max=1024, help="0 means the CPU.")
    ] = 1,
    time: Annotated[
        str | None, typer.Option("--time", metavar="TIME", help="Limit, as in 4:00:00.")
    ] = None,
    partition: Annotated[str | None, typer.Option("--partition", "-p", metavar="NAME")] = None,
    account: Annotated[str | None, typer.Option("--account", metavar="NAME")] = None,
    qos: Annotated[str | None, typer.Option("--qos", metavar="NAME")] = None,
    constraint: Annotated[str | None, typer.Option("--constraint", metavar="EXPRESSION")] = None,
    mem: Annotated[str | None, typer.Option("--mem", metavar="SIZE", help="As in 32G.")] = None,
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=1, help="CPU cores for each worker.")
    ] = None,
    throttle: Annotated[
        int | None, typer.Option("--throttle", min=1, help="At most so many at a time.")
    ] = None,
    setup: Annotated[
        Path | None,
        typer.Option(
            "--setup",
            metavar="FILE",
            help="Lines of shell for the beginning of the script: modules, conda.",
        ),
    ] = None,
    wrap: Annotated[
        str | None,
        typer.Option(
            "--wrap", metavar="COMMAND", help="Run the worker by this, as in a container."
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", "-s", metavar="NAME", help="Only tasks of this sweep; repeatable."),
    ] = None,
    autoscale: Annotated[
        bool,
        typer.Option("--autoscale", help="Follow what is pending, up to --workers."),
    ] = False,
    print_only: Annotated[
        bool, typer.Option("--print", help="Print the script and submit nothing.")
    ] = False,
    test: Annotated[
        bool, typer.Option("--test", help="Let Slurm say when it could start; submit nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Submit although the last allocations died at once.")
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run commands of a ledger that others can write to.")
    ] = False,
    unsafe: Annotated[
        bool,
        typer.Option("--unsafe", help="Work beside another host even where no lock is shared."),
    ] = False,
    ledger: LedgerDir = None,
    as_json: AsJson = False,
) -> None:
    """Submit an array job of which each task is one worker.

    What follows -- goes to sbatch as it is.

    \b
    Examples:
      gpuledger slurm start --workers 8 --time 4:00:00 --partition gpu
      gpuledger slurm start --workers 4 --print
      gpuledger slurm start --workers 4 --setup modules.sh -- --mail-type=FAIL
    """
    from gpuledger import slurm as cluster
    from gpuledger import slurm_jobs as jobs
    from gpuledger.ledger import Ledger

    folder = find_ledger(ledger)
    require_trusted(folder, trust=trust)  # rather here than in each allocation
    opened = Ledger.open(folder)
    passed_on = [f"--sweep={name}" for name in sweep or ()]
    passed_on += [*(["--trust"] if trust else []), *(["--unsafe"] if unsafe else [])]
    request = cluster.Request(
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        options={
            "time": time,
            "partition": partition,
            "account": account,
            "qos": qos,
            "constraint": constraint,
            "mem": mem,
            "cpus-per-task": None if cpus is None else str(cpus),
        },
        throttle=throttle,
        extra=tuple(context.args),
        setup=_setup(opened, setup, sweep),
        wrap=_split(wrap),
        work=tuple(passed_on),
    )
    # -P: a file of the user's like random.py, where the job is submitted, is not ours.
    program = [sys.executable, "-P", "-m", "gpuledger"]
    text = cluster.render(request, ledger=folder, program=program)
    if print_only:
        echo(text.rstrip("\n"))
        return
    if test:
        with _written(folder / cluster.FOLDER, text, opened.now()) as script:
            echo(cluster.submit(script, test=True))
            script.unlink()
        return
    known = jobs.submissions(opened)
    queued = jobs.queue(known)
    if not force:
        jobs.require_living(opened, known, queued)
    count = workers
    if autoscale:
        pending = jobs.pending_for(opened, gpus_per_worker, sweep or ())
        count = jobs.plan(
            queued, jobs.workers(opened), pending=pending, limit=workers + len(queued)
        ).submit
        if not count:
            _not_needed(pending, as_json=as_json)
            return
    with _written(folder / cluster.FOLDER, text, opened.now()) as script:
        job = cluster.submit(script, array=cluster.array(count, throttle))
    submission = jobs.Submission(
        id=job,
        at=opened.now(),
        workers=count,
        script=str(script),
        autoscale=workers if autoscale else None,
        throttle=throttle,
    )
    try:
        jobs.record(opened, submission)
    except LedgerError as error:
        raise Unavailable(
            f"job {job} was submitted, but could not be recorded: "
            f"{error.problem.removesuffix('; nothing was changed')}",
            hint=f"its first worker will record it; 'scancel {job}' takes it back",
        ) from error
    if as_json:
        echo_json({"job": job, "workers": count, "script": str(script)})
        return
    echo(f"Submitted job {job}: {several(count, 'worker')} ({script})")
    note("Next: gpuledger slurm status, gpuledger status")


@slurm.command()
def status(ledger: LedgerDir = None, as_json: AsJson = False) -> None:
    """Show Slurm's queue and the ledger side by side.

    \b
    Examples:
      gpuledger slurm status
      gpuledger slurm status --json
    """
    from gpuledger import slurm_jobs as jobs
    from gpuledger.ledger import Ledger

    opened = Ledger.open(find_ledger(ledger))
    known = jobs.submissions(opened)
    queued = jobs.queue(known)
    rows = jobs.rows(known, queued, jobs.workers(opened), opened.folder)
    if as_json:
        echo_json(rows)
        return
    if not rows:
        note("Nothing was submitted yet; 'gpuledger slurm start --workers 4' does it.")
        return
    from gpuledger.display.slurm import slurm_table

    echo_table(slurm_table(rows))


@slurm.command()
def stop(
    now: Annotated[
        bool, typer.Option("--now", help="Hand running tasks back, do not finish them.")
    ] = False,
    ledger: LedgerDir = None,
) -> None:
    """Cancel waiting allocations; let running ones finish their task and leave.

    \b
    Examples:
      gpuledger slurm stop
      gpuledger slurm stop --now
    """
    from gpuledger import slurm_jobs as jobs
    from gpuledger.ledger import Ledger

    waiting, running = jobs.stop(Ledger.open(find_ledger(ledger)), now=now)
    how = "hand their task back" if now else "finish their task and leave"
    echo(f"Cancelled {waiting} waiting; {running} running {how}.")


def _not_needed(pending: int, *, as_json: bool) -> None:
    if as_json:
        echo_json({"job": None, "workers": 0, "script": None})
    elif pending:
        echo(f"Nothing submitted: allocations that can take {several(pending, 'task')} are coming.")
    else:
        echo("Nothing submitted: no task is pending for such workers.")


def _split(wrap: str | None) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(wrap or ""))
    except ValueError as error:
        raise BadUsage(
            f"--wrap cannot be split into words: {error}; nothing was submitted",
            hint="quote it as for a shell",
        ) from error


def _setup(ledger: object, file: Path | None, sweeps: list[str] | None) -> str:
    """Return the lines for the script's beginning: of the file, else of the sweeps."""
    from gpuledger.ledger import Ledger

    if file is not None:
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadUsage(
                f"--setup {file} cannot be read: {error}; nothing was submitted", hint=None
            ) from error
    assert isinstance(ledger, Ledger)
    texts = set(ledger.slurm_setups(tuple(sweeps or ())))
    if len(texts) > 1:
        raise BadUsage(
            "the sweeps have different [slurm] setups; nothing was submitted",
            hint="choose one sweep with --sweep, or give --setup FILE",
        )
    return texts.pop() if texts else ""


@contextlib.contextmanager
def _written(folder: Path, text: str, now: float) -> Iterator[Path]:
    """Write the script; it does not stay when Slurm refuses it."""
    from gpuledger.modes import make_folder

    make_folder(folder)
    path = _free_path(folder, now)
    path.write_text(text, encoding="utf-8")
    try:
        yield path
    except LedgerError:
        path.unlink()
        raise


def _free_path(folder: Path, now: float) -> Path:
    path = folder / f"workers-{int(now)}.sh"
    number = 1
    while path.exists():
        number += 1
        path = folder / f"workers-{int(now)}-{number}.sh"
    return path
