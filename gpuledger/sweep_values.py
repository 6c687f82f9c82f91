"""The values of one parameter: what a grid enumerates, and what a random search draws.

The words are those that users of W&B sweeps know. `log_uniform`, whose bounds are exponents
there, is refused: `log_uniform_values` takes the bounds themselves. Steps of `q` count from `min`
for `q_uniform`; for the others they are multiples of `q`, within the bounds.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Any

WORDS = frozenset(
    {"value", "values", "min", "max", "distribution", "q", "mu", "sigma", "probabilities"}
)
"""A table of these describes one parameter; any other table nests further parameters."""

MOST_LISTED = 10_000_000
MOST_SHOWN = 80
SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """What one parameter may be.

    Attributes:
        count: How many values; None when a grid cannot enumerate them.
        listed: All of them, in order; None without a count, and beyond `MOST_LISTED`.
        draw: Returns one value for a number in [0, 1), the same for the same number.
    """

    count: int | None
    listed: Sequence[Any] | None
    draw: Callable[[float], Any]


class BadDomain(Exception):
    """A description that makes no sense; its text continues a sentence about the parameter."""

    def __init__(self, problem: str, *, hint: str | None = None) -> None:
        super().__init__(problem)
        self.hint = hint


def shown(value: object) -> str:
    """Return a value as a message shows it: on one line, nothing unseen in it, not endless."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def domain_of(spec: Any) -> Domain:
    """Return what a sweep file says about one parameter: a list, a table of words, or a value."""
    if isinstance(spec, list):
        return _choice(spec)
    if not isinstance(spec, Mapping):
        return _choice([spec])
    if "value" in spec:
        _allow(spec, {"value", "distribution"}, "constant")
        return _choice([spec["value"]])
    if "values" in spec:
        _allow(spec, {"values", "probabilities", "distribution"}, "categorical")
        if not isinstance(spec["values"], list):
            raise BadDomain("needs a list after 'values'")
        return _choice(spec["values"], spec.get("probabilities"))
    domain = _distribution(spec)
    _require_finite(domain)
    return domain


def _require_finite(domain: Domain) -> None:
    try:
        extremes = [domain.draw(u) for u in (0.0, 0.5, 1 - 2**-53)]
    except OverflowError:
        extremes = [math.inf]
    if not all(abs(v) < 2**64 if _is_whole(v) else math.isfinite(v) for v in extremes):
        raise BadDomain("reaches beyond the largest number there is")


def _allow(spec: Mapping[str, Any], words: set[str], distribution: str) -> None:
    extra = sorted(set(spec) - words)
    if extra:
        raise BadDomain(f"has {extra[0]!r} beside {sorted(words - {'distribution'})[-1]!r}")
    if spec.get("distribution", distribution) != distribution:
        raise BadDomain(f"lists its values, which is the distribution {distribution!r}")


def _choice(values: Sequence[Any], probabilities: Any = None) -> Domain:
    if not values:
        raise BadDomain("has an empty list of values")
    if probabilities is None:
        return Domain(count=len(values), listed=values, draw=lambda u: values[int(u * len(values))])
    if not isinstance(probabilities, list) or len(probabilities) != len(values):
        raise BadDomain(f"needs {len(values)} probabilities, one for each value")
    weights = [_number({"p": weight}, "p") for weight in probabilities]
    if min(weights) < 0 or abs(sum(weights) - 1) > SUM_TOLERANCE:
        raise BadDomain("has probabilities that are not positive with the sum 1")

    possible = [(value, w) for value, w in zip(values, weights, strict=True) if w > 0]

    def draw(u: float) -> Any:
        for value, weight in possible:
            u -= weight
            if u < 0:
                return value
        return possible[-1][0]  # the weights' sum is 1 only about

    return Domain(count=len(values), listed=values, draw=draw)


def _makers() -> dict[str, tuple[Callable[[Mapping[str, Any]], Domain], frozenset[str]]]:
    return {
        "uniform": (_uniform, frozenset({"min", "max"})),
        "q_uniform": (_q_uniform, frozenset({"min", "max", "q"})),
        "int_uniform": (_int_uniform, frozenset({"min", "max"})),
        "log_uniform_values": (_log_uniform, frozenset({"min", "max"})),
        "q_log_uniform_values": (_log_uniform, frozenset({"min", "max", "q"})),
        "inv_log_uniform_values": (_log_uniform, frozenset({"min", "max"})),
        "normal": (_normal, frozenset({"mu", "sigma"})),
        "q_normal": (_normal, frozenset({"mu", "sigma", "q"})),
        "log_normal": (_normal, frozenset({"mu", "sigma"})),
        "q_log_normal": (_normal, frozenset({"mu", "sigma", "q"})),
    }


def _distribution(spec: Mapping[str, Any]) -> Domain:
    name = spec["distribution"] if "distribution" in spec else _default_name(spec)
    _require_distribution(name)
    maker, words = _makers()[name]
    extra = sorted(set(spec) - words - {"distribution"})
    if extra:
        raise BadDomain(f"has {extra[0]!r}, which {name!r} does not know")
    return maker({**spec, "distribution": name})


