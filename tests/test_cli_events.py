"""events: what happened, once and while it happens."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpuledger.cli.events import followed
from gpuledger.errors import LedgerBusy
from gpuledger.ledger import Ledger
from gpuledger.views import Event
from tests.cli_support import make_lab
from tests.helpers import wait_until


def test_failures_are_told_in_the_familiar_line(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    lab.fail("FileNotFoundError: data", fatal=False)
    told = lab.run("events").stdout
    assert (
        "Task exp1_0_42 failed on host:gpu0 (attempt 1/3): FileNotFoundError: data. Reassigning."
        in told
    )


def test_only_the_latest_are_shown(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    for _ in range(3):
        lab.complete()
    assert len(json.loads(lab.run("events", "-n", "2", "--json").stdout)) == 2
    assert len(lab.run("events", "-n", "2").stdout.splitlines()) == 2
    assert lab.run("events", "-n", "0").stdout == ""


def test_json_has_instants_in_utc_and_all_that_belongs_to_an_event(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    lab.fail()
    events = json.loads(lab.run("events", "--json").stdout)
    failed = next(event for event in events if event["kind"] == "failed")
    assert failed["at"].endswith("Z")
    assert (failed["task"], failed["number"], failed["worker"]) == ("exp1_0_42", 1, "host:gpu0")
    assert failed["data"]["error"] == "FileNotFoundError: data"


def test_control_characters_of_an_error_are_shown_not_obeyed(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    lab.fail("E: \x1b[2J\x07\x9b\u202e[red]")
    told = lab.run("events").stdout
    assert not set(told) & set("\x1b\x07\x9b\u202e")
    assert "[red]" in told


def test_more_events_than_a_page_are_all_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    for _ in range(3):
        lab.complete()
    known = json.loads(lab.run("events", "-n", "100", "--json").stdout)
    monkeypatch.setattr("gpuledger.cli.events.PAGE", 2)
    assert len(known) > 4
    assert json.loads(lab.run("events", "-n", "100", "--json").stdout) == known


def test_following_goes_on_while_the_ledger_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    asked: list[int] = []
    events = Ledger.events

    def busy_at_first(ledger: Ledger, *, after: int = 0, limit: int = 1000) -> list[Event]:
        asked.append(after)
        if len(asked) == 1:
            raise LedgerBusy(ledger.folder, waited_s=60, holder=None)
        return events(ledger, after=after, limit=limit)

    monkeypatch.setattr(Ledger, "events", busy_at_first)
    assert next(followed(lab.ledger, 0)).kind == "sweep_added"
    assert len(asked) == 2


def test_following_tells_what_comes_and_ctrl_c_ends_it_quietly(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    out = tmp_path / "out"
    with (
        out.open("wb") as file,
        subprocess.Popen(
            [sys.executable, "-m", "gpuledger", "events", "-f", "--json"],
            cwd=tmp_path,
            stdout=file,
            stderr=subprocess.PIPE,
        ) as follower,
    ):
        try:
            lab.complete()
            wait_until(lambda: b"completed" in out.read_bytes(), because="a task was completed")
            lab.fail()
            wait_until(lambda: b'"failed"' in out.read_bytes(), because="a task failed")
            follower.send_signal(signal.SIGINT)
            _, said = follower.communicate(timeout=20)
        finally:
            follower.kill()
    assert follower.returncode == 130
    assert said == b""
    ids = [json.loads(line)["id"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert ids == sorted(set(ids))
