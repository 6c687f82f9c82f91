"""The only module that draws bars, from block characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text

from gpuledger.model import TaskState
from gpuledger.views import Counts

STATE_STYLES: Mapping[TaskState, str] = {
    TaskState.COMPLETED: "green",
    TaskState.RUNNING: "cyan",
    TaskState.FAILED: "red",
    TaskState.PENDING: "dim",
    TaskState.CANCELLED: "dim",
}
"""Only colours that can be read on light and on dark."""

STATE_BLOCKS: Mapping[TaskState, str] = {
    TaskState.COMPLETED: "█",
    TaskState.RUNNING: "▓",
    TaskState.FAILED: "▚",
    TaskState.PENDING: "░",
    TaskState.CANCELLED: "╌",
}
"""One for each state, so that a bar can be read without colours, too."""

EIGHTHS = " ▏▎▍▌▋▊▉"
LEVELS = "▁▂▃▄▅▆▇█"


def state_bar(counts: Counts, width: int) -> Text:
    """Return the tasks by state as a bar; each state that has any tasks shows, if there is room."""
    numbers = [max(getattr(counts, state.value), 0) for state in STATE_BLOCKS]
    bar = Text()
    for state, cells in zip(STATE_BLOCKS, shares(numbers, width), strict=True):
        bar.append(STATE_BLOCKS[state] * cells, style=STATE_STYLES[state])
    return bar


def meter(percent: int, width: int, *, style: str) -> Text:
    """Return a bar that is filled to `percent` of `width` cells."""
    eighths = round(min(max(percent, 0), 100) * width * 8 / 100)
    full, rest = divmod(eighths, 8)
    bar = "█" * full + (EIGHTHS[rest] if rest else "")
    return Text(bar.ljust(width), style=style)


def levels(percents: Sequence[int]) -> Text:
    """Return one character for each number, as high as it is."""
    drawn = Text()
    for percent in percents:
        drawn.append(LEVELS[min(max(percent, 0), 99) * 8 // 100], style=load_style(percent))
    return drawn


def load_style(percent: int) -> str:
    """Return the colour of a load: an idle GPU is what should be seen."""
    return "yellow" if percent < 10 else "green"


def shares(numbers: Sequence[int], width: int) -> list[int]:
    """Return `width` cells in proportion to the numbers; each that is not 0 gets one, if it can."""
    total = sum(numbers)
    if not total or width < 1:
        return [0] * len(numbers)
    exact = [number * width / total for number in numbers]
    cells = [max(int(share), 1) if share else 0 for share in exact]
    while sum(cells) < width:
        cells[max(range(len(cells)), key=lambda i: exact[i] - cells[i])] += 1
    while sum(cells) > width:
        cells[max(range(len(cells)), key=lambda i: (cells[i] > 1, cells[i] - exact[i]))] -= 1
    return cells
