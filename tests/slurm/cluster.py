"""A private Slurm cluster for a test: started, asked, and ended by its own programs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.nfs.lab import lab_folder
from tests.shell import environment

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "slurmctld", "slurmd", "munged")


class Cluster:
    """A running cluster.

    Attributes:
        env: What its commands, and gpuledger's, need in their environment.
    """

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.env = env
        self._folder = folder

    def slurm(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's commands."""
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=self.env, timeout=60
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def gpuledger(self, *arguments: str, cwd: Path, exit_code: int | None = 0) -> str:
        """Run a command of gpuledger and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "gpuledger", *arguments],
            cwd=cwd, env=self.env, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        if exit_code is not None:
            assert done.returncode == exit_code, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def tasks(self, cwd: Path) -> list[dict[str, Any]]:
        """Return `gpuledger tasks --json`."""
        value: list[dict[str, Any]] = json.loads(self.gpuledger("tasks", "--json", cwd=cwd))
        return value

    def counts(self, cwd: Path) -> dict[str, int]:
        """Return the counts of `gpuledger status --json`."""
        value: dict[str, int] = json.loads(self.gpuledger("status", "--json", cwd=cwd))["counts"]
        return value

    def jobs(self) -> dict[str, str]:
        """Return the state of each array task that Slurm knows."""
        lines = self.slurm("squeue", "-h", "-r", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def start_now(self) -> bool:
        """Let what was requeued begin without Slurm's two minutes; tell whether there was any."""
        waiting = [
            line.split()[0]
            for line in self.slurm("squeue", "-h", "-r", "-o", "%i %r").splitlines()
            if line.endswith(" BeginTime")
        ]
        for job in waiting:
            self.slurm("scontrol", "update", f"JobId={job}", "StartTime=now+5", check=False)
        return bool(waiting)

    def kill_node(self, name: str) -> None:
        """Kill the slurmd of a node of this cluster."""
        for line in (self._folder / "pids").read_text().splitlines():
            daemon, pid = line.split()
            if daemon == f"slurmd-{name}":
                os.kill(int(pid), signal.SIGKILL)

    def log(self) -> str:
        """Return what Slurm's controller says that it did."""
        return (self._folder / "log" / "slurmctld.log").read_text(errors="replace")


@contextmanager
def cluster(*options: str) -> Iterator[Cluster]:
    """Start a cluster, or skip and say why."""
    up, down = lab_folder() / "slurm" / "up", lab_folder() / "slurm" / "down"
    if not up.exists():
        pytest.skip(f"the Slurm lab is not there ({up}; GPULEDGER_LAB names another place)")
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [name for name in COMMANDS if shutil.which(name, path=path) is None]
    if missing and os.geteuid() != 0:
        pytest.skip(f"Slurm is not installed (no {missing[0]}), and only root could install it")
    if "cgroup" in options and not cgroups_are_writable():
        pytest.skip("Slurm's cgroup plugin needs root and writable cgroups")
    with contextlib.ExitStack() as held:
        if "cgroup" in options:
            held.enter_context(only_one(up))
        yield from _run(up, down, options, install=["--install"] if missing else [])


@contextmanager
def only_one(program: Path) -> Iterator[None]:
    """Wait for other tests: two clusters would share the names of their control groups."""
    with program.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(up: Path, down: Path, options: Sequence[str], *, install: list[str]) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="gls-", dir="/tmp"))  # its paths must be short
    env = environment(PYTHONDONTWRITEBYTECODE="1")
    started = subprocess.run(
        [str(up), "--dir", str(folder), *install, *options],
        capture_output=True, text=True, check=False, timeout=300, env=env,
    )  # fmt: skip
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        yield Cluster(folder, {**env, "SLURM_CONF": str(folder / "slurm.conf")})
    finally:
        subprocess.run(
            [str(down), "--dir", str(folder)], capture_output=True, check=False, timeout=120,
            env={**env, "GPULEDGER_SLURM_LAB": str(folder)},
        )  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)


def cgroups_are_writable() -> bool:
    """Tell whether the cgroup plugin can work here."""
    roots = [Path("/sys/fs/cgroup/freezer"), Path("/sys/fs/cgroup")]
    return os.geteuid() == 0 and any(os.access(root, os.W_OK) for root in roots if root.exists())
