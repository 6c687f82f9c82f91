"""logs: the bytes for a pipe, harmless text for a terminal, and following a task to its end."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpuledger.cli.logs import _Log
from gpuledger.cli.logtext import TerminalText
from gpuledger.errors import LedgerBusy
from gpuledger.ledger import Ledger
from gpuledger.model import Claim, Ending, Outcome
from gpuledger.views import TaskRecord
from tests.cli_support import Lab, make_lab
from tests.helpers import identity, wait_until

HOSTILE = b"\x1b]0;owned\x07\x1b[2J\x00\x9b31m\xff caf\xc3\xa9\r\n"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return make_lab(tmp_path / ".gpuledger")


def fail_once(lab: Lab, content: bytes) -> Claim:
    """Let the first task's first attempt fail, so that it waits for its second."""
    claim = lab.claim()
    lab.write_log(claim, content)
    lab.ledger.fail(claim.token, Ending(outcome=Outcome.FAILED, error="E: x", exit_code=1))
    return claim


def test_the_newest_attempt_is_shown_or_the_one_asked_for(lab: Lab) -> None:
    fail_once(lab, b"first\n")
    lab.write_log(lab.claim(), b"second\n")
    assert lab.run("logs", "exp1_0_42").stdout == "second\n"
    assert lab.run("logs", "exp1_0_42", "--attempt", "1").stdout == "first\n"


def test_a_pipe_gets_the_very_bytes(lab: Lab) -> None:
    lab.write_log(lab.claim(), HOSTILE)
    assert lab.run("logs", "exp1_0_42").stdout_bytes == HOSTILE


