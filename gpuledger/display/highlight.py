"""The only module that colours Python: lines of tracebacks, and the code in them."""

from __future__ import annotations

import keyword
import re

from rich.text import Text

FILE_LINE = re.compile(
    r'(?P<file>\s*File ("[^"]*"))(?:, line (?P<line>\d+))?(?:, in (?P<name>.*))?'
)
ERROR_LINE = re.compile(r"(?P<kind>[^\W\d][\w.]*)(?::.*|$)")
CODE = re.compile(
    r"""(?P<string>\b[rbfuRBFU]{0,2}(?:"[^"]*"?|'[^']*'?)|"[^"]*"?|'[^']*'?)"""
    r"|(?P<comment>\#.*)|(?P<number>\b\d[\w.]*)|(?P<word>[^\W\d]\w*)(?P<call>\s*\()?"
)
KEYWORDS = frozenset(keyword.kwlist)


def highlight(line: str) -> Text:
    """Return one safe line of a traceback in colours that can be read on light and on dark."""
    text = Text(line)
    if not line[:1].isspace():
        found = ERROR_LINE.match(line)
        if found is None:
            text.stylize("dim")  # 'Traceback (most recent call last):', 'During handling of …'
        else:
            text.stylize("red")
            text.stylize("bold", *found.span("kind"))
        return text
    place = FILE_LINE.fullmatch(line)
    if place is None:
        return _code(text)
    text.stylize("dim")
    for group, style in (("file", "cyan"), ("line", "magenta"), ("name", "bold")):
        if place[group] is not None:
            text.stylize(f"not dim {style}", *place.span(group))
    return text


def _code(text: Text) -> Text:
    for token in CODE.finditer(text.plain):
        if token["string"]:
            text.stylize("green", *token.span("string"))
        elif token["comment"]:
            text.stylize("dim", *token.span("comment"))
        elif token["number"]:
            text.stylize("cyan", *token.span("number"))
        elif token["word"] in KEYWORDS:
            text.stylize("magenta", *token.span("word"))
        elif token["call"]:
            text.stylize("bold", *token.span("word"))
    return text
