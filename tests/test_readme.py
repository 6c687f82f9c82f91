"""README says what is true: its commands exist, its examples are read, its keys are known."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gpuledger import sweep, sweep_words
from gpuledger.cli.app import COMMANDS
from gpuledger.model import Outcome, TaskState
from gpuledger.spec import RunSettings
from tests.shell import environment

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [ROOT / "README.md", *sorted(ROOT.glob("examples/*/README.md"))]


def readme() -> str:
    return TEXTS[0].read_text(encoding="utf-8")


def commands_in(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    lines = re.findall(r"^(?: {4})?((?:pip install .*&& )?gpuledger [a-z].*)$", text, re.MULTILINE)
    return [line.partition("#")[0].rpartition("&& ")[2].strip() for line in lines]


@pytest.mark.parametrize(
    "command", sorted({command for path in TEXTS for command in commands_in(path)})
)
def test_every_command_and_option_that_is_shown_exists(command: str) -> None:
    words = shlex.split(command)
    name = words[1]
    assert name in COMMANDS
    shown = subprocess.run(
        [sys.executable, "-m", "gpuledger", name, "--help"],
        env=environment(COLUMNS="200"),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for word in words[2:]:
        option = word.partition("=")[0]
        if option.startswith("-"):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", shown), option


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"gpuledger {name}" in readme()


@pytest.mark.parametrize(
    "key", [*sweep_words.TOP_KEYS, *sweep_words.RUN_KEYS, *sweep_words.RESOURCE_KEYS]
)
def test_every_key_of_a_sweep_file_is_in_the_readme(key: str) -> None:
    assert re.search(rf"[`\[]{key}[`\]=]", readme()), key


@pytest.mark.parametrize("word", [*TaskState, *Outcome])
def test_every_state_and_outcome_is_in_the_readme(word: str) -> None:
    assert word in readme()


def test_the_sweep_file_of_the_readme_is_one(tmp_path: Path) -> None:
    text = re.findall(r"```toml\n(.*?)```", readme(), re.DOTALL)
    assert len(text) == 1
    file = tmp_path / "sweep.toml"
    file.write_text(text[0], encoding="utf-8")

    spec = sweep.read_sweep(file)

    assert spec.task_count == 18
    assert spec.settings == RunSettings(
        command=("python", "train.py", "{args}", "--seed={seed}"), workdir=str(tmp_path)
    )


@pytest.mark.parametrize("file", sorted(ROOT.glob("examples/*/sweep.toml")))
def test_the_examples_sweep_files_are_read(file: Path) -> None:
    assert sweep.read_sweep(file).task_count >= 12


def test_what_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", readme()):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
