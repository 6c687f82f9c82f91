"""Optuna's journal file with its default lock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks.peers import Step
from tests.benchmarks.peers.optuna_study import fill, stepper

LABEL = "Optuna, journal file"
NEEDS = "optuna"
PER_S = 1500


def _storage(folder: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(folder / "journal.log")))


def create(folder: Path, tasks: int) -> None:
    fill(_storage(folder), tasks)


def connect(folder: Path) -> Step:
    return stepper(_storage(folder))
