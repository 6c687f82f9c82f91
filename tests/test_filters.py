"""Filters mean the same to every command; a condition is asked where the change is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpuledger import chosen, queries
from gpuledger.model import TaskState
from gpuledger.selection import Selection
from gpuledger.where import parse_where
from tests.cli_support import Lab, make_lab, sweep

POINTS = (
    {"lr": 0.1, "model": "resnet18", "optimizer.lr": 1},
    {"lr": 0.01, "model": "resnet18", "optimizer.lr": 2},
    {"lr": 0.01, "model": "vgg", "optimizer.lr": 3},
    {"lr": 0.001, "model": "vgg"},
)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Return four tasks: completed, failed, failed, pending; and one of another sweep."""
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=POINTS), sweep("two", points=[{"x": 1}]))
    lab.complete(acc=0.9, **{"val/acc": 0.8})
    lab.fail("E: one")
    lab.fail("E: two")
    return lab


def listed(lab: Lab, *filters: str) -> list[str]:
    return lab.run("tasks", "--names", *filters).stdout.split()


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        ("lr == 0.01", ["exp1_1_42", "exp1_2_42"]),
        ('model == "vgg" and lr < 0.005', ["exp1_3_42"]),
        ("optimizer.lr >= 2", ["exp1_1_42", "exp1_2_42"]),
        ("optimizer.lr == null", ["exp1_3_42", "two_0_42"]),
        ("x == 1", ["two_0_42"]),
        ('state == "failed"', ["exp1_1_42", "exp1_2_42"]),
        ("failures == 1 and attempts == 1", ["exp1_1_42", "exp1_2_42"]),
        ("acc > 0.5 and result.val/acc == 0.8 and seed == 42", ["exp1_0_42"]),
        ('task in ("exp1_3_42", "two_0_42") and sweep != "two"', ["exp1_3_42"]),
        ("lr > 5", []),
    ],
)
def test_tasks_are_listed_by_condition(lab: Lab, condition: str, names: list[str]) -> None:
    assert listed(lab, "--where", condition) == names


def test_every_filter_narrows(lab: Lab) -> None:
    assert listed(lab, "-w", "lr == 0.01", "--error", "two") == ["exp1_2_42"]
    assert listed(lab, "-w", "lr == 0.01", "--state", "pending") == []
    assert listed(lab, "-w", "seed == 42", "--sweep", "two") == ["two_0_42"]
    assert listed(lab, "-w", "lr > 0.05", "--worker", "host:gpu0") == ["exp1_0_42"]
    assert listed(lab, "-w", "seed == 42", "--limit", "2") == ["exp1_0_42", "exp1_1_42"]


def test_results_take_the_same_filters(lab: Lab) -> None:
    text = lab.run(
        "results", "--format", "json", "--where", 'model == "vgg"', "--error", "E"
    ).stdout
    assert [row["task"] for row in json.loads(text)] == ["exp1_2_42"]
    text = lab.run("results", "--format", "json", "--worker", "host:gpu0").stdout
    assert len(json.loads(text)) == 3


def changed(lab: Lab, *arguments: str) -> list[str]:
    names: list[str] = json.loads(lab.run(*arguments, "--json").stdout)["names"]
    return names


def test_retry_means_failed_tasks_unless_told(lab: Lab) -> None:
    assert changed(lab, "retry", "--where", "lr <= 0.1") == ["exp1_1_42", "exp1_2_42"]


def test_retry_of_a_state_is_of_that_state(lab: Lab) -> None:
    lab.run("cancel", "--where", "lr == 0.001")
    assert changed(lab, "retry", "--state", "cancelled", "-w", "lr < 1") == ["exp1_3_42"]
    assert changed(lab, "retry", "--failed", "--worker", "host:gpu0", "-w", 'model == "vgg"') == [
        "exp1_2_42"
    ]
    told = lab.run("retry", "--state", "completed", "-w", "lr < 1").stdout
    assert "Completed tasks are retried with --completed." in told
    assert changed(lab, "retry", "--state", "completed", "--completed") == ["exp1_0_42"]


def test_retry_by_a_condition_on_results_redoes_completed_ones_when_told(lab: Lab) -> None:
    assert changed(lab, "retry", "--completed", "--where", "result.acc > 0.5") == ["exp1_0_42"]


def test_cancel_and_set_take_conditions(lab: Lab) -> None:
    selected = ["--where", 'model == "vgg"', "--state", "pending"]
    assert json.loads(lab.run("set", *selected, "--priority", "5", "--json").stdout)["changed"] == 1
    assert changed(lab, "cancel", *selected) == ["exp1_3_42"]
    assert changed(lab, "cancel", "--state", "pending") == ["two_0_42"]
    assert changed(lab, "cancel", "--worker", "host:gpu0", "--error", "one") == ["exp1_1_42"]


def test_a_running_task_meets_its_condition_although_the_change_moves_it(lab: Lab) -> None:
    claim = lab.claim()
    told = json.loads(lab.run("cancel", "-w", 'state == "running"', "--json").stdout)
    assert (claim.task, told["running"], told["changed"]) == ("exp1_3_42", 1, 0)


