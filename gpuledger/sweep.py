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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuledger.errors import BadSweepFile
from gpuledger.model import Params, RunSettings, SweepSpec, TaskSpec, params_digest
from gpuledger.sweep_values import WORDS, BadDomain, Domain, domain_of

MOST_TASKS = 10_000_000
LARGE = 100_000
MOST_BYTES = 16 << 20
DRAWS_PER_SAMPLE = 100
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*")
RESERVED = frozenset({"seed", "task", "task_dir", "args", "python"})
SQLITE_MOST = 2**63

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
        return _sweep(tomllib.loads(text), path, allow_large=allow_large)
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
        raise ValueError(f'{value!a} is not a duration: say 90, "90s", "2h" or "1h30m"')
    if isinstance(value, str):
        text = value.strip()
        found = DURATION.fullmatch(text)
        if re.fullmatch(r"\d+(\.\d+)?", text):
            value = float(text)
        elif found is None or not text:
            raise ValueError(f'{value!a} is not a duration: say 90, "90s", "2h" or "1h30m"')
        else:
            units = (86400, 3600, 60, 1)
            value = sum(float(n or 0) * unit for n, unit in zip(found.groups(), units, strict=True))
    if not 0 <= value < 1e9:
        raise ValueError(f"a duration is between 0 and 30 years, not {value}")
    return float(value)


def parse_size(value: object) -> int:
    """Return bytes for "1GB", "20GiB", "500M", or a number of bytes; raise ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    found = SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    size = int(float(found[1]) * FACTORS[found[2] or ""]) if found else 0
    if not 0 < size < SQLITE_MOST:
        raise ValueError(f'{value!a} is not a size: say "500MB", "1GiB" or a number of bytes')
    return size


def parse_assignment(text: str) -> tuple[str, Any]:
    """Return the key and the value of `key=value`: what TOML understands, else the text itself."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not PARAMETER.fullmatch(key):
        raise BadSweepFile(
            f"{text!a} is not KEY=VALUE; nothing was changed", hint="for example --set lr=0.01"
        )
    try:
        parsed = tomllib.loads(f"value = {value}")
        if list(parsed) == ["value"]:
            _require_plain(parsed["value"], key)
            return key, parsed["value"]
    except tomllib.TOMLDecodeError:
        pass
    except _Bad as bad:
        raise BadSweepFile(f"{bad.problem}; nothing was changed", hint=bad.hint) from bad
    return key, value


# --- the file ---------------------------------------------------------------------------------


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
    return BadSweepFile(f"{path!s}{where}: {problem}; nothing was changed", hint=hint)


