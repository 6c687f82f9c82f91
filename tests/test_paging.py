"""Lists of any length: pages of tasks, forwards and backwards, and a text to look for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpuledger import queries, snapshots
from gpuledger.errors import UnknownTask
from gpuledger.ledger import Ledger
from gpuledger.model import TaskState
from gpuledger.selection import Selection
from tests.cli_support import Lab, make_lab, sweep


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    points: list[dict[str, Any]] = [
        {"lr": 0.1, "model.name": "ResNet18"},
        {"lr": 0.01, "model.name": 'with "quotes"'},
        {"lr": 1e-5, "model.name": "学習"},
    ]
    return make_lab(tmp_path / ".gpuledger", sweep("a", points=points), sweep("b"))


def names(lab: Lab, selection: Selection | None = None, **options: Any) -> list[str]:
    return [record.task for record in lab.ledger.tasks(selection, **options)]


def before(lab: Lab, selection: Selection | None = None, **options: Any) -> list[str]:
    return [record.task for record in lab.ledger.tasks_before(selection, **options)]


def test_pages_follow_each_other_without_gap_or_overlap(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "PAGE", 2)
    everything = names(lab)
    assert everything == ["a_0_42", "a_1_42", "a_2_42", "b_0_42", "b_1_42", "b_2_42"]
    assert names(lab, limit=2) + names(lab, limit=4, after="a_1_42") == everything
    assert names(lab, after="a_1_42") == everything[2:]
    assert names(lab, after="b_2_42") == []
    assert before(lab, limit=2) == everything[-2:]
    assert before(lab, limit=3, before="b_1_42") == everything[1:4]
    assert before(lab, limit=9, before="a_0_42") == []
    with pytest.raises(UnknownTask, match="no task is named 'a_9_42'"):
        names(lab, after="a_9_42")


def test_pages_keep_to_the_selection(lab: Lab) -> None:
    lab.complete()
    pending = Selection(states=frozenset({TaskState.PENDING}))
    assert names(lab, pending, limit=1, after="a_0_42") == ["a_1_42"]
    assert before(lab, pending, limit=9, before="a_2_42") == ["a_1_42"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a_1", ["a_1_42"]),
        ("A_1_42", ["a_1_42"]),
        ("lr=0.1", ["a_0_42", "b_0_42"]),
        ("model.name=resnet18", ["a_0_42"]),
        ('with "quotes"', ["a_1_42"]),
        ("学習", ["a_2_42"]),
        ("_", ["a_0_42", "a_1_42", "a_2_42", "b_0_42", "b_1_42", "b_2_42"]),
        ("%", []),
        ("42 out of memory", ["a_0_42"]),
        ("keyerror", ["a_1_42"]),
    ],
)
def test_a_text_is_found_in_name_parameters_and_last_error(
    lab: Lab, text: str, found: list[str]
) -> None:
    lab.fail("CUDA: 42 out of memory")
    lab.fail("KeyError: 'x'")
    assert names(lab, Selection(text=text)) == found


def test_old_failures_are_found_when_all_recent_ones_are_mended(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "RECENT_FAILURES", 2)
    lab.fail("OSError: the old one")
    for _ in range(2):
        claim = lab.fail("KeyError: passing", fatal=False)
        lab.complete()
        assert lab.ledger.task(claim.task).state is TaskState.COMPLETED
    views = lab.ledger.snapshot().failures
    assert [(view.task, view.error) for view in views] == [("a_0_42", "OSError: the old one")]
    assert lab.ledger.snapshot(sweep="b").failures == ()


def test_more_failures_than_are_shown_are_said_to_be_more(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        lab.fail("KeyError: 'x'")
    assert "3 tasks: KeyError" in lab.run("status", "--once").stdout
    monkeypatch.setattr(snapshots, "FAILURES_SHOWN", 2)
    assert "2+ tasks: KeyError" in lab.run("status", "--once").stdout


def test_what_was_found_is_the_same_in_another_process(lab: Lab) -> None:
    again = Ledger.open(lab.ledger.folder)
    assert [record.task for record in again.tasks_before(limit=1)] == ["b_2_42"]
