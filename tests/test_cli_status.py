"""status: once, as JSON, and live on a terminal that is given back as it was."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gpuledger.cli.changes import LOOK_ANYWAY_S, POLL_S, Changes
from gpuledger.cli.live import LATE_S, READ_S, Reader, pause_after
from gpuledger.errors import LedgerUnreachable
from gpuledger.views import Snapshot
from tests.cli_support import Lab, make_lab, sweep
from tests.helpers import ManualClock, wait_until

ALTERNATE_SCREEN, NORMAL_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"
SHOW_CURSOR = b"\x1b[?25h"
COLOUR = re.compile(rb"\x1b\[[0-9;]*m")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return make_lab(tmp_path / ".gpuledger", sweep("exp1"), sweep("exp2"))


def test_json_has_the_shape_of_the_contract(lab: Lab) -> None:
    lab.complete(loss=1.0)
    lab.fail()
    lab.claim()
    status = json.loads(lab.run("status", "--json").stdout)
    assert list(status) == ["counts", "sweeps", "workers", "failures", "eta_s"]
    assert status["counts"] == {
        "pending": 3,
        "running": 1,
        "completed": 1,
        "failed": 1,
        "cancelled": 0,
        "total": 6,
    }
    assert [(one["name"], one["counts"]["total"]) for one in status["sweeps"]] == [
        ("exp1", 3),
        ("exp2", 3),
    ]
    (worker,) = status["workers"]
    assert (worker["name"], worker["task"], worker["number"]) == ("host:gpu0", "exp1_2_42", 1)
    (failure,) = status["failures"]
    assert (failure["task"], failure["outcome"]) == ("exp1_1_42", "failed")
    assert failure["ended_at"].endswith("Z")
    assert "FileNotFoundError" in failure["traceback"]


def test_one_sweep_can_be_looked_at_alone(lab: Lab) -> None:
    status = json.loads(lab.run("status", "--json", "--sweep", "exp2").stdout)
    assert [one["name"] for one in status["sweeps"]] == ["exp2"]
    assert status["counts"]["total"] == 3
    assert "no sweep is named 'exp3'" in lab.run("status", "-s", "exp3", exit_code=65).stderr


def test_in_a_pipe_it_is_printed_once_without_colours(lab: Lab) -> None:
    lab.fail()
    told = lab.run("status").stdout
    assert told == lab.run("status", "--once").stdout
    assert "exp1" in told
    assert "FileNotFoundError" in told
    assert "\x1b" not in told


def test_looking_changes_nothing(lab: Lab) -> None:
    counter = lab.ledger.store.change_counter()
    for command in ("status --json", "status --once", "tasks", "events", "results"):
        lab.run(*command.split())
    assert lab.ledger.store.change_counter() == counter


# --- live -------------------------------------------------------------------------------------


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self.output = b""
        self._master = master

    def read(self) -> bytes:
        """Return everything that it printed so far."""
        while select.select([self._master], [], [], 0)[0]:
            try:
                piece = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            self.output += piece
        return self.output

    def wait_for(self, text: bytes, *, since: int = 0) -> None:
        """Wait until a text was printed, whatever its colours."""
        wait_until(
            lambda: text in COLOUR.sub(b"", self.read()[since:]),
            because=f"{text!r} is on the screen",
        )

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """Go away, as a window that is closed does."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def settings(self) -> list[object]:
        return termios.tcgetattr(self._master)

    def wait(self) -> int:
        wait_until(
            lambda: self.read() is not None and self.process.poll() is not None,
            because="the program ended",
        )
        self.read()
        return self.process.wait()


PROGRAM = (sys.executable, "-m", "gpuledger")