def _line_of(text: str, key: str | None) -> int | None:
    """Return the line that most likely holds a key, for a message."""
    if key is None:
        return None
    last = re.escape(key.rpartition(".")[2])
    for pattern in (
        rf'^\s*(?:[\w".-]*\.)?"?{last}"?\s*=',
        rf"^\s*\[+[^]]*\b{last}\b",
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
    points = _points(table, domains, zips)
    count = points.count * len(seeds)
    _require_size(count, allow_large=allow_large)
    keys = [*domains, *(key for group in zips for key in group)]
    settings = _settings(run, _command(table, keys), path)
    shuffle = _one_of(table, "order", ("listed", "shuffled"), "listed") == "shuffled"
    sampler_seed = _whole(table, "sampler_seed", 0)
    exact = points if points.is_exact else _counted(points)
    return SweepSpec(
        name=name,
        file=str(path.absolute()),
        settings=settings,
        priority=_whole(run, "priority", 0, low=-(2**31)),
        task_count=exact.count * len(seeds),
        tasks=functools.partial(_tasks, exact, seeds, sampler_seed if shuffle else None),
    )


def _name(table: Mapping[str, Any], path: Path) -> str:
    name = table.get("name", path.stem)
    if not isinstance(name, str):
        raise _Bad(f"'name' must be a text, not {name!a}", key="name")
    if not NAME.fullmatch(name) or ".." in name:
        raise _Bad(
            f"the sweep's name {name[:120]!a} cannot be part of a file name",
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
            raise _Bad(f"unknown key {prefix + key!a}", key=key, hint=hint)


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
        for dotted, value in flat.items():
            _require_name(dotted)
            _require_plain(value, dotted)
    return flat


def _looks_like_words(spec: Mapping[str, Any]) -> bool:
    """Tell a table that means one parameter, with a slip of the pen, from nested parameters."""
    meant = bool(set(spec) & {"values", "distribution", "min", "max"})
    return meant or any(difflib.get_close_matches(key, WORDS, cutoff=0.8) for key in spec)


def _blame_nested(name: str, spec: Mapping[str, Any]) -> None:
    if not spec:
        raise _Bad(f"parameter {name!a} is an empty table", key=name)
    unknown = next(key for key in spec if key not in WORDS)
    near = difflib.get_close_matches(unknown, sorted(WORDS), n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(WORDS))}"
    raise _Bad(f"parameter {name!a} has an unknown key {unknown!a}", key=unknown, hint=hint)


def _require_name(name: str) -> None:
    if not PARAMETER.fullmatch(name):
        raise _Bad(
            f"parameter name {name!a} cannot be used",
            key=name,
            hint="letters, digits, '_' and '-', dots between the parts",
        )
    if name in RESERVED:
        raise _Bad(
            f"parameter name {name!a} is taken: {{{name}}} means something else in the command",
            key=name,
            hint="say seeds = [...] at the top of the file" if name == "seed" else "rename it",
        )


def _require_plain(value: Any, key: str) -> None:
    """Refuse what JSON, or a later comparison for equality, cannot carry."""
    if isinstance(value, float) and not math.isfinite(value):
        raise _Bad(f"parameter {key!a} has a value that is not a finite number ({value})", key=key)
    if isinstance(value, datetime.date | datetime.time):
        raise _Bad(f"parameter {key!a} has a date or a time", key=key, hint="put quotes around it")
    if isinstance(value, int) and not -SQLITE_MOST <= value < SQLITE_MOST:
        raise _Bad(f"parameter {key!a} has a number of more than 64 bits", key=key)
    if isinstance(value, list):
        for item in value:
            _require_plain(item, key)
    if isinstance(value, dict):
        for item in value.values():
            _require_plain(item, key)


def _domains(parameters: Mapping[str, Any]) -> dict[str, Domain]:
    domains = {}
    for name, spec in parameters.items():
        try:
            domains[name] = domain_of(spec)
        except BadDomain as bad:
            raise _Bad(f"parameter {name!a} {bad}", key=name, hint=bad.hint) from bad
        _require_distinct(domains[name].listed, name)
    return domains


def _require_distinct(values: Sequence[Any] | None, name: str) -> None:
    if values is None or isinstance(values, range):
        return
    seen = set()
    for value in values:
        text = json.dumps(value, sort_keys=True)
        if text in seen:
            raise _Bad(f"parameter {name!a} has the value {text} twice: equal points", key=name)
        seen.add(text)


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
                raise _Bad(f"{key!a} in [[zip]] needs a list that is not empty", key=key)
            if key in taken:
                raise _Bad(f"parameter {key!a} is given twice", key=key)
        lengths = {key: len(values) for key, values in flat.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            raise _Bad(f"the lists of a [[zip]] must be equally long: {told}", key="zip")
        rows = list(zip(*flat.values(), strict=True))
        _require_distinct([list(row) for row in rows], "zip of " + ", ".join(flat))
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
    """The points of a sweep, in the file's order.

    Attributes:
        each: Call it to iterate over them.
        count: How many; an upper bound unless `is_exact`.
        is_exact: False when excludes have to be applied to know.
    """

    each: Callable[[], Iterator[dict[str, Any]]]
    count: int
    is_exact: bool = True


def _points(
    table: Mapping[str, Any], domains: Mapping[str, Domain], zips: Sequence[Mapping[str, list[Any]]]
) -> _Points:
    method = table.get("method", "grid")
    if method == "bayes":
        raise _Bad(
            "method 'bayes' is not offered", key="method", hint='use method = "random" with samples'
        )
    _one_of(table, "method", ("grid", "random"), "grid")
    keys = [*domains, *(key for group in zips for key in group)]
    excludes = [_condition(one, keys) for one in _tables(table, "exclude")]
    if method == "random":
        points = _drawn(table, domains, zips, excludes)
    else:
        for key in ("samples",):
            if key in table:
                raise _Bad(f'{key!r} goes with method = "random"', key=key)
        points = _grid(domains, zips, excludes)
    return _with_includes(
        points, [_included(one, domains, keys) for one in _tables(table, "include")]
    )


def _grid(
    domains: Mapping[str, Domain],
    zips: Sequence[Mapping[str, list[Any]]],
    excludes: Sequence[Mapping[str, Any]],
) -> _Points:
    axes: list[tuple[tuple[str, ...], Sequence[tuple[Any, ...]]]] = []
    count = 1
    for key, domain in domains.items():
        if domain.listed is None:
            raise _Bad(
                f"parameter {key!a} has infinitely many values, which a grid cannot list",
                key=key,
                hint='say method = "random" and samples = N, or list its values',
            )
        count *= len(domain.listed)
        axes.append(((key,), [(value,) for value in domain.listed]))
        _require_size(count, allow_large=True)
    for group in zips:
        rows = list(zip(*group.values(), strict=True))
        count *= len(rows)
        axes.append((tuple(group), rows))
    keys = tuple(itertools.chain.from_iterable(names for names, _ in axes))

    def each() -> Iterator[dict[str, Any]]:
        for combination in itertools.product(*(values for _, values in axes)):
            point = dict(zip(keys, itertools.chain.from_iterable(combination), strict=True))
            if not any(_matches(point, one) for one in excludes):
                yield point

    return _Points(each=each, count=count, is_exact=not excludes)


def _drawn(
    table: Mapping[str, Any],
    domains: Mapping[str, Domain],
    zips: Sequence[Mapping[str, list[Any]]],
    excludes: Sequence[Mapping[str, Any]],
) -> _Points:
    """Draw distinct points: the same file gives the same ones, also when samples grow.

    Each draw hashes the sampler's seed, the point's number and the parameter's name, so that
    neither Python's version nor another parameter changes it.
    """
    if "samples" not in table:
        raise _Bad('method = "random" needs samples = N', key="method")
    samples = _whole(table, "samples", 0, low=1)
    _require_size(samples, allow_large=True)
    sampler_seed = _whole(table, "sampler_seed", 0)
    rows = [(tuple(group), list(zip(*group.values(), strict=True))) for group in zips]
    found: list[dict[str, Any]] = []
    seen = set()
    for number in range(samples * DRAWS_PER_SAMPLE + 1000):
        point = {k: d.draw(_uniform(sampler_seed, number, k)) for k, d in domains.items()}
        for names, values in rows:
            row = values[int(_uniform(sampler_seed, number, "+".join(names)) * len(values))]
            point |= dict(zip(names, row, strict=True))
        digest = params_digest(point)
        if digest in seen or any(_matches(point, one) for one in excludes):
            continue
        seen.add(digest)
        found.append(point)
        if len(found) == samples:
            return _Points(each=lambda: iter(found), count=samples)
    raise _Bad(
        f"only {len(found)} different points could be drawn, not {samples}",
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
            raise _Bad(f"[[{where}]] names {key!a}, which is no parameter", key=key, hint=hint)


def _matches(point: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    return all(
        point[key] in wanted if isinstance(wanted, list) else point[key] == wanted
        for key, wanted in condition.items()
    )


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
                f"an [[include]] leaves out {key!a}, which has several values", key="include"
            )
    return point


def _with_includes(points: _Points, included: Sequence[dict[str, Any]]) -> _Points:
    if not included:
        return points
    digests = {params_digest(point) for point in included}
    if len(digests) < len(included):
        raise _Bad("two [[include]] are equal", key="include")
    for point in points.each():
        if params_digest(point) in digests:
            raise _Bad(
                f"an [[include]] is a point of the sweep already: {json.dumps(point)[:200]}",
                key="include",
            )
    return _Points(
        each=lambda: itertools.chain(points.each(), included),
        count=points.count + len(included),
        is_exact=points.is_exact,
    )


def _counted(points: _Points) -> _Points:
    count = sum(1 for _ in points.each())
    if count == 0:
        raise _Bad("every point is excluded", key="exclude")
    return _Points(each=points.each, count=count)


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
    listed = list(points.each())
    order = list(range(len(listed) * len(seeds)))
    random.Random(shuffle_seed).shuffle(order)
    for index in order:
        number, which = divmod(index, len(seeds))
        yield TaskSpec(point=number, seed=seeds[which], params=listed[number])


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
    for argument in arguments:
        _require_placeholders(argument, [*keys, *sorted(RESERVED)])
    return tuple(arguments)


def _require_placeholders(argument: str, known: Sequence[str]) -> None:
    if "\0" in argument:
        raise _Bad("'command' has a NUL character", key="command")
    try:
        fields = [field for _, field, _, _ in _parsed(argument) if field is not None]
    except ValueError as error:
        raise _Bad(
            f"'command' has an odd brace in {argument!a}",
            key="command",
            hint="write {{ and }} for braces that are meant as such",
        ) from error
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {{{near[0]}}}?" if near else f"known: {', '.join(known)}"
            raise _Bad(
                f"'command' has an unknown placeholder {{{field}}}", key="command", hint=hint
            )


def _parsed(argument: str) -> Iterable[tuple[str, str | None, str | None, str | None]]:
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


def _seeds(value: Any) -> list[int]:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= MOST_TASKS:
            raise _Bad(f"'seeds' must be a list or a count of at least 1, not {value}", key="seeds")
        return list(range(value))
    if not isinstance(value, list) or not value:
        raise _Bad("'seeds' must be a list of whole numbers, or a count", key="seeds")
    for seed in value:
        if isinstance(seed, bool) or not isinstance(seed, int) or abs(seed) >= SQLITE_MOST:
            raise _Bad(f"a seed must be a whole number, not {seed!a}", key="seeds")
    if len(set(value)) < len(value):
        twice = next(seed for seed in value if value.count(seed) > 1)
        raise _Bad(f"seed {twice} is given twice", key="seeds")
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
        raise _Bad(f"run.workdir must be a folder's path, not {given!a}", key="workdir")
    folder = Path(path.absolute().parent, Path(given).expanduser())
    if not folder.is_dir():
        raise _Bad(f"run.workdir {str(folder)!a} is not a folder", key="workdir")
    return str(folder.resolve())


def _env(run: Mapping[str, Any]) -> dict[str, str]:
    env = run.get("env", {})
    if not isinstance(env, dict):
        raise _Bad("run.env must be a table of texts", key="env")
    for key, value in env.items():
        if not isinstance(value, str):
            raise _Bad(f"run.env.{key} must be a text, not {value!a}", key=key, hint="add quotes")
        if not key or "=" in key or "\0" in key + value:
            raise _Bad(
                f"run.env has a name or value that no environment can hold: {key!a}", key=key
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
        raise _Bad(f"{key!r} must be a whole number, not {value!a}", key=key)
    if not low <= value < 2**31:
        raise _Bad(f"{key!r} must be at least {low}, not {value}", key=key)
    return value


def _table(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise _Bad(f"{key!r} must be a table, not {value!a}", key=key)
    return value


def _one_of(table: Mapping[str, Any], key: str, known: Sequence[str], default: str) -> str:
    value = table.get(key, default)
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise _Bad(f"{key!r} is {value!a}", key=key, hint=hint)
    return str(value)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].removesuffix(".")
