"""Results in order, the best, groups over seeds, every step; as tables, CSV, JSON and parquet."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuledger.parquet import ColumnTypes
from gpuledger.results import Statistic, best_of, in_order, statistic
from gpuledger.steps import survey
from tests.cli_support import Lab, make_lab, run, sweep

NAN = math.nan


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Return two models × two seeds completed, with one pending task of each."""
    points = [{"model": "resnet18", "optimizer.lr": 0.1}, {"model": "vgg", "optimizer.lr": 1}]
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=points, seeds=(1, 2)))
    for acc in (0.5, 0.7, 0.9, 0.6):
        lab.complete(acc=acc, loss=1 - acc, note="fine")
    lab.ledger.add_sweep(sweep(points=points, seeds=(1, 2, 3)))
    return lab


def names(lab: Lab, *options: str) -> list[str]:
    return [row["task"] for row in rows(lab.run("results", *options).stdout)]


# --- order and the best -----------------------------------------------------------------------


def test_numbers_come_before_texts_and_what_is_none_comes_last() -> None:
    values = ["b", None, 2, NAN, "Infinity", 0.5, "NaN", "a", -3, True, [1]]
    order = [values[index] for index in in_order(values)]
    assert order[:7] == [-3, 0.5, 2, "Infinity", "a", "b", [1]]
    assert order[7] is True
    assert str(order[8:10]) == "[nan, 'NaN']"
    assert order[10] is None
    backwards = [values[index] for index in in_order(values, reverse=True)]
    assert backwards[:8] == order[:8][::-1]
    assert str(backwards[8:]) == "[nan, 'NaN', None]"


def test_equal_values_keep_their_order_both_ways() -> None:
    assert in_order([1, 1.0, 0, 1]) == [2, 0, 1, 3]
    assert in_order([1, 1.0, 0, 1], reverse=True) == [0, 1, 3, 2]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)


@given(values=st.lists(JSON), reverse=st.booleans())
def test_any_values_can_be_sorted_summed_up_and_searched(values: list[Any], reverse: bool) -> None:
    assert sorted(in_order(values, reverse=reverse)) == list(range(len(values)))
    best = best_of(values, smallest=reverse)
    assert best is None or values[best] is not None
    assert statistic(values).n <= len(values)


@pytest.mark.parametrize(
    ("values", "largest", "smallest"),
    [
        ([1, 3, 2], 1, 0),
        ([3, 1, 3, 1], 0, 1),
        ([None, "x", True, NAN, "Infinity", "-Infinity", 2], 6, 6),
        ([None, "NaN"], None, None),
        ([10**400, 5], 1, 1),
        ([], None, None),
    ],
)
def test_the_best_is_the_first_of_the_finite_numbers(
    values: list[Any], largest: int | None, smallest: int | None
) -> None:
    assert best_of(values) == largest
    assert best_of(values, smallest=True) == smallest


def test_sorting_by_a_metric_or_a_parameter(lab: Lab) -> None:
    rest = ["exp1_0_3", "exp1_1_3"]
    assert names(lab, "--sort", "acc") == ["exp1_0_1", "exp1_1_2", "exp1_0_2", "exp1_1_1", *rest]
    assert names(lab, "--sort", "result.acc", "-r") == [
        "exp1_1_1",
        "exp1_0_2",
        "exp1_1_2",
        "exp1_0_1",
        *rest,
    ]
    assert names(lab, "--sort", "model", "--reverse")[0] == "exp1_1_1"
    assert names(lab, "--sort", "seed")[:2] == ["exp1_0_1", "exp1_1_1"]


def test_the_best_task_and_that_of_each_group(lab: Lab) -> None:
    assert names(lab, "--best", "acc") == ["exp1_1_1"]
    assert names(lab, "--best", "loss", "--min") == ["exp1_1_1"]
    assert names(lab, "--best", "acc", "--by", "model") == ["exp1_0_2", "exp1_1_1"]
    assert names(lab, "--best", "acc", "--by", "seed", "--sort", "acc") == ["exp1_0_2", "exp1_1_1"]
    assert names(lab, "--best", "acc", "--state", "completed", "-w", "acc < 0.9") == ["exp1_0_2"]


# --- groups -----------------------------------------------------------------------------------


