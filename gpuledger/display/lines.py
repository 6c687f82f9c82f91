"""Says in one line what happened: the worker's log and `gpuledger events` use the same words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuledger.display.text import duration, instant, metric_texts, one_line, several, value_text
from gpuledger.model import (
    COUNTED_AS_FAILURE,
    Claim,
    Ended,
    Ending,
    NothingToDo,
    Outcome,
    TaskState,
)
from gpuledger.views import Event

VERBS: Mapping[str, str] = {
    Outcome.COMPLETED: "completed",
    Outcome.FAILED: "failed",
    Outcome.OOM: "ran out of memory",
    Outcome.TIMED_OUT: "timed out",
    Outcome.LOST: "was lost",
    Outcome.INTERRUPTED: "was handed back",
    Outcome.CANCELLED: "was cancelled",
}

METRICS_SHOWN = 4


def claimed_line(claim: Claim, worker: str) -> str:
    """Return what a worker says when it starts a task."""
    attempt = attempt_text(claim.failures + 1, claim.settings.max_attempts)
    return f"Task {one_line(claim.task)} started on {one_line(worker)} ({attempt})"


def ended_line(claim: Claim, worker: str, ending: Ending, ended: Ended) -> str:
    """Return what a worker says when it has recorded how its attempt ended."""
    return _ended(
        claim.task,
        worker,
        ending.outcome,
        attempt=claim.failures + 1,
        max_attempts=ended.max_attempts,
        said=_said(ending.outcome, ending.error, ending.metrics, ending.duration_s),
        next_=_next(
            ending.outcome, ended.state, claim.failures + 1, ended.max_attempts, ended.suspect
        ),
    )


def waiting_line(found: NothingToDo) -> str:
    """Return why a worker waits although it is free."""
    reasons = [
        (found.running, f"{several(found.running, 'task')} still running elsewhere"),
        (found.pending, f"{several(found.pending, 'task')} kept for other workers"),
        (found.held, f"{several(found.held, 'task')} in paused sweeps"),
    ]
    return "Waiting: " + (", ".join(text for count, text in reasons if count) or "no task")


def event_line(event: Event) -> str:
    """Return the event as one line, with the time on the clock of the machine it happened on."""
    return f"{instant(event.at)}  {_event_text(event)}"


def attempt_text(number: int, max_attempts: int | None) -> str:
    """Return `attempt 2/3`; a number beyond the last one is not shown."""
    if max_attempts is None:
        return f"attempt {number}"
    return f"attempt {min(number, max_attempts)}/{max_attempts}"


def _ended(
    task: str,
    worker: str | None,
    outcome: Outcome,
    *,
    attempt: int | None,
    max_attempts: int | None,
    said: str,
    next_: str,
) -> str:
    where = f" on {one_line(worker)}" if worker else ""
    which = f" ({attempt_text(attempt, max_attempts)})" if attempt is not None else ""
    text = f"Task {one_line(task)} {VERBS[outcome]}{where}{which}{said}"
    if not next_:
        return text
    return f"{text}{'' if text.endswith(('.', '!', '?', '…')) else '.'} {next_}"


def _said(
    outcome: Outcome,
    error: str | None,
    metrics: Mapping[str, Any],
    duration_s: float | None,
) -> str:
    """Return how long it took and what came out, or what went wrong."""
    if outcome is not Outcome.COMPLETED:
        return f": {one_line(error)}" if error else ""
    took = f" in {duration(duration_s)}" if duration_s is not None else ""
    shown = metric_texts(metrics)
    more = ", …" if len(shown) > METRICS_SHOWN else ""
    return took + (f": {', '.join(shown[:METRICS_SHOWN])}{more}" if shown else "")


def _next(
    outcome: Outcome, state: str, failures: int, max_attempts: int | None, suspect: bool
) -> str:
    """Return what becomes of the task."""
    if suspect:
        return "Reassigning; it does not count, this worker is suspect."
    if state == TaskState.PENDING:
        return "Back in the queue." if outcome is Outcome.INTERRUPTED else "Reassigning."
    if state == TaskState.FAILED and outcome is Outcome.LOST:
        return "Failed for good: it was lost too often."
    if state == TaskState.FAILED and max_attempts is not None and failures >= max_attempts:
        return f"Failed for good after {several(max_attempts, 'attempt')}."
    if state == TaskState.FAILED:
        return "Failed for good: another attempt makes no sense."
    if state == TaskState.CANCELLED and outcome is not Outcome.CANCELLED:
        return "It was cancelled and will not run again."
    return ""


def _event_text(event: Event) -> str:
    if event.task is not None and event.number is not None and event.kind in VERBS:
        return _ended_event(event.task, Outcome(event.kind), event)
    data = event.data
    sweep = value_text(data.get("sweep", "?"))
    worker = one_line(event.worker or "?")
    reason = f": {value_text(data['reason'])}" if data.get("reason") else ""
    error = f" ({value_text(data['error'])})" if data.get("error") else ""
    texts = {
        "sweep_added": f"Sweep {sweep} added, {_added(data)}",
        "sweep_paused": f"Sweep {sweep} paused{reason}",
        "sweep_resumed": f"Sweep {sweep} resumed",
        "worker_started": f"Worker {worker} started",
        "worker_left": f"Worker {worker} left",
        "worker_lost": f"Worker {worker} died, or its machine did",
        "worker_stands_back": f"Worker {worker} claims nothing for now{reason}",
        "worker_ready": f"Worker {worker} claims tasks again",
        "worker_suspect": f"Worker {worker} is suspect: three quick failures in a row{error}",
    }
    if event.kind in texts:
        return texts[event.kind]
    if event.task is None:
        return _unknown(event)
    task = one_line(event.task)
    if event.kind == "started":
        return f"Task {task} started on {worker} ({_attempt_of(event)})"
    if event.kind == "retried":
        return f"Task {task} put back into the queue"
    if event.kind == Outcome.CANCELLED:
        return f"Task {task} cancelled"
    return _unknown(event)


def _ended_event(task: str, outcome: Outcome, event: Event) -> str:
    data = event.data
    failures, max_attempts = _integer(data.get("failures")), _integer(data.get("max_attempts"))
    counted = outcome in COUNTED_AS_FAILURE
    attempt = None if failures is None else failures + (not counted)
    metrics = data.get("metrics")
    error = data.get("error")
    took_s = data.get("duration_s")
    return _ended(
        task,
        event.worker,
        outcome,
        attempt=attempt,
        max_attempts=max_attempts,
        said=_said(
            outcome,
            None if error is None else str(error),
            metrics if isinstance(metrics, Mapping) else {},
            float(took_s) if isinstance(took_s, int | float) else None,
        ),
        next_=_next(outcome, str(data.get("state", "")), attempt or 0, max_attempts, False),
    )


def _attempt_of(event: Event) -> str:
    failures = _integer(event.data.get("failures"))
    number = (event.number or 1) if failures is None else failures + 1
    return attempt_text(number, _integer(event.data.get("max_attempts")))


def _added(data: Mapping[str, Any]) -> str:
    count = _integer(data.get("added"))
    return "new tasks" if count is None else several(count, "new task")


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _unknown(event: Event) -> str:
    """A kind that a newer gpuledger wrote: everything it says, in order."""
    named = {"task": event.task, "worker": event.worker, **event.data}
    told = [f"{one_line(str(k))}={value_text(v)}" for k, v in named.items() if v is not None]
    return one_line(" ".join([event.kind, *told]))
