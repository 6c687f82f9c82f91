"""`--where`: a small language that selects tasks by what they are, read once, then asked often.

    lr > 0.01 and model in ("resnet18", "resnet50") and not result.val_acc >= 0.9

Nothing here runs what a user typed: the text becomes frozen values, and `holds` walks them.
There are no functions and no arithmetic. What is compared is what the ledger keeps (JSON):

* A task that lacks a name, or has null there, meets no comparison with it; only `== null` and
  `!= null` ask for just that.
* A number never equals a text, nor is it smaller or larger; `!=` tells them apart. Whole numbers
  and others are compared by value, true and false are no numbers.
* `in` looks into a list; `"res" in model` looks for a part of a text.
* A value alone counts as in Python: 0, "", null, false and an empty list do not hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SCOPES = frozenset({"params", "result", "task"})
"""What may stand before a name, with a dot, to say where it is looked up."""

MOST_CHARACTERS = 10_000
MOST_NESTED = 50
MOST_DIGITS = 300

FACTS = (
    "task",
    "sweep",
    "state",
    "seed",
    "priority",
    "failures",
    "losses",
    "attempts",
)
"""What every task has, beside its parameters and its result; `attempts` is their number."""

WORDS: Mapping[str, Any] = {
    "true": True,
    "True": True,
    "false": False,
    "False": False,
    "null": None,
    "None": None,
}
KEYWORDS = frozenset({"and", "or", "not", "in", *WORDS})
COMPARISONS = frozenset({"==", "!=", "<", "<=", ">", ">="})

SLIPS: Mapping[str, str] = {
    "=": "compare with '=='",
    "=>": "say '>='",
    "=<": "say '<='",
    "<>": "say '!='",
    "===": "compare with '=='",
    "!==": "compare with '!='",
    "&&": "say 'and'",
    "&": "say 'and'",
    "||": "say 'or'",
    "|": "say 'or'",
    "!": "say 'not'",
    "~": "there are no patterns; a part of a text is found by '\"part\" in name'",
    "=~": "there are no patterns; a part of a text is found by '\"part\" in name'",
    ";": "join conditions with 'and'",
}

TOKEN = re.compile(
    r"\s+"
    r"|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))"
    r"|(?P<name>[^\W\d][\w/@-]*(?:\.[\w/@-]+)*)"
    r"|(?P<text>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
    r"|(?P<sign>[=!<>&|~]+|[()\[\],;+-])",
    re.DOTALL,
)


class BadWhere(Exception):
    """A condition that cannot be read; its text continues a sentence about it."""

    def __init__(self, problem: str, *, hint: str | None = None) -> None:
        super().__init__(problem)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Name:
    """A value of the task.

    Attributes:
        name: As the task knows it, dots included.
        scope: `params`, `result` or `task` when the condition says so; None means whichever has
            it: a fact of every task, else a parameter, else a metric of the result.
    """

    name: str
    scope: str | None = None


@dataclass(frozen=True, slots=True)
class Literal:
    """A value that stands in the condition itself."""

    value: Any


@dataclass(frozen=True, slots=True)
class Items:
    """A list that stands in the condition itself."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """`a < b <= c`: every pair of neighbours must hold."""

    first: Node
    rest: tuple[tuple[str, Node], ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The contrary."""

    node: Node


