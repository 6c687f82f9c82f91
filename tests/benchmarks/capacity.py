"""How far one ledger goes: measured cost per operation × workers × task length → utilisation.

One ledger does one thing at a time. A worker with a task of T seconds asks it once a task
(complete + claim) and, while others come and go, once a lease for who is alive, which costs more
the more workers there are. The model is a closed queue with one server: mean value analysis while
it has time left, and the balance of claims and looks where it has none. The simulation lets every
worker draw its task lengths and wait its turn, and checks the model.

`python -m tests.benchmarks.capacity DIR` measures the costs in a folder of any file system and
prints them as JSON: on NFS, run it there and give the output to `--nfs`.
"""

from __future__ import annotations

import heapq
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpuledger.ledger import Ledger
from gpuledger.model import Claim, WorkerIdentity
from gpuledger.sweep import read_sweep
from tests.benchmarks.measure import reference_ms, timed_ms

LEASE_S = 60.0
WORKERS = (10, 100, 1_000, 10_000)
TASK_S = (1.0, 10.0, 60.0, 600.0, 3600.0)
SIMULATED = ((1_000, 10.0), (1_000, 60.0), (10_000, 60.0), (10_000, 600.0))
ENOUGH = 0.99
"""Share of a worker's time that shall be left for tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What the ledger needs for one thing, alone.

    Attributes:
        task_s: Ending one attempt and claiming the next.
        roster_s: Reading who is alive, with nobody there.
        roster_row_s: What each worker there adds to it.
    """

    task_s: float
    roster_s: float
    roster_row_s: float

    def roster_of_s(self, workers: int) -> float:
        """Return the cost of one look at so many workers."""
        return self.roster_s + self.roster_row_s * workers


def measure_costs(folder: Path, *, operations: int, rows: int) -> Costs:
    """Measure on the file system of `folder`."""
    file = folder / "cost.toml"
    file.write_text(f'command = "true"\nseeds = {operations + 10}\n', encoding="utf-8")
    ledger = Ledger.create(folder / "ledger")
    ledger.add_sweep(read_sweep(file, allow_large=True))
    me = _register(ledger, 0)
    held = [ledger.claim(me)]

    def turn() -> None:
        claim = held.pop()
        assert isinstance(claim, Claim)
        following = ledger.complete(claim.token, then=me).next
        assert following is not None
        held.append(following)

    tasks_ms = [timed_ms(turn) for _ in range(operations)]
    alone_ms = statistics.median(timed_ms(ledger.live_workers) for _ in range(20))
    for number in range(1, rows):
        _register(ledger, number)
    crowd_ms = statistics.median(timed_ms(ledger.live_workers) for _ in range(20))
    return Costs(
        task_s=statistics.median(tasks_ms) / 1000,
        roster_s=alone_ms / 1000,
        roster_row_s=max(crowd_ms - alone_ms, 0.0) / 1000 / (rows - 1),
    )


def _register(ledger: Ledger, number: int) -> WorkerIdentity:
    return ledger.register(
        WorkerIdentity(
            nonce=f"{number:016x}",
            name=f"host{number}:gpu0",
            host=f"host{number}",
            machine="m",
            pid=1,
            pid_start=1,
        )
    )


def utilisation(costs: Costs, *, workers: int, task_s: float) -> float:
    """Return the share of the workers' time that goes into tasks."""
    ledger_s = max(
        _response_s(costs, workers=workers, task_s=task_s),
        _saturated_wait_s(costs, workers=workers, task_s=task_s) + costs.task_s,
    )
    return task_s / (task_s + ledger_s)


def _response_s(costs: Costs, *, workers: int, task_s: float) -> float:
    """Return wait and service of one claim by mean value analysis; 0 where looks alone fill it."""
    looking = workers * costs.roster_of_s(workers) / LEASE_S
    if looking >= 1:
        return 0.0
    service_s = costs.task_s / (1 - looking)  # what is left of the ledger for claims
    waiting = 0.0  # mean number of workers at the ledger, when one more comes
    response_s = service_s
    for present in range(1, workers + 1):
        response_s = service_s * (1 + waiting)
        waiting = present * response_s / (task_s + response_s)
    return response_s