def _require_distribution(name: Any) -> None:
    if not isinstance(name, str):
        raise BadDomain(f"needs a text as 'distribution', not {shown(name)}")
    if name in ("log_uniform", "q_log_uniform", "inv_log_uniform"):
        raise BadDomain(
            f"uses {name!r}, whose bounds would be exponents",
            hint=f"say {name}_values, and give the bounds themselves",
        )
    if name in ("constant", "categorical"):
        word = "value" if name == "constant" else "values"
        raise BadDomain(f"is {name!r} without {word!r}", hint=f"say {word} = ...")
    known = _makers()
    if name not in known:
        plain = name.replace("_", "").replace("-", "")
        near = [each for each in known if each.replace("_", "").startswith(plain)]  # "loguniform"
        near = near or difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise BadDomain(f"has an unknown distribution {shown(name)}", hint=hint)


def _default_name(spec: Mapping[str, Any]) -> str:
    if "min" not in spec or "max" not in spec:
        raise BadDomain(
            "needs 'value', 'values', 'min' and 'max', or a 'distribution'",
            hint='for example {min = 0.001, max = 0.1, distribution = "log_uniform_values"}',
        )
    if "q" in spec:
        return "q_uniform"
    both = spec["min"], spec["max"]
    return "int_uniform" if all(_is_whole(bound) for bound in both) else "uniform"


def _uniform(spec: Mapping[str, Any]) -> Domain:
    low, high = _bounds(spec)
    if low == high:
        return _choice([float(low)])
    return _continuous(lambda u: min(low + u * (high - low), float(high)))


def _q_uniform(spec: Mapping[str, Any]) -> Domain:
    low, high = _bounds(spec)
    q = _positive(spec, "q", default=1)
    count = (_exact(high) - _exact(low)) // _exact(q) + 1
    if count > MOST_LISTED:
        raise BadDomain(f"has more than {MOST_LISTED:,} steps of 'q' between 'min' and 'max'")
    return _choice([_step(k, q, start=low) for k in range(count)])


def _int_uniform(spec: Mapping[str, Any]) -> Domain:
    for key in ("min", "max"):
        if not _is_whole(spec.get(key)):
            raise BadDomain(f"needs a whole number as {key!r}")
    low, high = int(spec["min"]), int(spec["max"])
    _bounds(spec)
    count = high - low + 1
    return Domain(
        count=count,
        listed=range(low, high + 1) if count <= MOST_LISTED else None,
        draw=lambda u: low + min(int(u * count), count - 1),
    )


def _log_uniform(spec: Mapping[str, Any]) -> Domain:
    low, high = _bounds(spec)
    if low <= 0:
        raise BadDomain(f"has min {low} on a log scale, which must be above 0")
    if spec["distribution"].startswith("q_"):
        return _q_log_uniform(spec, low, high)
    if low == high:
        return _choice([float(low)])
    first, last = math.log(low), math.log(high)
    if spec["distribution"].startswith("inv_"):
        first, last = last, first

    def draw(u: float) -> float:
        value = _steady(math.exp(first + u * (last - first)))
        return min(max(value, float(low)), float(high))

    return _continuous(draw)


def _q_log_uniform(spec: Mapping[str, Any], low: float, high: float) -> Domain:
    q = _positive(spec, "q", default=1)
    least, most = -(-_exact(low) // _exact(q)), _exact(high) // _exact(q)
    if least > most:
        raise BadDomain(f"has no multiple of q {q} between min {low} and max {high}")
    first, last = math.log(low), math.log(high)

    def draw(u: float) -> float:
        nearest = round(_steady(math.exp(first + u * (last - first))) / q)
        return _step(min(max(nearest, least), most), q)

    return _continuous(draw)


def _normal(spec: Mapping[str, Any]) -> Domain:
    inverse = _bell(spec)
    is_log = "log_" in spec["distribution"]
    q = _positive(spec, "q", default=1) if spec["distribution"].startswith("q_") else None

    def draw(u: float) -> float:
        value = _steady(math.exp(inverse(u)) if is_log else inverse(u))
        return value if q is None else _step(round(value / q), q)

    return _continuous(draw)


def _continuous(draw: Callable[[float], float]) -> Domain:
    return Domain(count=None, listed=None, draw=draw)


def _bell(spec: Mapping[str, Any]) -> Callable[[float], float]:
    mu = _number(spec, "mu", default=0)
    sigma = _positive(spec, "sigma", default=1)
    return lambda u: NormalDist(mu, sigma).inv_cdf(min(max(u, 1e-12), 1 - 1e-12))


def _steady(value: float) -> float:
    """Take off the last digits, in which the mathematical libraries of machines differ."""
    return float(f"{value:.12g}")


def _exact(value: float) -> Fraction:
    """Return the number that was written: 0.1 is a tenth, not the float nearest to it."""
    return Fraction(repr(value))


def _step(number: int, q: float, *, start: float = 0) -> float:
    """Return `start + number * q` without dirt (0.1 + 2 × 0.1 is 0.3); of wholes it is whole."""
    if _is_whole(q) and _is_whole(start):
        return start + number * q
    return float(_exact(start) + number * _exact(q))


def _bounds(spec: Mapping[str, Any]) -> tuple[float, float]:
    low, high = _number(spec, "min"), _number(spec, "max")
    if low > high:
        raise BadDomain(f"has min {low} above max {high}")
    return low, high


def _positive(spec: Mapping[str, Any], key: str, *, default: float) -> float:
    value = _number(spec, key, default=default)
    if value <= 0:
        raise BadDomain(f"needs {key!r} above 0, not {value}")
    return value


def _number(spec: Mapping[str, Any], key: str, *, default: float | None = None) -> float:
    value = spec.get(key, default)
    if value is None:
        raise BadDomain(f"needs {key!r}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadDomain(f"needs a number as {key!r}, not {shown(value)}")
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
