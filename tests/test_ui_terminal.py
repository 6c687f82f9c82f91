"""ui on a real terminal: it fits, it follows, and it leaves everything as it was."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_support import Lab, make_lab, sweep
from tests.helpers import wait_until
from tests.shell import environment
from tests.test_cli_status import on_a_terminal

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")


class Tmux:
    """A terminal that one can look at."""

    def __init__(self, socket: Path, cwd: Path) -> None:
        self._socket = socket
        self.run("new-session", "-d", "-x", "100", "-y", "30", "-c", str(cwd), "env -i bash --norc")

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-f", "/dev/null", "-S", str(self._socket), *arguments],
            env=environment(LC_ALL="C.UTF-8", TERM="xterm-256color"),
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def screen(self) -> str:
        return self.run("capture-pane", "-p")

    def keys(self, *keys: str) -> None:
        self.run("send-keys", *keys)

    def line(self, text: str) -> None:
        self.run("send-keys", "-l", text)
        self.keys("Enter")

    def see(self, *texts: str) -> None:
        wait_until(
            lambda: all(text in self.screen() for text in texts), because=f"{texts} are seen"
        )

    def pid(self) -> int:
        """Return the number of the program in front of the shell."""
        shell = self.run("display-message", "-p", "#{pane_pid}").strip()
        children = Path(f"/proc/{shell}/task/{shell}/children").read_text(encoding="ascii")
        return int(children.split()[0])


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return make_lab(tmp_path / ".gpuledger", sweep("exp1"), sweep("exp2"))


@pytest.fixture
def terminal(lab: Lab, tmp_path: Path) -> Iterator[Tmux]:
    tmux = Tmux(tmp_path / "tmux", tmp_path)
    try:
        python = f"{shlex.quote(sys.executable)} -m gpuledger"
        tmux.line("PS1='$ ' TERM=screen-256color LC_ALL=C.UTF-8; export TERM LC_ALL; clear")
        tmux.line(f'gpuledger() {{ PYTHONPATH={shlex.quote(str(PACKAGE))} {python} "$@"; }}; clear')
        tmux.line("echo before; stty -g > before")
        tmux.see("before\n")
        yield tmux
    finally:
        tmux.run("kill-server")


PACKAGE = Path(__file__).resolve().parent.parent


def assert_as_before(terminal: Tmux, *, code: int) -> None:
    terminal.line("echo code=$?; stty -g | cmp - before && echo the same")
    terminal.see(f"code={code}", "the same", "before\n")
    assert terminal.run("display-message", "-p", "#{alternate_on} #{cursor_flag}") == "0 1\n"


def test_it_starts_fits_follows_and_quits(lab: Lab, terminal: Tmux) -> None:
    terminal.line("gpuledger ui")
    terminal.see("2 sweeps", "exp1", "Quit")
    claim = lab.fail("KeyError: 'newly failed'")
    lab.write_log(claim, b"the last words\n")
    terminal.see("newly failed")
    terminal.run("resize-window", "-x", "60", "-y", "15")
    wait_until(lambda: "Quit" in terminal.screen().split("\n")[14], because="it uses all 15 lines")
    terminal.keys("f")
    terminal.see("failures", "1 task: KeyError")
    terminal.run("resize-window", "-x", "150", "-y", "40")
    terminal.keys("Enter")
    terminal.see("task  exp1_0_42", "Traceback", "the last words")
    terminal.keys("Escape")
    terminal.see("failures")
    terminal.keys("q")
    terminal.see("$ ")
    assert_as_before(terminal, code=0)


@pytest.mark.parametrize(("end", "code"), [("C-c", 0), ("TERM", 130), ("HUP", 130)])
def test_however_it_ends_the_terminal_is_as_it_was(
    lab: Lab, terminal: Tmux, end: str, code: int
) -> None:
    terminal.line("gpuledger ui")
    terminal.see("2 sweeps", "Quit")
    if end == "C-c":
        terminal.keys(end)
    else:
        subprocess.run(["kill", f"-{end}", str(terminal.pid())], check=True)
    wait_until(lambda: "Quit" not in terminal.screen(), because="it ended")
    assert_as_before(terminal, code=code)


@pytest.mark.parametrize("command", ["ui", "status", "run idle.toml --cpu"])
def test_killed_it_leaves_the_terminal_as_it_was(
    lab: Lab, terminal: Tmux, tmp_path: Path, command: str
) -> None:
    (tmp_path / "idle.toml").write_text('command = "sleep 60"', encoding="utf-8")
    terminal.line(f"gpuledger {command}")
    terminal.see("/1  0%" if "idle" in command else "2 sweeps")
    subprocess.run(["kill", "-KILL", str(terminal.pid())], check=True)
    wait_until(  # the shell's "Killed" may have gone with the other screen, whoever came first
        lambda: terminal.run("display-message", "-p", "#{alternate_on}") == "0\n",
        because="the normal screen is back",
    )
    assert_as_before(terminal, code=137)


def test_it_is_suspended_and_goes_on(lab: Lab, terminal: Tmux) -> None:
    terminal.line("gpuledger ui")
    terminal.see("2 sweeps", "Quit")
    terminal.keys("C-z")
    terminal.see("Stopped")
    terminal.line("fg")
    terminal.see("2 sweeps", "Quit")
    terminal.keys("q")
    wait_until(lambda: "Quit" not in terminal.screen(), because="it ended")
    assert_as_before(terminal, code=0)


def test_when_its_window_is_closed_nothing_of_it_is_left(lab: Lab, tmp_path: Path) -> None:
    with on_a_terminal("ui", cwd=tmp_path) as terminal:
        terminal.wait_for(b"Quit")
        terminal.close()
        wait_until(lambda: terminal.process.poll() is not None, because="it left")


def test_told_to_end_it_ends_although_its_terminal_takes_nothing(lab: Lab, tmp_path: Path) -> None:
    with on_a_terminal("ui", cwd=tmp_path) as terminal:
        before = terminal.settings()
        terminal.wait_for(b"Quit")
        for size in range(40, 140):  # nobody reads what is drawn
            terminal.resize(40, size)
            terminal.type(b"tfw")
        terminal.process.terminate()
        wait_until(lambda: terminal.process.poll() is not None, because="it left")
        assert terminal.process.returncode == 130
        assert terminal.settings() == before
