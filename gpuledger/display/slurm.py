"""Draws Slurm's allocations beside what the ledger knows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from gpuledger.display.cells import fold
from gpuledger.display.drawing import Drawing
from gpuledger.display.grid import Column, grid, plain, whole
from gpuledger.display.text import one_line

STYLES = {"waits": "dim", "works": "green", "silent": "yellow", "left": "dim", "died": "bold red"}
ENDED = ("left", "died")

MOST_ENDED = 20
"""Of those that ended so many are shown, the latest."""


def slurm_table(rows: Sequence[Mapping[str, Any]], *, width: int | None = None) -> RenderableType:
    """Return one line an allocation; below them, the end of the log of those that died."""
    return Drawing(draw=lambda cells: _lines(rows, cells), width=width)


def _lines(given: Sequence[Mapping[str, Any]], width: int) -> list[Text]:
    ended = [row for row in given if row["state"] in ENDED]
    old = {id(row) for row in ended[:-MOST_ENDED]}
    rows = [row for row in given if id(row) not in old]
    columns = [
        Column(heading="job", rank=0, cells=[whole(one_line(row["job"])) for row in rows]),
        Column(
            heading="state",
            rank=1,
            cells=[whole(row["state"], STYLES[row["state"]]) for row in rows],
        ),
        Column(heading="node", rank=3, cells=[whole(one_line(row["node"])) for row in rows]),
        Column(
            heading="worker",
            rank=4,
            cells=[plain(one_line(row["worker"] or ""), least=11, keep_end=6) for row in rows],
        ),
        Column(heading="says", rank=2, cells=[plain(_brief(row), least=20) for row in rows]),
    ]
    lines = grid(columns, width=width)
    if old:
        told = f"{len(old):,} more ended before; --json lists all"
        lines += [Text(piece, style="dim") for piece in fold(told, width)]
    for row in rows:
        if row["state"] == "died" and row["says"]:
            lines += [Text(), Text(f"the log of {row['job']} ends with:", style="dim")]
            for line in str(row["says"]).splitlines():
                lines += [Text(piece) for piece in fold(one_line(line), width)]
    return lines


def _brief(row: Mapping[str, Any]) -> str:
    if row["state"] == "died":
        return "ended without a worker" + ("" if row["says"] else ", its log is empty")
    return one_line(str(row["says"]))
