"""Oríon with its default storage, one pickled file behind a file lock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks.peers import Step

LABEL = "Oríon, PickledDB (not synced)"
NEEDS = "orion"
PER_S = 50


def _client(folder: Path) -> Any:
    from orion.client import build_experiment

    storage = {
        "type": "legacy",
        "database": {"type": "pickleddb", "host": str(folder / "orion.pkl"), "timeout": 60},
    }
    space = {"x": "uniform(0, 100000, discrete=True)"}
    return build_experiment("bench", space=space, storage=storage, max_trials=10**6)


def create(folder: Path, tasks: int) -> None:
    client = _client(folder)
    for number in range(tasks):
        client.insert({"x": number})
    client.close()


def connect(folder: Path) -> Step:
    client = _client(folder)
    held: list[Any] = []

    def step() -> str | None:
        if held:
            client.observe(held.pop(), [{"name": "objective", "type": "objective", "value": 0.0}])
        trial = client.suggest()
        held.append(trial)
        return str(trial.id)

    return step
