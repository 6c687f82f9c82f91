"""Draws the sweeps of a status: one progress bar each, split by state."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from gpuledger.display.bars import STATE_STYLES, state_bar
from gpuledger.display.cells import cut
from gpuledger.display.grid import Cell, Column, grid, pieces, plain, whole
from gpuledger.display.text import duration, one_line, percent, several
from gpuledger.model import TaskState
from gpuledger.views import Counts, SweepView

BAR_CELLS = 60
LEAST_BAR_CELLS = 8

LEAST_REASON = 40
"""So much of why a sweep is paused is worth more than how to go on."""


def sweep_lines(sweeps: Sequence[SweepView], *, width: int, limit: int | None) -> list[Text]:
    """Return at most `limit` lines (None: as many as it takes); unfinished sweeps go first."""
    shown = list(sweeps)
    if limit is not None:
        shown = _that_fit(sweeps, limit)
    bars = grid(_columns(shown), width=width, headings=False)
    lines = []
    for sweep, bar in zip(shown, bars, strict=True):
        lines.append(bar)
        if sweep.paused is not None:
            lines.append(_paused_line(sweep, width))
        elif sweep.misfit is not None:
            lines.append(_misfit_line(sweep, width))
    if len(shown) < len(sweeps):
        lines.append(_rest_line([sweep for sweep in sweeps if sweep not in shown], width))
    return lines if limit is None else lines[:limit]


def state_texts(counts: Counts, states: Sequence[TaskState]) -> list[Text]:
    """Return `3 failed` for each of the states that has any tasks, in its colour."""
    numbers = [(state, int(getattr(counts, state.value))) for state in states]
    return [Text(f"{n} {state.value}", style=STATE_STYLES[state]) for state, n in numbers if n]


def _that_fit(sweeps: Sequence[SweepView], limit: int) -> list[SweepView]:
    """Return those to show, in their order, when one line is kept for how many more there are."""
    needed = sum(_height(sweep) for sweep in sweeps)
    if needed <= limit:
        return list(sweeps)
    room = limit - 1
    chosen = set()
    for i in sorted(range(len(sweeps)), key=lambda i: not sweeps[i].counts.remaining):
        if _height(sweeps[i]) > room:
            break
        room -= _height(sweeps[i])
        chosen.add(i)
    return [sweep for i, sweep in enumerate(sweeps) if i in chosen]


def _height(sweep: SweepView) -> int:
    return 1 if sweep.paused is None and sweep.misfit is None else 2


def _columns(sweeps: Sequence[SweepView]) -> list[Column]:
    return [
        Column(
            heading="",
            rank=0,
            cells=[plain(one_line(sweep.name), "bold", least=10, keep_end=4) for sweep in sweeps],
        ),
        Column(heading="", rank=5, cells=[_bar(sweep.counts) for sweep in sweeps]),
        Column(
            heading="",
            rank=1,
            cells=[whole(f"{s.counts.completed}/{s.counts.total}") for s in sweeps],
            right=True,
        ),
        Column(heading="", rank=4, cells=[_percent(s.counts) for s in sweeps], right=True),
        Column(heading="", rank=2, cells=[_others(sweep.counts) for sweep in sweeps]),
        Column(heading="", rank=3, cells=[_left(sweep) for sweep in sweeps], right=True),
    ]


def _bar(counts: Counts) -> Cell:
    return Cell(least=LEAST_BAR_CELLS, most=BAR_CELLS, draw=lambda width: state_bar(counts, width))


def _percent(counts: Counts) -> Cell | None:
    share = percent(counts.completed, counts.total)
    return None if share is None else whole(f"{share}%")


def _others(counts: Counts) -> Cell | None:
    return pieces(state_texts(counts, [TaskState.FAILED, TaskState.RUNNING, TaskState.CANCELLED]))


def _left(sweep: SweepView) -> Cell | None:
    if sweep.paused is not None:
        return whole("paused", "yellow")
    if not sweep.counts.remaining:
        return whole("done", "green") if sweep.counts.total else whole("no tasks", "dim")
    return None if sweep.eta_s is None else whole(f"~{duration(sweep.eta_s)}", "dim")


def _paused_line(sweep: SweepView, width: int) -> Text:
    why = f"  paused: {one_line(sweep.paused or '')}"
    hint = f"  (gpuledger resume {one_line(sweep.name)})"
    room = width - cell_len(hint)
    if room < min(cell_len(why), LEAST_REASON):
        return Text(cut(why, width), style="yellow")
    return Text().append(cut(why, room), style="yellow").append(hint, style="dim")


def _misfit_line(sweep: SweepView, width: int) -> Text:
    why = (
        f"  no live worker can take its pending tasks: it {one_line(sweep.misfit or '', limit=400)}"
    )
    return Text(cut(why, width), style="yellow")


def _rest_line(hidden: Sequence[SweepView], width: int) -> Text:
    done = sum(not sweep.counts.remaining for sweep in hidden)
    text = f"… {several(len(hidden), 'more sweep')}" + (f", {done} of them done" if done else "")
    return Text(cut(text, width), style="dim")
