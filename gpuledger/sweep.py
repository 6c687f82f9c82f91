"""Turns a sweep file into tasks; pure, apart from reading that one file."""

from __future__ import annotations

import datetime
import difflib
import functools
import hashlib
import itertools
import json
import math
import random
import re
import shlex
import string
import sys
import tomllib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from gpuledger.errors import BadSweepFile
from gpuledger.model import Params, RunSettings, SweepSpec, TaskSpec, params_digest
from gpuledger.sweep_values import WORDS, BadDomain, Domain, domain_of, shown

MOST_TASKS = 10_000_000
LARGE = 100_000
MOST_BYTES = 16 << 20
MISSES_BEFORE_GIVING_UP = 1000
MISSES_PER_POINT = 30
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*")
RESERVED = frozenset({"seed", "task", "task_dir", "args", "python"})
SQLITE_MOST = 2**63
LONGEST_NUMBER = 100

TOP_KEYS = (
    "name", "command", "seeds", "method", "samples", "sampler_seed", "order", "parameters", "zip",
    "exclude", "include", "run",
)  # fmt: skip
RUN_KEYS = (
    "workdir", "timeout", "max_attempts", "max_losses", "kill_grace", "silence_timeout", "avoid",
    "no_retry_codes", "log_limit", "pause_after", "env", "priority",
)  # fmt: skip

DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?"
                      r"(?:(\d+(?:\.\d+)?)s)?")  # fmt: skip
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]i?)?B?")
FACTORS = {"": 1, "k": 1000, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4,
           "ki": 1 << 10, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}  # fmt: skip


