"""Turns a sweep file into tasks; pure, apart from reading that one file."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpuledger.errors import BadSweepFile
from gpuledger.spec import SweepSpec
from gpuledger.sweep_parameters import (
    PARAMETER,
    RESERVED,
    domains_of,
    flatten,
    require_plain,
    zips_of,
)
from gpuledger.sweep_points import points_of, require_size, tasks_of
from gpuledger.sweep_resources import with_resources
from gpuledger.sweep_run import command_of, seeds_of, settings_of, with_slurm
from gpuledger.sweep_values import shown
from gpuledger.sweep_words import TOP_KEYS, BadKey, known_keys, lowered, one_of, table_at, whole_at

MOST_BYTES = 16 << 20
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def read_sweep(path: Path, *, allow_large: bool = False) -> SweepSpec:
    """Return what a sweep file describes.

    Args:
        path: Of the TOML file.
        allow_large: Accept more than 100,000 tasks; 10 million are the most.

    Raises:
        BadSweepFile: One sentence with the file and the line or key; nothing was changed.
    """
    text = _text(path)
    try:
        table = _toml(text)
        require_plain(table, "")
        return _sweep(table, path, allow_large=allow_large)
    except tomllib.TOMLDecodeError as error:
        raise _complaint(path, f"is not TOML: {lowered(str(error))}") from error
    except RecursionError as error:
        raise _complaint(path, "nests its tables too deeply") from error
    except BadKey as bad:
        line = _line_of(text, bad.key)
        where = f", line {line}" if line else ""
        raise _complaint(path, bad.problem, where=where, hint=bad.hint) from bad


def parse_assignment(text: str) -> tuple[str, Any]:
    """Return the key and the value of `key=value`: what TOML understands, else the text itself.

    Raises:
        BadSweepFile: No parameter can have that name or that value; nothing was changed.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not PARAMETER.fullmatch(key):
        raise BadSweepFile(
            f"{shown(text)} is not KEY=VALUE; nothing was changed",
            hint="for example --set lr=0.01",
        )
    if key in RESERVED:
        raise BadSweepFile(
            f"{key!r} is no parameter and cannot be set; nothing was changed",
            hint="parameters only: for example --set lr=0.01",
        )
    try:
        parsed = _value(value)
        require_plain(parsed, key)
    except (BadKey, RecursionError) as error:
        problem = error.problem if isinstance(error, BadKey) else f"{shown(key)} nests too deeply"
        hint = error.hint if isinstance(error, BadKey) else None
        raise BadSweepFile(f"{problem}; nothing was changed", hint=hint) from error
    return key, parsed


def _value(text: str) -> Any:
    try:
        table = _toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if list(table) == ["value"] else text


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # Python refuses to read numbers of thousands of digits
        raise BadKey("it has a number with too many digits") from error


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise BadSweepFile(
            f"sweep file {str(path)!r} cannot be read: {lowered(error.strerror or str(error))}; "
            "nothing was changed",
            hint="check the path",
        ) from error
    except ValueError as error:
        raise BadSweepFile(f"{str(path)!r} is not a path; nothing was changed") from error
    if len(raw) > MOST_BYTES:
        raise _complaint(path, f"is larger than {MOST_BYTES >> 20} MiB")
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _complaint(path, "is not UTF-8", where=f", line {line}") from error


def _complaint(
    path: Path, problem: str, *, where: str = "", hint: str | None = None
) -> BadSweepFile:
    name = str(path) if str(path).isprintable() else ascii(str(path))
    return BadSweepFile(f"{name}{where}: {problem}; nothing was changed", hint=hint)


def _line_of(text: str, key: str | None) -> int | None:
    """Return the line that most likely holds a key, for a message."""
    if key is None:
        return None
    last = re.escape(key.rpartition(".")[2])
    for pattern in (
        rf'^[ \t]*(?:[\w".-]*\.)?"?{last}"?[ \t]*=',
        rf"^[ \t]*\[{{1,2}}[^]\n]*\b{last}\b",
        rf"\b{last}\b",
    ):
        found = re.search(pattern, text, re.MULTILINE)
        if found:
            return text.count("\n", 0, found.end()) + 1
    return None


def _sweep(table: Mapping[str, Any], path: Path, *, allow_large: bool) -> SweepSpec:
    known_keys(table, TOP_KEYS, "")
    name = _name(table, path)
    run = table_at(table, "run")
    parameters = flatten(table_at(table, "parameters"))
    zips = zips_of(table, parameters)
    domains = domains_of(parameters)
    seeds = seeds_of(table.get("seeds", [0]))
    points = points_of(table, domains, zips, seeds=len(seeds))
    require_size(points.count * len(seeds), allow_large=allow_large)
    keys = [*domains, *(key for group in zips for key in group)]
    settings = settings_of(run, command_of(table, keys), path)
    settings = with_resources(settings, table_at(table, "resources"))
    settings = with_slurm(settings, table_at(table, "slurm"))
    shuffle = one_of(table, "order", ("listed", "shuffled"), "listed") == "shuffled"
    sampler_seed = whole_at(table, "sampler_seed", 0)
    return SweepSpec(
        name=name,
        file=str(path.absolute()),
        settings=settings,
        priority=whole_at(run, "priority", 0, low=-(2**31)),
        task_count=points.count * len(seeds),
        tasks=functools.partial(tasks_of, points, seeds, sampler_seed if shuffle else None),
    )


def _name(table: Mapping[str, Any], path: Path) -> str:
    name = table.get("name", path.stem)
    if not isinstance(name, str):
        raise BadKey(f"'name' must be a text, not {shown(name)}", key="name")
    if not NAME.fullmatch(name) or ".." in name:
        raise BadKey(
            f"the sweep's name {shown(name)} cannot be part of a file name",
            key="name",
            hint="letters, digits, '.', '_' and '-', at most 100: say name = \"...\" in the file",
        )
    return name
