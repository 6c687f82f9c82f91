"""Draws the status: a function of a snapshot, a width and a height, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import RenderableType
from rich.text import Text

from gpuledger.display.cells import cut, flow, wrap
from gpuledger.display.drawing import Drawing
from gpuledger.display.failures import failure_lines
from gpuledger.display.sweeps import state_texts, sweep_lines
from gpuledger.display.text import MINUTE_S, duration, instant, number, one_line, several
from gpuledger.display.workers import is_idle_gpu, worker_lines
from gpuledger.model import TaskState
from gpuledger.views import Snapshot

Section = Callable[[int | None], list[Text]]
"""Returns at most the given number of lines; None means as many as it takes."""

LEAST_LINES = 5
"""With less for each section, none is spent on blank ones."""


def status_view(
    snapshot: Snapshot, *, width: int, height: int | None = None, starting: int = 0
) -> RenderableType:
    """Return the status as something rich can print.

    Args:
        snapshot: What to draw; nothing else is looked at.
        width: No line is longer, in cells.
        height: No more lines than this; None means all workers and sweeps.
        starting: Workers that were started and may not be in the ledger yet.
    """
    return Drawing(
        draw=lambda cells: status_lines(snapshot, width=cells, height=height, starting=starting),
        width=width,
    )


def status_lines(
    snapshot: Snapshot, *, width: int, height: int | None, starting: int = 0
) -> list[Text]:
    """Return the lines of `status_view`."""
    head = _head(snapshot, width, starting)
    pending = claimable(snapshot)
    sections: list[Section] = [
        lambda limit: sweep_lines(snapshot.sweeps, width=width, limit=limit),
        lambda limit: worker_lines(snapshot.workers, claimable=pending, width=width, limit=limit),
        lambda limit: failure_lines(
            snapshot.failures,
            now=snapshot.taken_at,
            width=width,
            limit=limit,
            more=snapshot.more_failures,
        ),
    ]
    needed = [len(section(height)) for section in sections]  # what is over it, nobody sees
    if height is None or len(head) + sum(n + 1 for n in needed if n) <= height:
        return _joined([head, *(section(None) for section in sections)], blank=True)
    head = head[:height]
    blank = height - len(head) >= LEAST_LINES * len(sections)
    room = height - len(head) - (sum(n > 0 for n in needed) if blank else 0)
    given = _dealt(needed, room)
    squeezed = [section(n) for section, n in zip(sections, given, strict=True) if n]
    return _joined([head, *squeezed], blank=blank)


def _dealt(needed: list[int], room: int) -> list[int]:
    """Return how many lines each gets: the same, but what one does not need goes to the others."""
    given = [0] * len(needed)
    while room > 0 and given != needed:
        hungry = [i for i in range(len(needed)) if given[i] < needed[i]]
        each = max(room // len(hungry), 1)
        for i in hungry:
            more = min(each, needed[i] - given[i], room)
            given[i] += more
            room -= more
    return given


def _joined(blocks: list[list[Text]], *, blank: bool) -> list[Text]:
    lines: list[Text] = []
    for block in blocks:
        if blank and lines and block:
            lines.append(Text())
        lines += block
    return lines


def _head(snapshot: Snapshot, width: int, starting: int) -> list[Text]:
    """Return what concerns everything: how far it is, and what to do next."""
    lines = []
    if snapshot.unreachable is not None:
        lines += wrap(unreachable_text(snapshot), width, style="bold red", indent=2)
    if not snapshot.counts.total and not snapshot.sweeps:
        empty = cut(f"no tasks yet in {one_line(snapshot.ledger)}", width, keep_end=width // 2)
        return [*lines, Text(empty), *_advice("start with:", "gpuledger init sweep.toml", width)]
    lines += flow(count_texts(snapshot), width)
    if claimable(snapshot) and not snapshot.workers and starting:
        lines.append(Text(cut(f"{several(starting, 'worker')} starting", width)))
    elif claimable(snapshot) and not snapshot.workers:
        lines += _advice("no worker is running:", "gpuledger work --gpu 0 (or --cpu)", width)
    elif snapshot.counts.total and not snapshot.counts.remaining and not snapshot.counts.failed:
        lines += _advice("what came out:", "gpuledger results", width)
    elif snapshot.counts.failed and not snapshot.counts.remaining:
        lines += _advice("after the fix:", "gpuledger retry --failed", width)
    return lines


def unreachable_text(snapshot: Snapshot) -> str:
    """Return since when and why the ledger cannot be read; '' when it can."""
    if snapshot.unreachable is None:
        return ""
    why = one_line(snapshot.unreachable, limit=200)
    since = instant(snapshot.taken_at)
    return f"ledger not readable since {since}: {why}; showing the last good answer"


def count_texts(snapshot: Snapshot) -> list[Text]:
    """Return the headline in parts: how far everything is."""
    counts = snapshot.counts
    parts = [
        Text(several(len(snapshot.sweeps), "sweep"), style="bold"),
        Text(f"{counts.completed}/{counts.total} completed", style="green"),
        *state_texts(
            counts,
            [TaskState.RUNNING, TaskState.FAILED, TaskState.PENDING, TaskState.CANCELLED],
        ),
    ]
    idle = sum(is_idle_gpu(worker, claimable(snapshot)) for worker in snapshot.workers)
    if idle:
        parts.append(Text(f"{several(idle, 'GPU worker')} idle", style="bold yellow"))
    if snapshot.per_hour > 0 and counts.remaining:
        parts.append(Text(f"{number(snapshot.per_hour, digits=2)}/h"))
    begun = [sweep.created_at for sweep in snapshot.sweeps if sweep.counts.remaining]
    elapsed_s = snapshot.taken_at - min(begun, default=snapshot.taken_at)
    if elapsed_s >= MINUTE_S:
        parts.append(Text(f"{duration(elapsed_s)} elapsed"))
    if not counts.remaining:
        parts.append(Text("done", style="bold"))
    elif snapshot.eta_s is not None:
        parts.append(Text(f"~{duration(snapshot.eta_s)} left", style="bold"))
    return parts


def claimable(snapshot: Snapshot) -> int:
    """Return how many pending tasks are not held back by a paused sweep."""
    return sum(sweep.counts.pending for sweep in snapshot.sweeps if sweep.paused is None)


def _advice(why: str, command: str, width: int) -> list[Text]:
    return flow([Text(why, style="yellow"), Text(command, style="bold")], width, gap=" ")
