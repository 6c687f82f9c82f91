"""The first screen: the same picture as `gpuledger status`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widget import Widget

from gpuledger.display.status import status_lines
from gpuledger.display.text import one_line
from gpuledger.ui.lines import Lines
from gpuledger.ui.screens import LedgerScreen
from gpuledger.views import Snapshot


class OverviewScreen(LedgerScreen):
    """Progress, workers and failures, fitted to the terminal."""

    DEFAULT_CSS = """
    OverviewScreen #headline { display: none; }
    OverviewScreen #status { overflow-y: hidden; scrollbar-gutter: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("p", "pause", "Pause")]

    name_shown: ClassVar[str] = "status"

    def body(self) -> Sequence[Widget]:
        """Return the picture."""
        return [Lines(id="status")]

    def on_mount(self) -> None:
        """Say where this is, in the terminal's title."""
        self.app.title = f"gpuledger {one_line(self.session.reader.latest().ledger)}"

    def follow(self, snapshot: Snapshot) -> None:
        """Draw the snapshot."""
        lines = self.query_one("#status", Lines)

        def draw(width: int) -> list[Text]:
            return status_lines(snapshot, width=width, height=lines.size.height or None)

        lines.show(draw)
