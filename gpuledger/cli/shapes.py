"""Says what `--json` prints: instants as ISO-8601 in UTC, durations in seconds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gpuledger.clock import iso
from gpuledger.origin import Origin, Packages, origin_values
from gpuledger.selection import TaskChange
from gpuledger.spec import SweepChange
from gpuledger.views import (
    AttemptRecord,
    Counts,
    Event,
    FailureView,
    Snapshot,
    SweepView,
    TaskRecord,
    WorkerView,
)

if TYPE_CHECKING:  # only `results` needs what they import
    from gpuledger.results import Group
    from gpuledger.steps import Step

Shape = dict[str, Any]


def status_shape(snapshot: Snapshot) -> Shape:
    """Return what `status --json` prints."""
    return {
        "counts": _counts(snapshot.counts),
        "sweeps": [_sweep(view) for view in snapshot.sweeps],
        "workers": [_worker(view) for view in snapshot.workers],
        "failures": [_failure(view) for view in snapshot.failures],
        "eta_s": snapshot.eta_s,
    }


def task_shape(record: TaskRecord) -> Shape:
    """Return one element of what `tasks --json` prints, and all that `show --json` does."""
    return {
        "task": record.task,
        "sweep": record.sweep,
        "state": record.state,
        "params": dict(record.params),
        "seed": record.seed,
        "failures": record.failures,
        "losses": record.losses,
        "max_attempts": record.max_attempts,
        "last_error": record.last_error,
        "result": None if record.result is None else dict(record.result),
        "attempts": [_attempt(attempt) for attempt in record.attempts],
    }


def event_shape(event: Event) -> Shape:
    """Return one element of what `events --json` prints."""
    return {
        "id": event.id,
        "at": iso(event.at),
        "kind": event.kind,
        "task": event.task,
        "number": event.number,
        "worker": event.worker,
        "data": dict(event.data),
    }


def result_shape(record: TaskRecord, metrics: Collection[str]) -> Shape:
    """Return one element of what `results --format json` prints, with these metrics."""
    return {
        "task": record.task,
        "sweep": record.sweep,
        "state": record.state,
        "seed": record.seed,
        "params": dict(record.params),
        "metrics": {k: v for k, v in (record.result or {}).items() if k in metrics},
    }


def group_shape(names: Sequence[str], group: Group) -> Shape:
    """Return one element of what `results --by NAMES --format json` prints."""
    return {
        "by": dict(zip(names, group.values, strict=True)),
        "n": group.n,
        "tasks": group.total,
        "metrics": {name: asdict(statistic) for name, statistic in group.metrics.items()},
    }


def step_shape(step: Step, metrics: Collection[str]) -> Shape:
    """Return one element of what `results --steps --format json` prints."""
    return {
        **step.facts,
        "params": dict(step.record.params),
        "metrics": {k: v for k, v in step.metrics.items() if k in metrics},
    }


def task_change_shape(change: TaskChange) -> Shape:
    """Return what `retry --json` and `cancel --json` print."""
    return {
        "changed": change.changed,
        "running": change.running,
        "withdrawn": change.withdrawn,
        "skipped": {str(state): count for state, count in change.skipped.items()},
        "names": list(change.names),
        "resumed": list(change.resumed),
    }


def sweep_change_shape(change: SweepChange) -> Shape:
    """Return what `init --json` prints, but for the ledger's folder."""
    return {**asdict(change), "settings_changed": list(change.settings_changed)}


def _counts(counts: Counts) -> Shape:
    return {**asdict(counts), "total": counts.total}


def _sweep(view: SweepView) -> Shape:
    return {
        "name": view.name,
        "counts": _counts(view.counts),
        "created_at": iso(view.created_at),
        "paused": view.paused,
        "mean_s": view.mean_s,
        "eta_s": view.eta_s,
        "misfit": view.misfit,
    }


def _worker(view: WorkerView) -> Shape:
    shape = {**asdict(view), "gpus": [asdict(gpu) for gpu in view.gpus]}
    del shape["nonce"]  # tells nobody anything
    return shape


def _failure(view: FailureView) -> Shape:
    return {**asdict(view), "ended_at": iso(view.ended_at)}


def _attempt(attempt: AttemptRecord) -> Shape:
    return {
        "number": attempt.number,
        "worker": attempt.worker,
        "place": attempt.place,
        "outcome": attempt.outcome,
        "exit_code": attempt.exit_code,
        "signal": attempt.signal,
        "started_at": iso(attempt.started_at),
        "ended_at": iso(attempt.ended_at),
        "error": attempt.error,
        "traceback": attempt.traceback,
        "log": attempt.log,
        "memory_peak_mib": attempt.memory_peak_mib,
        "gpu_memory_mib": attempt.gpu_memory_mib,
        "origin": None if attempt.origin is None else _origin(attempt.origin),
    }


def _origin(origin: Origin) -> Shape:
    return {
        "commit": origin.commit,
        "dirty": origin.dirty,
        "environment": origin.environment,
    }


def whole_origin_shape(record: TaskRecord, packages: Mapping[str, Packages]) -> Shape:
    """Return what `show --env --json` prints: packages by digest, and all that is known."""
    shape = task_shape(record)
    for attempt, told in zip(record.attempts, shape["attempts"], strict=True):
        told["origin"] = None if attempt.origin is None else origin_values(attempt.origin)
    return {**shape, "environments": {key: asdict(each) for key, each in packages.items()}}