def test_groups_have_mean_deviation_and_number(lab: Lab) -> None:
    first, second = rows(lab.run("results", "--by", "model").stdout)
    assert list(first) == [
        *("model", "n"),
        *("acc.mean", "acc.std", "acc.n"),
        *("loss.mean", "loss.std", "loss.n"),
    ]
    assert (first["model"], first["n"], first["acc.n"]) == ("resnet18", "2", "2")
    assert float(first["acc.mean"]) == pytest.approx(0.6)
    assert float(first["acc.std"]) == pytest.approx(statistics.stdev([0.5, 0.7]))
    assert second["model"] == "vgg"
    assert float(second["acc.mean"]) == pytest.approx(0.75)


def test_groups_by_several_parameters_sorted_by_a_mean(lab: Lab) -> None:
    text = lab.run("results", "--by", "model,optimizer.lr", "--sort", "acc", "-r").stdout
    assert [(row["model"], row["optimizer.lr"]) for row in rows(text)] == [
        ("vgg", "1"),
        ("resnet18", "0.1"),
    ]
    text = lab.run("results", "--by", "model", "--by", "seed", "--sort", "seed").stdout
    assert [row["seed"] for row in rows(text)] == ["1", "1", "2", "2", "3", "3"]
    assert rows(text)[-1] == {
        **{"model": "vgg", "seed": "3", "n": "0"},
        **{"acc.mean": "", "acc.std": "", "acc.n": "0"},
        **{"loss.mean": "", "loss.std": "", "loss.n": "0"},
    }


def test_groups_as_json(lab: Lab) -> None:
    found = json.loads(
        lab.run("results", "--by", "model", "--format", "json", "--metrics", "acc").stdout
    )
    assert found[0] == {
        "by": {"model": "resnet18"},
        "n": 2,
        "tasks": 3,
        "metrics": {
            "acc": {
                "n": 2,
                "mean": pytest.approx(0.6),
                "std": pytest.approx(statistics.stdev([0.5, 0.7])),
            }
        },
    }


def test_a_seed_that_diverged_is_not_in_the_mean_and_its_absence_shows(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=[{"lr": 1}], seeds=(1, 2, 3)))
    for loss in (0.5, "NaN", "Infinity"):
        lab.complete(loss=loss)
    (row,) = rows(lab.run("results", "--by", "lr").stdout)
    assert (row["n"], row["loss.n"], row["loss.mean"], row["loss.std"]) == ("3", "1", "0.5", "")
    assert "0.5 (n=1)" in lab.run("results", "--by", "lr", "--format", "table").stdout


def test_the_statistics_of_extreme_numbers() -> None:
    assert statistic([]) == Statistic(n=0)
    assert statistic([3]) == Statistic(n=1, mean=3.0)
    assert statistic([True, "x", None, 10**400, NAN]) == Statistic(n=0)
    assert statistic([1.7e308, 1.7e308, -1.7e308]).n == 3


def test_a_table_of_groups(lab: Lab) -> None:
    shown = lab.run("results", "--by", "model", "--format", "table").stdout
    assert "0.6 ± 0.14" in shown
    assert "2/3" in shown
    assert shown.index("acc") < shown.index("loss")
    shown = lab.run("results", "--by", "model", "--sort", "loss", "--format", "table").stdout
    assert shown.index("loss") < shown.index("acc")


# --- columns and options ----------------------------------------------------------------------


def test_only_some_metrics(lab: Lab) -> None:
    header = lab.run("results", "--metrics", "loss,acc").stdout.splitlines()[0]
    assert header == '"task","sweep","state","seed","model","optimizer.lr","loss","acc"'
    found = json.loads(lab.run("results", "-m", "loss", "--format", "json").stdout)
    assert found[0]["metrics"] == {"loss": 0.5}


@pytest.mark.parametrize("option", ["--sort", "--best", "--by", "--metrics"])
def test_a_name_that_nothing_has_is_an_error_with_a_hint(lab: Lab, option: str) -> None:
    told = lab.run("results", option, "losss", exit_code=2).stderr
    assert "no selected task has a parameter or metric 'losss'" in told
    assert "did you mean loss?" in told


@pytest.mark.parametrize(
    "options",
    [
        ["--steps", "--sort", "acc"],
        ["--steps", "--by", "model"],
        ["--steps", "--format", "table"],
        ["--min"],
        ["--reverse"],
        ["--by", "model", "--sort", "optimizer.lr"],
        ["-o", "results"],
        ["-o", "results.xls"],
        ["-o", "results.csv", "--format", "table"],
        ["-o", "/nowhere/at/all.csv"],
    ],
)
def test_options_that_make_no_sense_are_refused(lab: Lab, options: list[str]) -> None:
    said = lab.run("results", *options, exit_code=2).stderr
    assert said.startswith("error: ")
    assert "hint: " in said


