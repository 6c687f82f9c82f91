"""The product as its users start it: real commands, real processes, ended at the end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.helpers import wait_until

Lines = list[dict[str, Any]]


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment with the interpreter's folder first in PATH."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GPULEDGER_", "SLURM_", "CUDA_"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', os.defpath)}"
    return {**inherited, "PATH": path, **more}


def gpuledger(
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    exit_code: int | None = 0,
    timeout_s: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; assert its exit code unless that is None."""
    done = subprocess.run(
        [sys.executable, "-m", "gpuledger", *arguments],
        cwd=cwd,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if exit_code is not None:
        assert done.returncode == exit_code, f"{arguments}: {done.stdout}\n{done.stderr}"
    return done


def tasks(cwd: Path) -> dict[str, dict[str, Any]]:
    """Return `gpuledger tasks --json` by name."""
    listed = json.loads(gpuledger("tasks", "--json", cwd=cwd).stdout)
    return {task["task"]: task for task in listed}


def states(cwd: Path) -> dict[str, int]:
    """Return the counts of `gpuledger status --json`."""
    counts: dict[str, int] = json.loads(gpuledger("status", "--json", cwd=cwd).stdout)["counts"]
    return counts


def write_sweep(folder: Path, *, script: str, text: str, name: str = "exp") -> Path:
    """Write a script `train.py` and a sweep file that runs it; return the sweep file."""
    (folder / "train.py").write_text(script, encoding="utf-8")
    file = folder / f"{name}.toml"
    file.write_text(text, encoding="utf-8")
    return file


class Background:
    """A worker process in the background; its output goes to a file that `lines` reads."""

    def __init__(self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        number = len(list(cwd.glob("worker-*.out")))
        self.out = cwd / f"worker-{number}.out"
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gpuledger", *arguments],
                cwd=cwd,
                env=environment(**env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        return self.out.read_text(encoding="utf-8", errors="replace")

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, *, timeout_s: float = 60.0) -> int:
        """Return its exit code; fail, with what it said, when it does not end in time."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker did not end: {self.text()}") from None

    def wait_for(self, text: str, *, timeout_s: float = 30.0) -> None:
        wait_until(
            lambda: text in self.text() or self.process.poll() is not None,
            because=f"the worker never said {text!r}",
            timeout_s=timeout_s,
        )
        assert text in self.text(), self.text()


@contextlib.contextmanager
def worker(*arguments: str, cwd: Path, host: str = "alpha", **env: str) -> Iterator[Background]:
    """Start `gpuledger work …` on a pretended host; whatever is left of it is killed."""
    started = Background(["work", *arguments], cwd=cwd, env={"GPULEDGER_HOST": host, **env})
    try:
        yield started
    finally:
        if started.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                started.process.send_signal(signal.SIGCONT)
                started.process.kill()
            started.process.wait()


def records(file: Path) -> Lines:
    """Return what tasks appended to a file, one JSON object a line."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def processes_with(text: str) -> list[int]:
    """Return the numbers of live processes whose environment or command contains a text."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            content = (entry / "environ").read_bytes() + b"\0" + (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if text.encode() in content and state[state.rindex(")") + 2] not in "ZX":
            found.append(int(entry.name))
    return found