def _saturated_wait_s(costs: Costs, *, workers: int, task_s: float) -> float:
    """Return the wait at which claims and looks together just fill the ledger's time."""
    look_s = costs.roster_of_s(workers)

    def load(wait_s: float) -> float:
        claims = costs.task_s / (task_s + wait_s + costs.task_s)
        return workers * (claims + look_s / (LEASE_S + wait_s + look_s))

    low, high = 0.0, 2 * workers * (costs.task_s + look_s)
    if load(low) <= 1:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if load(middle) > 1 else (low, middle)
    return high


def most_workers(costs: Costs, *, task_s: float, most: int = 100_000) -> int:
    """Return how many workers one ledger serves at `ENOUGH` utilisation."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if utilisation(costs, workers=middle, task_s=task_s) >= ENOUGH:
            low = middle
        else:
            high = middle - 1
    return low


def simulate(
    costs: Costs, *, workers: int, task_s: float, horizon_s: float, seed: int = 1
) -> float:
    """Return the utilisation of a simulated fleet: a ledger with one queue, tasks of any length.

    Task lengths are exponential around `task_s`; the first third of the time is not counted.
    """
    chance = random.Random(seed)
    cost_s = {"claim": costs.task_s, "look": costs.roster_of_s(workers)}
    arrivals: list[tuple[float, int, str]] = []
    for worker in range(workers):
        arrivals.append((chance.uniform(0, task_s), worker, "claim"))
        arrivals.append((chance.uniform(0, LEASE_S), worker, "look"))
    heapq.heapify(arrivals)
    free_s = 0.0
    worked_s = 0.0
    counted_from_s = horizon_s / 3
    while arrivals[0][0] < horizon_s:
        came_s, worker, what = heapq.heappop(arrivals)
        free_s = max(free_s, came_s) + cost_s[what]
        if what == "look":
            heapq.heappush(arrivals, (free_s + LEASE_S, worker, what))
            continue
        length_s = chance.expovariate(1 / task_s)
        ends_s = free_s + length_s
        worked_s += max(0.0, min(ends_s, horizon_s) - max(free_s, counted_from_s))
        heapq.heappush(arrivals, (ends_s, worker, what))
    return worked_s / (workers * (horizon_s - counted_from_s))


def run(folder: Path, *, quick: bool, nfs: dict[str, Any] | None) -> dict[str, Any]:
    """Measure here, model, and check the model by simulation."""
    costs = measure_costs(folder, operations=100 if quick else 300, rows=200 if quick else 1000)
    found = {"local": _modelled(costs, quick=quick)}
    if nfs is not None:
        found["nfs"] = _modelled(Costs(**nfs["costs"]), quick=quick) | {"measured": nfs}
    return found


def _modelled(costs: Costs, *, quick: bool) -> dict[str, Any]:
    return {
        "costs": asdict(costs),
        "utilisation": {
            f"{workers} workers, {task_s:g} s": round(
                utilisation(costs, workers=workers, task_s=task_s), 4
            )
            for workers in WORKERS
            for task_s in TASK_S
        },
        "most_workers_at_99_percent": {
            f"{task_s:g} s": most_workers(costs, task_s=task_s) for task_s in TASK_S
        },
        "simulated": list(_checks(costs, quick=quick)),
    }


def _checks(costs: Costs, *, quick: bool) -> Iterator[dict[str, Any]]:
    for workers, task_s in SIMULATED:
        horizon_s = max(3 * task_s, 300.0) * (1 if quick else 2)
        yield {
            "workers": workers,
            "task_s": task_s,
            "model": round(utilisation(costs, workers=workers, task_s=task_s), 4),
            "simulation": round(
                simulate(costs, workers=workers, task_s=task_s, horizon_s=horizon_s), 4
            ),
        }


def main(arguments: list[str]) -> None:
    """Print the costs on a folder's file system."""
    with tempfile.TemporaryDirectory(prefix="gpuledger-bench-", dir=arguments[0]) as scratch:
        costs = measure_costs(Path(scratch), operations=60, rows=40)
        told = {"costs": asdict(costs), "reference": reference_ms(Path(scratch), rounds=20)}
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1:])