class _Bad(Exception):
    """A problem within the file: `key` helps to find its line."""

    def __init__(self, problem: str, *, key: str | None = None, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.key = key
        self.hint = hint


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
        _require_plain(table, "")
        return _sweep(table, path, allow_large=allow_large)
    except tomllib.TOMLDecodeError as error:
        raise _complaint(path, f"is not TOML: {_lower(str(error))}") from error
    except RecursionError as error:
        raise _complaint(path, "nests its tables too deeply") from error
    except _Bad as bad:
        line = _line_of(text, bad.key)
        where = f", line {line}" if line else ""
        raise _complaint(path, bad.problem, where=where, hint=bad.hint) from bad


def render_command(
    settings: RunSettings, *, params: Params, seed: int, task: str, task_dir: str
) -> list[str]:
    """Return a task's command: placeholders filled in within each argument, never split.

    Strings stay as they are, True and False become `true` and `false`, numbers what Python
    writes, lists and tables JSON. `{args}` alone becomes `--key=value` for every parameter;
    `{python}` is the interpreter that runs gpuledger; `{{` and `}}` are braces.
    """
    values = {key: _as_text(value) for key, value in params.items()}
    pairs = [f"--{key}={value}" for key, value in values.items()]
    values |= {"seed": str(seed), "task": task, "task_dir": task_dir, "python": sys.executable}
    argv: list[str] = []
    for argument in settings.command:
        if argument == "{args}":
            argv.extend(pairs)
        else:
            argv.append(_filled(argument, {**values, "args": " ".join(pairs)}))
    return argv


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
        _require_plain(parsed, key)
    except (_Bad, RecursionError) as error:
        problem = error.problem if isinstance(error, _Bad) else f"{shown(key)} nests too deeply"
        hint = error.hint if isinstance(error, _Bad) else None
        raise BadSweepFile(f"{problem}; nothing was changed", hint=hint) from error
    return key, parsed


def _value(text: str) -> Any:
    try:
        table = _toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if list(table) == ["value"] else text


# --- the file ---------------------------------------------------------------------------------


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # Python refuses to read numbers of thousands of digits
        raise _Bad("it has a number with too many digits") from error


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise BadSweepFile(
            f"sweep file {str(path)!a} cannot be read: {_lower(error.strerror or str(error))}; "
            "nothing was changed",
            hint="check the path",
        ) from error
    except ValueError as error:
        raise BadSweepFile(f"{str(path)!a} is not a path; nothing was changed") from error
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
    _known_keys(table, TOP_KEYS, "")
    name = _name(table, path)
    run = _table(table, "run")
    parameters = _flatten(_table(table, "parameters"))
    zips = _zips(table, parameters)
    domains = _domains(parameters)
    seeds = _seeds(table.get("seeds", [0]))
    points = _points(table, domains, zips, seeds=len(seeds))
    _require_size(points.count * len(seeds), allow_large=allow_large)
    keys = [*domains, *(key for group in zips for key in group)]
    settings = _settings(run, _command(table, keys), path)
    shuffle = _one_of(table, "order", ("listed", "shuffled"), "listed") == "shuffled"
    sampler_seed = _whole(table, "sampler_seed", 0)
    return SweepSpec(
        name=name,
        file=str(path.absolute()),
        settings=settings,
        priority=_whole(run, "priority", 0, low=-(2**31)),
        task_count=points.count * len(seeds),
        tasks=functools.partial(_tasks, points, seeds, sampler_seed if shuffle else None),
    )


def _name(table: Mapping[str, Any], path: Path) -> str:
    name = table.get("name", path.stem)
    if not isinstance(name, str):
        raise _Bad(f"'name' must be a text, not {shown(name)}", key="name")
    if not NAME.fullmatch(name) or ".." in name:
        raise _Bad(
            f"the sweep's name {shown(name)} cannot be part of a file name",
            key="name",
            hint="letters, digits, '.', '_' and '-', at most 100: say name = \"...\" in the file",
        )
    return name


def _known_keys(table: Mapping[str, Any], known: Sequence[str], prefix: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            if key in RUN_KEYS and not prefix:
                hint = f"{key} belongs under [run]"
            elif key in TOP_KEYS and prefix:
                hint = f"{key} belongs at the top of the file, above every [table]"
            raise _Bad(f"unknown key {shown(prefix + key)}", key=key, hint=hint)


# --- parameters -------------------------------------------------------------------------------


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return parameters by dotted name; a table of other than distribution words nests."""
    flat: dict[str, Any] = {}
    for key, spec in table.items():
        name = f"{prefix}{key}"
        nested = isinstance(spec, dict) and not (spec and set(spec) <= WORDS)
        found = _flatten(spec, f"{name}.") if nested else {name: spec}
        if nested and (not spec or _looks_like_words(spec)):
            _blame_nested(name, spec)
        for dotted, value in found.items():
            if dotted in flat:
                raise _Bad(f"parameter {dotted!a} is given twice", key=dotted)
            flat[dotted] = value
    if not prefix:
        for dotted in flat:
            _require_name(dotted)
    return flat


def _looks_like_words(spec: Mapping[str, Any]) -> bool:
    """Tell a table that means one parameter, with a slip of the pen, from nested parameters."""
    meant = bool(set(spec) & {"values", "distribution", "min", "max"})
    return meant or any(difflib.get_close_matches(key, WORDS, cutoff=0.8) for key in spec)


def _blame_nested(name: str, spec: Mapping[str, Any]) -> None:
    if not spec:
        raise _Bad(f"parameter {shown(name)} is an empty table", key=name)
    unknown = next(key for key in spec if key not in WORDS)
    near = difflib.get_close_matches(unknown, sorted(WORDS), n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(WORDS))}"
    if PARAMETER.fullmatch(f"{name}.{unknown}"):
        hint += f' a parameter of that name is written "{name}.{unknown}", in quotes'
    raise _Bad(f"parameter {shown(name)} has an unknown key {unknown!a}", key=unknown, hint=hint)


def _require_name(name: str) -> None:
    if not PARAMETER.fullmatch(name):
        raise _Bad(
            f"parameter name {shown(name)} cannot be used",
            key=name,
            hint="letters, digits, '_' and '-', dots between the parts",
        )
    if name in RESERVED:
        raise _Bad(
            f"parameter name {name!r} is taken: {{{name}}} means something else in the command",
            key=name,
            hint="say seeds = [...] at the top of the file" if name == "seed" else "rename it",
        )


def _require_plain(value: Any, key: str) -> None:
    """Refuse what a command, JSON or a later comparison for equality cannot carry."""
    if isinstance(value, float) and not math.isfinite(value):
        raise _Bad(f"{shown(key)} has a value that is not a finite number ({value})", key=key)
    if isinstance(value, datetime.date | datetime.time):
        raise _Bad(f"{shown(key)} has a date or a time", key=key, hint="put quotes around it")
    if isinstance(value, int) and not -SQLITE_MOST <= value < SQLITE_MOST:
        raise _Bad(f"{shown(key)} has a number of more than 64 bits", key=key)
    if isinstance(value, str) and not _is_unicode(value):
        raise _Bad(f"{shown(key)} has a text that is not UTF-8", key=key)
    if isinstance(value, list):
        for item in value:
            _require_plain(item, key)
    if isinstance(value, dict):
        for name, item in value.items():
            _require_plain(item, name)


def _is_unicode(text: str) -> bool:
    """Tell whether it is text: what came from the command line as other bytes is not."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _domains(parameters: Mapping[str, Any]) -> dict[str, Domain]:
    domains = {}
    for name, spec in parameters.items():
        try:
            domains[name] = domain_of(spec)
        except BadDomain as bad:
            raise _Bad(f"parameter {shown(name)} {bad}", key=name, hint=bad.hint) from bad
        _require_distinct(domains[name].listed, name)
    return domains


def _require_distinct(values: Sequence[Any] | None, name: str) -> None:
    if values is None or isinstance(values, range):
        return
    seen = set()
    for value in values:
        text = _canonical(value)
        if text in seen:
            raise _Bad(f"parameter {shown(name)} has the value {shown(value)} twice", key=name)
        seen.add(text)


def _canonical(value: Any) -> str:
    """Return a text that tells values apart as `params_digest` does."""
    return json.dumps(value, sort_keys=True)


def _zips(table: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[dict[str, list[Any]]]:
    """Return the groups that vary together; their parameters are nowhere else."""
    groups = []
    taken = set(parameters)
    for group in _tables(table, "zip"):
        flat = _flatten(group)
        if not flat:
            raise _Bad("a [[zip]] is empty", key="zip")
        for key, values in flat.items():
            if not isinstance(values, list) or not values:
                raise _Bad(f"{shown(key)} in [[zip]] needs a list that is not empty", key=key)
            if key in taken:
                raise _Bad(f"parameter {shown(key)} is given twice", key=key)
        lengths = {key: len(values) for key, values in flat.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            raise _Bad(f"the lists of a [[zip]] must be equally long: {told}", key="zip")
        rows = list(zip(*flat.values(), strict=True))
        _require_distinct([list(row) for row in rows], ", ".join(flat))
        taken |= set(flat)
        groups.append(flat)
    return groups


def _tables(table: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = table.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise _Bad(f"{key!r} must be written as [[{key}]]", key=key)
    return found


# --- points -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Points:
    """The points of a sweep, in the file's order; made when asked for, never kept.

    Attributes:
        count: How many.
        at: Returns the point of a number.
        each: Call it to iterate over all of them.
        shared: Returns the first of some other points that is one of these, or None.
    """

    count: int
    at: Callable[[int], dict[str, Any]]
    each: Callable[[], Iterator[dict[str, Any]]]
    shared: Callable[[Sequence[dict[str, Any]]], dict[str, Any] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """Parameters that vary together: one, or those of a zip.

    Attributes:
        names: The parameters.
        count: How many rows of values; None when there is no end of them.
        row: Returns the row of a number below `count`.
        draw: Returns a row for a number in [0, 1).
        has: Tells whether a row is one of them.
    """

    names: tuple[str, ...]
    count: int | None
    row: Callable[[int], tuple[Any, ...]]
    draw: Callable[[float], tuple[Any, ...]]
    has: Callable[[Sequence[Any]], bool]


def _axes(
    domains: Mapping[str, Domain], zips: Sequence[Mapping[str, list[Any]]]
) -> Sequence[_Axis]:
    axes = [_single_axis(name, domain) for name, domain in domains.items()]
    return [*axes, *(_zipped_axis(group) for group in zips)]


def _single_axis(name: str, domain: Domain) -> _Axis:
    listed = domain.listed if domain.listed is not None else ()
    texts: frozenset[str] | None = None

    def has(row: Sequence[Any]) -> bool:
        nonlocal texts
        if isinstance(listed, range):
            return type(row[0]) is int and row[0] in listed
        if texts is None:
            texts = frozenset(map(_canonical, listed))
        return _canonical(row[0]) in texts

    return _Axis(
        names=(name,),
        count=domain.count,
        row=lambda number: (listed[number],),
        draw=lambda u: (domain.draw(u),),
        has=has,
    )


def _zipped_axis(group: Mapping[str, list[Any]]) -> _Axis:
    rows = list(zip(*group.values(), strict=True))
    texts = frozenset(map(_canonical, rows))
    return _Axis(
        names=tuple(group),
        count=len(rows),
        row=rows.__getitem__,
        draw=lambda u: rows[int(u * len(rows))],
        has=lambda row: _canonical(tuple(row)) in texts,
    )


def _points(
    table: Mapping[str, Any],
    domains: Mapping[str, Domain],
    zips: Sequence[Mapping[str, list[Any]]],
    *,
    seeds: int,
) -> _Points:
    if table.get("method") == "bayes":
        raise _Bad(
            "method 'bayes' is not offered", key="method", hint='use method = "random" with samples'
        )
    method = _one_of(table, "method", ("grid", "random"), "grid")
    axes = _axes(domains, zips)
    keys = [name for axis in axes for name in axis.names]
    excludes = [_condition(one, keys) for one in _tables(table, "exclude")]
    included = [_included(one, domains, keys) for one in _tables(table, "include")]
    if method == "random":
        points = _drawn(table, axes, excludes, seeds=seeds)
    elif "samples" in table:
        raise _Bad("'samples' goes with method = \"random\"", key="samples")
    else:
        points = _without(_grid(axes, seeds=seeds), excludes)
    points = _with_includes(points, included)
    if points.count == 0:
        raise _Bad("every point is excluded", key="exclude")
    return points


def _grid(axes: Sequence[_Axis], *, seeds: int) -> _Points:
    count = 1
    for axis in axes:
        if axis.count is None:
            raise _Bad(
                f"parameter {axis.names[0]!a} has infinitely many values, which a grid cannot list",
                key=axis.names[0],
                hint='say method = "random" and samples = N, or list its values',
            )
        count *= axis.count
    _require_size(count * seeds, allow_large=True)
    keys = [name for axis in axes for name in axis.names]
    sizes = [axis.count or 1 for axis in axes]

    def at(number: int) -> dict[str, Any]:
        rows = []
        for axis, size in zip(reversed(axes), reversed(sizes), strict=True):
            number, index = divmod(number, size)
            rows.append(axis.row(index))
        return dict(zip(keys, itertools.chain.from_iterable(reversed(rows)), strict=True))

    def each() -> Iterator[dict[str, Any]]:
        if not axes:
            yield {}
            return
        others = [[axis.row(n) for n in range(axis.count or 1)] for axis in axes[1:]]
        for number in range(sizes[0]):
            first = axes[0].row(number)
            for rest in itertools.product(*others):
                yield dict(zip(keys, itertools.chain(first, *rest), strict=True))

    def has(point: Mapping[str, Any]) -> bool:
        return all(axis.has([point[name] for name in axis.names]) for axis in axes)

    return _Points(
        count=count, at=at, each=each, shared=lambda others: next(filter(has, others), None)
    )


def _without(points: _Points, excludes: Sequence[Mapping[str, Any]]) -> _Points:
    if not excludes:
        return points
    kept = array("q")
    for number, point in enumerate(points.each()):
        if not _is_excluded(point, excludes):
            kept.append(number)
    return _Points(
        count=len(kept),
        at=lambda number: points.at(kept[number]),
        each=lambda: map(points.at, kept),
        shared=lambda others: points.shared(
            [point for point in others if not _is_excluded(point, excludes)]
        ),
    )


def _drawn(
    table: Mapping[str, Any],
    axes: Sequence[_Axis],
    excludes: Sequence[Mapping[str, Any]],
    *,
    seeds: int,
) -> _Points:
    """Draw distinct points: the same file gives the same ones, also when samples grow.

    Each draw hashes the sampler's seed, the draw's number and the parameter's name, so that
    neither Python's version nor another parameter changes it. Only the numbers are kept.
    """
    if "samples" not in table:
        raise _Bad('method = "random" needs samples = N', key="method")
    samples = _whole(table, "samples", 0, low=1)
    _require_size(samples * seeds, allow_large=True)
    counts = [axis.count for axis in axes if axis.count is not None]
    if len(counts) == len(axes):
        _require_enough(math.prod(counts), samples)
    sampler_seed = _whole(table, "sampler_seed", 0)
    sources = [(axis, "+".join(axis.names)) for axis in axes]

    def at(draw: int) -> dict[str, Any]:
        point: dict[str, Any] = {}
        for axis, name in sources:
            row = axis.draw(_uniform(sampler_seed, draw, name))
            point.update(zip(axis.names, row, strict=True))
        return point

    drawn = _distinct(at, samples, excludes)

    def shared(others: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        digests = {params_digest(point) for point in map(at, drawn)}
        return next((point for point in others if params_digest(point) in digests), None)

    return _Points(
        count=samples,
        at=lambda number: at(drawn[number]),
        each=lambda: map(at, drawn),
        shared=shared,
    )


def _distinct(
    at: Callable[[int], dict[str, Any]], samples: int, excludes: Sequence[Mapping[str, Any]]
) -> array[int]:
    """Return the numbers of the first draws that differ and are not excluded."""
    seen: set[bytes] = set()
    drawn = array("q")
    misses = 0
    for draw in itertools.count():
        if len(drawn) == samples:
            break
        point = at(draw)
        digest = params_digest(point)
        if digest in seen or _is_excluded(point, excludes):
            misses += 1
            if misses > MISSES_BEFORE_GIVING_UP + MISSES_PER_POINT * len(drawn):
                _require_enough(len(drawn), samples)
            continue
        misses = 0
        seen.add(digest)
        drawn.append(draw)
    return drawn


def _require_enough(found: int, samples: int) -> None:
    if found < samples:
        raise _Bad(
            f"only {found} different points could be drawn, not {samples}",
            key="samples",
            hint='lower samples, or say method = "grid"',
        )


def _uniform(sampler_seed: int, number: int, name: str) -> float:
    digest = hashlib.blake2b(f"{sampler_seed}/{number}/{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def _condition(table: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Any]:
    flat = _flatten(table)
    if not flat:
        raise _Bad("an [[exclude]] is empty: it would exclude every point", key="exclude")
    _require_known(flat, keys, "exclude")
    return flat


def _require_known(flat: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in flat:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = (
                f"did you mean {near[0]}?" if near else f"parameters: {', '.join(keys) or 'none'}"
            )
            raise _Bad(f"[[{where}]] names {shown(key)}, which is no parameter", key=key, hint=hint)


def _is_excluded(point: Mapping[str, Any], excludes: Sequence[Mapping[str, Any]]) -> bool:
    return any(
        all(_matches(point[key], wanted) for key, wanted in condition.items())
        for condition in excludes
    )


def _matches(value: Any, wanted: Any) -> bool:
    """Tell whether a value is the wanted one, or one of them; 1 is 1.0, but not true."""
    if isinstance(wanted, list) and any(_is_same(value, item) for item in wanted):
        return True
    return _is_same(value, wanted)


def _is_same(value: Any, wanted: Any) -> bool:
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


def _included(
    table: Mapping[str, Any], domains: Mapping[str, Domain], keys: Sequence[str]
) -> dict[str, Any]:
    """Return a point of [[include]]; parameters that it leaves out must have one value only."""
    flat = _flatten(table)
    _require_known(flat, keys, "include")
    point = {}
    for key in keys:
        listed = domains[key].listed if key in domains else None
        if key in flat:
            point[key] = flat[key]
        elif listed is not None and len(listed) == 1:
            point[key] = listed[0]
        else:
            raise _Bad(
                f"an [[include]] leaves out {shown(key)}, which has several values", key="include"
            )
    return point


def _with_includes(points: _Points, included: Sequence[dict[str, Any]]) -> _Points:
    if not included:
        return points
    if len({params_digest(point) for point in included}) < len(included):
        raise _Bad("two [[include]] are equal", key="include")
    twice = points.shared(included)
    if twice is not None:
        raise _Bad(f"an [[include]] is a point of the sweep already: {shown(twice)}", key="include")
    first = points.count
    return _Points(
        count=first + len(included),
        at=lambda number: points.at(number) if number < first else dict(included[number - first]),
        each=lambda: itertools.chain(points.each(), included),
        shared=points.shared,
    )


def _require_size(count: int, *, allow_large: bool) -> None:
    if count > MOST_TASKS:
        raise _Bad(
            f"it describes {count:,} tasks, more than {MOST_TASKS:,}",
            hint='shorten the lists, or say method = "random" and samples = N',
        )
    if count > LARGE and not allow_large:
        raise _Bad(f"it describes {count:,} tasks", hint="add --yes if that is what you want")


def _tasks(points: _Points, seeds: Sequence[int], shuffle_seed: int | None) -> Iterator[TaskSpec]:
    if shuffle_seed is None:
        for number, params in enumerate(points.each()):
            for seed in seeds:
                yield TaskSpec(point=number, seed=seed, params=params)
        return
    order = array("q", range(points.count * len(seeds)))
    random.Random(shuffle_seed).shuffle(order)
    for index in order:
        number, which = divmod(index, len(seeds))
        yield TaskSpec(point=number, seed=seeds[which], params=points.at(number))


# --- command, seeds, run ----------------------------------------------------------------------


def _command(table: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    command = table.get("command")
    if command is None:
        raise _Bad("it has no 'command'", hint='for example command = "python train.py {args}"')
    if isinstance(command, str):
        try:
            arguments = shlex.split(command)
        except ValueError as error:
            raise _Bad(f"'command' cannot be split: {_lower(str(error))}", key="command") from error
    elif isinstance(command, list) and all(isinstance(part, str) for part in command):
        arguments = command
    else:
        raise _Bad("'command' must be a text or a list of texts", key="command")
    if not arguments or not arguments[0]:
        raise _Bad("'command' is empty", key="command")
    if arguments[0] == "{args}":
        raise _Bad("'command' begins with {args}", key="command", hint="name a program first")
    if any("\0" in argument for argument in arguments):
        raise _Bad("'command' has a NUL character", key="command")
    for argument in arguments:
        _require_placeholders(argument, [*keys, *sorted(RESERVED)])
    return tuple(arguments)


def _require_placeholders(argument: str, known: Sequence[str]) -> None:
    try:
        parts = _parsed(argument)
        if "".join(_as_written(text, field) for text, field, _, _ in parts) != argument:
            raise ValueError("a colon")  # {lr:} is parsed as {lr}
        fields = [field for _, field, _, _ in parts if field is not None]
    except ValueError as error:
        raise _Bad(
            f"'command' has an odd brace in {shown(argument)}",
            key="command",
            hint="write {{ and }} for braces that are meant as such",
        ) from error
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {{{near[0]}}}?" if near else f"known: {', '.join(known)}"
            raise _Bad(
                f"'command' has an unknown placeholder {{{shown(field)[1:-1]}}}",
                key="command",
                hint=hint,
            )


def _as_written(text: str, field: str | None) -> str:
    literal = text.replace("{", "{{").replace("}", "}}")
    return literal if field is None else f"{literal}{{{field}}}"


def _parsed(argument: str) -> Sequence[tuple[str, str | None, str | None, str | None]]:
    parts = list(string.Formatter().parse(argument))
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise ValueError("a format specification")
    return parts


def _filled(argument: str, values: Mapping[str, str]) -> str:
    return "".join(
        literal + (values[field] if field is not None else "")
        for literal, field, _, _ in _parsed(argument)
    )


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def _seeds(value: Any) -> Sequence[int]:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise _Bad(f"'seeds' must be a list or a count of at least 1, not {value}", key="seeds")
        return range(value)
    if not isinstance(value, list) or not value:
        raise _Bad("'seeds' must be a list of whole numbers, or a count", key="seeds")
    seen = set()
    for seed in value:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise _Bad(f"a seed must be a whole number, not {shown(seed)}", key="seeds")
        if seed in seen:
            raise _Bad(f"seed {seed} is given twice", key="seeds")
        seen.add(seed)
    return value


def _settings(run: Mapping[str, Any], command: tuple[str, ...], path: Path) -> RunSettings:
    _known_keys(run, RUN_KEYS, "run.")
    defaults = RunSettings(command=command, workdir="")
    return RunSettings(
        command=command,
        workdir=_workdir(run, path),
        env=_env(run),
        timeout_s=_limit(run, "timeout", defaults.timeout_s),
        max_attempts=_whole(run, "max_attempts", defaults.max_attempts, low=1),
        max_losses=_whole(run, "max_losses", defaults.max_losses, low=1),
        kill_grace_s=_duration(run, "kill_grace", defaults.kill_grace_s),
        silence_timeout_s=_limit(run, "silence_timeout", defaults.silence_timeout_s),
        avoid_s=_duration(run, "avoid", defaults.avoid_s),
        no_retry_codes=_codes(run),
        log_limit_bytes=_size(run, "log_limit", defaults.log_limit_bytes),
        pause_after=_whole(run, "pause_after", defaults.pause_after),
    )


def _workdir(run: Mapping[str, Any], path: Path) -> str:
    given = run.get("workdir", ".")
    if not isinstance(given, str) or not given or "\0" in given:
        raise _Bad(f"run.workdir must be a folder's path, not {shown(given)}", key="workdir")
    try:
        folder = Path(path.absolute().parent, Path(given).expanduser())
        is_folder = folder.is_dir()
    except (OSError, RuntimeError) as error:  # no such user, too long, not allowed
        why = _lower(getattr(error, "strerror", None) or str(error))
        raise _Bad(f"run.workdir {shown(given)} cannot be used: {why}", key="workdir") from error
    if not is_folder:
        raise _Bad(f"run.workdir {str(folder)!a} is not a folder", key="workdir")
    return str(folder.resolve())


def _env(run: Mapping[str, Any]) -> dict[str, str]:
    env = run.get("env", {})
    if not isinstance(env, dict):
        raise _Bad("run.env must be a table of texts", key="env")
    for key, value in env.items():
        if not isinstance(value, str):
            what = f"run.env.{shown(key)[1:-1]} must be a text, not {shown(value)}"
            raise _Bad(what, key=key, hint="add quotes")
        if not key or "=" in key or "\0" in key + value:
            raise _Bad(
                f"run.env has a name or value that no environment can hold: {shown(key)}", key=key
            )
        if key.startswith("GPULEDGER_") or key == "CUDA_VISIBLE_DEVICES":
            raise _Bad(f"run.env cannot set {key}: the worker does", key=key)
    return env


def _codes(run: Mapping[str, Any]) -> tuple[int, ...]:
    codes = run.get("no_retry_codes", [])
    if not isinstance(codes, list) or not all(
        isinstance(code, int) and not isinstance(code, bool) and 1 <= code <= 255 for code in codes
    ):
        raise _Bad(
            "run.no_retry_codes must be a list of exit codes, 1 to 255", key="no_retry_codes"
        )
    return tuple(codes)


def _limit(run: Mapping[str, Any], key: str, default: float | None) -> float | None:
    """Return a limit in seconds; 0 and "none" mean that there is none."""
    if run.get(key) == "none":
        return None
    if key not in run:
        return default
    return _duration(run, key, 0.0) or None


def _duration(run: Mapping[str, Any], key: str, default: float) -> float:
    try:
        return parse_duration(run[key]) if key in run else default
    except ValueError as error:
        raise _Bad(f"run.{key}: {error}", key=key) from error


def _size(run: Mapping[str, Any], key: str, default: int) -> int:
    try:
        return parse_size(run[key]) if key in run else default
    except ValueError as error:
        raise _Bad(f"run.{key}: {error}", key=key) from error


def _whole(table: Mapping[str, Any], key: str, default: int, *, low: int = 0) -> int:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Bad(f"{key!r} must be a whole number, not {shown(value)}", key=key)
    if value < low:
        raise _Bad(f"{key!r} must be at least {low}, not {value}", key=key)
    if value >= 2**31:
        raise _Bad(f"{key!r} must be below {2**31:,}, not {value}", key=key)
    return value


def _table(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise _Bad(f"{key!r} must be a table, not {shown(value)}", key=key)
    return value


def _one_of(table: Mapping[str, Any], key: str, known: Sequence[str], default: str) -> str:
    value = table.get(key, default)
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise _Bad(f"{key!r} is {shown(value)}", key=key, hint=hint)
    return str(value)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].removesuffix(".")