@contextmanager
def on_a_terminal(
    *arguments: str, cwd: Path, program: Sequence[str] = PROGRAM, **env: str
) -> Iterator[Terminal]:
    """Run `gpuledger` on a new terminal of 30 rows and 100 columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))

    def own_the_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    fixed = ("NO_COLOR", "COLUMNS", "LINES")  # would go before what the terminal says
    inherited = {name: value for name, value in os.environ.items() if name not in fixed}
    process = subprocess.Popen(
        [*program, *arguments],
        cwd=cwd,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**inherited, "TERM": "xterm-256color", **env},
        preexec_fn=own_the_terminal,
    )
    os.close(slave)
    terminal = Terminal(process, master)
    try:
        yield terminal
    finally:
        process.kill()
        process.wait()
        terminal.close()


@pytest.mark.parametrize("end", ["ctrl-c", "q"])
def test_live_it_follows_the_ledger_and_gives_the_terminal_back(
    lab: Lab, tmp_path: Path, end: str
) -> None:
    with on_a_terminal("status", cwd=tmp_path) as terminal:
        before = terminal.settings()
        terminal.wait_for(b"exp1")
        assert ALTERNATE_SCREEN in terminal.output
        lab.fail("KeyError: 'newly failed'")
        terminal.wait_for(b"newly failed")
        terminal.type(b"\x03" if end == "ctrl-c" else b"q")
        assert terminal.wait() == 0
        assert terminal.settings() == before
        screen, _, after = terminal.output.rpartition(NORMAL_SCREEN)
        assert SHOW_CURSOR in screen[-200:] + after[:200]
        assert b"newly failed" in after
        assert b'Traceback (most recent call last):\r\n  File "/' not in after


def test_live_it_fits_a_terminal_that_changes_its_size(lab: Lab, tmp_path: Path) -> None:
    with on_a_terminal("status", cwd=tmp_path) as terminal:
        terminal.wait_for(b"exp1")
        terminal.resize(8, 50)
        wait_until(
            lambda: 0 < terminal.read().split(b"\x1b[H")[-2].count(b"\n") < 8,
            because="it was drawn to fit",
        )
        terminal.type(b"q")
        assert terminal.wait() == 0


def test_live_it_is_suspended_on_the_normal_screen_and_goes_on(lab: Lab, tmp_path: Path) -> None:
    with on_a_terminal("status", cwd=tmp_path) as terminal:
        terminal.wait_for(b"exp1")
        before = terminal.output
        os.kill(terminal.process.pid, signal.SIGTSTP)
        wait_until(
            lambda: os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED | os.WNOHANG),
            because="it stopped",
        )
        assert NORMAL_SCREEN in terminal.read()[len(before) :]
        seen = len(terminal.output)
        os.kill(terminal.process.pid, signal.SIGCONT)
        terminal.wait_for(ALTERNATE_SCREEN, since=seen)
        terminal.type(b"\x03")
        assert terminal.wait() == 0


def test_live_it_stays_up_while_the_ledger_is_away(lab: Lab, tmp_path: Path) -> None:
    with on_a_terminal("status", cwd=tmp_path) as terminal:
        terminal.wait_for(b"exp1")
        away = lab.ledger.folder.with_name("away")
        lab.ledger.folder.rename(away)
        seen = len(terminal.read())
        terminal.wait_for(b"no ledger", since=seen)
        away.rename(lab.ledger.folder)
        lab.fail("KeyError: 'back again'")
        terminal.wait_for(b"back again", since=seen)
        os.kill(terminal.process.pid, signal.SIGTERM)
        assert terminal.wait() == 130
        assert NORMAL_SCREEN in terminal.output


def test_live_in_the_background_it_leaves_the_keyboard_to_others(lab: Lab, tmp_path: Path) -> None:
    command = f"{sys.executable} -m gpuledger status & echo pid=$!; wait"
    with on_a_terminal(command, cwd=tmp_path, program=["bash", "-mc"]) as terminal:
        terminal.wait_for(b"pid=")
        pid = int(terminal.output.partition(b"pid=")[2].split()[0])
        try:
            terminal.wait_for(b"exp1")
        finally:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("options", [["--once"], []])
def test_a_dumb_terminal_gets_it_once(lab: Lab, tmp_path: Path, options: list[str]) -> None:
    with on_a_terminal("status", *options, cwd=tmp_path, TERM="dumb") as terminal:
        assert terminal.wait() == 0
        assert b"exp1" in terminal.output
        assert b"\x1b" not in terminal.output


def test_no_color_is_honoured_on_a_terminal(lab: Lab, tmp_path: Path) -> None:
    lab.fail()
    with on_a_terminal("status", "--once", cwd=tmp_path, NO_COLOR="1") as terminal:
        assert terminal.wait() == 0
        assert b"exp1" in terminal.output
        for colour in range(30, 38):
            assert b"\x1b[%dm" % colour not in terminal.output
    with on_a_terminal("show", "nope", cwd=tmp_path, NO_COLOR="1") as terminal:
        assert terminal.wait() == 65
        assert b"\x1b[31m" not in terminal.output


def test_a_slow_ledger_is_left_alone_for_ten_times_as_long() -> None:
    assert pause_after(0.001) == POLL_S
    assert pause_after(3.0) == pytest.approx(30.0)


def test_the_change_counter_is_not_believed_forever(lab: Lab) -> None:
    clock = ManualClock()
    changes = Changes(lab.ledger.store, clock)
    assert changes.came()
    assert not changes.came()
    clock.advance(LOOK_ANYWAY_S)
    assert changes.came()
    assert not changes.came()
    changes.forget()
    assert changes.came()


# --- the reader behind it ----------------------------------------------------------------------


def test_the_reader_takes_the_lock_only_when_something_changed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    snapshot = lab.ledger.snapshot

    def counted(*, sweep: str | None = None) -> Snapshot:
        asked.append("snapshot")
        return snapshot(sweep=sweep)

    clock = ManualClock()
    reader = Reader(lab.ledger, sweep=None, clock=clock)
    monkeypatch.setattr(lab.ledger, "snapshot", counted)
    for _ in range(5):
        clock.advance(POLL_S)
        reader.read()
    assert asked == []
    lab.fail()
    for _ in range(5):
        clock.advance(POLL_S)
        reader.read()
    assert asked == ["snapshot"]
    assert reader.latest().counts.failed == 1
    assert reader.readings == 2


def test_however_often_the_ledger_changes_the_lock_is_taken_less_than_once_a_second(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab.ledger.store, "change_counter", lambda: None)  # as if always new
    clock = ManualClock()
    reader = Reader(lab.ledger, sweep=None, clock=clock)
    for _ in range(round(60 / POLL_S)):
        clock.advance(POLL_S)
        reader.read()
    assert 30 <= reader.readings <= 60


def test_a_refreshed_snapshot_says_again_when_it_was_taken(lab: Lab) -> None:
    before = replace(lab.ledger.snapshot(), taken_at=1.0, unreachable="away")
    lab.fail()
    after = lab.ledger.refresh(before)
    assert after.taken_at > before.taken_at
    assert after.unreachable is None
    assert after.counts == before.counts


def test_the_reader_keeps_the_last_answer_and_says_that_it_is_old(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    reader = Reader(lab.ledger, sweep=None, clock=clock)
    assert reader.latest().unreachable is None
    clock.advance(LATE_S + 3)
    assert reader.latest().unreachable == "no answer for 8 s"

    def away(*, sweep: str | None = None) -> Snapshot:
        raise LedgerUnreachable("ledger /x cannot be used: stale")

    lab.fail()
    with monkeypatch.context() as broken:
        broken.setattr(lab.ledger, "snapshot", away)
        reader.read()
        reader.read()
        kept = reader.latest()
        assert kept.unreachable == "ledger /x cannot be used: stale"
        assert kept.counts.failed == 0
    clock.advance(READ_S)
    reader.read()
    assert reader.latest().unreachable is None
    assert reader.latest().counts.failed == 1


def test_signs_of_life_are_read_without_the_lock(lab: Lab) -> None:
    from gpuledger.heartbeat import Beat, HeartbeatFile, beat_path

    claim = lab.claim()
    reader = Reader(lab.ledger, sweep=None, clock=ManualClock())
    worker = lab.worker
    beat = Beat(
        nonce=worker.nonce,
        name=worker.name,
        host=worker.host,
        machine=worker.machine,
        pid=worker.pid,
        pid_start=worker.pid_start,
        seq=1,
        task=claim.task,
        number=claim.number,
        elapsed_s=12.0,
        step=3,
        total=10,
    )
    file = HeartbeatFile(beat_path(lab.ledger.folder, worker.name, worker.nonce))
    file.write(beat)
    reader.read()
    assert reader.latest().workers[0].step == 3
    file.write(replace(beat, seq=2, step=4))
    reader.read()
    assert reader.latest().workers[0].step == 4


def test_the_last_picture_shows_what_came_a_moment_ago(lab: Lab) -> None:
    reader = Reader(lab.ledger, sweep=None, clock=ManualClock(), every_s=100.0)
    lab.fail()
    reader.read()
    assert reader.latest().counts.failed == 0
    reader.read(at_once=True)
    assert reader.latest().counts.failed == 1


def test_a_worker_of_this_machine_whose_process_is_gone_is_not_shown_as_well(lab: Lab) -> None:
    from gpuledger.heartbeat import Beat, HeartbeatFile, beat_path
    from gpuledger.machine import this_machine

    claim, worker = lab.claim(), lab.worker
    beat = Beat(
        nonce=worker.nonce, name=worker.name, host=worker.host, machine=this_machine(),
        pid=1 << 30, pid_start=1, seq=1,
        task=claim.task, number=claim.number, elapsed_s=12.0,
    )  # fmt: skip
    HeartbeatFile(beat_path(lab.ledger.folder, worker.name, worker.nonce)).write(beat)

    (view,) = lab.ledger.snapshot().workers
    assert str(view.note).startswith("its process is gone")
    assert view.elapsed_s is None
