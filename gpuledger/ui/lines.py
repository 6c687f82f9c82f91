"""A text to read: lines that scroll, and that follow their end when one is there."""

from __future__ import annotations

from collections.abc import Callable

from rich.text import Text
from textual import events
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from gpuledger.ui.rows import PLAIN, SCROLLS, strip_of

Draw = Callable[[int], list[Text]]
"""Returns the lines for a width in cells."""


class Lines(ScrollView, can_focus=True):
    """The text; the keys of every list scroll it."""

    DEFAULT_CSS = "Lines {" + SCROLLS + "}"

    def __init__(self, id: str | None = None, *, follows: bool = False) -> None:
        """Prepare; with `follows` it begins at its end, and stays there when lines come."""
        super().__init__(id=id)
        self._draw: Draw = lambda width: []
        self._lines: list[Text] = []
        self._at_end = follows
        self._follows = follows

    def show(self, draw: Draw) -> None:
        """Show another text, at the place where the last one was read."""
        if self._lines and self._follows:
            self._at_end = self.scroll_offset.y >= self.max_scroll_y
        self._draw = draw
        self._lay_out()

    def render_line(self, y: int) -> Strip:
        """Return the line at `y` of the widget."""
        index = y + self.scroll_offset.y
        if index >= len(self._lines):
            return Strip.blank(self.size.width, PLAIN)
        return strip_of(self._lines[index], self.app.console, self.size.width)

    def on_resize(self, event: events.Resize) -> None:
        """Lay out anew: long lines are folded to the width."""
        self._lay_out()

    def _lay_out(self) -> None:
        width = self.scrollable_content_region.width or self.size.width
        self._lines = self._draw(width) if width else []
        self.virtual_size = Size(width, len(self._lines))
        if self._follows and self._at_end:
            self.scroll_to(
                y=max(len(self._lines) - self.size.height, 0),
                animate=False,
                immediate=True,
                force=True,
            )
        self.refresh()