@pytest.mark.parametrize("command", ["cancel", "set"])
def test_without_a_filter_nothing_is_changed(lab: Lab, command: str) -> None:
    options = ["--priority", "1"] if command == "set" else []
    told = lab.run(command, *options, exit_code=2).stderr
    assert "nothing was changed" in told
    assert "--where" in told


@pytest.mark.parametrize(
    ("condition", "problem", "hint"),
    [
        ("lrr > 0.1", "no task has a parameter or metric 'lrr'", "did you mean lr?"),
        ("model == vgg", "no task has a parameter or metric 'vgg'", "a text stands in quotes"),
        ("params.acc > 0", "no task has a parameter 'acc'", "lr, model, optimizer.lr, x"),
        ("result.lr > 0", "no task has a metric 'lr'", "acc, val/acc"),
        ("lr = 0.1", "'=' at character 4", "'=='"),
        ("lr >", "--where ends where", "for example"),
    ],
)
@pytest.mark.parametrize("command", ["tasks", "results", "cancel", "set --priority 1"])
def test_a_slip_is_an_error_with_a_hint(
    lab: Lab, command: str, condition: str, problem: str, hint: str
) -> None:
    told = lab.run(*command.split(), "--where", condition, exit_code=2).stderr
    assert problem in told
    assert hint in told
    assert "no task was selected" in told


def test_a_slip_of_retry_is_told_what_failed_tasks_have(lab: Lab) -> None:
    told = lab.run("retry", "--failed", "--where", "modle == 1", exit_code=2).stderr
    assert "no task has a parameter or metric 'modle'" in told
    assert "did you mean model?" in told
    assert lab.ledger.snapshot().counts.failed == 2


def test_a_metric_that_nobody_reported_yet_is_no_mistake(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    assert listed(lab, "--where", "result.acc > 0.9") == []
    assert listed(lab, "--sweep", "exp1", "--state", "failed", "--where", "anything > 1") == []


def test_a_parameter_with_the_name_of_a_fact_must_be_said_apart(tmp_path: Path) -> None:
    points = [{"state": "solid", "lr": 1}, {"state": "gas", "lr": 1}]
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=points))
    told = lab.run("cancel", "--where", 'state == "gas"', exit_code=2).stderr
    assert "say params.state or task.state" in told
    assert listed(lab, "--where", 'params.state == "gas"') == ["exp1_1_42"]
    assert len(listed(lab, "--where", 'task.state == "pending"')) == 2


def test_a_name_inside_a_structure_is_no_parameter(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=[{"net": {"deep": 1}}]))
    assert "no task has" in lab.run("tasks", "-w", "deep == 1", exit_code=2).stderr


def test_metrics_that_sqlite_cannot_read_as_json_do_no_harm(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    lab.complete(loss=float("nan"), acc=0.5)
    lab.complete(loss=0.1, acc=0.7)
    assert listed(lab, "-w", "acc > 0.4") == ["exp1_0_42", "exp1_1_42"]
    assert listed(lab, "-w", "loss < 1") == ["exp1_1_42"]


def test_pages_join_to_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=[{"x": x} for x in range(50)]))
    even = [f"exp1_{x}_42" for x in range(0, 50, 5)]
    condition = parse_where(f"x in [{', '.join(str(x) for x in range(0, 50, 5))}]")
    for scanned, page in ((1, 2000), (7, 2000), (20_000, 3), (10, 1)):
        monkeypatch.setattr(chosen, "PAGE", scanned)
        monkeypatch.setattr(queries, "PAGE", page)
        found = lab.ledger.tasks(Selection(where=condition))
        assert [record.task for record in found] == even
        assert [r.task for r in lab.ledger.tasks(Selection(where=condition), limit=4)] == even[:4]


def test_selection_and_change_are_one_transaction(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between asking the condition and changing what it means, nobody else gets the lock."""
    held: list[bool] = []
    ids_where = chosen.ids_where

    def looking(*arguments: Any) -> list[int]:
        found = ids_where(*arguments)
        held.append(arguments[0].in_transaction)
        return found

    monkeypatch.setattr(chosen, "ids_where", looking)
    writes: list[str] = []
    store = type(lab.ledger.store)
    write = store.write

    def noted(self: Any, work: Any, *, operation: str, **more: Any) -> Any:
        writes.append(operation)
        return write(self, work, operation=operation, **more)

    monkeypatch.setattr(store, "write", noted)
    where = parse_where("lr == 0.01")
    assert lab.ledger.retry(Selection(where=where)).changed == 2
    assert lab.ledger.cancel(Selection(where=where)).changed == 2
    assert lab.ledger.set_priority(Selection(where=where), 3) == 0
    assert writes == ["retry", "cancel", "set"]
    assert held == [True, True, True]


def test_a_lost_attempt_counts_as_a_loss_in_a_condition(lab: Lab) -> None:
    claim = lab.claim()
    lab.ledger.reap({claim.token.nonce: lambda: True})
    assert listed(lab, "--where", "losses == 1 and failures == 0") == [claim.task]


def test_error_and_condition_go_together_in_python_too(lab: Lab) -> None:
    selection = Selection(
        error="one", states=frozenset({TaskState.FAILED}), where=parse_where("lr < 1")
    )
    assert [record.task for record in lab.ledger.tasks(selection)] == ["exp1_1_42"]
