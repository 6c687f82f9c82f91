"""Reads the parameters of a sweep file: names, domains, groups that vary together."""

from __future__ import annotations

import datetime
import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gpuledger.sweep_values import WORDS, BadDomain, Domain, domain_of, shown
from gpuledger.sweep_words import SQLITE_MOST, BadKey, tables_at

PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*")
RESERVED = frozenset({"seed", "task", "task_dir", "args", "python"})


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return parameters by dotted name; a table of other than distribution words nests."""
    flat: dict[str, Any] = {}
    for key, spec in table.items():
        name = f"{prefix}{key}"
        nested = isinstance(spec, dict) and not (spec and set(spec) <= WORDS)
        found = flatten(spec, f"{name}.") if nested else {name: spec}
        if nested and (not spec or _looks_like_words(spec)):
            _blame_nested(name, spec)
        for dotted, value in found.items():
            if dotted in flat:
                raise BadKey(f"parameter {dotted!r} is given twice", key=dotted)
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
        raise BadKey(f"parameter {shown(name)} is an empty table", key=name)
    unknown = next(key for key in spec if key not in WORDS)
    near = difflib.get_close_matches(unknown, sorted(WORDS), n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(WORDS))}"
    if PARAMETER.fullmatch(f"{name}.{unknown}"):
        hint += f' a parameter of that name is written "{name}.{unknown}", in quotes'
    raise BadKey(f"parameter {shown(name)} has an unknown key {unknown!r}", key=unknown, hint=hint)


def _require_name(name: str) -> None:
    if not PARAMETER.fullmatch(name):
        raise BadKey(
            f"parameter name {shown(name)} cannot be used",
            key=name,
            hint="letters, digits, '_' and '-', dots between the parts",
        )
    if name in RESERVED:
        raise BadKey(
            f"parameter name {name!r} is taken: {{{name}}} means something else in the command",
            key=name,
            hint="say seeds = [...] at the top of the file" if name == "seed" else "rename it",
        )


def require_plain(value: Any, key: str) -> None:
    """Refuse what a command, JSON or a later comparison for equality cannot carry."""
    if isinstance(value, float) and not math.isfinite(value):
        raise BadKey(f"{shown(key)} has a value that is not a finite number ({value})", key=key)
    if isinstance(value, datetime.date | datetime.time):
        raise BadKey(f"{shown(key)} has a date or a time", key=key, hint="put quotes around it")
    if isinstance(value, int) and not -SQLITE_MOST <= value < SQLITE_MOST:
        raise BadKey(f"{shown(key)} has a number of more than 64 bits", key=key)
    if isinstance(value, str) and not _is_unicode(value):
        raise BadKey(f"{shown(key)} has a text that is not UTF-8", key=key)
    if isinstance(value, list):
        for item in value:
            require_plain(item, key)
    if isinstance(value, dict):
        for name, item in value.items():
            require_plain(item, name)


def _is_unicode(text: str) -> bool:
    """Tell whether it is text: what came from the command line as other bytes is not."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def domains_of(parameters: Mapping[str, Any]) -> dict[str, Domain]:
    """Return what each parameter may be."""
    domains = {}
    for name, spec in parameters.items():
        try:
            domains[name] = domain_of(spec)
        except BadDomain as bad:
            raise BadKey(f"parameter {shown(name)} {bad}", key=name, hint=bad.hint) from bad
        _require_distinct(domains[name].listed, name)
    return domains


def _require_distinct(values: Sequence[Any] | None, name: str) -> None:
    if values is None or isinstance(values, range):
        return
    seen = set()
    for value in values:
        text = canonical(value)
        if text in seen:
            raise BadKey(f"parameter {shown(name)} has the value {shown(value)} twice", key=name)
        seen.add(text)


def canonical(value: Any) -> str:
    """Return a text that tells values apart as `params_digest` does."""
    return json.dumps(value, sort_keys=True)


def zips_of(table: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[dict[str, list[Any]]]:
    """Return the groups that vary together; their parameters are nowhere else."""
    groups = []
    taken = set(parameters)
    for group in tables_at(table, "zip"):
        flat = flatten(group)
        if not flat:
            raise BadKey("a [[zip]] is empty", key="zip")
        for key, values in flat.items():
            if not isinstance(values, list) or not values:
                raise BadKey(f"{shown(key)} in [[zip]] needs a list that is not empty", key=key)
            if key in taken:
                raise BadKey(f"parameter {shown(key)} is given twice", key=key)
        lengths = {key: len(values) for key, values in flat.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            raise BadKey(f"the lists of a [[zip]] must be equally long: {told}", key="zip")
        rows = list(zip(*flat.values(), strict=True))
        _require_distinct([list(row) for row in rows], ", ".join(flat))
        taken |= set(flat)
        groups.append(flat)
    return groups
