"""The changes that keys offer: what is asked, what is done, and what is said afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gpuledger.display.text import one_line, several
from gpuledger.ledger import Ledger
from gpuledger.model import TaskState
from gpuledger.selection import Selection, TaskChange
from gpuledger.views import SweepView

Make = Callable[[], str]
"""Changes the ledger, and returns what was done in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change that is offered.

    Attributes:
        question: What is asked.
        answers: By key, what it is called and what makes it; the first is the usual one.
    """

    question: str
    answers: Mapping[str, tuple[str, Make]]


def retry(ledger: Ledger, names: Sequence[str], *, completed: bool = False) -> Change | None:
    """Offer to put tasks back into the queue; None for no tasks.

    Args:
        ledger: Theirs.
        names: Of the tasks.
        completed: The task is completed: its result is redone.
    """
    if not names:
        return None
    again = " although it is completed" if completed else ""

    def make() -> str:
        change = ledger.retry(Selection(names=tuple(names)), completed=completed)
        resumed = "".join(f" Sweep {one_line(name)} goes on." for name in change.resumed)
        return _told("Retried", change) + resumed

    return Change(
        question=f"Retry {_named(names)}{again}?",
        answers={"y": ("yes, back into the queue, failures forgiven", make)},
    )


def cancel(ledger: Ledger, names: Sequence[str], *, running: bool) -> Change | None:
    """Offer to take tasks out of the queue; a running one at once, or after its attempt."""
    if not names:
        return None

    def make(kill: bool) -> str:
        change = ledger.cancel(Selection(names=tuple(names)), kill=kill)
        told = _told("Cancelled", change, count_running=False)
        if not change.running:
            return told
        left = several(change.running, "task")
        how = "are stopped now" if kill else "stay cancelled when the attempt ends badly"
        return (f"{told} " if change.changed else "") + f"{left} running: {how}."

    answers = {"y": ("yes, out of the queue", lambda: make(False))}
    if running:
        answers = {
            "y": ("yes, but let the running attempt end", lambda: make(False)),
            "k": ("yes, and stop it now", lambda: make(True)),
        }
    return Change(question=f"Cancel {_named(names)}?", answers=answers)


def pause_or_resume(ledger: Ledger, sweep: SweepView) -> Change:
    """Offer the one of both that makes sense."""
    label, make = _turn(ledger, sweep)
    why = f" (paused: {one_line(sweep.paused)})" if sweep.paused else ""
    return Change(question=f"{label}{why}?", answers={"y": ("yes", make)})


def pauses(ledger: Ledger, sweeps: Sequence[SweepView]) -> list[tuple[str, Make]]:
    """Return what can be paused or resumed: all, then each sweep."""
    choices: list[tuple[str, Make]] = []
    if any(sweep.paused is None for sweep in sweeps):
        choices.append(("Pause all sweeps", lambda: _turned("Paused", ledger.pause(None))))
    if any(sweep.paused is not None for sweep in sweeps):
        choices.append(("Resume all sweeps", lambda: _turned("Resumed", ledger.resume(None))))
    return [*choices, *(_turn(ledger, sweep) for sweep in sweeps)]


def _turn(ledger: Ledger, sweep: SweepView) -> tuple[str, Make]:
    name = sweep.name
    if sweep.paused is None:
        return f"Pause {one_line(name)}", lambda: _turned("Paused", ledger.pause(name))
    return f"Resume {one_line(name)}", lambda: _turned("Resumed", ledger.resume(name))


def _turned(did: str, names: Sequence[str]) -> str:
    if not names:
        return f"{did} no sweep: it was so already."
    return f"{did} {', '.join(one_line(name) for name in names)}."


def _named(names: Sequence[str]) -> str:
    if len(names) == 1:
        return one_line(names[0])
    return f"{several(len(names), 'task')}, {one_line(names[0])} first"


def _told(did: str, change: TaskChange, *, count_running: bool = True) -> str:
    """Return what was done, and what was left alone."""
    if change.changed == 1:
        done = f"{did} {one_line(change.names[0])}."
    else:
        done = f"{did} {several(change.changed, 'task') if change.changed else 'no task'}."
    left: dict[str, int] = {}
    if change.running and count_running:
        left[TaskState.RUNNING] = change.running
    left.update({str(state): count for state, count in change.skipped.items() if count})
    if not left:
        return done
    return f"{done} Left alone: {', '.join(f'{n} {state}' for state, n in left.items())}."
