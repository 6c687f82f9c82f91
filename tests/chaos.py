"""Chaos: workers are killed, stopped and told to leave, and the disk fills up, at random.

`python -m tests.chaos --minutes 10 --seed 7` runs it by hand; the test suite runs a short one.
Every task appends what it does to a record of its own, on another disk than the ledger: that
record, not the ledger, is what the result is checked against. Most tasks are so short that workers
hold several at a time; with `--warm` all are forked from a warm process.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.shell import Background, gpuledger, processes_with

LEASE_S = 3.0
HEARTBEAT_S = 0.5
TICK_S = 0.02
"""How often a task says that it is alive."""

Run = tuple[int, str]
"""An attempt's number and its worker's nonce."""

SCRIPT = """
import json, os, random, sys, time
record = os.environ["CHAOS_RECORD"]
nonce = os.environ["GPULEDGER_MARK"].partition(".")[0]
task, attempt = os.environ["GPULEDGER_TASK"], int(os.environ["GPULEDGER_ATTEMPT"])
def say(what):
    line = json.dumps([task, attempt, nonce, what, time.clock_gettime(time.CLOCK_BOOTTIME)]) + "\\n"
    descriptor = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, line.encode())
    os.close(descriptor)
say("began")
longest = 0.02 if int(task.rpartition("_")[2]) % 40 >= 20 else 1.0
until = time.monotonic() + random.Random(task).uniform(0.005, longest)
while time.monotonic() < until:
    say("alive")
    time.sleep({tick})
say("ended")
"""


@dataclass
class Result:
    """What a run did and what was found wrong with it."""

    killed: int = 0
    stopped: int = 0
    told: int = 0
    filled: int = 0
    runs: int = 0
    problems: list[str] = field(default_factory=list)


@contextlib.contextmanager
def small_disk(folder: Path, *, mib: int) -> Iterator[bool]:
    """Mount a small tmpfs at `folder`, where that is allowed; yield whether it is one."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "gpuledger-chaos", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def run(
    folder: Path,
    *,
    seed: int,
    task_count: int,
    workers: int,
    limit_s: float,
    disk: bool,
    warm: bool = False,
) -> Result:
    """Drain a sweep under chaos and check what is left.

    Args:
        folder: An empty one; the ledger is in `folder/ledger`, on a small disk when `disk`.
        seed: Of the chaos.
        task_count: How many short tasks.
        workers: How many workers run at any time.
        limit_s: Chaos ends by then; what is left must be drained quietly soon after.
        disk: Fill the ledger's disk now and then.
        warm: Fork the tasks from a warm process.
    """
    chance = random.Random(seed)
    result = Result()
    home = folder / "home"
    home.mkdir()
    record = folder / "record.jsonl"
    (home / "train.py").write_text(SCRIPT.format(tick=TICK_S), encoding="utf-8")
    (home / "chaos.toml").write_text(
        f'command = "{sys.executable} {"" if warm else "-I -S "}train.py"\nseeds = {task_count}\n'
        '[run]\nmax_losses = 1000\nmax_attempts = 1000\npause_after = 0\nkill_grace = "1s"\n'
        'avoid = "0s"\n'
        + ('preload = ["json", "random"]\n' if warm else "")
        + f'[run.env]\nCHAOS_RECORD = "{record}"\n',
        encoding="utf-8",
    )
    ledger = folder / "ledger"
    ledger.mkdir()
    env = {"GPULEDGER_DIR": str(ledger / ".gpuledger"), "TMPDIR": str(folder)}
    with small_disk(ledger, mib=48) if disk else contextlib.nullcontext(False) as mounted:
        gpuledger(
            "init",
            "chaos.toml",
            f"--lease={LEASE_S}s",
            f"--heartbeat={HEARTBEAT_S}s",
            cwd=home,
            env=env,
        )
        crew = Crew(home, env, workers)
        try:
            torment(crew, chance, result, limit_s, ledger if mounted else None, env)
            crew.drain(limit_s=120.0)
        finally:
            crew.end()
        check(result, record, home, env, task_count)
    leftover = processes_with(f"CHAOS_RECORD={record}")
    if leftover:
        result.problems.append(f"processes are left: {leftover}")
    return result


