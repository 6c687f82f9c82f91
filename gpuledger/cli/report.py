"""The command that makes a page of everything: report."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from gpuledger import __version__
from gpuledger.cli.find import open_ledger
from gpuledger.cli.options import LedgerDir, Sweep
from gpuledger.cli.output import echo, is_terminal
from gpuledger.display.text import several
from gpuledger.errors import BadUsage, LedgerUnreachable
from gpuledger.selection import Selection

app = typer.Typer()

MIB = 1 << 20
TO_STDOUT = Path("-")


@app.command()
def report(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to write it, replacing a former one; '-' for the standard output.",
        ),
    ] = Path("report.html"),
    sweep: Sweep = None,
    title: Annotated[
        str | None,
        typer.Option(
            "--title", metavar="TEXT", help="Headline; else the sweep's or folder's name."
        ),
    ] = None,
    ledger: LedgerDir = None,
) -> None:
    """Write one HTML file with everything: progress, workers, results, failures.

    It can be opened from the disk, sent to others and printed; it needs no
    network. Links lead to the logs in the ledger's folder. Making it needs
    the Python package plotly.

    \b
    Examples:
      gpuledger report
      gpuledger report --sweep exp1 -o exp1.html --title "First try"
    """
    from gpuledger.report import curves, data, page  # only for those who want one

    to_stdout = output == TO_STDOUT
    _require_writable(output, to_stdout=to_stdout)
    plotly = page.plotly_script()
    opened = open_ledger(ledger)
    snapshot = opened.snapshot(sweep=sweep)
    records = opened.tasks(Selection(sweep=sweep))
    runs = opened.folder / "runs"
    found = data.report_data(
        records,
        snapshot,
        title=title or data.default_title(snapshot),
        logs=runs.as_uri() if to_stdout else _relative_url(runs, output),
        curves=curves.read_curves(records),
    )
    text = page.page(found, plotly=plotly, version=__version__).encode()
    if to_stdout:
        sys.stdout.buffer.write(text)
        return
    write_whole(output, text)
    echo(f"Wrote {output}: {several(len(records), 'task')}, {len(text) / MIB:.1f} MiB.")


def _require_writable(output: Path, *, to_stdout: bool) -> None:
    """Raise BadUsage for what cannot be meant, before the work is done."""
    if to_stdout:
        if is_terminal():
            raise BadUsage(
                "a report is megabytes of HTML, too much for a terminal; nothing was written",
                hint="gpuledger report -o report.html, or send it into a pipe or a file",
            )
        return
    if output.exists() and not output.is_file():
        raise BadUsage(
            f"{output} is not a file; nothing was written",
            hint="give a file's name with -o, or '-' for the standard output",
        )
    if not output.absolute().parent.is_dir():
        raise BadUsage(
            f"there is no folder {output.parent}; nothing was written", hint="make it first"
        )


def _relative_url(folder: Path, page: Path) -> str:
    """Return the folder's URL as seen from the page: they can be moved together."""
    seen_from = page.absolute().resolve().parent
    return "./" + quote(os.path.relpath(folder.resolve(), seen_from))


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file at once: a reader sees the former content or the new one, never a part."""
    target = path.resolve()
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            beside.write_bytes(content)
            beside.replace(target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
    except OSError as error:
        raise LedgerUnreachable(
            f"cannot write {path}: {error.strerror or error}; nothing was changed",
            hint="write it elsewhere, with -o FILE",
        ) from error