def test_no_task_at_all_is_no_mistake(lab: Lab) -> None:
    for options in (["--sort", "x"], ["--best", "x"], ["--by", "x"], ["--steps", "-m", "x"]):
        lab.run("results", "--state", "failed", *options)
        text = lab.run("results", "--state", "failed", *options, "--format", "json").stdout
        assert json.loads(text) == []
        if options[0] != "--steps":
            lab.run("results", "--state", "failed", *options, "--format", "table")


# --- steps ------------------------------------------------------------------------------------


def report(lab: Lab, attempt: str, *lines: str) -> None:
    path = lab.ledger.folder / "runs" / attempt.replace("#", "/attempt-")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".jsonl").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def reported(tmp_path: Path) -> Lab:
    """Return a task that failed once and then completed, and another that runs."""
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=[{"lr": 0.1}, {"lr": 1}]))
    lab.fail(fatal=False)
    lab.complete(loss=0.1)
    lab.claim()
    report(lab, "exp1_0_42#1", '{"step": 0, "total": 2, "metrics": {"loss": 0.9}}')
    report(
        lab,
        "exp1_0_42#2",
        '{"step": 0, "metrics": {"loss": 0.5}}',
        '{"step": 1, "metrics": {"loss": "NaN", "acc": 1}}',
        '{"torn',
    )
    report(lab, "exp1_1_42#1", '{"metrics": {"epoch": 3, "name": "warm-up"}}')
    return lab


def test_every_step_of_every_attempt(reported: Lab) -> None:
    found = rows(reported.run("results", "--steps").stdout)
    assert [(r["task"], r["attempt"], r["outcome"], r["step"], r["loss"]) for r in found] == [
        ("exp1_0_42", "1", "failed", "0", "0.9"),
        ("exp1_0_42", "2", "completed", "0", "0.5"),
        ("exp1_0_42", "2", "completed", "1", "NaN"),
        ("exp1_1_42", "1", "", "", ""),
    ]
    assert found[0]["worker"] == "host:gpu0"
    assert (found[3]["lr"], found[3]["state"], found[3]["epoch"]) == ("1", "running", "3")


def test_steps_as_json_and_with_some_metrics_only(reported: Lab) -> None:
    found = json.loads(reported.run("results", "--steps", "--format", "json", "-m", "acc").stdout)
    assert found == [
        {
            "task": "exp1_0_42",
            "sweep": "exp1",
            "state": "completed",
            "seed": 42,
            "attempt": 2,
            "worker": "host:gpu0",
            "outcome": "completed",
            "step": 1,
            "total": None,
            "params": {"lr": 0.1},
            "metrics": {"acc": 1},
        }
    ]


