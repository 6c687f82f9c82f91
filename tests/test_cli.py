"""The program as a whole: help, version, errors, completion, pipes and Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from gpuledger import __version__
from gpuledger.cli import app as app_module
from gpuledger.cli.app import COMMANDS
from gpuledger.errors import LedgerBusy, LedgerError
from gpuledger.ledger import Ledger
from gpuledger.process import CannotStart
from gpuledger.pulse import Pulse
from tests.cli_support import make_lab, run, sweep
from tests.helpers import wait_until


def program(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the installed program."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("gpuledger")), *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_installed_program_and_the_module_say_the_version(tmp_path: Path) -> None:
    assert program("--version", cwd=tmp_path).stdout == f"gpuledger {__version__}\n"
    module = [sys.executable, "-m", "gpuledger", "--version"]
    told = subprocess.run(module, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert told.stdout == f"gpuledger {__version__}\n"


def test_the_version_and_a_piped_status_load_nothing_that_they_do_not_need(tmp_path: Path) -> None:
    make_lab(tmp_path / ".gpuledger")
    script = (
        "import sys, runpy\n"
        "sys.argv = ['gpuledger', *sys.argv[1:]]\n"
        "try: runpy.run_module('gpuledger', run_name='__main__')\n"
        "finally: sys.stderr.write(' '.join(sys.modules))\n"
    )
    loaded = {}
    for arguments in (["--version"], ["status", "--json"], ["status", "--once"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        loaded[arguments[-1]] = set(done.stderr.split())
    assert not loaded["--version"] & {"rich", "sqlite3", "gpuledger.ledger"}
    assert not loaded["--json"] & {"rich.console", "pynvml", "gpuledger.cli.work"}
    assert not loaded["--once"] & {"rich.live", "pynvml", "gpuledger.cli.live"}


def test_help_lists_every_command_with_what_it_does() -> None:
    told = run("--help").stdout
    assert run("-h").stdout == told
    for name in COMMANDS:
        (line,) = [line for line in told.splitlines() if line.startswith(f"  {name} ")]
        assert len(line.split()) > 3, line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    told = run(name, "-h").stdout
    assert f"\n    gpuledger {name}" in told
    assert "[default: None]" not in told


def test_without_arguments_the_help_is_shown_as_wrong_usage() -> None:
    told = run(exit_code=2).stderr
    assert told.startswith("Usage: ")
    assert "Commands:" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["statsu"], "did you mean 'status'"),
        (["status", "--onec"], "no such option: --onec"),
        (["show"], "missing argument 'TASK'"),
        (["tasks", "--state", "broken"], "'--state': 'broken' is not"),
        (["tasks", "--limit", "-1"], "'-n': -1 is not in the range"),
        (["tasks", "--names", "--json"], "do not go together"),
    ],
)
def test_wrong_usage_is_an_error_and_a_hint(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    make_lab(tmp_path / ".gpuledger")
    result = run(*arguments, exit_code=2, env={"GPULEDGER_DIR": str(tmp_path)})
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert said.lower() in error.lower()
    assert hint.startswith(" hint: ")
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [["status", "--json"], ["tasks", "--json"], ["pause"]])
def test_an_error_of_the_ledger_is_two_lines_on_stderr_and_its_exit_code(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_lab(tmp_path / ".gpuledger")

    def busy(*arguments: object, **options: object) -> Ledger:
        raise LedgerBusy(tmp_path, waited_s=60, holder="process 7 on \x1b[2Jhost")

    monkeypatch.setattr(Ledger, "open", busy)
    result = run(*arguments, exit_code=75, env={"GPULEDGER_DIR": str(tmp_path)})
    assert result.stdout == ""
    assert [line[:7] for line in result.stderr.splitlines()] == ["error: ", " hint: "]
    assert r"process 7 on \x1b[2Jhost" in result.stderr


def test_a_bug_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_lab(tmp_path / ".gpuledger")

    def bug(*arguments: object, **options: object) -> Ledger:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Ledger, "open", bug)
    with pytest.raises(AssertionError, match="a bug"):
        run("pause", env={"GPULEDGER_DIR": str(tmp_path)})


def test_a_machine_without_room_for_a_worker_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_lab(tmp_path / ".gpuledger")

    def no_room(*given: object, **more: object) -> None:
        raise CannotStart("too many open files", exit_code=126, machine_at_fault=True)

    monkeypatch.setattr(Pulse, "__init__", no_room)
    told = run("work", "--cpu", exit_code=69, env={"GPULEDGER_DIR": str(tmp_path)}).stderr
    assert told.startswith("error: too many open files\n hint: look at this machine's limits")


def test_every_error_class_has_an_exit_code_of_the_contract() -> None:
    codes = {error.exit_code for error in LedgerError.__subclasses__()}
    assert codes <= {1, 2, 65, 66, 69, 74, 75, 77}
    assert app_module.INTERRUPTED == 130


@pytest.mark.parametrize("command", ["tasks --names", "tasks", "tasks --json", "results"])
def test_a_reader_that_went_away_ends_it_silently(tmp_path: Path, command: str) -> None:
    make_lab(tmp_path / ".gpuledger")
    nobody_reads, pipe = os.pipe()
    os.close(nobody_reads)
    done = subprocess.run(
        [sys.executable, "-m", "gpuledger", *command.split()],
        cwd=tmp_path,
        stdout=pipe,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(pipe)
    assert done.stderr == b""
    assert done.returncode == 141


@pytest.mark.parametrize("command", ["status --once", "tasks --json", "--help", "--version"])
def test_a_full_disk_under_the_output_is_one_sentence(tmp_path: Path, command: str) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gpuledger", *command.split()],
            env={**os.environ, "GPULEDGER_DIR": str(lab.ledger.folder)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the output cannot be written: no space left on device\n")
    assert len(done.stderr.splitlines()) == 2


def test_ctrl_c_ends_a_command_that_waits_for_the_ledger_without_a_traceback(
    tmp_path: Path,
) -> None:
    lab = make_lab(tmp_path / ".gpuledger")
    locker = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'r+')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", locker, str(lab.ledger.store.lock.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with subprocess.Popen(
            [sys.executable, "-m", "gpuledger", "pause"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as waiting:
            wait_until(
                lambda: has_open(waiting.pid, lab.ledger.store.lock.path),
                because="the command waits for the lock",
            )
            waiting.send_signal(signal.SIGINT)
            out, said = waiting.communicate(timeout=20)
        holder.communicate(timeout=20)
    assert (out, said) == ("", "")
    assert waiting.returncode == 130
    assert lab.ledger.snapshot().sweeps[0].paused is None


def has_open(pid: int, path: Path) -> bool:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if link.readlink() == path:
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, typer.Abort])
def test_an_interruption_is_130_however_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    make_lab(tmp_path / ".gpuledger")

    def interrupted(*arguments: object, **options: object) -> Ledger:
        raise interruption

    monkeypatch.setattr(Ledger, "open", interrupted)
    result = run("pause", exit_code=130, env={"GPULEDGER_DIR": str(tmp_path)})
    assert result.stdout + result.stderr == ""


def test_names_are_completed_and_a_ledger_that_does_not_answer_gives_none(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep("exp1", seeds=[1, 2]), sweep("zoo"))

    def complete(words: str) -> list[str]:
        asked = {
            "_GPULEDGER_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        done = program(cwd=tmp_path, env=asked)
        assert done.stderr == ""
        return done.stdout.split()

    assert complete("gpuledger show exp1_1") == ["exp1_1_1", "exp1_1_2"]
    assert complete("gpuledger pause z") == ["zoo"]
    assert complete("gpuledger retry --sweep e") == ["exp1"]
    assert "status" in complete("gpuledger st")
    with lab.ledger.store.lock.path.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert complete("gpuledger show exp1_1") == []
    (lab.ledger.folder / "ledger.db").write_bytes(b"not a database")
    assert complete("gpuledger show exp1_1") == []


def test_hostile_text_in_a_ledger_never_reaches_the_terminal_raw(tmp_path: Path) -> None:
    evil = "\x1b[2J\x07\x9b31m\u202eevil[bold]\r\n"
    points = [{"p\x1b[31m": evil, "q": {"k\x07": evil}}]
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=points))
    lab.fail(f"E: {evil}", traceback=f"Traceback\n{evil}\nE: {evil}")
    lab.ledger.pause(None, reason=evil)
    for command in ("tasks", "show exp1_0_42", "events", "status --once", "retry --failed"):
        result = lab.run(*command.split())
        shown = result.stdout + result.stderr
        assert not set(shown) & set("\x1b\x07\x9b\u202e\r"), command
    for command in ("tasks --json", "show exp1_0_42 --json", "status --json", "events --json"):
        text = lab.run(*command.split()).stdout
        assert text.isascii()
        assert not set(text) & set("\x1b\x07")
        json.loads(text)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_terminal_that_knows_only_ascii_is_no_error(tmp_path: Path, encoding: str) -> None:
    lab = make_lab(tmp_path / ".gpuledger", sweep(points=[{"name": "café ☃"}]))
    lab.fail("E: ☃")
    env = {"PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    for command in ("status --once", "tasks", "show exp1_0_42", "events", "results"):
        done = program(*command.split(), cwd=tmp_path, env=env)
        assert (done.returncode, done.stderr) == (0, ""), command


def test_a_closed_stdout_is_no_error(tmp_path: Path) -> None:
    make_lab(tmp_path / ".gpuledger")
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m gpuledger tasks >&-"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
