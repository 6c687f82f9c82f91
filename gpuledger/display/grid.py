"""The only module that lays out columns: which fit, how wide each is, and the lines they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from gpuledger.display.cells import cut

GAP = 2

FAIR_CELLS = 24
"""One long name does not take the room of other columns, before all of them have so much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What stands in one row of a column.

    Attributes:
        least: Cells below which it says nothing.
        most: Cells that it fills when there is room.
        draw: Returns it in at most the given number of cells.
    """

    least: int
    most: int
    draw: Callable[[int], Text]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        heading: Stands above it.
        rank: The highest goes first when not all fit; the lowest grows first.
        cells: One for each row; None is empty. A column with nothing but None is left out.
        right: Numbers stand at the right.
    """

    heading: str
    rank: int
    cells: Sequence[Cell | None]
    right: bool = False


def plain(text: str, style: str = "", *, least: int = 1, keep_end: int = 0) -> Cell | None:
    """Return a cell of safe text, None for ''; `keep_end` as in `cut`."""
    if not text:
        return None
    most = cell_len(text)
    return Cell(
        least=min(least, most),
        most=most,
        draw=lambda width: Text(cut(text, width, keep_end=keep_end), style=style),
    )


def whole(text: str, style: str = "") -> Cell | None:
    """Return a cell of safe text that is never cut as long as its column is there."""
    return plain(text, style, least=cell_len(text))


def pieces(parts: Sequence[Text], *, gap: str = "  ") -> Cell | None:
    """Return a cell that shows as many of the parts as fit, the first ones; None for none."""
    if not parts:
        return None

    def draw(width: int) -> Text:
        if parts[0].cell_len > width:
            return Text(cut(parts[0].plain, width), style=parts[0].style)
        shown = Text().append_text(parts[0])  # its style must not reach the others
        for part in parts[1:]:
            if shown.cell_len + len(gap) + part.cell_len > width:
                break
            shown.append(gap).append_text(part)
        return shown

    most = sum(part.cell_len for part in parts) + len(gap) * (len(parts) - 1)
    return Cell(least=parts[0].cell_len, most=most, draw=draw)


def grid(columns: Sequence[Column], *, width: int, headings: bool = True) -> list[Text]:
    """Return one line for each row, the headings first; columns that do not fit are left out."""
    shown, widths = _fitted([column for column in columns if any(column.cells)], width, headings)
    if not shown:
        return []
    lines = []
    if headings:
        names = [Text(cut(column.heading, w)) for column, w in zip(shown, widths, strict=True)]
        lines.append(_line(names, shown, widths))
        lines[0].stylize("dim")
    for row in range(len(shown[0].cells)):
        texts = [_drawn(column.cells[row], w) for column, w in zip(shown, widths, strict=True)]
        lines.append(_line(texts, shown, widths))
    return lines


def left_out(columns: Sequence[Column], *, width: int) -> int:
    """Return how many columns `grid` leaves out for want of room."""
    wanted = [column for column in columns if any(column.cells)]
    return len(wanted) - len(_fitted(wanted, width, True)[0])


def _fitted(columns: list[Column], width: int, headings: bool) -> tuple[list[Column], list[int]]:
    """Return the columns that fit and their widths: the least first, what is left by rank."""
    shown = columns
    while len(shown) > 1 and _total([_least(column, headings) for column in shown]) > width:
        last = max(shown, key=lambda column: column.rank)
        shown = [column for column in shown if column is not last]
    widths = [min(_least(column, headings), width) for column in shown]
    wanted = [max((cell.most for cell in column.cells if cell), default=0) for column in shown]
    by_rank = sorted(range(len(shown)), key=lambda i: shown[i].rank)
    for cap in (FAIR_CELLS, width):
        for i in by_rank:
            spare = max(width - _total(widths), 0)
            widths[i] += min(max(min(wanted[i], cap) - widths[i], 0), spare)
    return shown, widths


def _least(column: Column, headings: bool) -> int:
    least = max((cell.least for cell in column.cells if cell), default=0)
    return max(least, cell_len(column.heading)) if headings else least


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _drawn(cell: Cell | None, width: int) -> Text:
    return Text() if cell is None else cell.draw(width)


def _line(texts: Sequence[Text], columns: Sequence[Column], widths: Sequence[int]) -> Text:
    line = Text()
    ahead = 0  # spaces owed: those after the last text of a line are never paid
    for text, column, width in zip(texts, columns, widths, strict=True):
        free = max(width - text.cell_len, 0)
        if text.plain:
            line.append(" " * (ahead + (free if column.right else 0)))
            line.append_text(text)
            ahead = 0 if column.right else free
        else:
            ahead += width
        ahead += GAP
    return line
