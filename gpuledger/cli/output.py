"""Prints: results to stdout, all else to stderr, and nothing raw that a task or a file said."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import TYPE_CHECKING, Any

import typer

from gpuledger.display.text import clean

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPE_CELLS = 400
"""Width of what goes into a file or a pipe: only what is longer than any line is cut."""


def echo(text: str = "") -> None:
    """Print lines of text to stdout; control characters in it are shown, not obeyed."""
    sys.stdout.write(clean(text) + "\n")


def note(text: str) -> None:
    """Tell the user something that is no result: it goes to stderr."""
    typer.echo(clean(text), err=True)


def echo_error(problem: str, *, hint: str | None = None) -> None:
    """Print an error as two lines to stderr: what, and what next."""
    coloured = sys.stderr.isatty() and is_colourful()
    typer.echo(
        (typer.style("error:", fg="red") if coloured else "error:") + f" {clean(problem)}", err=True
    )
    if hint:
        typer.echo(f" hint: {clean(hint)}", err=True)


def echo_json(value: Any) -> None:
    """Print one JSON value, ASCII only; numbers that JSON does not know (NaN) become null."""
    indent = 2 if is_terminal() else None
    try:
        text = json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        text = json.dumps(finite(value), indent=indent, allow_nan=False)
    sys.stdout.write(text + "\n")


def echo_table(*renderables: RenderableType) -> None:
    """Print what rich draws: in the terminal's width, or unshortened into a pipe."""
    console = make_console()
    with console.capture() as drawn:
        for renderable in renderables:
            console.print(renderable)
    # Written by hand, since rich ends the process itself when nobody reads the pipe any more.
    sys.stdout.write(drawn.get())


def make_console() -> Console:
    """Return a console on stdout that takes no text for markup."""
    from rich.console import Console  # its import costs as much as a whole small command

    wide = not is_terminal() and not os.environ.get("COLUMNS")
    return Console(width=PIPE_CELLS if wide else None, highlight=False, markup=False, emoji=False)


def is_terminal() -> bool:
    """Tell whether stdout is read by a person."""
    return sys.stdout.isatty()


def is_colourful() -> bool:
    """Tell whether the user wants colours, where there is a terminal."""
    return not os.environ.get("NO_COLOR") and not is_dumb()


def is_dumb() -> bool:
    """Tell whether the terminal can only print: no colours, no way back."""
    return os.environ.get("TERM", "dumb") in ("dumb", "unknown", "")


def finite(value: Any) -> Any:
    """Return a JSON value with null for every number that JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
