"""The only module that turns data into safe text: names, numbers, durations, whatever a task said.

It imports nothing heavy: every command and every worker needs it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls: escape sequences begin here
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"  # invisible, reordering, not encodable
)
JOINERS = re.compile("[\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Terminals disagree about how wide these make what they join; alone they are invisible."""

MINUTE_S = 60
HOUR_S = 3600
DAY_S = 86400

LINE_CHARS = 400
"""What is longer is cut: an error or a value in a line of a table or a log."""

STACKED = re.compile(
    r"((?:[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u20d0-\u20ff]){4})"
    r"[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u20d0-\u20ff]+"
)
"""More combining marks on one letter than any language has: they would cover other lines."""


def clean(text: str) -> str:
    r"""Return the text with control characters visible (`\x1b`); newlines and tabs stay."""
    return UNSAFE.sub(_visible, text)


def one_line(text: str, *, limit: int = LINE_CHARS) -> str:
    """Return the text as one safe line of at most `limit` characters, '…' where it was cut.

    White space of any kind becomes single spaces.
    """
    shortened = text[: 4 * limit]  # a value may be megabytes long
    safe = " ".join(shortened.split())
    if not (safe.isascii() and safe.isprintable()):
        safe = STACKED.sub(r"\1", JOINERS.sub("", clean(safe)))
    if len(safe) <= limit and len(shortened) == len(text):
        return safe
    return safe[: limit - 1] + "…"


def duration(seconds: float | None) -> str:
    """Return `0.4 s`, `45 s`, `12m 05s`, `1h 03m`, `3d 04h`; '' for None."""
    if seconds is None:
        return ""
    if not math.isfinite(seconds):
        return "?"
    if seconds <= 0:
        return "0 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < MINUTE_S:
        return f"{whole} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S}m {whole % MINUTE_S:02d}s"
    if whole < DAY_S:
        return f"{whole // HOUR_S}h {whole % HOUR_S // MINUTE_S:02d}m"
    if whole < 10_000 * DAY_S:
        return f"{whole // DAY_S}d {whole % DAY_S // HOUR_S:02d}h"
    return "years"


def instant(at: float | None, *, seconds: bool = True) -> str:
    """Return seconds since the epoch as date and time of this machine's time zone."""
    if at is None:
        return ""
    try:
        local = datetime.fromtimestamp(at, UTC).astimezone()
    except (OverflowError, OSError, ValueError):
        return "?"
    return local.strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")


def moment(at: float, *, now: float) -> str:
    """Return an instant as short as it is clear: `14:03`, with the date if that is not `now`'s."""
    then = instant(at, seconds=False)
    return then[-5:] if then[:10] == instant(now)[:10] else then


def number(value: float, *, digits: int = 4) -> str:
    """Return a number for a table: `0.0123`, `1.2e-05`, `34567`; `digits` significant ones."""
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        if isinstance(value, int) and abs(value) < 10**12:
            return str(value)
        size = abs(float(value))
    except OverflowError:
        return f"{'-' if value < 0 else ''}1e{math.floor(math.log10(abs(value)))}"
    if not math.isfinite(value):
        return str(float(value))
    if 10**digits <= size < 10**9:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def value_text(value: Any, *, digits: int = 4) -> str:
    """Return any JSON value as one safe line."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, int | float):
        return number(value, digits=digits)
    if value is None:
        return "null"
    try:
        return one_line(json.dumps(value, ensure_ascii=False, default=str))
    except (ValueError, TypeError, RecursionError):
        return "?"


def exact_text(value: Any) -> str:
    """Return a JSON value unrounded, on one safe line."""
    return one_line(repr(value)) if isinstance(value, float) else value_text(value)


def metric_texts(metrics: Mapping[str, Any]) -> list[str]:
    """Return `name value` for each metric, in order; structures are left out."""
    return [
        f"{one_line(str(name), limit=24)} {one_line(value_text(value), limit=24)}"
        for name, value in metrics.items()
        if not isinstance(value, list | dict | tuple)
    ]


def memory(used_mib: int | None, total_mib: int | None) -> str:
    """Return memory in GiB: `18/80G`, `80G` when the use is unknown; '' when nothing is."""
    if total_mib is None:
        return "" if used_mib is None else f"{_gib(used_mib)}G"
    return f"{_gib(total_mib)}G" if used_mib is None else f"{_gib(used_mib)}/{_gib(total_mib)}G"


def several(count: int, noun: str) -> str:
    """Return `1 task`, `3 tasks`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percent(part: float, whole: float) -> int | None:
    """Return how much of `whole` is there, 0 to 100 and rounded down; None when it makes no sense.

    Rounded down, so that 100 means all of it.
    """
    try:
        share = float(part) / float(whole) * 100
    except (OverflowError, ZeroDivisionError):
        return None
    if not math.isfinite(share) or whole <= 0:
        return None
    return min(max(math.floor(share + 1e-9), 0), 100)


def _visible(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def _gib(mib: int) -> str:
    gib = mib / 1024
    return f"{gib:.1f}".removesuffix(".0") if gib < 9.95 else f"{gib:.0f}"
