"""The application: which screen is shown, and the reader behind all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from textual.app import App
from textual.binding import Binding, BindingType

from gpuledger.cli.changes import POLL_S
from gpuledger.cli.live import Reader
from gpuledger.ledger import Ledger
from gpuledger.signals import Signals
from gpuledger.ui.dialogs import Help
from gpuledger.ui.errands import Errands
from gpuledger.ui.failures import FailuresScreen
from gpuledger.ui.overview import OverviewScreen
from gpuledger.ui.screens import LedgerScreen
from gpuledger.ui.session import Session
from gpuledger.ui.tasks import TasksScreen
from gpuledger.ui.workers import WorkersScreen

SCREENS: dict[str, Callable[[Session], LedgerScreen]] = {
    "failures": FailuresScreen,
    "tasks": TasksScreen,
    "workers": WorkersScreen,
}


class LedgerApp(App[None]):
    """Looks at one ledger until `q`; ending it ends nothing else."""

    ENABLE_COMMAND_PALETTE = False
    CSS = "Toast { max-width: 100%; }"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "status", "Status", show=False),
        Binding("f", "go('failures')", "Failures"),
        Binding("t", "go('tasks')", "Tasks"),
        Binding("w", "go('workers')", "Workers"),
        Binding("p", "screen.pause", "Pause", show=False),  # 80 columns have no room for all
        Binding("question_mark", "help", "Help"),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+z", "suspend_process", show=False, priority=True),
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
    ]

    def __init__(
        self,
        ledger: Ledger,
        reader: Reader,
        signals: Signals | None = None,
        *,
        sweep: str | None = None,
    ) -> None:
        """Prepare.

        Args:
            ledger: To look at.
            reader: Reads it, in a thread that the caller starts and ends.
            signals: Asked whether it is time to end; None for never.
            sweep: Only this one is looked at, as by the reader; None means all.
        """
        # In the terminal's own colours, on its own background, light or dark.
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        errands = Errands(self.call_later)
        self._session = Session(ledger=ledger, reader=reader, errands=errands, sweep=sweep)
        self._signals = signals
        self._shown: Any = None

    def on_mount(self) -> None:
        """Begin with the status, and look for news from then on."""
        self.push_screen(OverviewScreen(self._session))
        self.set_interval(POLL_S, self._look)

    def action_status(self) -> None:
        """Return to the first screen."""
        while len(self.screen_stack) > 2:
            self.pop_screen()

    def action_go(self, name: str) -> None:
        """Go to one of the lists, from wherever this is."""
        self.action_status()
        self.push_screen(SCREENS[name](self._session))

    def action_help(self) -> None:
        """Show what the keys do."""
        self.push_screen(Help())

    def _look(self) -> None:
        if self._signals is not None and (self._signals.terminates or self._signals.interrupts):
            self.exit()
            return
        for screen in reversed(self.screen_stack):  # what lies under a question goes on, too
            if isinstance(screen, LedgerScreen):
                screen.refresh_all()
                return
