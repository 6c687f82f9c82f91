"""tasks and show: which tasks are listed, in which form, and one task whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuledger.selection import Selection
from tests.cli_support import TRACEBACK, Lab, make_lab, sweep


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Two sweeps of three: completed, failed, running; cancelled, pending, pending."""
    lab = make_lab(tmp_path / ".gpuledger", sweep("exp1"), sweep("exp2"))
    lab.complete(loss=0.5)
    lab.fail("RuntimeError: CUDA out of memory", traceback="")
    lab.claim()
    lab.ledger.cancel(Selection(names=("exp2_0_42",)))
    return lab


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["exp1_0", "exp1_1", "exp1_2", "exp2_0", "exp2_1", "exp2_2"]),
        (["--state", "pending"], ["exp2_1", "exp2_2"]),
        (["--state", "completed", "--state", "running"], ["exp1_0", "exp1_2"]),
        (["--failed"], ["exp1_1"]),
        (["--failed", "--state", "cancelled"], ["exp1_1", "exp2_0"]),
        (["--sweep", "exp2"], ["exp2_0", "exp2_1", "exp2_2"]),
        (["--sweep", "exp2", "--failed"], []),
        (["--error", "cuda OUT"], ["exp1_1"]),
        (["--worker", "host:gpu0"], ["exp1_0", "exp1_1", "exp1_2"]),
        (["--limit", "2"], ["exp1_0", "exp1_1"]),
        (["--limit", "0", "--sweep", "exp1"], ["exp1_0", "exp1_1", "exp1_2"]),
    ],
)
def test_options_narrow_the_list(lab: Lab, options: list[str], expected: list[str]) -> None:
    names = lab.run("tasks", "--names", *options).stdout.splitlines()
    assert names == [f"{name}_42" for name in expected]
    listed = json.loads(lab.run("tasks", "--json", *options).stdout)
    assert [task["task"] for task in listed] == names
    table = lab.run("tasks", *options).stdout
    assert [line.split()[0] for line in table.splitlines()[1:]] == names


def test_json_has_the_shape_of_the_contract(lab: Lab) -> None:
    completed, failed, running, *_ = json.loads(lab.run("tasks", "--json").stdout)
    assert list(completed) == [
        "task",
        "sweep",
        "state",
        "params",
        "seed",
        "failures",
        "losses",
        "max_attempts",
        "last_error",
        "result",
        "attempts",
    ]
    assert completed["params"] == {"lr": 0.1}
    assert completed["result"] == {"loss": 0.5}
    assert failed["last_error"] == "RuntimeError: CUDA out of memory"
    (attempt,) = failed["attempts"]
    assert list(attempt) == [
        "number",
        "worker",
        "place",
        "outcome",
        "exit_code",
        "signal",
        "started_at",
        "ended_at",
        "error",
        "traceback",
        "log",
        "memory_peak_mib",
        "gpu_memory_mib",
        "origin",
    ]
    assert (attempt["worker"], attempt["outcome"], attempt["exit_code"]) == (
        "host:gpu0",
        "failed",
        1,
    )
    assert attempt["started_at"].endswith("Z")
    assert attempt["log"].endswith("/runs/exp1_1_42/attempt-1.log")
    assert running["attempts"][0]["outcome"] is None
    assert running["attempts"][0]["ended_at"] is None


def test_a_terminal_gets_the_first_tasks_and_is_told_of_the_rest(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuledger.cli.tasks.is_terminal", lambda: True)
    monkeypatch.setattr("gpuledger.cli.tasks.ROWS_ON_A_TERMINAL", 4)
    result = lab.run("tasks")
    assert len(result.stdout.splitlines()) == 5
    assert "--limit 0 lists all" in result.stderr
    assert len(lab.run("tasks", "--limit", "0").stdout.splitlines()) == 7
    assert lab.run("tasks", "--limit", "3").stderr == ""
    assert len(json.loads(lab.run("tasks", "--json").stdout)) == 6


def test_no_such_task_is_no_error_and_prints_no_row(lab: Lab) -> None:
    result = lab.run("tasks", "--error", "no such text")
    assert result.stdout == ""
    assert "No task is like that" in result.stderr
    assert json.loads(lab.run("tasks", "--error", "no such text", "--json").stdout) == []


def test_show_has_parameters_attempts_and_the_whole_traceback(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    lab.fail(fatal=False)
    lab.fail()
    shown = lab.run("show", "exp1_0_42").stdout
    assert "0.1" in shown
    assert TRACEBACK.strip() in shown
    assert shown.count("host:gpu0") >= 2
    whole = json.loads(lab.run("show", "exp1_0_42", "--json").stdout)
    assert whole["attempts"][1]["traceback"] == TRACEBACK
    assert whole == json.loads(lab.run("tasks", "--json", "--limit", "1").stdout)[0]


def test_show_of_an_unknown_task_suggests_one(lab: Lab) -> None:
    told = lab.run("show", "exp1_0_24", exit_code=65).stderr
    assert "no task is named 'exp1_0_24'" in told
    assert "did you mean exp1_0_42?" in told
