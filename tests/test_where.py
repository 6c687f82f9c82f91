"""--where: what it means, what it refuses, and that nothing a user types gets out of hand."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuledger.where import FACTS, MOST_NESTED, BadWhere, Task, parse_where

FACTS_OF_ONE: Mapping[str, Any] = {
    "task": "exp_3_7",
    "sweep": "exp",
    "state": "failed",
    "seed": 7,
    "priority": 0,
    "failures": 2,
    "losses": 1,
    "attempts": 3,
}


def task(params: Mapping[str, Any] | None = None, **result: Any) -> Task:
    return Task(params=params or {}, facts=FACTS_OF_ONE, result=lambda: result)


def holds(condition: str, params: Mapping[str, Any] | None = None, **result: Any) -> bool:
    return parse_where(condition).holds(task(params, **result))


ONE: Mapping[str, Any] = {
    "lr": 0.01,
    "model": "resnet18",
    "optimizer.lr": 3,
    "weight-decay": 0,
    "amp": True,
    "sizes": [1, 2],
    "tag": None,
    "on": False,
}


@pytest.mark.parametrize(
    "condition",
    [
        "lr == 0.01",
        "lr>0.001 and lr<0.1",
        "0.001 < lr <= 0.01 < 1",
        'model == "resnet18"',
        "model == 'resnet18'",
        'model != "resnet50"',
        'model >= "resnet" and model < "s"',
        'model in ("resnet18", "vgg")',
        'model in ["resnet18"]',
        'model in ("resnet18",)',
        'model not in ("vgg", 3)',
        '"18" in model',
        '"vgg" not in model',
        "2 in sizes",
        "3 not in sizes",
        "sizes == [1, 2.0]",
        "optimizer.lr == 3.0",
        "params.optimizer.lr > -1e3",
        'params["weight-decay"] == 0',
        "weight-decay < 0.5",
        "amp",
        "amp == true and amp == True",
        "not on",
        "not not amp",
        "on == false",
        "tag == null",
        "tag == None",
        "lr != null",
        "missing == null",
        "null == missing",
        "seed == 7 and state == 'failed' and failures == 2 and attempts >= 3 and losses",
        "task == 'exp_3_7' and task.task == task and sweep == \"exp\" and priority == 0",
        "result.acc > 0.9",
        "acc > 0.9",
        'result["top 5"] == 1',
        "result.val/acc == 0.5",
        "val/acc < 1",
        "lr == 1 or model == 'resnet18' and seed == 7",
        "(lr == 1 or amp) and not (seed == 1)",
        "not lr == 1",
        "+.5 == 0.5 and 5. == 5 and 1e-2 == lr and 1E2 == 100",
        "9007199254740993 != 9007199254740992.0",
        "'it\\'s' == \"it's\"",
        "'\\d' == \"\\\\d\"",
        "'' == \"\"",
        "lr\n<\t1",
        "lr in (amp, lr)",
        "null in [null]",
        "Überschuss == null",
    ],
)
def test_what_holds(condition: str) -> None:
    assert holds(condition, ONE, acc=0.95, **{"top 5": 1, "val/acc": 0.5})


@pytest.mark.parametrize(
    "condition",
    [
        "lr > 0.01",
        "missing > 0",
        "missing < 0",
        "missing == missing",
        "missing != 3",
        "missing in (1, 2)",
        "missing not in (1, 2)",
        "1 in missing",
        "1 not in missing",
        "missing",
        "tag == 0",
        "tag != 0",
        "tag < null",
        "null <= null",
        "lr == null",
        'lr == "0.01"',
        'lr < "a"',
        'lr > "a"',
        "model > 3",
        "model < 3",
        "amp == 1",
        "amp > 0",
        "on == 0",
        "1 in model",
        '"a" in lr',
        "sizes < [3]",
        "sizes == [2, 1]",
        "sizes == [true, 2]",
        "result.lr > 0",
        "params.acc > 0",
        "params.seed == 7",
        "lr == 0.01 and not amp",
        "5 > lr > 3",
        "''",
        "[]",
        "0 or on",
    ],
)
def test_what_does_not_hold(condition: str) -> None:
    assert not holds(condition, ONE, acc=0.95)


def test_a_metric_that_is_no_number_meets_no_order() -> None:
    for sign in ("<", "<=", ">", ">=", "=="):
        assert not holds(f"loss {sign} 0.5", {}, loss=math.nan)
    assert holds("loss != 0.5", {}, loss=math.nan)


def test_a_parameter_goes_before_a_metric_of_its_name_and_a_fact_before_both() -> None:
    assert holds("x == 1 and params.x == 1 and result.x == 2", {"x": 1}, x=2)
    assert holds("seed == 7 and params.seed == 1 and task.seed == 7", {"seed": 1})


def test_the_result_is_not_read_without_need() -> None:
    def fail() -> Mapping[str, Any]:
        raise AssertionError("nobody asked for it")

    blind = Task(params={"lr": 1}, facts=FACTS_OF_ONE, result=fail)
    assert parse_where("lr == 1 and seed == 7 and params.y == null").holds(blind)


@pytest.mark.parametrize(
    ("condition", "told", "hint"),
    [
        ("lr = 3", "'=' at character 4", "'=='"),
        ("lr =< 3", "'=<' at character 4", "'<='"),
        ("lr <> 3", "'<>' at character 4", "'!='"),
        ("a && b", "'&&' at character 3", "'and'"),
        ("a || b", "'||' at character 3", "'or'"),
        ("!a", "'!' at character 1", "'not'"),
        ("a AND b", "'AND' at character 3", "small letters: and"),
        ("NOT a", "'a' at character 5", "quotes"),
        ("a ~ 'b'", "'~' at character 3", "no patterns"),
        ("model == resnet 18", "'18' at character 17", ""),
        ("a b", "'b' at character 3", "quotes"),
        ("", "ends where a name", ""),
        ("lr >", "ends where a name", ""),
        ("lr > and", "'and' at character 6", ""),
        ("a not b", "'b' at character 7", ""),
        ("(a", "'(' at character 1 that is not closed", ""),
        ("a in (1, 2", "'(' at character 6 that is not closed", ""),
        ("a in (1 2)", "'2' at character 9", ""),
        ("a)", "')' at character 2", ""),
        ("a == 'b", "a text that does not end, from character 6", ""),
        ("a == 3x", "'3x' at character 6, which is no number", "quotes"),
        ("a == 1.2.3", "'1.2.3' at character 6, which is no number", ""),
        ("a * 2 > 3", "'*' at character 3: there is no arithmetic", ""),
        ("a + 2 > 3", "'+' at character 3", ""),
        ("- a > 3", "'a' at character 3, where a number", ""),
        ("f(x)", "'(' at character 2", ""),
        ("__import__('os').system('id')", "'(' at character 11", ""),
        ("task.nonsense == 1", "which no task has", "attempts"),
        ("result[acc] > 1", "'acc' at character 8, where a name in quotes", ""),
        ("a == \x00", "'\\x00' at character 6", ""),
        ("a == 1e999", "too large at character 6", ""),
        ("a == " + "9" * 5000, "a number of 5,000 digits at character 6", ""),
        ("(" * 400 + "a" + ")" * 400, f"nests more than {MOST_NESTED} deep", ""),
        ("a in " + "[" * 400, f"nests more than {MOST_NESTED} deep", ""),
        ("a" * 1_000_000, "is 1,000,000 characters long", "xargs"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(condition: str, told: str, hint: str) -> None:
    with pytest.raises(BadWhere) as refused:
        parse_where(condition)
    assert told in str(refused.value)
    assert hint in (refused.value.hint or "")
    assert len(str(refused.value)) < 200


def test_the_longest_conditions_are_read() -> None:
    assert holds(" or ".join(["lr > 5"] * 800) + " or amp", ONE)
    assert not holds("not " * 1_001 + "amp", ONE)
    assert holds("(" * (MOST_NESTED - 1) + "amp" + ")" * (MOST_NESTED - 1), ONE)


# --- against a reference ----------------------------------------------------------------------

NAMES = ["lr", "model", "optimizer.lr", "gone", "seed", "state"]
SCALARS = (
    st.integers(-5, 5)
    | st.sampled_from([0.5, 1.0, -2.5, 1e300])
    | st.sampled_from(["", "a", "resnet", "é'\"\\"])
    | st.booleans()
)
ORDER: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

Meaning = Callable[[Mapping[str, Any]], Any]


def written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)


def kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "truth"
    return "text" if isinstance(value, str) else "number"


def compared(sign: str, left: Any, right: Any) -> bool:
    """Say once more, in other words, what a comparison of two scalars means."""
    kinds = {kind(left), kind(right)}
    if "null" in kinds:
        return False
    if sign in ("==", "!="):
        return (len(kinds) == 1 and left == right) == (sign == "==")
    return kinds in ({"number"}, {"text"}) and ORDER[sign](left, right)


@st.composite
def operands(draw: st.DrawFn) -> tuple[str, Meaning]:
    if draw(st.booleans()):
        name = draw(st.sampled_from(NAMES))
        return name, lambda values: values.get(name)
    value = draw(SCALARS)
    return written(value), lambda _: value


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[str, Meaning]:
    left, left_means = draw(operands())
    if draw(st.booleans()):
        sign = draw(st.sampled_from(["==", "!=", *ORDER]))
        right, right_means = draw(operands())
        return (
            f"{left} {sign} {right}",
            lambda values: compared(sign, left_means(values), right_means(values)),
        )
    items = draw(st.lists(SCALARS, max_size=3))
    listed = ", ".join(written(item) for item in items)
    negated = draw(st.booleans())
    opened, closed = draw(st.sampled_from([("(", ")"), ("[", "]")]))

    def means(values: Mapping[str, Any]) -> bool:
        value = left_means(values)
        found = any(compared("==", value, item) for item in items)
        return not found and value is not None if negated else found

    return f"{left} {'not in' if negated else 'in'} {opened}{listed}{closed}", means


def joined(parts: st.SearchStrategy[tuple[str, Meaning]]) -> st.SearchStrategy[tuple[str, Meaning]]:
    def both(one: tuple[str, Meaning], two: tuple[str, Meaning]) -> tuple[str, Meaning]:
        return f"({one[0]}) and ({two[0]})", lambda v: bool(one[1](v)) and bool(two[1](v))

    def either(one: tuple[str, Meaning], two: tuple[str, Meaning]) -> tuple[str, Meaning]:
        return f"({one[0]}) or {two[0]}", lambda v: bool(one[1](v)) or bool(two[1](v))

    def contrary(one: tuple[str, Meaning]) -> tuple[str, Meaning]:
        return f"not ({one[0]})", lambda v: not one[1](v)

    return (
        st.builds(both, parts, parts) | st.builds(either, parts, parts) | st.builds(contrary, parts)
    )


CONDITIONS = st.recursive(comparisons(), joined, max_leaves=8)
PARAMS = st.dictionaries(st.sampled_from(NAMES[:4]), SCALARS)


@given(condition=CONDITIONS, params=PARAMS)
def test_conditions_mean_what_the_reference_says(
    condition: tuple[str, Meaning], params: Mapping[str, Any]
) -> None:
    text, means = condition
    assert holds(text, params) == bool(means({**params, "seed": 7, "state": "failed"})), text


JUNK = st.text(
    st.sampled_from(list("ab1.= \"'()[]<>!&|~+-*,\\\n\0é٣²")) | st.characters(), max_size=40
)
WORDS = st.lists(
    st.sampled_from(
        ["a", "and", "or", "not", "in", "(", ")", "[", "]", ",", "==", "<", "1", '"x"', "null"]
    ),
    max_size=25,
).map(" ".join)


@given(text=JUNK | WORDS, params=PARAMS)
def test_any_text_is_read_or_refused_and_nothing_else(text: str, params: Mapping[str, Any]) -> None:
    try:
        condition = parse_where(text)
    except BadWhere:
        return
    assert condition.holds(task(params)) in (True, False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(left=JSON, right=JSON, sign=st.sampled_from(["==", "!=", "<", ">=", "in", "not in"]))
def test_any_two_values_can_be_compared(left: Any, right: Any, sign: str) -> None:
    assert holds(f"a {sign} b", {"a": left, "b": right}) in (True, False)


def test_values_that_nest_deeper_than_python_can_follow_are_not_equal() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    other = deep[0]
    assert not holds("a == b", {"a": deep, "b": other})
    assert not holds("a in b", {"a": deep, "b": [other]})


def test_every_fact_is_known() -> None:
    assert set(FACTS) == set(FACTS_OF_ONE)
    for name in FACTS:
        assert holds(f"{name} == task.{name} and {name} != null")
