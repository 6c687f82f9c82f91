"""The list of tasks: a window onto any number of them, read a page at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from gpuledger.cli.live import pause_after
from gpuledger.display.tasks import task_lines
from gpuledger.display.text import one_line
from gpuledger.errors import BadUsage, LedgerError, UnknownTask
from gpuledger.ledger import Ledger
from gpuledger.model import TaskState
from gpuledger.selection import Selection
from gpuledger.ui import changes
from gpuledger.ui.changes import Change
from gpuledger.ui.filters import selection_of
from gpuledger.ui.rows import Drawn, Rows, Table
from gpuledger.ui.screens import ListScreen
from gpuledger.ui.session import Session
from gpuledger.ui.task import TaskScreen
from gpuledger.views import Snapshot, TaskRecord
from gpuledger.where import BadWhere

PAGE = 100
WINDOW = 3 * PAGE
"""The most tasks that are kept; those far from the selected one are read again when needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Some of the selected tasks, without a gap.

    Attributes:
        records: In the order of creation.
        behind: Name of a task that comes right before them; None when there is none.
        at_end: No selected task comes after them.
    """

    records: tuple[TaskRecord, ...] = ()
    behind: str | None = None
    at_end: bool = True


def first_page(ledger: Ledger, selection: Selection) -> Window:
    """Return the first tasks."""
    return _read(ledger, selection, behind=None, size=PAGE)


def last_page(ledger: Ledger, selection: Selection) -> Window:
    """Return the last tasks."""
    found = ledger.tasks_before(selection, limit=PAGE + 1)
    behind = found[0].task if len(found) > PAGE else None
    return Window(records=tuple(found[-PAGE:]), behind=behind, at_end=True)


def read_again(ledger: Ledger, selection: Selection, window: Window) -> Window:
    """Return the same tasks as they are now, and what came at their end."""
    size = max(len(window.records), PAGE)
    return _read(ledger, selection, behind=window.behind, size=size)


def extended(ledger: Ledger, selection: Selection, window: Window, *, forwards: bool) -> Window:
    """Return the window with another page at one end, and fewer tasks at the other."""
    if not window.records:
        return first_page(ledger, selection)
    if forwards:
        more = _read(ledger, selection, behind=window.records[-1].task, size=PAGE)
        records = window.records + more.records
        over = max(len(records) - WINDOW, 0)
        behind = records[over - 1].task if over else window.behind
        return Window(records=records[over:], behind=behind, at_end=more.at_end)
    found = ledger.tasks_before(selection, limit=PAGE + 1, before=window.records[0].task)
    behind = found[0].task if len(found) > PAGE else None
    records = tuple(found[-PAGE:]) + window.records
    return Window(
        records=records[:WINDOW],
        behind=behind,
        at_end=window.at_end and len(records) <= WINDOW,
    )


def _read(ledger: Ledger, selection: Selection, *, behind: str | None, size: int) -> Window:
    found = ledger.tasks(selection, limit=size + 1, after=behind)
    return Window(records=tuple(found[:size]), behind=behind, at_end=len(found) <= size)


class TasksScreen(ListScreen):
    """One line for each task."""

    name_shown: ClassVar[str] = "tasks"
    hint: ClassVar[str] = "failed, sweep:NAME, worker:NAME, error:TEXT, where:CONDITION, any text"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._window = Window()
        self._selection = Selection(sweep=session.sweep)
        self._reading = -1
        self._rest_until_s = 0.0

    def follow(self, snapshot: Snapshot) -> None:
        """Read the window again when the ledger changed; a slow answer is not asked for often."""
        rested = self.session.clock.boottime() >= self._rest_until_s
        if rested and self._reading != self.session.reader.readings:
            self.on_changed()

    def on_changed(self) -> None:
        """Read the window again."""
        self._reading = self.session.reader.readings
        selection = self._selection
        self._ask(lambda: read_again(self.session.ledger, selection, self._window))

    def filtered(self) -> None:
        """Begin with the first tasks of another selection."""
        try:
            chosen = selection_of(self.filter_text)
        except BadWhere as problem:  # the tasks stay as they are until it can be read
            self.note = f"/{one_line(self.filter_text)}: {problem}"
            self.show_headline(self.session.reader.latest())
            return
        selection = replace(chosen, sweep=chosen.sweep or self.session.sweep)
        self._selection = selection
        self._window = Window()
        self._ask(lambda: first_page(self.session.ledger, selection))
        self.show_headline(self.session.reader.latest())

    def can_read_filter(self) -> bool:
        """Tell whether it is a condition, where it begins like one."""
        try:
            selection_of(self.filter_text)
        except BadWhere:
            return False
        return True

    def on_rows_near(self, message: Rows.Near) -> None:
        """Read more at the end that the selection came near to."""
        selection, window, forwards = self._selection, self._window, message.forwards
        if window.at_end if forwards else window.behind is None:
            return
        if message.jumped:
            page = last_page if forwards else first_page
            self._ask(lambda: page(self.session.ledger, selection), jump=forwards)
        elif not self.session.errands.is_busy("tasks"):
            self._ask(lambda: extended(self.session.ledger, selection, window, forwards=forwards))

    def on_rows_chosen(self, message: Rows.Chosen) -> None:
        """Open the task."""
        self.app.push_screen(TaskScreen(self.session, message.key))

    def retry_of_selected(self) -> Change | None:
        """Offer to retry the task."""
        record = self._selected()
        if record is None:
            return None
        completed = record.state is TaskState.COMPLETED
        return changes.retry(self.session.ledger, (record.task,), completed=completed)

    def cancel_of_selected(self) -> Change | None:
        """Offer to cancel the task."""
        record = self._selected()
        if record is None:
            return None
        running = record.state is TaskState.RUNNING
        return changes.cancel(self.session.ledger, (record.task,), running=running)

    def _selected(self) -> TaskRecord | None:
        return next((r for r in self._window.records if r.task == self.rows.selected), None)

    def _ask(self, work: Callable[[], Window], *, jump: bool | None = None) -> None:
        selection = self._selection
        clock = self.session.clock

        def timed() -> Window:
            began_s = clock.boottime()
            try:
                return work()
            finally:
                ended_s = clock.boottime()
                self._rest_until_s = ended_s + pause_after(ended_s - began_s)

        def answered(answer: Window | LedgerError) -> None:
            if selection != self._selection or not self.can_show():
                return  # the user went on meanwhile
            if isinstance(answer, LedgerError):
                self.note = str(answer)
                self._reading = -1
                if isinstance(answer, BadUsage | UnknownTask):
                    self.action_filter()  # it asks for what is not there: to be mended
                self.show_headline(self.session.reader.latest())
            else:
                self._take(answer, jump)

        self.session.errands.ask("tasks", timed, answered)

    def _take(self, window: Window, jump: bool | None) -> None:
        self._window = window
        self.note = f"/{one_line(self.filter_text)}" if self.filter_text else ""
        records = window.records

        def draw(width: int) -> Drawn:
            lines = task_lines(records, width=width)
            return lines[:1], [[line] for line in lines[1:]] if records else []

        ends = {True: -1, False: 0}
        select = records[ends[jump]].task if jump is not None and records else None
        none = self.nothing("no tasks yet: gpuledger init sweep.toml", "task")
        keys = [record.task for record in records]
        self.rows.show(Table(keys=keys, draw=draw, empty=none), select=select)
        self.show_headline(self.session.reader.latest())
