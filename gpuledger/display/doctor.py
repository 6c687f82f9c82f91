"""Draws what an examination found: green, yellow or red, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from gpuledger.display.cells import wrap
from gpuledger.display.drawing import Drawing
from gpuledger.display.text import one_line
from gpuledger.findings import Finding, Level

MARKS = {
    Level.GOOD: ("ok", "green"),
    Level.WARNING: ("look", "yellow"),
    Level.BAD: ("BAD", "bold red"),
}
MARK_CELLS = 4


def doctor_table(findings: Sequence[Finding], *, width: int | None = None) -> RenderableType:
    """Return one line a finding, its advice below it; long lines are folded, nothing is cut."""
    return Drawing(draw=lambda cells: _lines(findings, cells), width=width)


def _lines(findings: Sequence[Finding], width: int) -> list[Text]:
    names = max((len(one_line(finding.what)) for finding in findings), default=0)
    margin = MARK_CELLS + 2 + names + 2
    lines = []
    for finding in findings:
        mark, style = MARKS[finding.level]
        head = Text().append(mark.ljust(MARK_CELLS), style=style)
        head.append("  " + one_line(finding.what).ljust(names) + "  ")
        lines += _paragraph(head, one_line(finding.says), width, margin)
        if finding.advice:
            lead = Text(" " * margin)
            lines += _paragraph(lead, "-> " + one_line(finding.advice), width, margin, style="cyan")
    return lines


def _paragraph(head: Text, words: str, width: int, margin: int, style: str = "") -> list[Text]:
    folded = wrap(words, max(width - margin, 10), style=style) or [Text()]
    first = Text().append_text(head).append_text(folded[0])
    return [first, *(Text(" " * margin).append_text(line) for line in folded[1:])]
