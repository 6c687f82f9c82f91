"""Turns parameters into points: grids, random draws, excludes and includes, lazily."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import math
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpuledger.spec import TaskSpec, params_digest
from gpuledger.sweep_parameters import canonical, flatten
from gpuledger.sweep_values import Domain, shown
from gpuledger.sweep_words import BadKey, one_of, tables_at, whole_at

MOST_TASKS = 10_000_000
LARGE = 100_000
MISSES_BEFORE_GIVING_UP = 1000
MISSES_PER_POINT = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
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
            texts = frozenset(map(canonical, listed))
        return canonical(row[0]) in texts

    return _Axis(
        names=(name,),
        count=domain.count,
        row=lambda number: (listed[number],),
        draw=lambda u: (domain.draw(u),),
        has=has,
    )


def _zipped_axis(group: Mapping[str, list[Any]]) -> _Axis:
    rows = list(zip(*group.values(), strict=True))
    texts = frozenset(map(canonical, rows))
    return _Axis(
        names=tuple(group),
        count=len(rows),
        row=rows.__getitem__,
        draw=lambda u: rows[int(u * len(rows))],
        has=lambda row: canonical(tuple(row)) in texts,
    )


def points_of(
    table: Mapping[str, Any],
    domains: Mapping[str, Domain],
    zips: Sequence[Mapping[str, list[Any]]],
    *,
    seeds: int,
) -> Points:
    """Return the points that method, excludes and includes leave."""
    if table.get("method") == "bayes":
        raise BadKey(
            "method 'bayes' is not offered", key="method", hint='use method = "random" with samples'
        )
    method = one_of(table, "method", ("grid", "random"), "grid")
    axes = _axes(domains, zips)
    keys = [name for axis in axes for name in axis.names]
    excludes = [_condition(one, keys) for one in tables_at(table, "exclude")]
    included = [_included(one, domains, keys) for one in tables_at(table, "include")]
    if method == "random":
        points = _drawn(table, axes, excludes, seeds=seeds)
    elif "samples" in table:
        raise BadKey("'samples' goes with method = \"random\"", key="samples")
    else:
        points = _without(_grid(axes, seeds=seeds), excludes)
    points = _with_includes(points, included)
    if points.count == 0:
        raise BadKey("every point is excluded", key="exclude")
    return points


def _grid(axes: Sequence[_Axis], *, seeds: int) -> Points:
    count = 1
    for axis in axes:
        if axis.count is None:
            raise BadKey(
                f"parameter {axis.names[0]!r} has infinitely many values, which a grid cannot list",
                key=axis.names[0],
                hint='say method = "random" and samples = N, or list its values',
            )
        count *= axis.count
    require_size(count * seeds, allow_large=True)
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

    return Points(
        count=count, at=at, each=each, shared=lambda others: next(filter(has, others), None)
    )


def _without(points: Points, excludes: Sequence[Mapping[str, Any]]) -> Points:
    if not excludes:
        return points
    kept = array("q")
    for number, point in enumerate(points.each()):
        if not _is_excluded(point, excludes):
            kept.append(number)
    return Points(
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
) -> Points:
    """Draw distinct points: the same file gives the same ones, also when samples grow.

    Each draw hashes the sampler's seed, the draw's number and the parameter's name, so that
    neither Python's version nor another parameter changes it. Only the numbers are kept.
    """
    if "samples" not in table:
        raise BadKey('method = "random" needs samples = N', key="method")
    samples = whole_at(table, "samples", 0, low=1)
    require_size(samples * seeds, allow_large=True)
    counts = [axis.count for axis in axes if axis.count is not None]
    if len(counts) == len(axes):
        _require_enough(math.prod(counts), samples)
    sampler_seed = whole_at(table, "sampler_seed", 0)
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

    return Points(
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
        raise BadKey(
            f"only {found} different points could be drawn, not {samples}",
            key="samples",
            hint='lower samples, or say method = "grid"',
        )


def _uniform(sampler_seed: int, number: int, name: str) -> float:
    digest = hashlib.blake2b(f"{sampler_seed}/{number}/{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def _condition(table: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Any]:
    flat = flatten(table)
    if not flat:
        raise BadKey("an [[exclude]] is empty: it would exclude every point", key="exclude")
    _require_known(flat, keys, "exclude")
    return flat


def _require_known(flat: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in flat:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = (
                f"did you mean {near[0]}?" if near else f"parameters: {', '.join(keys) or 'none'}"
            )
            raise BadKey(
                f"[[{where}]] names {shown(key)}, which is no parameter", key=key, hint=hint
            )


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
    flat = flatten(table)
    _require_known(flat, keys, "include")
    point = {}
    for key in keys:
        listed = domains[key].listed if key in domains else None
        if key in flat:
            point[key] = flat[key]
        elif listed is not None and len(listed) == 1:
            point[key] = listed[0]
        else:
            raise BadKey(
                f"an [[include]] leaves out {shown(key)}, which has several values", key="include"
            )
    return point


def _with_includes(points: Points, included: Sequence[dict[str, Any]]) -> Points:
    if not included:
        return points
    if len({params_digest(point) for point in included}) < len(included):
        raise BadKey("two [[include]] are equal", key="include")
    twice = points.shared(included)
    if twice is not None:
        problem = f"an [[include]] is a point of the sweep already: {shown(twice)}"
        raise BadKey(problem, key="include")
    first = points.count
    return Points(
        count=first + len(included),
        at=lambda number: points.at(number) if number < first else dict(included[number - first]),
        each=lambda: itertools.chain(points.each(), included),
        shared=points.shared,
    )


def require_size(count: int, *, allow_large: bool) -> None:
    """Refuse too many tasks, and many without a yes."""
    if count > MOST_TASKS:
        raise BadKey(
            f"it describes {count:,} tasks, more than {MOST_TASKS:,}",
            hint='shorten the lists, or say method = "random" and samples = N',
        )
    if count > LARGE and not allow_large:
        raise BadKey(f"it describes {count:,} tasks", hint="add --yes if that is what you want")


def tasks_of(points: Points, seeds: Sequence[int], shuffle_seed: int | None) -> Iterator[TaskSpec]:
    """Yield the tasks: listed, or shuffled by a seed."""
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
