"""What all screens have in common: a headline, keys, and changes that ask before they are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Input, Static

from gpuledger.display.cells import cut, wrap
from gpuledger.display.status import count_texts, unreachable_text
from gpuledger.display.text import one_line
from gpuledger.errors import LedgerError
from gpuledger.ui import changes
from gpuledger.ui.changes import Change
from gpuledger.ui.dialogs import Ask, Choose
from gpuledger.ui.rows import Rows
from gpuledger.ui.session import Session
from gpuledger.views import Snapshot

SEARCH_PAUSE_S = 0.3
"""A filter is applied when nothing was typed for so long."""

PROBLEM_LINES = 3


class LedgerScreen(Screen[None]):
    """A screen of its own: one line that says what it is, the body, and the keys."""

    DEFAULT_CSS = """
    LedgerScreen #headline { height: auto; }
    LedgerScreen Input { height: 1; border: none; padding: 0; background: ansi_default; }
    LedgerScreen Input:focus { border: none; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back", show=False),
    ]

    name_shown: ClassVar[str] = ""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self._parts: tuple[Widget, ...] = ()
        self.note = ""
        """What the headline says beside the screen's name."""

    def body(self) -> Sequence[Widget]:
        """Return what stands between the headline and the keys."""
        raise NotImplementedError

    def follow(self, snapshot: Snapshot) -> None:
        """Take notice of a newer snapshot."""
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        """Yield headline, body and keys."""
        self._parts = (Static(id="headline", markup=False), *self.body())
        yield from self._parts
        yield Footer(show_command_palette=False, compact=True)

    def on_screen_resume(self) -> None:
        """Show what came meanwhile."""
        self.refresh_all()

    def on_resize(self) -> None:
        """Fit everything to the size; the first time comes before there is anything."""
        self.refresh_all()

    def refresh_all(self) -> None:
        """Show the newest snapshot."""
        if not self.can_show():
            return
        snapshot = self.session.reader.latest()
        self.show_headline(snapshot)
        self.follow(snapshot)

    def can_show(self) -> bool:
        """Tell whether there is anything to show news in: a screen that goes loses its parts first.

        Answers of the ledger come when they come, also then.
        """
        is_whole = bool(self._parts) and all(part.is_attached for part in self._parts)
        return is_whole and self.is_attached and self.display

    def show_headline(self, snapshot: Snapshot) -> None:
        """Say what this is, how everything stands, and whether that is still true."""
        width = max(self.app.size.width, 1)
        line = Text(cut(self.name_shown, width), style="bold")
        parts = [Text(self.note, style="yellow")] if self.note else []
        for part in [*parts, *count_texts(snapshot)]:
            if line.cell_len + 2 + part.cell_len <= width:
                line.append("  ").append_text(part)
            elif part in parts:
                line.append("  ").append(cut(part.plain, width - line.cell_len - 2), part.style)
        lines = [line]
        if snapshot.unreachable is not None:
            lines += wrap(unreachable_text(snapshot), width, style="bold red")[:PROBLEM_LINES]
        self.query_one("#headline", Static).update(Text("\n").join(lines))

    def action_back(self) -> None:
        """Return to the screen before."""
        if len(self.app.screen_stack) > 2:
            self.app.pop_screen()

    # --- changes --------------------------------------------------------------------------

    def offer(self, change: Change | None) -> None:
        """Ask, make the change if the answer is one of its keys, and say what it did."""
        if change is None:
            self.say("nothing is selected")
            return
        offered = change

        def answered(key: str | None) -> None:
            make = offered.answers.get(key or "")
            if make is not None:
                self.make(make[1])

        keys = [(key, label) for key, (label, _) in offered.answers.items()]
        self.app.push_screen(Ask(offered.question, keys), answered)

    def make(self, work: Callable[[], str]) -> None:
        """Make a change in a thread, and say what it did."""
        self.session.errands.ask(object(), work, self._made)

    def _made(self, answer: str | LedgerError) -> None:
        if isinstance(answer, LedgerError):
            self.say(str(answer), is_error=True)
        else:
            self.say(answer)
        self.on_changed()

    def on_changed(self) -> None:
        """Called after a change was made; lists read themselves anew."""

    def say(self, text: str, *, is_error: bool = False) -> None:
        """Show one sentence for a few seconds."""
        severity = "error" if is_error else "information"
        self.app.notify(one_line(text), severity=severity, markup=False)  # type: ignore[arg-type]

    def action_pause(self) -> None:
        """Pause or resume a sweep; ask which when there are several."""
        sweeps = self.session.reader.latest().sweeps
        if not sweeps:
            self.say("there is no sweep yet")
        elif len(sweeps) == 1:
            self.offer(changes.pause_or_resume(self.session.ledger, sweeps[0]))
        else:
            choices = changes.pauses(self.session.ledger, sweeps)

            def chosen(key: str | None) -> None:
                if key:
                    self.make(choices[int(key)][1])

            labels = [(str(i), label) for i, (label, _) in enumerate(choices)]
            self.app.push_screen(Choose("Pause or resume which sweep?", labels), chosen)


