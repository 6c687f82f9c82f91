"""The only module that measures text in terminal cells, and cuts it to a number of them."""

from __future__ import annotations

from rich.cells import cell_len
from rich.text import Text


def cut(text: str, width: int, *, keep_end: int = 0) -> str:
    """Return the text in at most `width` cells, with '…' where something is missing.

    Args:
        text: One safe line.
        width: In cells; less than 1 gives ''.
        keep_end: So many last characters stay, as far as half of the width allows: the number
            at the end of a name says more than its beginning.
    """
    if width < 1:
        return ""
    if cell_len(text) <= width:
        return text
    end = text[-keep_end:] if keep_end else ""
    while cell_len(end) > width // 2:
        end = end[1:]
    room = width - 1 - cell_len(end)
    return _head(text, room) + "…" + end


def fold(text: str, width: int) -> list[str]:
    """Return the line in pieces of at most `width` cells, nothing lost; at least one piece."""
    pieces = []
    rest = text
    while cell_len(rest) > width:
        # A character wider than the whole line cannot be drawn at all.
        piece = _head(rest, width) or rest[0]
        pieces.append(piece if cell_len(piece) <= width else "?")
        rest = rest[len(piece) :]
    return [*pieces, rest] if rest or not pieces else pieces


def flow(parts: list[Text], width: int, *, gap: str = "  ") -> list[Text]:
    """Return the parts in as few lines as possible; a part is broken only if it must be."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + len(gap) + part.cell_len <= width:
            lines[-1].append(gap)
            lines[-1].append_text(part)
        elif part.cell_len <= width:
            lines.append(Text().append_text(part))  # its style must not reach the next part
        else:
            lines += [Text(piece, style=part.style) for piece in fold(part.plain, width)]
    return lines


def wrap(text: str, width: int, *, style: str = "", indent: int = 0) -> list[Text]:
    """Return words in lines of at most `width` cells, each but the first indented."""
    lines = flow(
        [Text(word, style=style) for word in text.split()], max(width - indent, 1), gap=" "
    )
    margin = " " * min(indent, width - 1)
    return [Text(margin * (i > 0)).append_text(line) for i, line in enumerate(lines)]


def _head(text: str, width: int) -> str:
    """Return as many first characters as fit."""
    used = 0
    for i, character in enumerate(text):
        used += cell_len(character)
        if used > width:
            return text[:i]
    return text
