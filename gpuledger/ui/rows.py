"""A list of rows of which one is selected; only the lines on the screen are ever drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from gpuledger.display.cells import cut

Drawn = tuple[list[Text], list[list[Text]]]
"""The lines that stay at the top, and the lines of each row."""

PLAIN = Style()
SELECTED = Style(reverse=True)

SCROLLS = """
    height: 1fr; overflow-x: hidden;
    scrollbar-gutter: stable; scrollbar-size-vertical: 1;
    scrollbar-background: ansi_default; scrollbar-background-hover: ansi_default;
    scrollbar-background-active: ansi_default; scrollbar-color: ansi_blue;
"""
"""A narrow bar whose room is always kept, so that nothing is laid out twice; no dark column."""

NEAR_ROWS = 20
"""So few rows before the end it is time to get more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What a list shows.

    Attributes:
        keys: One for each row, all different.
        draw: Returns the lines for a width in cells.
        empty: What is said when there is no row.
    """

    keys: Sequence[str]
    draw: Callable[[int], Drawn]
    empty: str = ""


def strip_of(text: Text, console: Console, width: int) -> Strip:
    """Return a line of exactly `width` cells."""
    # Textual's filters (NO_COLOR) want a style everywhere.
    drawn = [Segment(s.text, s.style or PLAIN) for s in text.render(console, end="")]
    return Strip(drawn).adjust_cell_length(width, PLAIN)


class Rows(ScrollView, can_focus=True):
    """The list; the selected row stays the same when others come and go."""

    DEFAULT_CSS = "Rows {" + SCROLLS + "}"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown,space", "page(1)", "Page down", show=False),
        Binding("home", "jump(False)", "First", show=False),
        Binding("end", "jump(True)", "Last", show=False),
        Binding("enter", "choose", "Open"),
    ]

    class Chosen(Message):
        """A row was opened."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    class Near(Message):
        """The selection came near one end of what is there; `jumped` when it wants to be at it."""

        def __init__(self, *, forwards: bool, jumped: bool = False) -> None:
            super().__init__()
            self.forwards = forwards
            self.jumped = jumped

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._table = Table(keys=(), draw=lambda width: ([], []))
        self._cursor = 0
        self._heading: list[Text] = []
        self._lines: list[tuple[int, Text]] = []
        self._starts: list[int] = []

    @property
    def selected(self) -> str | None:
        """Return the key of the selected row; None when there is no row."""
        keys = self._table.keys
        return keys[self._cursor] if self._cursor < len(keys) else None

    def show(self, table: Table, *, select: str | None = None) -> None:
        """Show other rows; `select` one, else keep the selection as far as it is there."""
        wanted = select if select is not None else self.selected
        offset = self._row_start(self._cursor) - self.scroll_offset.y
        self._table = table
        found = table.keys.index(wanted) if wanted in table.keys else self._cursor
        self._cursor = max(min(found, len(table.keys) - 1), 0)
        self._lay_out()
        if self.scroll_offset.y:  # rows that came or went above do not move the selected one
            self._scroll_lines(self._row_start(self._cursor) - offset)
        self._show_cursor()

    def render_line(self, y: int) -> Strip:
        """Return the line at `y` of the widget; the heading does not scroll."""
        width = self.size.width
        if y < len(self._heading):
            return strip_of(self._heading[y], self.app.console, width)
        index = y - len(self._heading) + self.scroll_offset.y
        if not 0 <= index < len(self._lines):
            return Strip.blank(width, PLAIN)
        row, text = self._lines[index]
        strip = strip_of(text, self.app.console, width)
        return strip.apply_style(SELECTED) if row == self._cursor else strip

    def on_resize(self, event: events.Resize) -> None:
        """Lay out anew: the columns depend on the width."""
        self._lay_out()
        self._show_cursor()

    def on_click(self, event: events.Click) -> None:
        """Select the row; a second click opens it."""
        index = event.y - len(self._heading) + self.scroll_offset.y
        if event.y < len(self._heading) or not 0 <= index < len(self._lines):
            return
        row = self._lines[index][0]
        if row == self._cursor and event.chain > 1:
            self.action_choose()
        self._select(row)

    def action_move(self, rows: int) -> None:
        """Select another row, so many further."""
        self._select(self._cursor + rows)
        self._tell_if_near(forwards=rows > 0)

    def action_page(self, pages: int) -> None:
        """Select a row a screen further."""
        height = max(self.size.height - len(self._heading), 1)
        goal = self._row_start(self._cursor) + pages * height
        rows = [row for row, start in enumerate(self._starts) if start <= goal]
        row = rows[-1] if rows else 0
        self._select(row if row != self._cursor else self._cursor + pages)
        self._tell_if_near(forwards=pages > 0)

    def action_jump(self, to_end: bool) -> None:
        """Select the first or the last row."""
        self._select(len(self._table.keys) - 1 if to_end else 0)
        self.post_message(self.Near(forwards=to_end, jumped=True))

    def action_choose(self) -> None:
        """Open the selected row."""
        if self.selected is not None:
            self.post_message(self.Chosen(self.selected))

    def _tell_if_near(self, *, forwards: bool) -> None:
        left = len(self._table.keys) - 1 - self._cursor if forwards else self._cursor
        if left < NEAR_ROWS:
            self.post_message(self.Near(forwards=forwards))

    def _select(self, row: int) -> None:
        self._cursor = max(min(row, len(self._table.keys) - 1), 0)
        self._show_cursor()
        self.refresh()

    def _lay_out(self) -> None:
        width = self.scrollable_content_region.width or self.size.width
        self._heading, blocks = self._table.draw(max(width, 1)) if width else ([], [])
        if not blocks and self._table.empty:
            self._heading = [Text(cut(self._table.empty, width), style="dim")]
        self._lines, self._starts = [], []
        for row, block in enumerate(blocks):
            self._starts.append(len(self._lines))
            self._lines += [(row, line) for line in block]
        self.virtual_size = Size(width, len(self._heading) + len(self._lines))
        self.refresh()

    def _row_start(self, row: int) -> int:
        return self._starts[row] if row < len(self._starts) else 0

    def _show_cursor(self) -> None:
        """Scroll as little as needed for the selected row to be on the screen, its top first."""
        height = self.size.height - len(self._heading)
        if height < 1 or self._cursor >= len(self._starts):
            return
        first = self._starts[self._cursor]
        following = self._cursor + 1
        end = self._starts[following] if following < len(self._starts) else len(self._lines)
        top = self.scroll_offset.y
        if end > top + height:
            top = end - height
        self._scroll_lines(min(top, first))

    def _scroll_lines(self, top: int) -> None:
        if top != self.scroll_offset.y:
            self.scroll_to(y=max(top, 0), animate=False, immediate=True, force=True)
            self.refresh(Region(0, 0, *self.size))