def test_steps_written_meanwhile_are_left_for_the_next_time(
    reported: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The columns and their types are known from a first reading; a running task goes on."""

    def survey_then_grow(records: Any) -> Any:
        found = survey(records)
        lines = ['{"metrics": {"epoch": 3, "name": "warm-up"}}', '{"metrics": {"epoch": "?"}}']
        report(reported, "exp1_1_42#1", *lines)
        return found

    monkeypatch.setattr("gpuledger.cli.rows.survey", survey_then_grow)
    file = tmp_path / "steps.parquet"
    reported.run("results", "--steps", "-o", str(file))
    assert pq.read_table(file).column("epoch").to_pylist() == [None, None, None, 3]


# --- files and parquet ------------------------------------------------------------------------


def test_parquet_has_typed_columns(tmp_path: Path) -> None:
    points = [
        {"lr": 0.1, "layers": 2, "amp": True, "depth": 18, "sizes": [1], "mixed": 1, "wide": 2**70},
        {"lr": 1, "layers": 3, "amp": False, "depth": 0.5, "sizes": [2], "mixed": "a", "wide": 1},
    ]
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=points))
    lab.complete(loss=0.25, epoch=3, tag="=1+1", only="Infinity")
    lab.complete(loss="NaN", epoch=4, flag=True)
    file = tmp_path / "results.parquet"
    assert "Written to" in lab.run("results", "-o", str(file)).stderr
    table = pq.read_table(file)
    assert {field.name: str(field.type) for field in table.schema} == {
        **{"task": "string", "sweep": "string", "state": "string", "seed": "int64"},
        **{"lr": "double", "layers": "int64", "amp": "bool", "depth": "double"},
        **{"sizes": "string", "mixed": "string", "wide": "string"},
        **{"loss": "double", "epoch": "int64", "tag": "string", "only": "string", "flag": "bool"},
    }
    first, second = table.to_pylist()
    assert (first["lr"], first["sizes"], first["mixed"]) == (0.1, "[1]", "1")
    assert (first["wide"], first["tag"], first["flag"]) == (str(2**70), "=1+1", None)
    assert math.isnan(second["loss"])


def test_half_a_surrogate_does_not_stop_parquet(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=[{"x": "a"}]))
    lab.complete(note="b\ud800")
    lab.run("results", "-o", str(tmp_path / "r.parquet"))
    assert pq.read_table(tmp_path / "r.parquet").column("note").to_pylist() == ["b?"]


def test_nor_does_half_a_surrogate_in_a_name(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=[{"x": "a"}]))
    lab.complete(**{"caf\udce9": 0.5})
    lab.run("results", "-o", str(tmp_path / "r.parquet"))
    assert pq.read_table(tmp_path / "r.parquet").column("caf?").to_pylist() == [0.5]


def test_the_readmes_line_for_pandas_reads_it(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in readme.splitlines() if "read_parquet" in line]
    monkeypatch.chdir(tmp_path)
    lab.run("results", "-o", "results.parquet")
    found = eval(line.strip(), {"pd": pd})
    assert found["resnet18"] == pytest.approx(0.6)


def test_parquet_through_a_pipe_and_of_groups(lab: Lab) -> None:
    data = lab.run("results", "--format", "parquet", "--by", "model").stdout_bytes
    frame = pd.read_parquet(io.BytesIO(data))
    assert list(frame["model"]) == ["resnet18", "vgg"]
    assert frame["acc.mean"].dtype == "float64"
    assert frame["acc.n"].dtype == "int64"


def test_many_rows_of_parquet_are_written_in_pieces(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuledger.parquet.ROWS_AT_ONCE", 2)
    file = tmp_path / "r.parquet"
    lab.run("results", "-o", str(file))
    assert pq.ParquetFile(file).num_row_groups == 3
    assert pq.read_table(file).num_rows == 6


def test_parquet_is_not_for_a_terminal(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuledger.cli.results.is_terminal", lambda: True)
    assert "-o results.parquet" in lab.run("results", "--format", "parquet", exit_code=2).stderr


def test_without_pyarrow_it_says_how_to_get_it(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    told = lab.run("results", "-o", str(tmp_path / "x.parquet"), exit_code=69).stderr
    assert "pip install 'pyarrow>=14'" in told
    assert not (tmp_path / "x.parquet").exists()


@given(column=st.lists(JSON, min_size=1))
def test_a_type_is_found_for_any_values(column: list[Any]) -> None:
    from gpuledger.parquet import write_parquet

    types = ColumnTypes(1)
    for value in column:
        types.see([value])
    file = io.BytesIO()
    write_parquet(file, ["x"], types.types(), [[value] for value in column])
    kept = pq.read_table(io.BytesIO(file.getvalue())).column("x").to_pylist()
    assert [value is None for value in kept] == [value is None for value in column]


def test_a_file_is_replaced_whole_or_not_at_all(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "out.csv"
    lab.run("results", "-o", str(file))
    before = file.read_text()
    assert before == lab.run("results").stdout
    file.chmod(0o640)

    def full(*arguments: Any) -> None:
        arguments[0].write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpuledger.cli.rows._write_csv", full)
    told = lab.run("results", "-o", str(file), exit_code=2).stderr
    assert "no space left on device; it is as it was" in told
    assert file.read_text() == before
    monkeypatch.undo()
    link = tmp_path / "link.csv"
    link.symlink_to(file)
    lab.run("results", "-o", str(link), "--sweep", "exp1", "--state", "pending")
    assert link.is_symlink()
    assert len(file.read_text().splitlines()) == 3
    assert file.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".gpuledger",
        "link.csv",
        "out.csv",
    ]
    lab.run("results", "-o", "/dev/null", "--format", "csv")
    assert Path("/dev/null").is_char_device()


def test_text_that_looks_like_a_formula_is_not_mangled_and_numbers_stay_numbers(
    tmp_path: Path,
) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=[{"x": "=cmd()", "y": -1, "z": "-1"}]))
    assert '"=cmd()",-1,"-1"' in lab.run("results").stdout


def test_help_names_every_format() -> None:
    shown = run("results", "--help", env={"COLUMNS": "200"}).stdout
    for word in ("table", "csv", "json", "parquet", "--sort", "--best", "--by", "--steps"):
        assert word in shown
