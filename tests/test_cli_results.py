"""results: what the tasks reported, for tables and for programs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.cli_support import Lab, make_lab, sweep


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_a_row_a_task_with_parameters_and_metrics_as_columns(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    lab.complete(loss=0.25, epoch=10)
    lab.fail()
    found = rows(lab.run("results").stdout)
    assert found[0] == {
        "task": "exp1_0_42",
        "sweep": "exp1",
        "state": "completed",
        "seed": "42",
        "lr": "0.1",
        "loss": "0.25",
        "epoch": "10",
    }
    assert [(row["state"], row["loss"]) for row in found[1:]] == [("failed", ""), ("pending", "")]


def test_json_has_parameters_and_metrics_apart(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    lab.complete(loss=0.25)
    found = json.loads(lab.run("results", "--format", "json", "--state", "completed").stdout)
    assert found == [
        {
            "task": "exp1_0_42",
            "sweep": "exp1",
            "state": "completed",
            "seed": 42,
            "params": {"lr": 0.1},
            "metrics": {"loss": 0.25},
        }
    ]


def test_names_that_occur_twice_are_told_apart(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=[{"task": "a", "loss": "l1"}]))
    lab.complete(loss=0.5, seed=7)
    (row,) = rows(lab.run("results").stdout)
    assert row["task"] == "exp1_0_42"
    assert row["param.task"] == "a"
    assert (row["loss"], row["metric.loss"]) == ("l1", "0.5")
    assert (row["seed"], row["metric.seed"]) == ("42", "7")


HOSTILE = ['=HYPERLINK("x")', 'quote " comma , semicolon ;', "two\nlines", "-1+1", "@SUM", "é☃"]


@pytest.mark.parametrize("value", HOSTILE)
def test_text_comes_back_from_csv_unchanged_and_is_always_quoted(
    tmp_path: Path, value: str
) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=[{"x": value}]))
    text = lab.run("results").stdout
    assert rows(text)[0]["x"] == value
    assert f'"{value.replace(chr(34), 2 * chr(34))}"' in text


def test_structures_become_json_and_booleans_words(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=[{"sizes": [1, 2], "amp": True}]))
    (row,) = rows(lab.run("results").stdout)
    assert (row["sizes"], row["amp"]) == ("[1, 2]", "true")


def test_a_metric_that_is_no_number_is_null_in_json_and_said_in_csv(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=[{}]))
    lab.complete(loss=float("nan"), best=[float("inf"), 1.0])
    text = lab.run("results", "--format", "json").stdout

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(text, parse_constant=refuse)
    assert found[0]["metrics"] == {"loss": None, "best": [None, 1.0]}
    assert rows(lab.run("results").stdout)[0]["loss"] == "nan"


def test_a_ledger_without_tasks_gives_a_header_or_an_empty_list(tmp_path: Path) -> None:
    lab: Lab = make_lab(tmp_path / ".gpuledger", sweep(points=[]))
    assert lab.run("results").stdout == '"task","sweep","state","seed"\n'
    assert json.loads(lab.run("results", "--format", "json").stdout) == []


def test_a_terminal_gets_a_table_and_no_control_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=[{"x": "\x1b[2Jevil"}, {"x": "good"}]))
    for module in ("results", "rows"):
        monkeypatch.setattr(f"gpuledger.cli.{module}.is_terminal", lambda: True)
    for options in ([], ["--format", "csv"], ["--format", "table"]):
        shown = lab.run("results", *options).stdout
        assert "good" in shown
        assert r"\x1b[2Jevil" in shown
        assert "\x1b" not in shown
    assert lab.run("results").stdout == lab.run("results", "--format", "table").stdout


def test_a_metric_named_as_a_parameter_has_a_column_of_its_own(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    lab.complete(lr=0.5, state=1)
    lab.complete(lr=0.7)
    table = lab.run("results", "--format", "table").stdout
    heading = next(line for line in table.splitlines() if line.startswith("task"))
    assert heading.split() == ["task", "state", "seed", "lr", "metric.lr", "metric.state"]
    chosen = lab.run("results", "--format", "csv", "--metrics", "lr").stdout
    assert chosen.splitlines()[0] == '"task","sweep","state","seed","lr","metric.lr"'
