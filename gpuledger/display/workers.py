"""Draws the workers of a status: what each runs, how far it is, and what its GPUs do."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from gpuledger.display.bars import levels, load_style, meter
from gpuledger.display.cells import cut
from gpuledger.display.gpus import heat, problems
from gpuledger.display.grid import Cell, Column, grid, pieces, plain, whole
from gpuledger.display.text import (
    MINUTE_S,
    duration,
    memory,
    metric_texts,
    number,
    one_line,
    percent,
    several,
)
from gpuledger.heartbeat import is_silent
from gpuledger.views import WorkerView

METRICS_SHOWN = 3
METER_CELLS = 4
GPUS_SHOWN = 8
KEPT_END = 6
"""Of a name: `:gpu12`, `_42_1`."""


def worker_lines(
    workers: Sequence[WorkerView], *, claimable: int, width: int, limit: int | None
) -> list[Text]:
    """Return at most `limit` lines (None: as many as it takes).

    Args:
        workers: In the order of the status; the striking ones go first when not all fit.
        claimable: Pending tasks that an idle worker could take.
        width: In cells.
        limit: Number of lines, at least 1.
    """
    if not workers:
        return []
    if limit is None or limit > len(workers):
        return grid(_columns(workers, claimable), width=width)
    if limit < 3:
        return [Text(cut(_summary(workers, "worker"), width), style="dim")]
    shown = set(_most_striking(workers, claimable, limit - 2))
    rows = [worker for i, worker in enumerate(workers) if i in shown]
    rest = [worker for i, worker in enumerate(workers) if i not in shown]
    lines = grid(_columns(rows, claimable), width=width)
    return [*lines, Text(cut(f"… {_summary(rest, 'more worker')}", width), style="dim")]


def is_idle_gpu(worker: WorkerView, claimable: int) -> bool:
    """Tell whether a GPU stands idle although there is work, for no reason that it gives."""
    return worker.has_gpu and worker.task is None and worker.note is None and claimable > 0


def _most_striking(workers: Sequence[WorkerView], claimable: int, count: int) -> list[int]:
    def is_plain(i: int) -> bool:
        worker = workers[i]
        return not (
            is_silent(worker.heartbeat_age_s) or worker.note or is_idle_gpu(worker, claimable)
        )

    return sorted(range(len(workers)), key=is_plain)[:count]


def _summary(workers: Sequence[WorkerView], noun: str) -> str:
    running = sum(worker.task is not None for worker in workers)
    idle = len(workers) - running
    parts = [f"{running} running"] if running else []
    parts += [f"{idle} idle"] if idle else []
    return f"{several(len(workers), noun)}: {', '.join(parts)}"


def _columns(workers: Sequence[WorkerView], claimable: int) -> list[Column]:
    return [
        Column(
            heading="worker",
            rank=0,
            cells=[plain(one_line(w.name), "bold", least=16, keep_end=KEPT_END) for w in workers],
        ),
        Column(heading="gpu", rank=5, cells=[_load(worker) for worker in workers]),
        Column(heading="mem", rank=7, cells=[_memory(worker) for worker in workers]),
        Column(heading="heat", rank=9, cells=[heat(worker) for worker in workers]),
        Column(heading="task", rank=1, cells=[_task(w, claimable) for w in workers]),
        Column(heading="try", rank=4, cells=[_try(worker) for worker in workers]),
        Column(heading="done", rank=2, cells=[_progress(worker) for worker in workers]),
        Column(heading="metrics", rank=8, cells=[_metrics(worker) for worker in workers]),
        Column(
            heading="time",
            rank=6,
            cells=[whole(duration(w.elapsed_s) if w.task else "") for w in workers],
            right=True,
        ),
        Column(
            heading="seen",
            rank=9,
            cells=[whole(_seen(worker)) for worker in workers],
            right=True,
        ),
        Column(
            heading="place",
            rank=10,
            cells=[plain(one_line(w.place), least=12) if w.place else None for w in workers],
        ),
        Column(heading="note", rank=3, cells=[_note(worker) for worker in workers]),
    ]


def _load(worker: WorkerView) -> Cell | None:
    known = [g.utilisation_percent for g in worker.gpus if g.utilisation_percent is not None]
    if not known:
        return None
    mean = min(max(round(sum(known) / len(known)), 0), 100)
    style = load_style(mean)
    several_gpus = len(known) > 1
    bar = levels(known[:GPUS_SHOWN]) if several_gpus else meter(mean, METER_CELLS, style=style)
    return pieces([Text(f"{mean:3d}%", style=style), bar], gap=" ")


def _memory(worker: WorkerView) -> Cell | None:
    used = [g.memory_used_mib for g in worker.gpus if g.memory_used_mib is not None]
    total = [g.memory_total_mib for g in worker.gpus if g.memory_total_mib is not None]
    text = memory(sum(used) if used else None, sum(total) if total else None)
    if not text:
        return None
    share = percent(sum(used), sum(total)) if used and total else None
    if share is None:
        return whole(text)
    bar = meter(share, METER_CELLS, style="red" if share > 97 else "cyan")
    return pieces([Text(text), bar], gap=" ")


def _task(worker: WorkerView, claimable: int) -> Cell | None:
    if worker.task is not None:
        return plain(one_line(worker.task), least=20, keep_end=KEPT_END)
    if is_idle_gpu(worker, claimable):
        return whole("IDLE", "bold yellow")
    return whole("idle", "dim")


def _try(worker: WorkerView) -> Cell | None:
    if worker.task is None:
        return None
    k = worker.failures + 1
    style = "yellow" if worker.failures else ""
    if worker.max_attempts is None:
        return whole(str(k), style)
    return whole(f"{min(k, worker.max_attempts)}/{worker.max_attempts}", style)


def _progress(worker: WorkerView) -> Cell | None:
    if worker.task is None or worker.step is None:
        return None
    if worker.total is None:
        return pieces([Text(f"step {number(worker.step, digits=6)}")])
    steps = Text(f"{number(worker.step, digits=6)}/{number(worker.total, digits=6)}")
    share = percent(worker.step, worker.total)
    return pieces([steps] if share is None else [Text(f"{share:3d}%"), steps])


def _metrics(worker: WorkerView) -> Cell | None:
    if worker.task is None:
        return None
    return pieces([Text(text) for text in metric_texts(worker.metrics)[:METRICS_SHOWN]])


def _seen(worker: WorkerView) -> str:
    """Return the age of its last sign of life; fractions of a second tell nothing."""
    age_s = worker.heartbeat_age_s
    if age_s is None:
        return ""
    return f"{age_s:.0f} s" if age_s < MINUTE_S else duration(age_s)


def _note(worker: WorkerView) -> Cell | None:
    parts = []
    if is_silent(worker.heartbeat_age_s):
        parts.append(f"silent for {duration(worker.heartbeat_age_s)}")
    if worker.note:
        parts.append(one_line(worker.note))
    else:
        parts += [one_line(problem) for problem in problems(worker.gpus)]
    return plain(", ".join(parts), "yellow", least=16)
