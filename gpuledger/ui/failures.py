"""The failures, grouped by their cause, each with the end of its traceback."""

from __future__ import annotations

from typing import ClassVar

from gpuledger.display.failures import Cause, cause_lines, causes
from gpuledger.ui import changes
from gpuledger.ui.changes import Change
from gpuledger.ui.rows import Drawn, Rows, Table
from gpuledger.ui.screens import ListScreen
from gpuledger.ui.session import Session
from gpuledger.ui.task import TaskScreen
from gpuledger.views import Snapshot


class FailuresScreen(ListScreen):
    """One block for each cause; opening it opens the task that failed last."""

    name_shown: ClassVar[str] = "failures"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._causes: dict[str, Cause] = {}

    def follow(self, snapshot: Snapshot) -> None:
        """Show the causes that the filter lets through."""
        wanted = self.filter_text.lower()
        found = [
            cause
            for cause in causes(snapshot.failures, more=snapshot.more_failures)
            if wanted in _text(cause)
        ]
        # The oldest task of a cause stays, while newer ones come in front of it.
        self._causes = {cause.names[-1]: cause for cause in found}

        def draw(width: int) -> Drawn:
            return [], [cause_lines(cause, now=snapshot.taken_at, width=width) for cause in found]

        none = self.nothing("nothing failed, or all of it is mended", "failure")
        self.rows.show(Table(keys=list(self._causes), draw=draw, empty=none))

    def on_rows_chosen(self, message: Rows.Chosen) -> None:
        """Open the task that failed last in this way."""
        self.app.push_screen(TaskScreen(self.session, self._causes[message.key].latest.task))

    def retry_of_selected(self) -> Change | None:
        """Offer to retry all tasks of the cause."""
        return changes.retry(self.session.ledger, self._names())

    def cancel_of_selected(self) -> Change | None:
        """Offer to cancel all tasks of the cause."""
        return changes.cancel(self.session.ledger, self._names(), running=True)

    def _names(self) -> tuple[str, ...]:
        cause = self._causes.get(self.rows.selected or "")
        return cause.names if cause else ()


def _text(cause: Cause) -> str:
    latest = cause.latest
    return "\n".join(
        [*cause.names, latest.error or "", latest.traceback or "", latest.worker, latest.outcome]
    ).lower()
