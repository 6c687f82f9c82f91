"""The report's data and text: what is counted, grouped, cut and escaped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gpuledger.errors import Unavailable
from gpuledger.model import Outcome, TaskState
from gpuledger.report import curves, data, page
from gpuledger.reports import read_spread
from tests.report_support import (
    NO_CURVES,
    START,
    attempt,
    data_of,
    failed_attempt,
    many,
    snapshot_of,
    task,
)

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\u2028\x1b[31m\u202e"


# --- data -----------------------------------------------------------------------------------------


def test_a_ledger_without_tasks_has_a_report() -> None:
    found = data_of([])
    assert found["total"] == 0
    assert found["span"] is None
    assert found["tasks"]["name"] == found["attempts"]["task"] == found["causes"] == []


def test_counts_time_and_span_are_those_of_the_attempts() -> None:
    late: dict[str, Any] = {"started_at": START + 100.5, "duration_s": 20.0}
    found = data_of([task(0, 0, attempt()), task(1, 0, failed_attempt(**late)), task(2, 0)])
    assert found["counts"] == {
        "pending": 1,
        "running": 0,
        "completed": 1,
        "failed": 1,
        "cancelled": 0,
    }
    assert found["origin"] == START
    assert found["span"] == [0.0, 120.5]
    assert found["time"]["completed"] == 10.0
    assert found["time"]["failed"] == 20.0


def test_an_open_attempt_lasts_until_now_and_none_lasts_less_than_nothing() -> None:
    running = attempt(outcome=None, ended_at=None, duration_s=None)
    back = attempt(ended_at=START - 50, duration_s=None)
    found = data_of([task(0, 0, running), task(1, 0, back)])
    assert found["attempts"]["duration"] == [3600.0, 0.0]
    assert [found["outcomes"][i] for i in found["attempts"]["outcome"]] == ["running", "completed"]


def test_progress_counts_a_task_once_and_a_failed_attempt_each_time() -> None:
    twice = task(
        0,
        0,
        failed_attempt(1, ended_at=START + 5),
        attempt(2, started_at=START + 10, ended_at=START + 20),
    )
    lost = task(
        1,
        0,
        failed_attempt(1, ended_at=START + 6),
        failed_attempt(2, ended_at=START + 30, outcome=Outcome.OOM),
        state=TaskState.FAILED,
    )
    progress = data_of([twice, lost])["progress"]
    assert progress["completed"] == {"at": [20.0], "count": [1]}
    assert progress["failed"] == {"at": [30.0], "count": [1]}
    assert progress["attempts"] == {"at": [5.0, 6.0, 30.0], "count": [1, 2, 3]}


def test_a_long_progress_is_thinned_and_keeps_its_last_count() -> None:
    records = [task(i, 0, attempt(ended_at=START + i)) for i in range(2_501)]
    line = data_of(records)["progress"]["completed"]
    assert len(line["at"]) <= data.STEPS_SHOWN + 1
    assert (line["at"][-1], line["count"][-1]) == (2500.0, 2501)
    assert all(count == at + 1 for at, count in zip(line["at"], line["count"], strict=True))


def test_failures_of_the_same_cause_are_one_group_whatever_numbers_they_name() -> None:
    records = [
        task(i, 0, failed_attempt(1, error=f"OSError: file {i}", traceback=f"tb {i}",
                                  worker=f"host{i % 2}:gpu{i}", ended_at=START + i))
        for i in range(5)
    ]  # fmt: skip
    records.append(task(9, 0, failed_attempt(1, error="OSError: file 9", outcome=Outcome.OOM)))
    first, second = data_of(records)["causes"]
    assert (first["outcome"], first["attempts"], first["tasks"]) == ("failed", 5, 5)
    assert (first["error"], first["traceback"], first["latest"]) == ("OSError: file 4", "tb 4", 4.0)
    assert first["hosts"] == [("host0", 3), ("host1", 2)]
    assert first["examples"][0] == ["exp1_0_0", 1]
    assert (second["outcome"], second["attempts"]) == ("oom", 1)


def test_causes_beyond_the_limit_are_counted_together() -> None:
    words = ["".join(chr(97 + int(digit)) for digit in str(i)) for i in range(120)]
    records = [task(i, 0, failed_attempt(1, error=word)) for i, word in enumerate(words)]
    causes = data_of(records)["causes"]
    assert len(causes) == data.CAUSES_SHOWN + 1
    assert (causes[-1]["error"], causes[-1]["attempts"]) == (None, 20)
    assert sum(cause["attempts"] for cause in causes) == 120


def test_interrupted_and_cancelled_attempts_are_no_failures() -> None:
    records = [
        task(0, 0, attempt(outcome=Outcome.INTERRUPTED), state=TaskState.PENDING),
        task(1, 0, attempt(outcome=Outcome.CANCELLED), state=TaskState.CANCELLED),
    ]
    found = data_of(records)
    assert found["causes"] == []
    assert found["progress"]["attempts"]["at"] == []


def test_parameters_that_never_differ_stand_apart() -> None:
    records = [
        task(0, 0, params={"lr": 0.1, "model": "a", "amp": True}),
        task(1, 0, params={"lr": 0.2, "model": "a", "amp": True}),
        task(2, 0, params={"lr": 0.2, "model": "a", "amp": True, "extra": None}),
    ]
    found = data_of(records)
    assert found["fixed"] == [["model", "a"], ["amp", "true"]]
    assert found["params"] == [["lr", [0.1, 0.2, 0.2]], ["extra", [None, None, "null"]]]


def test_values_are_numbers_that_javascript_can_hold_or_texts() -> None:
    values = [1, 0.5, 2**53 + 1, math.nan, math.inf, True, [1, 2], "x"]
    found = data_of([task(i, 0, params={"x": value}) for i, value in enumerate(values)])
    assert found["params"][0][1] == [
        1, 0.5, "9007199254740993", "nan", "inf", "true", "[1, 2]", "x",
    ]  # fmt: skip
    json.dumps(found, allow_nan=False)


def test_metrics_are_those_of_completed_tasks() -> None:
    records = [
        task(0, 0, attempt(), result={"loss": 0.5, "note": "fine"}),
        task(1, 0, failed_attempt(metrics={"loss": 9.0})),
    ]
    assert data_of(records)["metrics"] == [["loss", [0.5, None]], ["note", ["fine", None]]]


def test_more_tasks_than_are_shown_are_still_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "TASKS_SHOWN", 10)
    found = data_of(many(30))
    assert len(found["tasks"]["name"]) == 10
    assert max(found["attempts"]["task"]) == 9
    assert found["total"] == 30
    assert sum(found["counts"].values()) == 30
    assert found["progress"]["completed"]["count"][-1] == found["counts"]["completed"] > 10


def test_every_text_is_cleaned() -> None:
    bad = failed_attempt(1, error=HOSTILE, traceback=f"line\n{HOSTILE}", worker=f"{HOSTILE}:gpu0")
    record = task(0, 0, bad, sweep=HOSTILE, params={HOSTILE: HOSTILE}, result={HOSTILE: HOSTILE})
    found = data_of([record, task(1, 0, params={HOSTILE: 1})], title=HOSTILE)
    text = json.dumps(found, ensure_ascii=False)
    for raw in ("\x1b", "\\u001b", "\u2028", "\u202e"):
        assert raw not in text
    assert found["causes"][0]["traceback"].startswith("line\n</script>")


def test_a_long_traceback_keeps_its_end() -> None:
    long = "x" * 100_000 + "\nValueError: the end"
    (cause,) = data_of([task(0, 0, failed_attempt(1, traceback=long))])["causes"]
    assert len(cause["traceback"]) <= data.TRACEBACK_CHARS + 1
    assert cause["traceback"].endswith("ValueError: the end")


@pytest.mark.parametrize(
    ("worker", "host"), [("ada:gpu2", "ada"), ("ada:cpu#2", "ada"), ("odd", "odd")]
)
def test_the_host_is_read_from_the_workers_name(worker: str, host: str) -> None:
    assert data.host_of(worker) == host


def test_the_headline_is_the_sweep_or_the_folder() -> None:
    assert data.default_title(snapshot_of([task()])) == "exp1"
    assert data.default_title(snapshot_of([task(), task(sweep="exp2")])) == "lab"


# --- the text of the page -------------------------------------------------------------------------


def test_data_can_end_no_script_and_begin_no_markup() -> None:
    text = page.embedded({"a": HOSTILE, "b": "<!--"})
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": HOSTILE, "b": "<!--"}


def test_the_page_has_each_part_once_and_puts_nothing_into_what_it_put_in() -> None:
    found = data_of([task(params={"x": "@PLOTLY@ @DATA@"})], title="<b>@SCRIPT@</b>")
    text = page.page(found, plotly="var Plotly = '@DATA@';", version="1.2")
    assert text.count("var Plotly = '@DATA@';") == 1
    assert "<title>&lt;b&gt;@SCRIPT@&lt;/b&gt;</title>" in text
    assert text.count("</script>") == 3
    assert "@PLOTLY@ @DATA@" in text


def test_the_policy_forbids_the_network_and_every_other_script() -> None:
    text = page.page(data_of([]), plotly="1;", version="1")
    policy = text.partition('Content-Security-Policy" content="')[2].partition('"')[0]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = policy.partition("script-src ")[2].partition(";")[0]
    assert "unsafe-inline" not in scripts
    assert "http" not in policy


def test_no_script_of_ours_writes_markup() -> None:
    folder = Path(page.__file__).parent
    for name in page.SCRIPTS:
        text = (folder / name).read_text(encoding="utf-8")
        for danger in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert danger not in text, name


def test_without_plotly_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(Unavailable) as caught:
        page.plotly_script()
    assert caught.value.hint == "pip install plotly"
    assert caught.value.exit_code == 69


# --- learning curves ------------------------------------------------------------------------------


def write_reports(path: Path, *reports: dict[str, Any]) -> str:
    """Write what a script reported; return the path of the log beside it."""
    lines = [
        json.dumps(
            {
                **({"step": one.pop("step")} if "step" in one else {}),
                "metrics": one,
            }
        )
        for one in reports
    ]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path.with_suffix(".log"))


def test_curves_have_the_steps_of_all_tasks_and_gaps_where_one_has_none(tmp_path: Path) -> None:
    logs = [
        write_reports(tmp_path / "a.jsonl", {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}),
        write_reports(tmp_path / "b.jsonl", {"step": 2, "loss": 0.75}, {"step": 3, "loss": "NaN"}),
    ]
    found = curves.read_curves([task(i, 0, attempt(log=log)) for i, log in enumerate(logs)])
    assert found == {
        "read": 2,
        "of": 2,
        "metrics": [
            {
                "name": "loss",
                "steps": [1, 2],
                "averaged": None,
                "curves": [[0, [0.5, 0.25]], [1, [None, 0.75]]],
            }
        ],
    }


def test_reports_without_a_step_are_counted(tmp_path: Path) -> None:
    log = write_reports(tmp_path / "a.jsonl", {"loss": 3.0}, {"loss": 2.0})
    (metric,) = curves.read_curves([task(0, 0, attempt(log=log))])["metrics"]
    assert (metric["steps"], metric["curves"]) == ([0, 1], [[0, [3, 2]]])


@pytest.mark.parametrize(
    ("second", "steps", "values"),
    [
        ([{"step": 3, "loss": 30.0}], [1, 2, 3], [1, 2, 30]),  # resumed
        ([{"step": 1, "loss": 10.0}], [1], [10]),  # began anew: nothing of the first is left
    ],
)
def test_a_later_attempt_replaces_from_its_first_step_on(
    tmp_path: Path, second: list[dict[str, Any]], steps: list[int], values: list[int]
) -> None:
    first = [{"step": step, "loss": float(step)} for step in (1, 2, 3)]
    attempts = [
        attempt(number, log=write_reports(tmp_path / f"attempt-{number}.jsonl", *reports))
        for number, reports in ((1, first), (2, second))
    ]
    (metric,) = curves.read_curves([task(0, 0, *attempts)])["metrics"]
    assert (metric["steps"], metric["curves"]) == (steps, [[0, values]])


def test_many_steps_become_few_means(tmp_path: Path) -> None:
    reports = [{"step": step, "loss": float(step % 2)} for step in range(12_000)]
    log = write_reports(tmp_path / "a.jsonl", *reports)
    (metric,) = curves.read_curves([task(0, 0, attempt(log=log))])["metrics"]
    (_, values) = metric["curves"][0]
    assert len(metric["steps"]) == len(values) == curves.STEPS_SHOWN
    assert metric["averaged"] == pytest.approx(11_999 / (curves.STEPS_SHOWN - 1), rel=1e-5)
    assert all(value == pytest.approx(0.5, abs=0.02) for value in values)


def test_of_many_tasks_every_nth_point_is_read_with_all_its_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "TASKS_READ", 10)
    log = write_reports(tmp_path / "a.jsonl", {"step": 1, "loss": 0.5})
    records = [task(point, seed, attempt(log=log)) for point in range(10) for seed in range(3)]
    found = curves.read_curves(records)
    read = [records[i].task for i, _ in found["metrics"][0]["curves"]]
    assert (found["read"], found["of"]) == (9 + 1, 30)
    assert read[:6] == [f"exp1_{point}_{seed}" for point in (0, 3) for seed in range(3)]


def test_a_file_that_is_missing_torn_or_odd_spoils_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 1, "metrics": {"loss": 0.5}}\nnull\n\xff\n{"step": 2, "met')
    good = task(0, 0, attempt(log=str(path.with_suffix(".log"))))
    missing = task(1, 0, attempt(log=str(tmp_path / "none.log")))
    (metric,) = curves.read_curves([good, missing])["metrics"]
    assert metric["curves"] == [[0, [0.5]]]
    assert curves.read_curves([]) == NO_CURVES


def test_a_long_file_is_read_in_pieces_from_its_first_to_its_last_report(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_reports(path, *({"step": step, "loss": 0.5} for step in range(50_000)))
    size = path.stat().st_size
    steps = [report.step for report in read_spread(path, limit_bytes=size // 10)]
    assert steps == sorted(set(steps))  # type: ignore[type-var]
    assert (steps[0], steps[-1]) == (0, 49_999)
    assert 4_000 < len(steps) < 5_100
    assert len(list(read_spread(path, limit_bytes=size))) == 50_000
