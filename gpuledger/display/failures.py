"""Draws the latest failures of a status, grouped by their cause."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from gpuledger.display.cells import cut
from gpuledger.display.highlight import highlight
from gpuledger.display.lines import VERBS, attempt_text
from gpuledger.display.text import clean, moment, one_line, several
from gpuledger.model import COUNTED_AS_FAILURE, TaskState
from gpuledger.views import FailureView

CAUSES_SHOWN = 5
TRACEBACK_LINES = 6
LINE_CHARS = 1000

LEAST_NAME = 20
NAME_END = 6
"""Of a task's name `_42_1` tells it from the others."""

VARYING = re.compile(r"0x[0-9a-fA-F]+|(?<!exit code )(?<!\d)\d+")
"""What differs between two occurrences of the same error: addresses, sizes, numbers of files.
Another exit code is another error."""

POINTERS = re.compile(r"\s*[~^]+[\s~^]*")
"""Lines of a traceback that only point at the line above."""

AFTERWARDS = {
    TaskState.PENDING: ("pending again", ""),
    TaskState.RUNNING: ("running again", "cyan"),
    TaskState.FAILED: ("failed for good", "red"),
    TaskState.COMPLETED: ("completed since", "green"),
    TaskState.CANCELLED: ("cancelled since", "dim"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Tasks that failed in the same way.

    Attributes:
        latest: The newest of the failures.
        names: The tasks, the one that failed last first.
        more: There may be older ones that are not known here.
    """

    latest: FailureView
    names: tuple[str, ...]
    more: bool = False

    @property
    def tasks(self) -> int:
        """How many tasks."""
        return len(self.names)


def causes(failures: Sequence[FailureView], *, more: bool = False) -> list[Cause]:
    """Return the failures grouped by outcome and error, numbers in it ignored; newest first.

    Args:
        failures: The newest first.
        more: There are others that are not among them.
    """
    groups: dict[tuple[str, str], list[FailureView]] = {}
    for failure in failures:
        key = (failure.outcome.value, VARYING.sub("0", one_line(failure.error or "")))
        groups.setdefault(key, []).append(failure)
    return [
        Cause(
            latest=group[0],
            names=tuple(dict.fromkeys(failure.task for failure in group)),
            more=more,
        )
        for group in groups.values()
    ]


def failure_lines(
    failures: Sequence[FailureView],
    *,
    now: float,
    width: int,
    limit: int | None,
    more: bool = False,
) -> list[Text]:
    """Return at most `limit` lines (None: the first causes, each with its traceback's end).

    Every cause gets its headline before one gets details; the newest gets its traceback first.
    """
    found = causes(failures, more=more)
    if not found:
        return []
    blocks = [cause_lines(cause, now=now, width=width) for cause in found[:CAUSES_SHOWN]]
    sizes = [len(block) for block in blocks]
    rest = len(found) > len(blocks)
    if limit is not None and sum(sizes) + rest > limit:
        count = len(blocks) if len(blocks) + rest <= limit else max(limit - 1, 1)
        rest = count < len(found)
        blocks = blocks[:count]
        sizes = _trimmed(sizes[:count], limit - rest)
    lines = [
        line for block, size in zip(blocks, sizes, strict=True) for line in _shortened(block, size)
    ]
    if rest:
        hidden = several(len(found) - len(blocks), "more cause")
        lines.append(Text(cut(f"… {hidden} of failures", width), style="dim"))
    return lines if limit is None else lines[:limit]


def _trimmed(sizes: Sequence[int], room: int) -> list[int]:
    """Return how many lines of each block are shown: 1, then 2, then all, from the first on."""
    given = [0] * len(sizes)
    for goal in (1, 2, TRACEBACK_LINES + 2):
        for i, size in enumerate(sizes):
            more = min(min(size, goal) - given[i], room)
            given[i] += more
            room -= more
    return given


def _shortened(block: Sequence[Text], size: int) -> list[Text]:
    """Return the first two lines, and of the traceback its end."""
    if size <= 2:
        return list(block[:size])
    return [*block[:2], *block[len(block) - (size - 2) :]]


def cause_lines(cause: Cause, *, now: float, width: int) -> list[Text]:
    """Return a headline, where it happened last, and the end of that traceback."""
    latest = cause.latest
    error = one_line(latest.error or "") or f"{VERBS[latest.outcome]}, without a word"
    count = f"{cause.tasks}+ tasks" if cause.more else several(cause.tasks, "task")
    title = Text().append(f"{count}: ", style="bold red")
    title.append(cut(error, width - title.cell_len), style="red")
    return [
        title,
        _latest_line(latest, cause.tasks, now, width),
        *_traceback_end(latest, error, width),
    ]


def _latest_line(failure: FailureView, tasks: int, now: float, width: int) -> Text:
    afterwards, style = AFTERWARDS[failure.state]
    counted = failure.outcome in COUNTED_AS_FAILURE
    attempt = attempt_text(max(failure.failures, 1), failure.max_attempts)
    which = f", {attempt if counted else 'not counted'}, "
    when = f", {moment(failure.ended_at, now=now)}"
    room = max(width - len(afterwards), width // 2)
    where = _place(failure, "  latest " if tasks > 1 else "  ", room - len(which))
    line = Text(cut(f"{where}{which}", room, keep_end=len(which)))
    line.append(cut(afterwards, width - line.cell_len), style=style)
    if line.cell_len + len(when) <= width:
        line.append(when, style="dim")
    return line


def _place(failure: FailureView, before: str, width: int) -> str:
    """Return task and worker; in a narrow place the worker goes before the task's name does."""
    name, on = one_line(failure.task), f" on {one_line(failure.worker)}"
    room = width - cell_len(before)
    if cell_len(name) + cell_len(on) > room and room - cell_len(on) < LEAST_NAME:
        on = ""
    return f"{before}{cut(name, room - cell_len(on), keep_end=NAME_END)}{on}"


def _traceback_end(failure: FailureView, error: str, width: int) -> list[Text]:
    """Return its last lines; the error itself stands above them already."""
    text = (failure.traceback or "")[-LINE_CHARS * TRACEBACK_LINES :]
    lines = [clean(line).rstrip() for line in text.splitlines()]
    lines = [line for line in lines if line and not POINTERS.fullmatch(line)]
    if lines and one_line(lines[-1]) == error:
        del lines[-1]
    return [_drawn(_plain_line(line), width) for line in lines[-TRACEBACK_LINES:]]


def _drawn(line: str, width: int) -> Text:
    """Return the line in colours, indented, in at most `width` cells."""
    return Text(cut("    ", width)).append_text(highlight(cut(line, max(width - 4, 0))))


def _plain_line(line: str) -> str:
    """Return the line with its indentation, but without anything that has no fixed width."""
    bare = line.lstrip()
    indent = len(line.expandtabs(4)) - len(bare.expandtabs(4))
    return " " * min(max(indent, 0), 40) + one_line(bare, limit=LINE_CHARS)
