"""Optuna's relational storage on SQLite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks.peers import Step
from tests.benchmarks.peers.optuna_study import fill, stepper

LABEL = "Optuna, RDB on SQLite"
NEEDS = "optuna"
PER_S = 50


def _storage(folder: Path) -> Any:
    from optuna.storages import RDBStorage

    return RDBStorage(
        f"sqlite:///{folder / 'optuna.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
    )


def create(folder: Path, tasks: int) -> None:
    fill(_storage(folder), tasks)


def connect(folder: Path) -> Step:
    return stepper(_storage(folder))
