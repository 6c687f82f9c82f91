"""Records of any number of pretended tasks, and the pages made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpuledger.model import Outcome, TaskState
from gpuledger.report.data import report_data
from gpuledger.report.page import page, plotly_script
from gpuledger.views import AttemptRecord, Counts, Snapshot, SweepView, TaskRecord

START = 1_700_000_000.0
NO_CURVES: dict[str, Any] = {"read": 0, "of": 0, "metrics": []}


def attempt(number: int = 1, **values: Any) -> AttemptRecord:
    """Return an attempt that completed after ten seconds, unless told."""
    known: dict[str, Any] = {
        "worker": "ada:gpu0",
        "outcome": Outcome.COMPLETED,
        "exit_code": 0,
        "signal": None,
        "started_at": START,
        "duration_s": 10.0,
        "error": None,
        "traceback": None,
        "metrics": {},
        "log": f"/lab/.gpuledger/runs/x/attempt-{number}.log",
        **values,
    }
    known.setdefault("ended_at", known["started_at"] + (known["duration_s"] or 0.0))
    return AttemptRecord(number=number, **known)


def failed_attempt(number: int = 1, **values: Any) -> AttemptRecord:
    """Return an attempt that failed."""
    known = {"outcome": Outcome.FAILED, "exit_code": 1, "error": "KeyError: 'x'", **values}
    return attempt(number, **known)


def task(point: int = 0, seed: int = 0, *attempts: AttemptRecord, **values: Any) -> TaskRecord:
    """Return a task; its state follows from its last attempt, unless told."""
    sweep = values.pop("sweep", "exp1")
    last = attempts[-1].outcome if attempts else None
    states = {Outcome.COMPLETED: TaskState.COMPLETED, Outcome.FAILED: TaskState.FAILED}
    errors = [one.error for one in attempts if one.error]
    known: dict[str, Any] = {
        "task": f"{sweep}_{point}_{seed}",
        "state": states.get(last, TaskState.RUNNING) if attempts else TaskState.PENDING,  # type: ignore[arg-type]
        "params": {"lr": 0.1},
        "priority": 0,
        "failures": 0,
        "losses": 0,
        "max_attempts": 3,
        "last_error": errors[-1] if errors else None,
        "result": None,
        "folder": f"/lab/.gpuledger/runs/{sweep}_{point}_{seed}",
        **values,
    }
    return TaskRecord(sweep=sweep, seed=seed, attempts=attempts, **known)


def snapshot_of(records: Sequence[TaskRecord]) -> Snapshot:
    """Return the status that belongs to the tasks."""
    names = list(dict.fromkeys(record.sweep for record in records))
    views = [
        SweepView(
            name=name,
            created_at=START,
            counts=Counts(
                **{
                    str(state): sum(r.state is state and r.sweep == name for r in records)
                    for state in TaskState
                }
            ),
        )
        for name in names
    ]
    return Snapshot(
        taken_at=START + 3600,
        ledger="/lab/.gpuledger",
        counts=sum((view.counts for view in views), Counts()),
        sweeps=tuple(views),
    )


def data_of(records: Sequence[TaskRecord], **values: Any) -> dict[str, Any]:
    """Return what the page of these tasks shows."""
    known = {"title": "exp1", "logs": "./.gpuledger/runs", "curves": NO_CURVES, **values}
    return report_data(records, snapshot_of(records), **known)


def write_page(path: Path, records: Sequence[TaskRecord], **values: Any) -> Path:
    """Write the page of these tasks."""
    text = page(data_of(records, **values), plotly=plotly_script(), version="1")
    path.write_text(text, encoding="utf-8")
    return path


def many(count: int, *, workers: int = 32) -> list[TaskRecord]:
    """Return so many tasks of a search: some failed at first, some for good, one runs."""
    records = []
    free_at = [START] * workers
    for i in range(count):
        lr = [0.3, 0.1, 0.03, 0.01, 0.003, 0.001][i % 6]
        params = {"lr": lr, "model": f"resnet{18 + i % 3}", "dropout": (i * 37 % 101) / 100}
        attempts: list[AttemptRecord] = []
        while True:
            number = len(attempts) + 1
            on = (i * 7 + number) % workers
            long_s = 30 + (i * 13) % 50
            values = {
                "worker": f"host{on // 8}:gpu{on % 8}",
                "started_at": free_at[on],
                "duration_s": float(long_s),
            }
            free_at[on] += long_s + 2
            if (i + number) % 11 and not (i % 97 == 0 and number < 4):
                attempts.append(attempt(number, **values))
                break
            error = f"RuntimeError: shapes {i}x{number} do not match"
            text = f'Traceback (most recent call last):\n  File "train.py", line 3\n{error}\n'
            attempts.append(failed_attempt(number, error=error, traceback=text, **values))
            if number == 3:
                break
        won = attempts[-1].outcome is Outcome.COMPLETED
        accuracy = 0.9 - abs(lr - 0.03) + (i % 3) / 50 - params["dropout"] / 10  # type: ignore[operator]
        result = {"val_accuracy": accuracy, "loss": 1 - accuracy} if won else None
        records.append(task(i // 3, i % 3, *attempts, params=params, result=result))
    return records


def curves_of(count: int, *, steps: int = 120) -> dict[str, Any]:
    """Return learning curves of so many tasks."""
    return {
        "read": count,
        "of": count,
        "metrics": [
            {
                "name": name,
                "steps": list(range(steps)),
                "averaged": None,
                "curves": [
                    [i, [1 - 1 / (step + 1 + i % 7) for step in range(steps)]] for i in range(count)
                ],
            }
            for name in ("loss", "val_accuracy", "lr", "grad_norm")
        ],
    }
