"""report: one file, written whole or not at all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli_support import make_lab, sweep


def data_in(text: str) -> dict[str, Any]:
    """Return the data that a page shows."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match
    found: dict[str, Any] = json.loads(match[1])
    return found


def test_a_report_has_tasks_failures_and_curves(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    claim = lab.complete(loss=0.25)
    log = lab.write_log(claim, b"out\n")
    log.with_suffix(".jsonl").write_text('{"step": 1, "metrics": {"loss": 0.25}}\n')
    lab.fail()
    page = tmp_path / "out" / "exp.html"
    page.parent.mkdir()

    said = lab.run("report", "-o", str(page), "--title", "First try").stdout

    assert said.startswith(f"Wrote {page}: 3 tasks, ")
    found = data_in(page.read_text(encoding="utf-8"))
    assert found["title"] == "First try"
    assert found["tasks"]["name"] == ["exp1_0_42", "exp1_1_42", "exp1_2_42"]
    assert found["causes"][0]["error"] == "FileNotFoundError: data"
    assert found["curves"]["metrics"][0]["curves"] == [[0, [0.25]]]
    linked = page.parent / found["logs"] / claim.task / f"attempt-{claim.number}.log"
    assert linked.read_bytes() == b"out\n"
    assert [file.name for file in page.parent.iterdir()] == ["exp.html"]


def test_links_are_urls_also_where_folders_have_odd_names(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / "50% #1" / ".gpuledger")
    lab.run("report", "-o", str(tmp_path / "r.html"))
    found = data_in((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert found["logs"] == "./50%25%20%231/.gpuledger/runs"


def test_one_sweep_alone(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep(), sweep("exp2"))
    lab.run("report", "--sweep", "exp2", "-o", str(tmp_path / "r.html"))
    found = data_in((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert found["title"] == "exp2"
    assert {name.split("_")[0] for name in found["tasks"]["name"]} == {"exp2"}
    assert "no sweep is named" in lab.run("report", "--sweep", "exp3", exit_code=65).stderr


def test_to_the_standard_output_links_are_absolute(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    text = lab.run("report", "-o", "-").stdout
    assert text.startswith("<!DOCTYPE html>")
    assert data_in(text)["logs"] == (tmp_path / ".gpuledger" / "runs").as_uri()


def test_a_terminal_is_spared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuledger.cli.report.is_terminal", lambda: True)
    lab = make_lab(tmp_path / ".gpuledger")
    failed = lab.run("report", "-o", "-", exit_code=2)
    assert failed.stdout == ""
    assert "too much for a terminal" in failed.stderr


def test_a_former_report_is_replaced_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    page = tmp_path / "report.html"
    page.write_text("former")
    link = tmp_path / "link.html"
    link.symlink_to(page)
    reader = page.open()  # somebody has it open meanwhile
    lab.run("report", "-o", str(link))
    assert link.is_symlink()
    with reader:
        assert reader.read() == "former"
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")

    def full(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    page.write_text("former")
    monkeypatch.setattr(Path, "write_bytes", full)
    failed = lab.run("report", "-o", str(page), exit_code=75)
    assert "No space left on device; nothing was changed" in failed.stderr
    assert page.read_text() == "former"
    assert not list(tmp_path.glob(".report*"))


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    for target, problem in (
        (str(tmp_path), "is not a file"),
        ("/dev/null", "is not a file"),
        (str(tmp_path / "no" / "r.html"), "there is no folder"),
    ):
        failed = lab.run("report", "-o", target, exit_code=2)
        assert problem in failed.stderr
        assert "nothing was written" in failed.stderr
    assert not Path("/dev/null").is_file()


def test_without_plotly_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    lab = make_lab(tmp_path / ".gpuledger")
    failed = lab.run("report", "-o", str(tmp_path / "r.html"), exit_code=69)
    assert "needs the Python package plotly" in failed.stderr
    assert "hint: pip install plotly" in failed.stderr
    assert not (tmp_path / "r.html").exists()


def test_reading_changes_nothing(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    lab.complete(loss=0.5)
    before = (lab.ledger.folder / "ledger.db").read_bytes()
    lab.run("report", "-o", str(tmp_path / "r.html"))
    assert (lab.ledger.folder / "ledger.db").read_bytes() == before
