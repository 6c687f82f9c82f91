"""The live workers, and what each runs."""

from __future__ import annotations

from typing import ClassVar

from gpuledger.display.status import claimable
from gpuledger.display.workers import worker_lines
from gpuledger.ui import changes
from gpuledger.ui.changes import Change
from gpuledger.ui.rows import Drawn, Rows, Table
from gpuledger.ui.screens import ListScreen
from gpuledger.ui.session import Session
from gpuledger.ui.task import TaskScreen
from gpuledger.views import Snapshot, WorkerView


class WorkersScreen(ListScreen):
    """One line for each worker; opening it opens its task."""

    name_shown: ClassVar[str] = "workers"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._workers: dict[str, WorkerView] = {}

    def follow(self, snapshot: Snapshot) -> None:
        """Show the workers that the filter lets through."""
        wanted = self.filter_text.lower()
        found = [worker for worker in snapshot.workers if wanted in _text(worker)]
        self._workers = {worker.nonce: worker for worker in found}

        def draw(width: int) -> Drawn:
            lines = worker_lines(
                found, claimable=claimable(snapshot), width=width, limit=len(found) + 1
            )
            return lines[:1], [[line] for line in lines[1:]]

        none = self.nothing("no worker is running: gpuledger work --gpu 0 (or --cpu)", "worker")
        self.rows.show(Table(keys=list(self._workers), draw=draw, empty=none))

    def on_rows_chosen(self, message: Rows.Chosen) -> None:
        """Open the worker's task."""
        task = self._workers[message.key].task
        if task is None:
            self.say("this worker runs no task now")
        else:
            self.app.push_screen(TaskScreen(self.session, task))

    def retry_of_selected(self) -> Change | None:
        """Offer to retry the worker's task; a running one is left alone, and it says so."""
        return changes.retry(self.session.ledger, self._tasks())

    def cancel_of_selected(self) -> Change | None:
        """Offer to cancel the worker's task."""
        return changes.cancel(self.session.ledger, self._tasks(), running=True)

    def _tasks(self) -> tuple[str, ...]:
        worker = self._workers.get(self.rows.selected or "")
        return (worker.task,) if worker is not None and worker.task is not None else ()


def _text(worker: WorkerView) -> str:
    return f"{worker.name} {worker.task or ''} {worker.note or ''}".lower()
