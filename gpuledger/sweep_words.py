"""Reads single values of a sweep file (durations, sizes, numbers) and names a key that is wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from gpuledger.sweep_values import shown

SQLITE_MOST = 2**63
LONGEST_NUMBER = 100
TOP_KEYS = (
    "name", "command", "seeds", "method", "samples", "sampler_seed", "order", "parameters", "zip",
    "exclude", "include", "run", "resources", "slurm",
)  # fmt: skip
RUN_KEYS = (
    "workdir", "timeout", "max_attempts", "max_losses", "kill_grace", "silence_timeout", "avoid",
    "no_retry_codes", "log_limit", "pause_after", "env", "priority", "time_needed", "record_diff",
    "preload",
)  # fmt: skip
SLURM_KEYS = ("setup",)
RESOURCE_KEYS = ("gpus", "min_memory", "gpu_name")
DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?"
                      r"(?:(\d+(?:\.\d+)?)s)?")  # fmt: skip
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]i?)?B?")
FACTORS = {"": 1, "k": 1000, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4,
           "ki": 1 << 10, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}  # fmt: skip


class BadKey(Exception):
    """A problem within the file: `key` helps to find its line."""

    def __init__(self, problem: str, *, key: str | None = None, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.key = key
        self.hint = hint


def parse_duration(value: object) -> float:
    """Return seconds for "90s", "2h", "1h30m", "1d", or a number of seconds; raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f'{shown(value)} is not a duration: say 90, "90s", "2h" or "1h30m"')
    if isinstance(value, str):
        text = value.strip()
        found = DURATION.fullmatch(text)
        if re.fullmatch(r"\d+(\.\d+)?", text):
            value = float(text)
        elif found is None or not text:
            raise ValueError(f'{shown(value)} is not a duration: say 90, "90s", "2h" or "1h30m"')
        else:
            units = (86400, 3600, 60, 1)
            value = sum(float(n or 0) * unit for n, unit in zip(found.groups(), units, strict=True))
    if not 0 <= value < 1e9:
        raise ValueError(f"a duration is between 0 and 30 years, not {shown(value)}")
    return float(value)


def parse_size(value: object) -> int:
    """Return bytes for "1GB", "20GiB", "500M", or a number of bytes; raise ValueError."""
    size = 0
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and len(value) <= LONGEST_NUMBER:
        found = SIZE.fullmatch(value.strip())
        size = int(Fraction(found[1]) * FACTORS[found[2] or ""]) if found else 0
    if not 0 < size < SQLITE_MOST:
        raise ValueError(f'{shown(value)} is not a size: say "500MB", "1GiB" or a number of bytes')
    return size


def known_keys(table: Mapping[str, Any], known: Sequence[str], prefix: str) -> None:
    """Refuse keys that mean nothing, with the nearest that does."""
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            if key in RUN_KEYS and not prefix:
                hint = f"{key} belongs under [run]"
            elif key in RESOURCE_KEYS and prefix != "resources.":
                hint = f"{key} belongs under [resources]"
            elif key in TOP_KEYS and prefix:
                hint = f"{key} belongs at the top of the file, above every [table]"
            raise BadKey(f"unknown key {shown(prefix + key)}", key=key, hint=hint)


def tables_at(table: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Return an array of tables, empty when it is not there."""
    found = table.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise BadKey(f"{key!r} must be written as [[{key}]]", key=key)
    return found


def limit_at(run: Mapping[str, Any], key: str, default: float | None) -> float | None:
    """Return a limit in seconds; 0 and "none" mean that there is none."""
    if run.get(key) == "none":
        return None
    if key not in run:
        return default
    return duration_at(run, key, 0.0) or None


def duration_at(run: Mapping[str, Any], key: str, default: float) -> float:
    """Return seconds."""
    try:
        return parse_duration(run[key]) if key in run else default
    except ValueError as error:
        raise BadKey(f"run.{key}: {error}", key=key) from error


def size_at(run: Mapping[str, Any], key: str, default: int) -> int:
    """Return bytes."""
    try:
        return parse_size(run[key]) if key in run else default
    except ValueError as error:
        raise BadKey(f"run.{key}: {error}", key=key) from error


def whole_at(table: Mapping[str, Any], key: str, default: int, *, low: int = 0) -> int:
    """Return a whole number of at least `low`."""
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadKey(f"{key!r} must be a whole number, not {shown(value)}", key=key)
    if value < low:
        raise BadKey(f"{key!r} must be at least {low}, not {value}", key=key)
    if value >= 2**31:
        raise BadKey(f"{key!r} must be below {2**31:,}, not {value}", key=key)
    return value


def table_at(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a table, empty when it is not there."""
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise BadKey(f"{key!r} must be a table, not {shown(value)}", key=key)
    return value


def one_of(table: Mapping[str, Any], key: str, known: Sequence[str], default: str) -> str:
    """Return a word out of those that are known."""
    value = table.get(key, default)
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise BadKey(f"{key!r} is {shown(value)}", key=key, hint=hint)
    return str(value)


def lowered(text: str) -> str:
    """Return a sentence as the middle of another one."""
    return text[:1].lower() + text[1:].removesuffix(".")