@dataclass(frozen=True, slots=True)
class All:
    """`and`."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """`or`."""

    nodes: tuple[Node, ...]


Node = Name | Literal | Items | Comparison | Not | All | Either


@dataclass(frozen=True, slots=True)
class Where:
    """A condition, read and ready to be asked of many tasks.

    Attributes:
        text: As the user wrote it.
        node: What it means.
        names: Every name in it, each once.
    """

    text: str
    node: Node
    names: tuple[Name, ...]

    def holds(self, task: Task) -> bool:
        """Tell whether a task meets the condition."""
        return bool(_value(self.node, task))


@dataclass(frozen=True, slots=True)
class Task:
    """One task, as a condition sees it.

    Attributes:
        params: Its parameters.
        facts: By the names in `FACTS`.
        result: Called at most when a name is in neither of them; returns the metrics.
    """

    params: Mapping[str, Any]
    facts: Mapping[str, Any]
    result: Callable[[], Mapping[str, Any]]

    def get(self, name: Name) -> Any:
        """Return the value of a name; None when the task has none."""
        if name.scope == "params":
            return self.params.get(name.name)
        if name.scope == "result":
            return self.result().get(name.name)
        if name.name in FACTS or name.scope == "task":
            return self.facts.get(name.name)
        if name.name in self.params:
            return self.params[name.name]
        return self.result().get(name.name)


def parse_where(text: str) -> Where:
    """Return what a condition means.

    Raises:
        BadWhere: It cannot be read; the message says where.
    """
    if len(text) > MOST_CHARACTERS:
        raise BadWhere(
            f"is {len(text):,} characters long",
            hint=f"{MOST_CHARACTERS:,} are the most; 'gpuledger tasks --names' with xargs takes"
            " any list of tasks",
        )
    reader = _Reader(text)
    node = reader.either()
    reader.expect_end()
    return Where(text=text, node=node, names=tuple(dict.fromkeys(_names(node))))


# --- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # number, name, text, sign, end
    text: str
    at: int  # counts from 1


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while at < len(text):
        found = TOKEN.match(text, at)
        if found is None:
            raise _unreadable(text, at)
        if found.lastgroup is not None:
            yield _Token(found.lastgroup, found[0], at + 1)
        at = found.end()
    yield _Token("end", "", len(text) + 1)


def _unreadable(text: str, at: int) -> BadWhere:
    if text[at] in "'\"":
        return BadWhere(f"has a text that does not end, from character {at + 1} on")
    if text[at].isdigit() or text[at] == ".":
        word = re.match(r"[\w.]*", text[at:])
        return BadWhere(
            f"has {_shown(word[0] if word else text[at])} at character {at + 1},"
            " which is no number",
            hint="a text stands in quotes: 'model == \"resnet18\"'",
        )
    if text[at] in "*/%^":
        return BadWhere(
            f"has {text[at]!r} at character {at + 1}: there is no arithmetic",
            hint="compare names and values only, as in 'lr > 0.01 and model == \"resnet18\"'",
        )
    return BadWhere(f"has {text[at]!r} at character {at + 1}, which means nothing there")


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:37] + "...")


class _Reader:
    """Reads a condition from left to right; each method reads one kind of thing."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = next(self._tokens)
        self._depth = 0

    def either(self) -> Node:
        """Read conditions joined with `or`."""
        self._depth += 1
        if self._depth > MOST_NESTED:
            raise BadWhere(
                f"nests more than {MOST_NESTED} deep at character {self._next.at}",
                hint="leave parentheses out where 'and' binds tighter than 'or' anyway",
            )
        nodes = [self._both()]
        while self._take("or"):
            nodes.append(self._both())
        self._depth -= 1
        return nodes[0] if len(nodes) == 1 else Either(tuple(nodes))

    def expect_end(self) -> None:
        """Raise BadWhere when something follows."""
        if self._next.kind != "end":
            raise self._surprise("where 'and', 'or' or a comparison was expected")

    def _both(self) -> Node:
        nodes = [self._negated()]
        while self._take("and"):
            nodes.append(self._negated())
        return nodes[0] if len(nodes) == 1 else All(tuple(nodes))

    def _negated(self) -> Node:
        contrary = False
        while self._take("not"):
            contrary = not contrary
        node = self._comparison()
        return Not(node) if contrary else node

    def _comparison(self) -> Node:
        first = self._operand()
        rest: list[tuple[str, Node]] = []
        while (sign := self._comparison_sign()) is not None:
            rest.append((sign, self._container() if sign.endswith("in") else self._operand()))
        return Comparison(first, tuple(rest)) if rest else first

    def _comparison_sign(self) -> str | None:
        token = self._next
        if token.kind == "sign" and token.text in COMPARISONS:
            self._advance()
            return token.text
        if self._take("in"):
            return "in"
        if self._take("not"):
            if not self._take("in"):
                raise self._surprise("where 'in' was expected after 'not'")
            return "not in"
        return None

    def _container(self) -> Node:
        """Read what follows `in`: parentheses are a list there."""
        return self._items(")") if self._next.text == "(" else self._operand()

    def _operand(self) -> Node:
        token = self._next
        if token.kind == "text":
            self._advance()
            return Literal(_unquoted(token.text))
        if token.kind == "number" or (token.kind == "sign" and token.text in "+-"):
            return Literal(self._number())
        if token.kind == "name" and token.text not in KEYWORDS:
            self._advance()
            return self._name(token)
        if token.kind == "name" and token.text in WORDS:
            self._advance()
            return Literal(WORDS[token.text])
        if token.text == "[" and token.kind == "sign":
            return self._items("]")
        if token.text == "(" and token.kind == "sign":
            self._advance()
            node = self.either()
            self._close(")", token)
            return node
        raise self._surprise("where a name or a value was expected")

    def _items(self, end: str) -> Node:
        opened = self._next
        self._advance()
        self._depth += 1
        items: list[Node] = []
        while not (self._next.kind == "sign" and self._next.text == end):
            items.append(self._item())
            if not self._take(","):
                break
        self._depth -= 1
        self._close(end, opened)
        return Items(tuple(items))

    def _item(self) -> Node:
        if self._depth > MOST_NESTED:
            raise BadWhere(f"nests more than {MOST_NESTED} deep at character {self._next.at}")
        return self._operand()

    def _name(self, token: _Token) -> Name:
        """Return a name, `result["val acc"]` included."""
        if self._next.text == "[" and self._next.kind == "sign" and token.text in SCOPES:
            opened = self._next
            self._advance()
            if self._next.kind != "text" or token.text == "task":
                raise self._surprise("where a name in quotes was expected")
            name = _unquoted(self._next.text)
            self._advance()
            self._close("]", opened)
            return Name(name, token.text)
        scope, _, rest = token.text.partition(".")
        if not rest or scope not in SCOPES:
            return Name(token.text)
        if scope == "task" and rest not in FACTS:
            raise BadWhere(
                f"has {_shown(token.text)} at character {token.at}, which no task has",
                hint=f"known: {', '.join(FACTS)}",
            )
        return Name(rest, scope)

    def _number(self) -> int | float:
        negative = False
        while self._next.kind == "sign" and self._next.text in ("+", "-"):
            negative ^= self._next.text == "-"
            self._advance()
        token = self._next
        if token.kind != "number":
            raise self._surprise("where a number was expected")
        if len(token.text) > MOST_DIGITS:
            raise BadWhere(f"has a number of {len(token.text):,} digits at character {token.at}")
        whole = token.text.isdigit()
        value: int | float = int(token.text) if whole else float(token.text)
        if not whole and math.isinf(value):
            raise BadWhere(f"has a number that is too large at character {token.at}")
        self._advance()
        return -value if negative else value

    def _take(self, word: str) -> bool:
        """Step over a keyword or a sign, if it comes next."""
        if self._next.kind in ("name", "sign") and self._next.text == word:
            self._advance()
            return True
        return False

    def _close(self, end: str, opened: _Token) -> None:
        if not self._take(end):
            if self._next.kind == "end":
                raise BadWhere(f"has {opened.text!r} at character {opened.at} that is not closed")
            raise self._surprise(f"where {end!r} or 'and', 'or' was expected")

    def _advance(self) -> None:
        self._next = next(self._tokens)

    def _surprise(self, expected: str) -> BadWhere:
        token = self._next
        if token.kind == "end":
            return BadWhere(f"ends {expected}")
        hint = SLIPS.get(token.text) if token.kind == "sign" else None
        if token.kind == "name" and token.text.lower() in KEYWORDS and hint is None:
            hint = f"write it in small letters: {token.text.lower()}"
        elif token.kind == "name" and hint is None:
            hint = "a text stands in quotes: 'model == \"resnet18\"'"
        return BadWhere(f"has {_shown(token.text)} at character {token.at}, {expected}", hint=hint)


