"""The only module that hands lines to a console: nothing wraps, and ASCII consoles get ASCII."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text

ASCII = {
    **dict(zip("█▓▚░╌", "#>x.-", strict=True)),
    **dict(zip("▏▎▍▌▋▊▉", "---===#", strict=True)),
    **dict(zip("▁▂▃▄▅▆▇", "_.,-=+*", strict=True)),
    **dict(zip("…─·×–’", "~--x-'", strict=True)),
}
"""What stands for the characters that the display itself draws with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A rich renderable made of whole lines.

    Attributes:
        draw: Returns the lines for a width in cells.
        width: In cells; None means as wide as the console.
    """

    draw: Callable[[int], Iterable[Text]]
    width: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = self.width or options.max_width
        plain = options.ascii_only or options.legacy_windows or console.is_dumb_terminal
        for line in self.draw(width):
            if line.cell_len > width:
                line.truncate(width)
            for segment in line.render(console, end="\n"):
                yield Segment(in_ascii(segment.text), segment.style) if plain else segment


def in_ascii(text: str) -> str:
    """Return the text in ASCII, as many cells wide as before; foreign letters become `?`."""
    if text.isascii():
        return text
    return "".join(
        letter if letter.isascii() else ASCII.get(letter, "?" * cell_len(letter)) for letter in text
    )
