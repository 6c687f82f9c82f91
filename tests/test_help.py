"""--help of every command: a sentence, the options, and examples that can be typed as they are."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer.main

from gpuledger.cli.app import COMMANDS, app
from tests.cli_support import run


def shown(command: str) -> str:
    return run(command, "--help", env={"COLUMNS": "200"}).stdout


def examples(command: str) -> list[str]:
    """Return the lines under `Examples:`."""
    _, heading, rest = shown(command).partition("\n  Examples:\n")
    assert heading, f"{command} --help has no section Examples"
    return [line.strip() for line in rest.partition("\n\n")[0].splitlines()]


def parsed(words: list[str]) -> Any:
    """Read a command line as the program does, and run nothing."""
    group: Any = typer.main.get_command(app)
    with group.make_context("gpuledger", words) as context:
        name, command, rest = group.resolve_command(context, words)
        return command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_a_sentence_options_and_examples(command: str) -> None:
    usage, _, rest = shown(command).strip().partition("\n\n")
    assert re.match(rf"Usage: \S+ {command} ", usage)
    sentence = rest.strip().partition("\n\n")[0]
    assert re.match(r"[A-Z][a-z].*\.", sentence), sentence
    assert "\nOptions:\n" in rest
    assert 2 <= len(examples(command)) <= 4


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_can_be_typed(command: str) -> None:
    for line in examples(command):
        words = shlex.split(line)
        assert words[:2] == ["gpuledger", command]
        while "gpuledger" in words:  # a pipe may end in another
            words = words[words.index("gpuledger") + 1 :]
            ends = [words.index(sign) for sign in ("|", ">") if sign in words]
            parsed(words[: min(ends, default=len(words))])


def test_an_example_with_a_slip_would_be_noticed() -> None:
    for words in (["results", "--formatt", "csv"], ["tasks", "--state", "lost"], ["shwo", "x"]):
        with pytest.raises(Exception, match=r"(?i)no such|not one of|is not"):
            parsed(words)


@pytest.mark.parametrize("command", ["tasks", "results", "retry", "cancel", "set"])
def test_filters_are_the_same_everywhere(command: str) -> None:
    text = shown(command)
    others = shown("tasks")
    for option in ("--state", "-s, --sweep", "--error", "--worker", "-w, --where"):
        (line,) = [line for line in text.splitlines() if line.strip().startswith(option)]
        assert line.split() in [other.split() for other in others.splitlines()]


def test_the_conditions_in_the_help_are_read() -> None:
    from gpuledger.where import parse_where

    found = [
        parse_where(condition).text
        for command in COMMANDS
        for line in examples(command)
        for condition in re.findall(r"--where '([^']+)'", line)
    ]
    assert len(found) >= 4
