"""Claim + complete by 1, 4 and 16 worker processes: gpuledger and its peers, in turn.

One round measures everybody once, so that a slow moment of the machine hits all. The workers of
a measurement start together and stop at the same deadline; every task they took is counted, and
so is every task that two of them got.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import peers
from tests.benchmarks.measure import spread

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_S = 90.0
"""How long a measurement may take from start to end before it counts as failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What one measurement found.

    Attributes:
        per_s: Claimed and completed tasks a second, all workers together.
        longest_s: Longest time that one worker waited for one operation.
        done: Tasks that were taken.
        twice: Tasks that more than one worker got.
    """

    per_s: float
    longest_s: float
    done: int
    twice: int


def run(*, counts: Sequence[int], rounds: int, seconds: float, many: int | None) -> dict[str, Any]:
    """Measure all peers; `many` adds one more number of workers for those that start quickly."""
    figures: dict[str, dict[int, list[Figure]]] = {}
    left_out: dict[str, str] = {}
    for number in range(rounds):
        for name in peers.NAMES:
            peer = peers.load(name)
            reason = peers.why_not(peer)
            if reason is not None:
                left_out[peer.LABEL] = reason
                continue
            if peer.LABEL in left_out:
                continue
            light = peer.NEEDS is None
            for workers in [*counts, *([many] if many and light else [])]:
                try:
                    found = measure(name, workers=workers, seconds=seconds)
                except BrokenPeer as broken:
                    left_out[peer.LABEL] = str(broken)
                    break
                figures.setdefault(peer.LABEL, {}).setdefault(workers, []).append(found)
        print(f"  round {number + 1} of {rounds} done", flush=True)
    return {
        "seconds_a_measurement": seconds,
        "peers": {label: _summary(by_count) for label, by_count in figures.items()},
        "left_out": left_out,
    }


class BrokenPeer(Exception):
    """A peer could not be measured; the text says why."""


def measure(name: str, *, workers: int, seconds: float) -> Figure:
    """Let so many processes work for so many seconds; raise BrokenPeer when they cannot."""
    with tempfile.TemporaryDirectory(prefix="gpuledger-bench-") as scratch:
        folder = Path(scratch)
        peer = peers.load(name)
        tasks = int(peer.PER_S * seconds) + 2 * workers
        with _server_of(peer, folder):
            return _measure(name, folder, workers=workers, tasks=tasks, seconds=seconds)


@contextmanager
def _server_of(peer: peers.Peer, folder: Path) -> Iterator[None]:
    """Let the peer's server run meanwhile, if it has one."""
    command = getattr(peer, "server", None)
    if command is None:
        yield
        return
    process = subprocess.Popen(
        command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _measure(name: str, folder: Path, *, workers: int, tasks: int, seconds: float) -> Figure:
    # In a process of its own: what it opens must not reach the workers.
    maker = [sys.executable, "-m", "tests.benchmarks.throughput", "create", name, str(folder)]
    _check(subprocess.run([*maker, str(tasks)], cwd=ROOT, capture_output=True, check=False))
    command = [sys.executable, "-m", "tests.benchmarks.throughput", "work", name, str(folder)]
    started = [
        subprocess.Popen(
            [*command, str(seconds)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(workers)
    ]
    try:
        return _collect(started, folder)
    finally:
        for process in started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None and not stream.closed:
                    stream.close()


def _check(done: subprocess.CompletedProcess[bytes]) -> None:
    if done.returncode != 0:
        raise BrokenPeer(_last_line(done.stderr.decode(errors="replace")))


def _last_line(text: str) -> str:
    """Return the error of a traceback, paths left out: it goes into a file that is published."""
    lines = [line for line in text.splitlines() if line.strip()]
    said = lines[-1] if lines else "it ended without a word"
    return " ".join(word for word in said.split() if "/" not in word)[:160]


def _collect(started: list[subprocess.Popen[str]], folder: Path) -> Figure:
    for process in started:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            assert process.stderr is not None
            raise BrokenPeer(_last_line(process.stderr.read()))
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = []
    for process in started:
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise BrokenPeer(f"a worker was not done after {PATIENCE_S:g} s") from None
        if process.returncode != 0:
            raise BrokenPeer(_last_line(err))
        answers.append(json.loads(out.splitlines()[-1]))
    return combine(answers)


def combine(answers: Sequence[dict[str, Any]]) -> Figure:
    """Return the figure of workers that each told `names`, `longest_s`, `began_s`, `ended_s`."""
    taken = Counter(name for answer in answers for name in answer["names"])
    took_s = max(a["ended_s"] for a in answers) - min(a["began_s"] for a in answers)
    done = sum(taken.values())
    return Figure(
        per_s=done / took_s,
        longest_s=max(a["longest_s"] for a in answers),
        done=done,
        twice=sum(1 for times in taken.values() if times > 1),
    )


def work(name: str, folder: Path, seconds: float) -> None:
    """Be one worker process: say ready, wait for go, work, tell."""
    step = peers.load(name).connect(folder)
    print("ready", flush=True)
    sys.stdin.readline()
    names: list[str] = []
    longest_s = 0.0
    began_s = before_s = time.monotonic()
    ended_s = began_s
    while before_s - began_s < seconds:
        taken = step()
        after_s = time.monotonic()
        longest_s = max(longest_s, after_s - before_s)
        before_s = after_s
        if taken is None:
            break
        names.append(taken)
        ended_s = after_s
    answer = {"names": names, "longest_s": longest_s, "began_s": began_s, "ended_s": ended_s}
    print(json.dumps(answer), flush=True)
    os._exit(0)  # some peers have threads that would go on


def _summary(by_count: dict[int, list[Figure]]) -> dict[str, Any]:
    return {
        str(workers): {
            "per_s": spread([figure.per_s for figure in figures]),
            "longest_s": spread([figure.longest_s for figure in figures]),
            "done": sum(figure.done for figure in figures),
            "twice": sum(figure.twice for figure in figures),
        }
        for workers, figures in by_count.items()
    }


def main(arguments: list[str]) -> None:
    """Make tasks or work, as a process of a measurement."""
    role, name, folder, number = arguments
    if role == "create":
        peers.load(name).create(Path(folder), int(number))
    else:
        work(name, Path(folder), float(number))


if __name__ == "__main__":
    main(sys.argv[1:])