def test_a_terminal_gets_no_control_characters_unless_asked(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuledger.cli.logs.is_terminal", lambda: True)
    lab.write_log(lab.claim(), HOSTILE)
    shown = lab.run("logs", "exp1_0_42").stdout_bytes
    assert "café".encode() in shown
    assert not set(shown) & {0x00, 0x07, 0x1B}
    assert lab.run("logs", "exp1_0_42", "--raw").stdout_bytes == HOSTILE


@pytest.mark.parametrize(
    ("lines", "expected"),
    [("0", b""), ("1", b"c"), ("2", b"b\nc"), ("3", b"a\nb\nc"), ("9", b"a\nb\nc")],
)
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_the_last_lines_are_counted_from_the_end(
    lab: Lab, lines: str, expected: bytes, end: bytes
) -> None:
    lab.write_log(lab.claim(), b"a\nb\nc" + end)
    shown = lab.run("logs", "exp1_0_42", "-n", lines).stdout_bytes
    assert shown == (expected + end if expected else b"")


def test_the_last_lines_of_a_log_larger_than_one_piece_are_found(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuledger.cli.logs.PIECE_BYTES", 7)
    content = b"".join(b"line %d\n" % number for number in range(50))
    lab.write_log(lab.claim(), content)
    assert lab.run("logs", "exp1_0_42").stdout_bytes == content
    assert lab.run("logs", "exp1_0_42", "-n", "2").stdout == "line 48\nline 49\n"


def test_what_is_not_there_is_said(lab: Lab) -> None:
    assert "has not been started yet" in lab.run("logs", "exp1_1_42").stderr
    lab.claim()
    assert "left no log at" in lab.run("logs", "exp1_0_42").stderr
    assert "it has 1 to 1" in lab.run("logs", "exp1_0_42", "-a", "2", exit_code=65).stderr
    assert "no task is named" in lab.run("logs", "exp9_0_42", exit_code=65).stderr


def test_following_goes_on_into_the_next_attempt_and_ends_with_the_task(
    lab: Lab, tmp_path: Path
) -> None:
    claim = lab.claim()
    log = lab.write_log(claim, b"one\n")
    out = tmp_path / "out"
    with (
        out.open("wb") as file,
        subprocess.Popen(
            [sys.executable, "-m", "gpuledger", "logs", claim.task, "-f"],
            cwd=tmp_path,
            stdout=file,
            stderr=subprocess.PIPE,
        ) as follower,
    ):
        try:
            wait_until(lambda: out.read_bytes() == b"one\n", because="it shows what is there")
            with log.open("ab") as more:
                more.write(b"two\n")
            wait_until(lambda: out.read_bytes().endswith(b"two\n"), because="the log grew")
            ending = Ending(outcome=Outcome.FAILED, error="E: x", exit_code=1)
            lab.ledger.fail(claim.token, ending)
            again = lab.claim()
            assert again.number == 2
            lab.write_log(again, b"three\n")
            wait_until(lambda: out.read_bytes().endswith(b"three\n"), because="attempt 2 began")
            lab.ledger.complete(again.token)
            _, said = follower.communicate(timeout=20)
        finally:
            follower.kill()
    assert follower.returncode == 0
    assert out.read_bytes() == b"one\ntwo\nthree\n"
    assert b"==> exp1_0_42, attempt 2 on host:gpu0 <==" in said


def test_following_goes_on_while_the_ledger_does_not_answer(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = lab.claim()
    lab.write_log(claim, b"done\n")
    asked: list[str] = []
    task = Ledger.task

    def busy_at_first(ledger: Ledger, name: str) -> TaskRecord:
        asked.append(name)
        if len(asked) == 2:
            lab.ledger.complete(claim.token)
            raise LedgerBusy(ledger.folder, waited_s=60, holder=None)
        return task(ledger, name)

    monkeypatch.setattr(Ledger, "task", busy_at_first)
    assert lab.run("logs", "exp1_0_42", "-f").stdout == "done\n"
    assert len(asked) == 3


def test_following_one_attempt_ends_with_that_attempt(lab: Lab) -> None:
    fail_once(lab, b"first\n")
    assert lab.run("logs", "exp1_0_42", "-f", "-a", "1").stdout == "first\n"


def test_following_an_ended_task_ends_at_once(lab: Lab) -> None:
    claim = lab.complete()
    lab.write_log(claim, b"done\n")
    assert lab.run("logs", "exp1_0_42", "-f").stdout == "done\n"
    lab.run("cancel", "exp1_1_42")
    assert lab.run("logs", "exp1_1_42", "-f").stdout == ""


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        (b"plain\ttext\n", "plain\ttext\n"),
        (b"dos\r\nlines\r\n", "dos\nlines\n"),
        (b"\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b(B\n", "red\n"),
        (b" 1%\r 50%\r100%\n", "\r\x1b[K100%\n"),
        (b"a\n 1%\r 2%\r\nb\n", "a\n\r\x1b[K 2%\nb\n"),
        (b"1/3\b\b\b2/3\n", "1/32/3\n"),
        (b"torn \xe2\x82", "torn �"),
        (b"", ""),
    ],
)
def test_what_a_terminal_is_given(log: bytes, shown: str) -> None:
    assert TerminalText(can_erase=True).feed(log, last=True) == shown


@pytest.mark.parametrize(
    "log", [HOSTILE, b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n", b"\xe2\x82\xac\r\n"]
)
def test_it_does_not_matter_where_a_log_is_cut(log: bytes) -> None:
    whole = TerminalText(can_erase=True).feed(log, last=True)
    for size in (1, 2, 3):
        text = TerminalText(can_erase=True)
        pieces = [text.feed(log[at : at + size]) for at in range(0, len(log), size)]
        assert "".join([*pieces, text.feed(b"", last=True)]) == whole


def test_a_progress_bar_is_redrawn_piece_by_piece() -> None:
    text = TerminalText(can_erase=True)
    assert text.feed(b" 1%") == " 1%"
    assert text.feed(b"\r 2%") == "\r\x1b[K 2%"
    assert text.feed(b"\r 3%\r") == "\r\x1b[K 3%"
    assert text.feed(b"\n") == "\n"
    assert TerminalText(can_erase=False).feed(b"1\r2\r3\n") == "\r3\n"


def test_an_endless_escape_sequence_does_not_hold_back_the_log() -> None:
    text = TerminalText(can_erase=True)
    assert "after" in text.feed(b"\x1b]" + b"x" * 5000 + b" after")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_a_log_that_nfs_remembers_as_missing_is_looked_for_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """NFS keeps "no such file" for a minute, until somebody opens the folder."""
    log = lab.write_log(lab.complete(), b"done\n")
    opened: list[Path] = []
    really_open = os.open

    def as_nfs(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if path == log and log.parent not in opened:
            raise OSError(number, os.strerror(number))
        opened.append(Path(path))
        return really_open(path, flags, *more, **named)

    monkeypatch.setattr("gpuledger.cli.logs.os.open", as_nfs)
    assert lab.run("logs", "exp1_0_42", "-f").stdout == "done\n"
    assert opened.index(log.parent.parent) < opened.index(log.parent) < opened.index(log)


def test_the_next_attempt_is_announced_with_its_host_on_a_line_of_its_own(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(lab, b"no line break")
    other = lab.ledger.register(identity("n2", host="beta"))
    again = lab.ledger.claim(other)
    assert isinstance(again, Claim)
    lab.write_log(again, b"second\n")
    lab.ledger.complete(again.token)
    announced = "==> exp1_0_42, attempt 2 on beta:cpu <=="

    piped = lab.run("logs", "exp1_0_42", "-f", "-a", "1")
    assert (piped.stdout, piped.stderr) == ("no line break", "")
    monkeypatch.setattr("gpuledger.cli.logs._choose", lambda record, number: record.attempts[0])
    piped = lab.run("logs", "exp1_0_42", "-f")
    assert piped.stdout == "no line breaksecond\n"
    assert piped.stderr == f"{announced}\n"
    monkeypatch.setattr("gpuledger.cli.logs.is_terminal", lambda: True)
    assert f"no line break\n{announced}\nsecond\n" == lab.run("logs", "exp1_0_42", "-f").output


def test_each_look_at_a_growing_log_opens_it_anew(lab: Lab) -> None:
    """A descriptor that is kept shows NFS clients the size of long ago."""
    claim = lab.claim()
    log = lab.write_log(claim, b"one\n")
    (attempt,) = lab.ledger.task(claim.task).attempts
    follower = _Log(attempt, lines=None, raw=True)
    assert list(follower._pieces()) == [b"one\n"]
    replaced = log.with_name("server")
    replaced.write_bytes(b"one\ntwo\n")
    replaced.replace(log)  # the same log as another host sees it now: another descriptor
    assert list(follower._pieces()) == [b"two\n"]