def _unquoted(text: str) -> str:
    r"""Return what stands between quotes; a backslash keeps its meaning but before \ and quotes."""
    return re.sub(r"\\(['\"\\])", r"\1", text[1:-1])


def _names(node: Node) -> Iterator[Name]:
    match node:
        case Name():
            yield node
        case Not(inner):
            yield from _names(inner)
        case All(nodes) | Either(nodes) | Items(nodes):
            for one in nodes:
                yield from _names(one)
        case Comparison(first, rest):
            yield from _names(first)
            for _, one in rest:
                yield from _names(one)


# --- asking -----------------------------------------------------------------------------------


def _value(node: Node, task: Task) -> Any:
    match node:
        case Name():
            return task.get(node)
        case Literal(value):
            return value
        case Comparison(first, rest):
            return _compared(first, rest, task)
        case All(nodes):
            return all(_value(one, task) for one in nodes)
        case Either(nodes):
            return any(_value(one, task) for one in nodes)
        case Not(inner):
            return not _value(inner, task)
        case Items(items):
            return [_value(one, task) for one in items]


def _compared(first: Node, rest: tuple[tuple[str, Node], ...], task: Task) -> bool:
    left_node, left = first, _value(first, task)
    for sign, node in rest:
        right = _value(node, task)
        for_null = _is_null(left_node) or _is_null(node)
        if not _holds(sign, left, right, for_null=for_null):
            return False
        left_node, left = node, right
    return True


def _is_null(node: Node) -> bool:
    return isinstance(node, Literal) and node.value is None


def _holds(sign: str, left: Any, right: Any, *, for_null: bool) -> bool:
    if sign == "in":
        return _contains(right, left)
    if sign == "not in":
        return left is not None and right is not None and not _contains(right, left)
    if left is None or right is None:
        both = left is None and right is None
        return for_null and (both if sign == "==" else sign == "!=" and not both)
    if sign == "==":
        return _same(left, right)
    if sign == "!=":
        return not _same(left, right)
    return _ordered(sign, left, right)


def _contains(container: Any, value: Any) -> bool:
    if isinstance(container, str):
        return isinstance(value, str) and value in container
    if not isinstance(container, list):
        return False
    return any(_same(value, item) for item in container)


def _ordered(sign: str, left: Any, right: Any) -> bool:
    comparable = (_is_number(left) and _is_number(right)) or (
        isinstance(left, str) and isinstance(right, str)
    )
    if not comparable:
        return False
    match sign:
        case "<":
            return bool(left < right)
        case "<=":
            return bool(left <= right)
        case ">":
            return bool(left > right)
        case _:
            return bool(left >= right)


def _same(left: Any, right: Any, depth: int = 0) -> bool:
    """Tell whether two JSON values are equal; 1 and 1.0 are, 1 and true are not."""
    if depth > MOST_NESTED:
        return False
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(
            _same(one, other, depth + 1) for one, other in zip(left, right, strict=True)
        )
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(
            _same(value, right[key], depth + 1) for key, value in left.items()
        )
    if _is_number(left) and _is_number(right):
        return bool(left == right)
    return type(left) is type(right) and bool(left == right)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
