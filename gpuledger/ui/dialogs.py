"""The screens that ask: yes or no, which one, and what the keys do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Static

from gpuledger.display.cells import cut, flow, wrap
from gpuledger.display.text import one_line
from gpuledger.ui.lines import Lines
from gpuledger.ui.rows import Drawn, Rows, Table

DIALOG_CSS = """
{name} {{ align: center middle; }}
{name} > Vertical {{
    width: 76; max-width: 100%; height: auto; max-height: 100%;
    border: round ansi_default; padding: 0 1;
}}
"""

KEYS = (
    ("s", "status: everything at a glance"),
    ("f", "failures, by cause"),
    ("t", "tasks"),
    ("w", "workers"),
    ("arrows", "move, as PgUp, PgDn, Home and End do"),
    ("Enter", "open the selected task: parameters, attempts, traceback, log"),
    ("Tab, l", "in a task: between what is known of it and its log"),
    (
        "/",
        "filter; in tasks: a state, sweep:NAME, worker:NAME, error:TEXT, where:CONDITION,"
        " or any text",
    ),
    ("r", "retry what is selected"),
    ("c", "cancel what is selected"),
    ("p", "pause or resume a sweep"),
    ("Escape", "back"),
    ("q", "quit; nothing else ends with it"),
)
KEY_CELLS = 10


class Ask(ModalScreen[str]):
    """A question that one key answers; the answer is that key, '' for no."""

    DEFAULT_CSS = DIALOG_CSS.format(name="Ask")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n,q", "dismiss('')", "No", show=False),
    ]

    def __init__(self, question: str, answers: Sequence[tuple[str, str]]) -> None:
        """Prepare.

        Args:
            question: One sentence.
            answers: A key and what it does, for each; Enter stands for the first. 'n' is no.
        """
        super().__init__()
        self._question = question
        self._answers = answers

    def compose(self) -> ComposeResult:
        """Yield the question and the keys."""
        with Vertical():
            text = Text("\n").join(
                [
                    Text(one_line(self._question)),
                    Text(),
                    *(Text(f"  {key}  {label}") for key, label in self._answers),
                    Text("  n  no, leave it as it is"),
                ]
            )
            yield Static(text)

    def on_key(self, event: Key) -> None:
        """Take the answer."""
        keys = [key for key, _ in self._answers]
        if event.key in keys or event.key == "enter":
            event.stop()
            self.dismiss(event.key if event.key in keys else keys[0])


class Choose(ModalScreen[str]):
    """A list of which one is chosen; the answer is its key, '' for none."""

    DEFAULT_CSS = DIALOG_CSS.format(name="Choose") + "Choose Rows { height: auto; max-height: 20; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n,q", "dismiss('')", "No", show=False),
    ]

    def __init__(self, question: str, choices: Sequence[tuple[str, str]]) -> None:
        """Prepare; each choice is a key and what is shown for it."""
        super().__init__()
        self._question = question
        self._choices = choices

    def compose(self) -> ComposeResult:
        """Yield the question and the list."""
        with Vertical():
            yield Static(Text(one_line(self._question)))
            yield Rows()

    def on_mount(self) -> None:
        """Fill the list, and give it the keys."""
        rows = self.query_one(Rows)
        rows.styles.height = min(len(self._choices), 20)
        rows.show(Table(keys=[key for key, _ in self._choices], draw=self._draw))
        rows.focus()

    def on_rows_chosen(self, message: Rows.Chosen) -> None:
        """Take the answer."""
        self.dismiss(message.key)

    def _draw(self, width: int) -> Drawn:
        return [], [[Text(cut(one_line(label), width))] for _, label in self._choices]


class Help(ModalScreen[None]):
    """What the keys do."""

    DEFAULT_CSS = DIALOG_CSS.format(name="Help")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,enter,q", "dismiss", "Back", show=False),
    ]

    def compose(self) -> ComposeResult:
        """Yield the keys."""
        with Vertical():
            yield Lines()

    def on_mount(self) -> None:
        """Fill the text, as high as the terminal allows."""
        lines = self.query_one(Lines)
        width = min(self.app.size.width, 76) - 4
        lines.styles.height = len(help_lines(width - 1))
        lines.styles.max_height = max(self.app.size.height - 2, 1)
        lines.show(help_lines)
        lines.focus()


def help_lines(width: int) -> list[Text]:
    """Return what each key does."""
    lines: list[Text] = []
    for key, does in KEYS:
        if len(key) > KEY_CELLS:
            lines += flow([Text(f"{key}  {does}")], width)
            continue
        told = wrap(does, max(width - KEY_CELLS, 1))
        for i, line in enumerate(told):
            lines.append(Text(("" if i else key).ljust(KEY_CELLS), style="bold") + line)
    return lines
