"""Reads the end of a log, as text that is safe to show."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from gpuledger.cli.logtext import TerminalText
from gpuledger.display.cells import fold
from gpuledger.display.text import JOINERS

TAIL_BYTES = 64 * 1024
LINE_CHARS = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The end of a log.

    Attributes:
        path: Of the file.
        mark: Size and time of change: equal means nothing new.
        lines: Safe ones, the oldest first.
        cut: There is more before them.
    """

    path: str
    mark: tuple[int, int]
    lines: tuple[str, ...]
    cut: bool


def read_tail(path: str, known: Tail | None) -> Tail | None:
    """Return the end of the file; `known` when nothing is new, None when there is no file."""
    try:
        # Opened by its path each time: that is when NFS looks anew. A pipe must not hang it.
        descriptor = os.open(Path(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        mark = (status.st_size, status.st_mtime_ns)
        if known is not None and (known.path, known.mark) == (path, mark):
            return known
        start = max(status.st_size - TAIL_BYTES, 0)
        raw = os.pread(descriptor, TAIL_BYTES, start)
    except OSError:
        return known
    finally:
        os.close(descriptor)
    if start:
        raw = raw[raw.find(b"\n") + 1 :]  # the first line is most likely cut
    return Tail(path=path, mark=mark, lines=_lines(raw), cut=start > 0)


def tail_lines(tail: Tail, width: int) -> list[Text]:
    """Return the log folded to the width."""
    pieces = [piece for line in tail.lines for piece in fold(line, width)]
    shown = [Text(piece) for piece in pieces]
    return [Text("… (the whole: gpuledger logs)", style="dim"), *shown] if tail.cut else shown


def _lines(raw: bytes) -> tuple[str, ...]:
    text = TerminalText(can_erase=False).feed(raw, last=True)
    # A progress bar is drawn over its former states: the last one counts.
    kept = (line.rpartition("\r")[2] for line in text.split("\n"))
    lines = [_cut(JOINERS.sub("", line).expandtabs(8)) for line in kept]
    if lines and not lines[-1]:
        del lines[-1]
    return tuple(lines)


def _cut(line: str) -> str:
    return line if len(line) <= LINE_CHARS else line[: LINE_CHARS - 1] + "…"
