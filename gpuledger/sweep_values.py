"""The values of one parameter: what a grid enumerates, and what a random search draws.

The words are those that users of W&B sweeps know. `log_uniform`, whose bounds are exponents
there, is refused: `log_uniform_values` takes the bounds themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

WORDS = frozenset(
    {"value", "values", "min", "max", "distribution", "q", "mu", "sigma", "probabilities"}
)
"""A table of these describes one parameter; any other table nests further parameters."""

MOST_LISTED = 10_000_000
SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """What one parameter may be.

    Attributes:
        listed: All its values, in order; None when a grid cannot enumerate them.
        draw: Returns one value for a number in [0, 1), the same for the same number.
    """

    listed: Sequence[Any] | None
    draw: Callable[[float], Any]


class BadDomain(Exception):
    """A description that makes no sense; its text continues a sentence about the parameter."""

    def __init__(self, problem: str, *, hint: str | None = None) -> None:
        super().__init__(problem)
        self.hint = hint


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
    return _distribution(spec)


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
        return Domain(listed=values, draw=lambda u: values[int(u * len(values))])
    if not isinstance(probabilities, list) or len(probabilities) != len(values):
        raise BadDomain(f"needs {len(values)} probabilities, one for each value")
    weights = [_number({"p": weight}, "p") for weight in probabilities]
    if min(weights) < 0 or abs(sum(weights) - 1) > SUM_TOLERANCE:
        raise BadDomain("has probabilities that are not positive with the sum 1")

    def draw(u: float) -> Any:
        for value, weight in zip(values, weights, strict=True):
            u -= weight
            if u < 0:
                return value
        return values[-1]

    return Domain(listed=values, draw=draw)


def _distribution(spec: Mapping[str, Any]) -> Domain:
    makers: dict[str, tuple[Callable[[Mapping[str, Any]], Domain], frozenset[str]]] = {
        "uniform": (_uniform, frozenset({"min", "max"})),
        "q_uniform": (_q_uniform, frozenset({"min", "max", "q"})),
        "int_uniform": (_int_uniform, frozenset({"min", "max"})),
        "log_uniform_values": (_log_uniform, frozenset({"min", "max"})),
        "q_log_uniform_values": (_log_uniform, frozenset({"min", "max", "q"})),
        "inv_log_uniform_values": (_inv_log_uniform, frozenset({"min", "max"})),
        "normal": (_normal, frozenset({"mu", "sigma"})),
        "q_normal": (_normal, frozenset({"mu", "sigma", "q"})),
        "log_normal": (_log_normal, frozenset({"mu", "sigma"})),
        "q_log_normal": (_log_normal, frozenset({"mu", "sigma", "q"})),
    }
    name = spec.get("distribution")
    if name is None:
        name = _default_name(spec)
    if name in ("log_uniform", "q_log_uniform", "inv_log_uniform"):
        raise BadDomain(
            f"uses {name!r}, whose bounds would be exponents",
            hint=f"say {name}_values, and give the bounds themselves",
        )
    if name not in makers:
        raise BadDomain(f"has an unknown distribution {name!a}", hint=f"known: {', '.join(makers)}")
    maker, words = makers[name]
    extra = sorted(set(spec) - words - {"distribution"})
    if extra:
        raise BadDomain(f"has {extra[0]!r}, which {name!r} does not know")
    return maker(spec)


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
    return Domain(listed=None, draw=lambda u: low + u * (high - low))


def _q_uniform(spec: Mapping[str, Any]) -> Domain:
    low, high = _bounds(spec)
    q = _positive(spec, "q", default=1)
    steps = math.floor((high - low) / q + 1e-9)
    if steps >= MOST_LISTED:
        raise BadDomain(f"has more than {MOST_LISTED:,} steps of 'q' between 'min' and 'max'")
    values = [_tidy(low + step * q) for step in range(steps + 1)]
    return _choice(values)


def _int_uniform(spec: Mapping[str, Any]) -> Domain:
    for key in ("min", "max"):
        if not _is_whole(spec.get(key)):
            raise BadDomain(f"needs a whole number as {key!r}")
    low, high = _bounds(spec)
    values = range(int(low), int(high) + 1)
    if len(values) > MOST_LISTED:
        return Domain(listed=None, draw=lambda u: values[int(u * len(values))])
    return _choice(values)


def _log_uniform(spec: Mapping[str, Any]) -> Domain:
    low, high = _log_bounds(spec)
    round_to = _rounding(spec)
    return Domain(listed=None, draw=lambda u: round_to(math.exp(low + u * (high - low))))


def _inv_log_uniform(spec: Mapping[str, Any]) -> Domain:
    low, high = _log_bounds(spec)
    return Domain(listed=None, draw=lambda u: math.exp(-(-high + u * (high - low))))


def _normal(spec: Mapping[str, Any]) -> Domain:
    inverse, round_to = _bell(spec), _rounding(spec)
    return Domain(listed=None, draw=lambda u: round_to(inverse(u)))


def _log_normal(spec: Mapping[str, Any]) -> Domain:
    inverse, round_to = _bell(spec), _rounding(spec)
    return Domain(listed=None, draw=lambda u: round_to(math.exp(inverse(u))))


def _bell(spec: Mapping[str, Any]) -> Callable[[float], float]:
    mu = _number(spec, "mu", default=0)
    sigma = _positive(spec, "sigma", default=1)
    return lambda u: NormalDist(mu, sigma).inv_cdf(min(max(u, 1e-12), 1 - 1e-12))


def _rounding(spec: Mapping[str, Any]) -> Callable[[float], float]:
    if not str(spec.get("distribution", "")).startswith("q_"):
        return lambda value: value
    q = _positive(spec, "q", default=1)
    return lambda value: _tidy(round(value / q) * q)


def _tidy(value: float) -> float:
    """Take the dirt of binary fractions off: 0.1 + 2 × 0.1 is 0.3; a whole stays an int."""
    return float(f"{value:.12g}") if isinstance(value, float) else value


def _bounds(spec: Mapping[str, Any]) -> tuple[float, float]:
    low, high = _number(spec, "min"), _number(spec, "max")
    if low > high:
        raise BadDomain(f"has min {low} above max {high}")
    return low, high


def _log_bounds(spec: Mapping[str, Any]) -> tuple[float, float]:
    low, high = _bounds(spec)
    if low <= 0:
        raise BadDomain(f"has min {low} on a log scale, which must be above 0")
    return math.log(low), math.log(high)


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
        raise BadDomain(f"needs a number as {key!r}, not {value!a}")
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
