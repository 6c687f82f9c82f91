"""The command that hands out what the tasks reported: results."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from gpuledger.cli.find import open_ledger
from gpuledger.cli.options import Condition, ErrorText, LedgerDir, States, Sweep, WorkerName
from gpuledger.cli.output import echo_json, echo_table, is_terminal
from gpuledger.cli.select import selection_of
from gpuledger.cli.shapes import result_shape
from gpuledger.display.text import clean
from gpuledger.model import TaskRecord

app = typer.Typer()

FIRST_COLUMNS = ("task", "sweep", "state", "seed")


class Format(StrEnum):
    """How the results are written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


@app.command()
def results(
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format",
            "-o",
            help="Without it, a terminal gets a table, a pipe or a file gets CSV.",
        ),
    ] = None,
    sweep: Sweep = None,
    state: States = None,
    error: ErrorText = None,
    worker: WorkerName = None,
    where: Condition = None,
    ledger: LedgerDir = None,
) -> None:
    """Print one row for each task: its parameters, and the metrics it reported last.

    Metrics are those of the attempt that completed the task. In CSV, all
    text is quoted and numbers are not; let a spreadsheet import it as
    text, since a value may begin with "=" and is not changed. A metric
    with the name of a parameter is called metric.NAME there.

    \b
    gpuledger results --format csv > results.csv
    gpuledger results --format json --sweep exp1 --state completed
    """
    selection = selection_of(sweep=sweep, states=state, error=error, worker=worker, where=where)
    records = open_ledger(ledger).tasks(selection)
    if format_ is None:
        format_ = Format.TABLE if is_terminal() else Format.CSV
    if format_ is Format.JSON:
        echo_json([result_shape(record) for record in records])
    elif format_ is Format.TABLE:
        from gpuledger.display.results import results_table  # rich: only for those who draw

        echo_table(results_table(records))
    else:
        for line in csv_lines(records):
            sys.stdout.write((clean(line) if is_terminal() else line) + "\n")


def csv_lines(records: Sequence[TaskRecord]) -> Iterator[str]:
    """Yield the header and one row a task, as CSV (RFC 4180, but with LF)."""
    params = _in_order(record.params for record in records)
    metrics = _in_order(record.result or {} for record in records)
    taken = {*FIRST_COLUMNS}
    param_columns = [f"param.{name}" if name in taken else name for name in params]
    taken.update(param_columns)
    metric_columns = [f"metric.{name}" if name in taken else name for name in metrics]
    yield _csv_line([*FIRST_COLUMNS, *param_columns, *metric_columns])
    for record in records:
        result = record.result or {}
        yield _csv_line(
            [
                record.task,
                record.sweep,
                str(record.state),
                record.seed,
                *(record.params.get(name) for name in params),
                *(result.get(name) for name in metrics),
            ]
        )


def _in_order(mappings: Iterable[Any]) -> list[str]:
    """Return the names in all mappings, each once, in the order of first sight."""
    names: dict[str, None] = {}
    for mapping in mappings:
        names.update(dict.fromkeys(mapping))
    return list(names)


def _csv_line(values: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_NONNUMERIC, lineterminator="").writerow(
        [_cell(value) for value in values]
    )
    return line.getvalue()


def _cell(value: Any) -> Any:
    """Return a number or a text; structures become JSON, None an empty cell."""
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value)
    return value
