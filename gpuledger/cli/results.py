"""The command that hands out what the tasks reported: results."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuledger.cli import rows
from gpuledger.cli.find import open_ledger
from gpuledger.cli.options import Condition, ErrorText, LedgerDir, States, Sweep, WorkerName
from gpuledger.cli.output import echo_table, is_terminal, note
from gpuledger.cli.select import selection_of
from gpuledger.errors import BadUsage
from gpuledger.views import TaskRecord

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer()


class Format(StrEnum):
    """How the results are written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


@app.command()
def results(
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format",
            "-f",
            help="Else by the end of --output's name; else a table for a terminal, CSV for a pipe.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write to a file, whole or not."),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort", metavar="NAME", help="Sort by a parameter or metric, the smallest first."
        ),
    ] = None,
    reverse: Annotated[
        bool, typer.Option("--reverse", "-r", help="The largest first; NaN and missing stay last.")
    ] = False,
    best: Annotated[
        str | None,
        typer.Option(
            "--best",
            metavar="METRIC",
            help="Only the task with the largest value; with --by, that of each group.",
        ),
    ] = None,
    smallest: Annotated[
        bool, typer.Option("--min", help="With --best: the smallest value is the best.")
    ] = False,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            metavar="NAMES",
            help="One row for equal values of these parameters: mean and deviation over the rest.",
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metrics", "-m", metavar="NAMES", help="Only these metrics, as in a,b."),
    ] = None,
    steps: Annotated[
        bool,
        typer.Option("--steps", help="One row for every report: ten at once, then one a second."),
    ] = False,
    sweep: Sweep = None,
    state: States = None,
    error: ErrorText = None,
    worker: WorkerName = None,
    where: Condition = None,
    ledger: LedgerDir = None,
) -> None:
    """Print one row for each task: its parameters, and the metrics it reported last.

    Metrics are those of the attempt that completed the task. With --by, numbers are summed up
    over all tasks of a group, usually its seeds: mean, standard deviation (of the sample) and how
    many there were; NaN and infinities are not among them. NAMES are separated by commas.

    In CSV, all text is quoted and numbers are not; let a spreadsheet import it as text, since a
    value may begin with "=" and is not changed. A column whose name is taken is called
    param.NAME or metric.NAME. Parquet has typed columns, and needs pyarrow.

    \b
    Examples:
      gpuledger results --sort val_acc --reverse --where 'lr < 0.1'
      gpuledger results --best val_acc --by model
      gpuledger results --by model,lr --metrics val_acc
      gpuledger results --steps -o curves.parquet
    """
    format_ = _format(format_, output, steps=steps)
    if steps and (sort or best or by):
        raise BadUsage(
            "--steps does not go together with --sort, --best or --by",
            hint="--steps lists every report; sort and sum up what it wrote",
        )
    if smallest and not best:
        raise BadUsage("--min goes with --best only", hint="for example --best loss --min")
    if reverse and not sort:
        raise BadUsage("--reverse goes with --sort only", hint="for example --sort loss --reverse")
    selection = selection_of(sweep=sweep, states=state, error=error, worker=worker, where=where)
    records = open_ledger(ledger).tasks(selection)
    wanted = rows.Wanted(
        sort=sort,
        reverse=reverse,
        best=best,
        smallest=smallest,
        by=_separated(by),
        metrics=_separated(metrics),
        steps=steps,
    )
    if format_ is Format.TABLE:
        echo_table(*_drawn(records, wanted))
        return
    with rows.destination(output) as file:
        rows.write(file, str(format_), records, wanted)
    if output is not None:
        note(f"Written to {output}.")


def _format(given: Format | None, output: Path | None, *, steps: bool) -> Format:
    """Return the format that is meant; what cannot be shown or written so is an error."""
    ends = {f".{one}": one for one in Format if one is not Format.TABLE}
    if given is None and output is not None:
        given = ends.get(output.suffix.lower())
        if given is None:
            raise BadUsage(
                f"the format is not clear from the name {str(output)!r}; nothing was written",
                hint=f"say --format, or end the name with {', '.join(ends)}",
            )
    if given is None:
        given = Format.TABLE if is_terminal() and not steps else Format.CSV
    if given is Format.TABLE and (steps or output is not None):
        raise BadUsage(
            f"a table cannot be {'made of --steps' if steps else 'written to a file'};"
            " nothing was written",
            hint="say --format csv, json or parquet",
        )
    if given is Format.PARQUET:
        if output is None and is_terminal():
            raise BadUsage(
                "parquet is not for a terminal; nothing was written",
                hint="name a file: -o results.parquet",
            )
        from gpuledger.parquet import require_pyarrow

        require_pyarrow()
    return given


def _separated(names: list[str] | None) -> tuple[str, ...]:
    return tuple(name.strip() for text in names or () for name in text.split(",") if name.strip())


def _drawn(records: list[TaskRecord], wanted: rows.Wanted) -> list[RenderableType]:
    from gpuledger.display.results import groups_table, results_table  # rich: only to draw

    chosen = rows.choose(records, wanted)
    metrics = chosen.metric_keys
    told = [name for name in (wanted.sort, wanted.best) if name in metrics]
    metrics = list(dict.fromkeys([*told, *metrics]))  # those are not left out for want of room
    if chosen.groups is not None:
        names = [column.name for column in chosen.by]
        return [groups_table(names, chosen.groups, first=wanted.sort)]
    return [results_table(chosen.records, metrics=metrics)]