class Crew:
    """A number of workers that is kept up, whatever happens to each."""

    def __init__(self, home: Path, env: dict[str, str], size: int) -> None:
        self.home = home
        self.env = env
        self.members: list[Background] = []
        self.all: list[Background] = []
        self.size = size

    def fill_up(self) -> None:
        """Start workers for those that ended."""
        self.members = [member for member in self.members if member.process.poll() is None]
        while len(self.members) < self.size:
            host = f"host{len(self.all) % 3}"
            member = Background(
                ["work", "--cpu", "--wait"],
                cwd=self.home,
                env={**self.env, "GPULEDGER_HOST": host},
            )
            self.members.append(member)
            self.all.append(member)

    def drain(self, *, limit_s: float) -> None:
        """Wait until nothing is pending or running."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            self.fill_up()
            counts = remaining(self.home, self.env)
            if counts == 0:
                return
            time.sleep(0.2)

    def end(self) -> None:
        """Tell all to leave; kill who does not."""
        for member in self.members:
            with contextlib.suppress(ProcessLookupError):
                member.send(signal.SIGCONT)
                member.send(signal.SIGTERM)
        for member in self.all:
            try:
                member.process.wait(30)
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()


def remaining(home: Path, env: dict[str, str]) -> int:
    """Return how many tasks are not ended."""
    done = gpuledger("status", "--json", cwd=home, env=env, exit_code=None)
    if done.returncode != 0:
        return -1
    counts = json.loads(done.stdout)["counts"]
    return int(counts["pending"] + counts["running"])


def torment(
    crew: Crew,
    chance: random.Random,
    result: Result,
    limit_s: float,
    disk: Path | None,
    env: dict[str, str],
) -> None:
    """Do something bad every moment until the time is over or all is done."""
    deadline = time.monotonic() + limit_s
    stopped: list[tuple[float, Background]] = []
    ballast = disk / "ballast" if disk is not None else None
    relief_at = 0.0
    while time.monotonic() < deadline:
        crew.fill_up()
        now = time.monotonic()
        for wake_at, member in [entry for entry in stopped if entry[0] <= now]:
            stopped.remove((wake_at, member))
            with contextlib.suppress(ProcessLookupError):
                member.send(signal.SIGCONT)
        if ballast is not None and ballast.exists() and now >= relief_at:
            ballast.unlink()
        victim = chance.choice(crew.members)
        what = chance.random()
        if what < 0.4:
            victim.process.kill()
            result.killed += 1
        elif what < 0.6 and all(member is not victim for _, member in stopped):
            victim.send(signal.SIGSTOP)
            stopped.append((now + chance.uniform(1.5, 2.5) * LEASE_S, victim))
            result.stopped += 1
        elif what < 0.8:
            victim.send(signal.SIGTERM)
            result.told += 1
        elif ballast is not None and not ballast.exists():
            fill(ballast)
            relief_at = now + chance.uniform(0.5, 2.0)
            result.filled += 1
        time.sleep(chance.uniform(0.2, 0.8))
        if not stopped and remaining(crew.home, env) == 0:
            break
    for _, member in stopped:
        with contextlib.suppress(ProcessLookupError):
            member.send(signal.SIGCONT)
    if ballast is not None:
        ballast.unlink(missing_ok=True)


def fill(ballast: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 65536)


def check(result: Result, record: Path, home: Path, env: dict[str, str], task_count: int) -> None:
    """Compare the ledger with what the tasks themselves wrote down."""
    said: dict[str, dict[Run, list[tuple[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in record.read_text(encoding="utf-8").splitlines():
        task, attempt, nonce, what, at = json.loads(line)
        said[task][attempt, nonce].append((what, at))
    told = {
        task["task"]: task
        for task in json.loads(gpuledger("tasks", "--json", cwd=home, env=env).stdout)
    }
    result.runs = sum(len(runs) for runs in said.values())
    if len(told) != task_count:
        result.problems.append(f"{len(told)} tasks in the ledger instead of {task_count}")
    dead = dead_workers(Path(env["GPULEDGER_DIR"]))
    for name, task in told.items():
        problems = problems_of(task, said[name], dead)
        result.problems.extend(f"{name}: {problem}" for problem in problems)
    counts = json.loads(gpuledger("status", "--json", cwd=home, env=env).stdout)["counts"]
    if counts["completed"] != task_count:
        result.problems.append(f"counts: {counts}")


def dead_workers(folder: Path) -> set[str]:
    """Return the nonces of the workers that others found dead."""
    with contextlib.closing(sqlite3.connect(folder / "ledger.db")) as db:
        return {nonce for (nonce,) in db.execute("SELECT nonce FROM worker WHERE ending = 'lost'")}


def problems_of(
    task: dict[str, Any], said: dict[Run, list[tuple[str, float]]], dead: set[str]
) -> Iterator[str]:
    """Yield what is wrong with one task.

    What a worker ran between its last visit to the ledger and its death has run, and is not there:
    so several runs may have the same number, and the last of them none if the late success of an
    earlier attempt came meanwhile.
    """
    if task["state"] != "completed":
        yield f"is {task['state']}: {task['last_error']}"
    completed = [a["number"] for a in task["attempts"] if a["outcome"] == "completed"]
    if len(completed) != 1:
        yield f"attempts {completed} completed"
    ended = {number for (number, _), lines in said.items() if lines[-1][0] == "ended"}
    for number in set(completed) - ended:
        yield f"attempt {number} is recorded as completed, but did not say that it ended"
    spans = sorted((lines[0][1], lines[-1][1], run) for run, lines in said.items())
    for (_, end, first), (start, _, second) in itertools.pairwise(spans):
        if start < end:
            yield f"attempts {first} and {second} ran at once for {end - start:.3f} s"
    recorded = {attempt["number"] for attempt in task["attempts"]}
    if not {number for number, nonce in said if nonce not in dead} <= recorded:
        yield f"attempts {set(said)} ran, in the ledger there are {recorded}"


def main() -> int:
    """Run by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--warm", action="store_true", help="fork the tasks from a warm process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpuledger-chaos-") as name:
        result = run(
            Path(name),
            seed=options.seed,
            task_count=options.tasks,
            workers=options.workers,
            limit_s=60 * options.minutes,
            disk=True,
            warm=options.warm,
        )
    print(result)
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
