"""The Tab key, as shells ask for it: names of commands, options, tasks, sweeps and workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli_support import Lab, make_lab, sweep

PROGRAM = Path(sys.executable).with_name("gpuledger")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return make_lab(tmp_path / ".gpuledger", sweep("exp1", seeds=[1, 2]), sweep("zoo"))


def complete(shell: str, words: str, cwd: Path) -> list[str]:
    """Return what the program offers a shell for the last of these words."""
    asked = {
        "bash": {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": words},
        "fish": {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    done = subprocess.run(
        [PROGRAM],
        cwd=cwd,
        env={**os.environ, "_GPULEDGER_COMPLETE": f"complete_{shell}", **asked},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    text = done.stdout.replace("_arguments '*: :((", " ").replace("))'", " ").replace('"', " ")
    return [word for word in text.split() if word != "_files"]  # what zsh does without any


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_names_of_tasks(lab: Lab, tmp_path: Path, shell: str) -> None:
    assert complete(shell, "gpuledger show exp1_1", tmp_path) == ["exp1_1_1", "exp1_1_2"]
    assert complete(shell, "gpuledger show nothing", tmp_path) == []


@pytest.mark.parametrize("command", ["show", "logs", "retry", "cancel", "set"])
def test_every_command_about_tasks_completes_their_names(
    lab: Lab, tmp_path: Path, command: str
) -> None:
    assert complete("bash", f"gpuledger {command} exp1_2_", tmp_path) == ["exp1_2_1", "exp1_2_2"]


def test_a_second_name_and_names_of_a_ledger_elsewhere(lab: Lab, tmp_path: Path) -> None:
    assert complete("bash", "gpuledger retry exp1_0_1 zoo_1", tmp_path) == ["zoo_1_42"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    line = f"gpuledger show --ledger {lab.ledger.folder} zoo_1"
    assert complete("bash", line, Path("/")) == ["zoo_1_42"]
    assert complete("bash", "gpuledger show zoo_1", Path("/")) == []


def test_names_of_sweeps_workers_and_states(lab: Lab, tmp_path: Path) -> None:
    assert complete("bash", "gpuledger tasks --sweep z", tmp_path) == ["zoo"]
    assert complete("bash", "gpuledger resume e", tmp_path) == ["exp1"]
    assert complete("bash", "gpuledger tasks --worker h", tmp_path) == ["host:gpu0"]
    lab.ledger.leave(lab.worker.nonce)  # the tasks that it ran are still there
    assert complete("bash", "gpuledger tasks --worker h", tmp_path) == ["host:gpu0"]
    assert complete("bash", "gpuledger results --state pen", tmp_path) == ["pending"]
    assert complete("bash", "gpuledger results --format par", tmp_path) == ["parquet"]
    assert complete("bash", "gpuledger resu", tmp_path) == ["results", "resume"]
    assert complete("bash", "gpuledger results --wh", tmp_path) == ["--where"]


def test_it_is_installed_for_a_shell_and_works_there(lab: Lab, tmp_path: Path) -> None:
    """A real bash, with the file that --install-completion wrote, is asked what Tab would show."""
    home = tmp_path / "home"
    home.mkdir()
    env = {
        **os.environ,
        "HOME": str(home),
        "SHELL": "/bin/bash",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
        "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}",
    }
    installed = subprocess.run(
        [PROGRAM, "--install-completion", "bash"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr
    (script,) = home.rglob("*.sh")
    assert str(script) in (home / ".bashrc").read_text(encoding="utf-8")
    asked = subprocess.run(
        [
            "bash",
            "--norc",
            "-c",
            f"source {script}; COMP_WORDS=(gpuledger show exp1_1); COMP_CWORD=2;"
            ' _gpuledger_completion gpuledger; printf "%s\\n" "${COMPREPLY[@]}"',
        ],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert asked.stdout.split() == ["exp1_1_1", "exp1_1_2"], asked.stderr
