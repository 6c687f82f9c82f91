"""Why a pending task does not run: what the ledger knows in, sentences out.

Each reason is a function of its own, asked in the order of `REASONS`; one that is enough in
itself (a paused sweep) ends the list. To add a reason, add what it needs to `Waiting`, and the
function to `REASONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpuledger.model import Outcome
from gpuledger.routing import Candidate, PastFailure, may_run_on

NAMED = 3
"""More workers than this are counted, not named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveWorker:
    """A worker that has neither left nor been found dead.

    Attributes:
        name: `<host>:gpu2`.
        nonce: Of its process, as in its liveness file's name.
        gpu_memory_mib: Of its smallest GPU; None when unknown or CPU.
        task: What it runs, or None.
        silent_s: Seconds since its last sign of life; None when it never gave one.
        note: What it says of itself ("suspect, cools down 60 s"), or None.
        stands_back: It claims nothing for now.
        is_suspect: That is because it is suspect, so that it claims again in a while.
    """

    name: str
    nonce: str = ""
    gpu_memory_mib: int | None = None
    task: str | None = None
    silent_s: float | None = None
    note: str | None = None
    stands_back: bool = False
    is_suspect: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A pending task and what decides when it runs.

    Attributes:
        sweep: Its sweep's name.
        paused: Why nothing of the sweep is claimed, or None.
        misfit: Why no live worker can take the sweep's tasks at all, or None.
        held_by: Name of the worker that starts it next, or None.
        past: Its counted failures since it was last retried by an operator.
        avoid_s: How long the worker that failed it leaves it to others.
        ahead: Pending tasks that come before it.
        workers: The live ones.
        lease_s: A worker that was silent for so long is taken for dead.
    """

    sweep: str
    paused: str | None = None
    misfit: str | None = None
    held_by: str | None = None
    past: tuple[PastFailure, ...] = ()
    avoid_s: float = 60.0
    ahead: int = 0
    workers: tuple[LiveWorker, ...] = ()
    lease_s: float = 60.0


Reason = Callable[[Waiting], str | None]


def why_pending(waiting: Waiting) -> tuple[str, ...]:
    """Return sentences that say why the task does not run now, the weightiest first."""
    for reason in ENOUGH:
        told = reason(waiting)
        if told is not None:
            return (told,)
    found = [told for reason in REASONS if (told := reason(waiting)) is not None]
    return tuple(found) or ("Nothing is in its way: a worker takes it within seconds.",)


# --- enough in itself -------------------------------------------------------------------------


def _paused(waiting: Waiting) -> str | None:
    if waiting.paused is None:
        return None
    return (
        f"Sweep {waiting.sweep} is paused: {waiting.paused};"
        f" 'gpuledger resume {waiting.sweep}' lets it go on."
    )


def _held(waiting: Waiting) -> str | None:
    if waiting.held_by is None:
        return None
    return f"{waiting.held_by} starts it next."


def _no_worker(waiting: Waiting) -> str | None:
    if _alive(waiting):
        return None
    if not waiting.workers:
        return "No worker is there; 'gpuledger work' starts one."
    longest = max(worker.silent_s or 0.0 for worker in waiting.workers)
    return (
        f"No worker is alive: {_named(waiting.workers)} gave no sign of life for"
        f" {_seconds(longest)}; 'gpuledger work' starts another."
    )


def _fits_nobody(waiting: Waiting) -> str | None:
    if waiting.misfit is None:
        return None
    return f"No live worker can take it: it {waiting.misfit}."


# --- reasons that add up ----------------------------------------------------------------------


def _needs_memory(waiting: Waiting) -> str | None:
    """A task that ran out of memory goes where there is more, while such a worker lives."""
    ran_out = [f.gpu_memory_mib or 0 for f in waiting.past if f.outcome is Outcome.OOM]
    if not any(ran_out):
        return None
    size = f"{max(ran_out) / 1024:.1f}".removesuffix(".0")
    larger = [w for w in _alive(waiting) if (w.gpu_memory_mib or 0) > max(ran_out)]
    if larger:
        return f"It ran out of memory on a GPU with {size} GiB: it is for {_named(larger)} now."
    return (
        f"It ran out of memory on a GPU with {size} GiB, and no live worker has more;"
        " it is tried elsewhere first, then anywhere."
    )


def _left_to_others(waiting: Waiting) -> str | None:
    """Whoever failed it lately leaves it alone, as long as another may take it."""
    able = _able(waiting)
    recent = {
        f.worker: waiting.avoid_s - max(f.age_s, 0.0)
        for f in sorted(waiting.past, key=lambda f: -f.age_s)
        if abs(f.age_s) < waiting.avoid_s
    }
    avoiding = [w for w in _alive(waiting) if w not in able and w.name in recent]
    if not avoiding:
        return None
    left_s = min(recent[worker.name] for worker in avoiding)
    verb = "leaves" if len(avoiding) == 1 else "leave"
    others = f"to {_named(able)}" if able else "alone"
    return (
        f"{_named(avoiding)} failed it lately and {verb} it {others}"
        f" for {_seconds(left_s)} more (or until all have failed it)."
    )


def _busy(waiting: Waiting) -> str | None:
    able = _able(waiting)
    idle = [worker for worker in able if worker.task is None]
    told = [worker for worker in idle if worker.note]
    if not able or (idle and not told):
        return None
    if told:
        return f"{told[0].name} runs nothing: {told[0].note}."
    if len(able) == 1:
        return f"{able[0].name}, which may take it, runs {able[0].task}."
    return f"All {len(able)} workers that may take it are busy."


def _queue(waiting: Waiting) -> str | None:
    if waiting.ahead == 0:
        return "It is the next in the queue."
    tasks = "1 task comes" if waiting.ahead == 1 else f"{waiting.ahead:,} tasks come"
    return f"{tasks} before it ('gpuledger set TASK --priority 10' moves it forward)."


def _idle(waiting: Waiting) -> str | None:
    """Somebody could take it and does not: at this moment, or because of what it was told."""
    idle = [w for w in _able(waiting) if w.task is None and not w.note]
    if not idle or waiting.ahead >= len(idle):
        return None
    verb = "runs" if len(idle) == 1 else "run"
    return (
        f"{_named(idle)} {verb} nothing now and may take it at any moment,"
        " unless started for other sweeps (--sweep) or about to leave."
    )


ENOUGH: Sequence[Reason] = (_paused, _held, _no_worker, _fits_nobody)
"""Each of these makes all others idle talk."""

REASONS: Sequence[Reason] = (_needs_memory, _left_to_others, _busy, _queue, _idle)


def _alive(waiting: Waiting) -> list[LiveWorker]:
    return [w for w in waiting.workers if (w.silent_s or 0.0) < waiting.lease_s]


def _able(waiting: Waiting) -> list[LiveWorker]:
    """Return the live workers that the task's failures do not keep from it."""
    alive = _alive(waiting)
    return [
        worker
        for worker in alive
        if may_run_on(
            _candidate(worker),
            waiting.past,
            others=[
                _candidate(other)
                for other in alive
                if other is not worker and (other.is_suspect or not other.stands_back)
            ],
            avoid_s=waiting.avoid_s,
        )
    ]


def _candidate(worker: LiveWorker) -> Candidate:
    return Candidate(
        name=worker.name, gpu_memory_mib=worker.gpu_memory_mib, is_suspect=worker.is_suspect
    )


def _named(workers: Sequence[LiveWorker]) -> str:
    names = [worker.name for worker in workers]
    if len(names) > NAMED:
        return f"{len(names)} workers"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _seconds(duration_s: float) -> str:
    return f"{max(duration_s, 0.0):.0f} s" if duration_s < 120 else f"{duration_s / 60:.0f} min"
