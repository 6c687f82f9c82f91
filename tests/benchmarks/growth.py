"""Does the ledger stay fast when it grows? `python -m tests.benchmarks.growth`.

Creates ledgers of several sizes on one disk, then measures claim, complete + claim and the
status in turn (one of each per round, so that a slow moment of the machine hits all sizes), and
prints the median and the spread of each, and the ratios to the smallest.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from gpuledger.ledger import Ledger
from gpuledger.model import Claim, WorkerIdentity
from gpuledger.sweep import read_sweep
from tests.benchmarks.measure import spread, timed_ms

SWEEP = """
command = "true"
seeds = {seeds}
[parameters]
lr = {{min = 1, max = {points}}}
"""


def create(folder: Path, tasks: int) -> tuple[Ledger, float, float]:
    """Return a ledger of that many tasks, the seconds it took and the peak memory in MiB."""
    file = folder / f"growth{tasks}.toml"
    seeds = min(tasks, 10)
    file.write_text(SWEEP.format(seeds=seeds, points=tasks // seeds))
    began = time.perf_counter()
    ledger = Ledger.create(folder / f"ledger{tasks}")
    ledger.add_sweep(read_sweep(file, allow_large=True))
    took_s = time.perf_counter() - began
    return ledger, took_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def worker(ledger: Ledger, nonce: str) -> WorkerIdentity:
    """Return a registered worker."""
    return ledger.register(
        WorkerIdentity(nonce=nonce, name="bench:cpu", host="bench", machine="m", pid=1, pid_start=1)
    )


def run(sizes: list[int], *, rounds: int) -> dict[str, Any]:
    """Return the figures of all sizes; see `measure`."""
    with tempfile.TemporaryDirectory(prefix="gpuledger-bench-") as scratch:
        made = {tasks: create(Path(scratch), tasks) for tasks in sizes}
        ledgers = {tasks: ledger for tasks, (ledger, _, _) in made.items()}
        figures = measure(ledgers, rounds=rounds)
    return {
        str(tasks): {
            "created_s": round(made[tasks][1], 3),
            "peak_mib": round(made[tasks][2]),
            **{name: spread(by_size[tasks]) for name, by_size in figures.items()},
        }
        for tasks in sizes
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        ledgers = {}
        print("tasks       init s   peak MiB (of this process so far)")
        for tasks in options.sizes:
            ledgers[tasks], took_s, peak = create(Path(name), tasks)
            print(f"{tasks:>9,}  {took_s:7.2f}   {peak:7.0f}")
        figures = measure(ledgers, rounds=options.rounds)
    show(figures, options.sizes)


def measure(ledgers: dict[int, Ledger], *, rounds: int) -> dict[str, dict[int, list[float]]]:
    """Return milliseconds by operation and size."""
    figures: dict[str, dict[int, list[float]]] = {
        name: {size: [] for size in ledgers} for name in ("claim", "complete + claim", "status")
    }
    workers = {size: worker(ledger, "w") for size, ledger in ledgers.items()}
    for _ in range(rounds):
        for size, ledger in ledgers.items():
            claims: list[Claim] = []

            def claim(ledger: Ledger = ledger, size: int = size) -> None:
                found = ledger.claim(workers[size])
                assert isinstance(found, Claim)
                claims.append(found)  # noqa: B023 - called at once

            def complete(ledger: Ledger = ledger, size: int = size) -> None:
                ended = ledger.complete(claims[-1].token, then=workers[size])  # noqa: B023
                assert isinstance(ended.next, Claim)
                claims.append(ended.next)  # noqa: B023

            figures["claim"][size].append(timed_ms(claim))
            figures["complete + claim"][size].append(timed_ms(complete))
            figures["status"][size].append(timed_ms(ledger.snapshot))
            ledger.complete(claims[-1].token)
    return figures


def show(figures: dict[str, dict[int, list[float]]], sizes: list[int]) -> None:
    """Print medians, the middle half, and the ratio to the smallest size."""
    print("\noperation           tasks       median ms   25-75 %          of smallest")
    for name, by_size in figures.items():
        smallest = statistics.median(by_size[sizes[0]])
        for size, values in by_size.items():
            low, middle, high = statistics.quantiles(values, n=4)
            print(
                f"{name:<18}  {size:>9,}  {middle:9.2f}   {low:6.2f} - {high:6.2f}"
                f"   {middle / smallest:8.2f}"
            )


if __name__ == "__main__":
    main()
