"""One task, whole: parameters, attempts, traceback, and the end of its log as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widget import Widget

from gpuledger.display.cells import cut
from gpuledger.display.show import detail_lines
from gpuledger.display.text import one_line
from gpuledger.errors import LedgerError
from gpuledger.model import TaskState
from gpuledger.ui import changes
from gpuledger.ui.lines import Lines
from gpuledger.ui.logtail import Tail, read_tail, tail_lines
from gpuledger.ui.screens import LedgerScreen
from gpuledger.ui.session import Session
from gpuledger.views import Snapshot, TaskRecord

BOTH_LINES = 24
"""With fewer lines the two halves take turns."""


class TaskScreen(LedgerScreen):
    """What is known of the task above, its log below."""

    DEFAULT_CSS = """
    TaskScreen #detail { height: 3fr; }
    TaskScreen #log { height: 2fr; border-top: solid ansi_default; }
    TaskScreen #log:focus { border-top: heavy ansi_default; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "turn", "Log"),
        Binding("tab,shift+tab", "turn", "Log", show=False),
        Binding("r", "retry", "Retry"),
        Binding("c", "cancel", "Cancel"),
    ]

    name_shown: ClassVar[str] = "task"

    def __init__(self, session: Session, task: str) -> None:
        super().__init__(session)
        self._task_name = task
        self._record: TaskRecord | None = None
        self._tail: Tail | None = None
        self._reading = -1

    def body(self) -> Sequence[Widget]:
        """Return both halves."""
        return [Lines(id="detail"), Lines(id="log", follows=True)]

    def on_mount(self) -> None:
        """Give the keys to the upper half."""
        self.note = one_line(self._task_name)
        self.query_one("#detail", Lines).focus()
        self._share_room()

    def on_descendant_focus(self) -> None:
        """Show the half that got the keys."""
        self._share_room()

    def follow(self, snapshot: Snapshot) -> None:
        """Read the task again when the ledger changed, and its log in any case."""
        self._share_room()
        if self._reading != self.session.reader.readings:
            self.on_changed()
        self._read_log()

    def on_changed(self) -> None:
        """Read the task again."""
        self._reading = self.session.reader.readings
        ledger, name = self.session.ledger, self._task_name
        self.session.errands.ask(("task", name), lambda: ledger.task(name), self._take)

    def action_turn(self) -> None:
        """Give the keys to the other half."""
        detail, log = self.query_one("#detail", Lines), self.query_one("#log", Lines)
        other = detail if log.has_focus else log
        other.display = True
        other.focus()

    def action_retry(self) -> None:
        """Ask whether the task is to be retried."""
        completed = self._record is not None and self._record.state is TaskState.COMPLETED
        self.offer(changes.retry(self.session.ledger, (self._task_name,), completed=completed))

    def action_cancel(self) -> None:
        """Ask whether the task is to be cancelled."""
        running = self._record is not None and self._record.state is TaskState.RUNNING
        self.offer(changes.cancel(self.session.ledger, (self._task_name,), running=running))

    def _take(self, answer: TaskRecord | LedgerError) -> None:
        if not self.can_show():
            return
        if isinstance(answer, LedgerError):
            self._reading = -1
            problem = one_line(str(answer))
            if self._record is None:
                self.query_one("#detail", Lines).show(lambda width: [Text(cut(problem, width))])
            return
        self._record = record = answer
        self.query_one("#detail", Lines).show(lambda width: detail_lines(record, width=width))
        self._read_log()

    def _read_log(self) -> None:
        if self._record is None or not self._record.attempts:
            self._take_tail(None)
            return
        path, known = self._record.attempts[-1].log, self._tail
        self.session.errands.ask(
            ("log", self._task_name), lambda: read_tail(path, known), self._take_tail
        )

    def _take_tail(self, answer: Tail | LedgerError | None) -> None:
        if not self.can_show() or isinstance(answer, LedgerError):
            return
        log = self.query_one("#log", Lines)
        attempts = self._record.attempts if self._record else ()
        log.border_title = f"log of attempt {attempts[-1].number}" if attempts else "log"
        if answer is None:
            missing = "no log (yet)" if self._record else ""
            log.show(lambda width: [Text(cut(missing, width), style="dim")])
        elif answer is not self._tail:
            tail = answer
            log.show(lambda width: tail_lines(tail, width))
        self._tail = answer

    def _share_room(self) -> None:
        if not self.can_show():
            return
        detail, log = self.query_one("#detail", Lines), self.query_one("#log", Lines)
        both = self.app.size.height >= BOTH_LINES
        detail.display = both or not log.has_focus
        log.display = True if both else log.has_focus