class ListScreen(LedgerScreen):
    """A list of rows, of which one can be opened, retried and cancelled, and a filter."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter"),
        Binding("r", "retry", "Retry"),
        Binding("c", "cancel", "Cancel"),
    ]

    hint: ClassVar[str] = "any text"

    def body(self) -> Sequence[Widget]:
        """Return the list and the filter."""
        hint = f"filter: {self.hint}"
        entry = Input(id="filter", placeholder=hint, select_on_focus=False)
        entry.display = False
        return [Rows(id="rows"), entry]

    @property
    def rows(self) -> Rows:
        """The list."""
        return self.query_one("#rows", Rows)

    @property
    def filter_text(self) -> str:
        """What the rows are narrowed to; '' for no filter."""
        return self.query_one("#filter", Input).value.strip()

    def nothing(self, because: str, noun: str) -> str:
        """Return what an empty list says."""
        return f"no {noun} matches /{one_line(self.filter_text)}" if self.filter_text else because

    def filtered(self) -> None:
        """Called when the filter is another one."""
        self.refresh_all()

    def on_mount(self) -> None:
        """Give the keys to the list."""
        self.rows.focus()

    def action_filter(self) -> None:
        """Let the user type a filter."""
        entry = self.query_one("#filter", Input)
        entry.display = True
        entry.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Apply the filter when the typing pauses."""
        typed = event.value

        def apply() -> None:
            if self.can_show() and typed == self.query_one("#filter", Input).value:
                self.note = f"/{one_line(typed)}" if typed.strip() else ""
                self.filtered()

        self.set_timer(SEARCH_PAUSE_S, apply)

    def can_read_filter(self) -> bool:
        """Tell whether the filter means something; else it stays open to be mended."""
        return True

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Give the keys back to the list; the filter stays."""
        if not self.can_read_filter():
            return
        event.input.display = bool(self.filter_text)
        self.rows.focus()

    def action_back(self) -> None:
        """Take the filter away first, then return to the screen before."""
        entry = self.query_one("#filter", Input)
        if entry.display:
            entry.value = ""
            entry.display = False
            self.rows.focus()
        else:
            super().action_back()

    def action_retry(self) -> None:
        """Ask whether the selected task is to be retried."""
        self.offer(self.retry_of_selected())

    def action_cancel(self) -> None:
        """Ask whether the selected task is to be cancelled."""
        self.offer(self.cancel_of_selected())

    def retry_of_selected(self) -> Change | None:
        """Return the change that `r` offers; None when nothing is selected."""
        raise NotImplementedError

    def cancel_of_selected(self) -> Change | None:
        """Return the change that `c` offers; None when nothing is selected."""
        raise NotImplementedError
