"""What people look at: the ledger's sweeps, workers, tasks and events as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpuledger.model import Outcome, TaskState
from gpuledger.origin import Origin
from gpuledger.spec import Params


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Tasks by state."""

    pending: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        """All tasks."""
        return self.pending + self.running + self.completed + self.failed + self.cancelled

    @property
    def remaining(self) -> int:
        """Tasks that are not ended."""
        return self.pending + self.running

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            pending=self.pending + other.pending,
            running=self.running + other.running,
            completed=self.completed + other.completed,
            failed=self.failed + other.failed,
            cancelled=self.cancelled + other.cancelled,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepView:
    """One sweep in the status.

    Attributes:
        paused: Why nothing of it is claimed, or None.
        mean_s: Mean duration of its completed attempts, or None.
        eta_s: Seconds until nothing of it is left, or None when unknown.
        misfit: Why none of the live workers can take its pending tasks, or None.
    """

    name: str
    counts: Counts
    created_at: float
    paused: str | None = None
    mean_s: float | None = None
    eta_s: float | None = None
    misfit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuView:
    """One GPU as its worker last saw it; None means NVML did not say, `problem` may tell why."""

    index: str
    name: str | None = None
    memory_total_mib: int | None = None
    memory_used_mib: int | None = None
    utilisation_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One live worker in the status.

    Attributes:
        name: `<host>:gpu2`.
        nonce: Of its process, as in its liveness file's name.
        task: What it runs, or None when it is idle.
        number: Number of that attempt, from 1.
        failures: Counted failures of that task before this attempt.
        max_attempts: Of that task.
        elapsed_s: How long that attempt runs, by the worker's clock.
        step: Last reported `step`, or None.
        total: Last reported `total`, or None.
        metrics: Last reported other values.
        heartbeat_age_s: Seconds since the last sign of life; None when there never was one.
        has_gpu: False for CPU workers.
        gpus: As the worker last saw them; empty for CPU workers.
        note: Anything unusual in a few words ("stopping", "suspect, cools down 60 s"), or None.
        place: Of its allocation, as in "slurm 123_4 on n7, restart 1"; None without one.
    """

    name: str
    nonce: str = ""
    task: str | None = None
    number: int | None = None
    failures: int = 0
    max_attempts: int | None = None
    elapsed_s: float | None = None
    step: float | None = None
    total: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    heartbeat_age_s: float | None = None
    has_gpu: bool = False
    gpus: tuple[GpuView, ...] = ()
    note: str | None = None
    place: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureView:
    """The latest failure of a task, for the status."""

    task: str
    sweep: str
    state: TaskState
    number: int
    failures: int
    max_attempts: int
    worker: str
    outcome: Outcome
    error: str | None
    traceback: str | None
    ended_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything `status` shows, taken at one moment.

    Attributes:
        taken_at: Seconds since the epoch, on the reader's clock.
        ledger: Path of the ledger's folder, for people.
        counts: Over all sweeps shown.
        sweeps: In the order of creation.
        workers: The live ones, by name.
        failures: The latest first, at most 200, one a task.
        more_failures: There are older ones that are left out.
        eta_s: Seconds until nothing is left, or None when unknown.
        per_hour: Tasks completed an hour, over the last one or since it began; 0: not known yet.
        unreachable: Why the ledger could not be read this time (the rest is the last good
            answer), or None.
    """

    taken_at: float
    ledger: str
    counts: Counts
    sweeps: tuple[SweepView, ...] = ()
    workers: tuple[WorkerView, ...] = ()
    failures: tuple[FailureView, ...] = ()
    more_failures: bool = False
    eta_s: float | None = None
    per_hour: float = 0.0
    unreachable: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One attempt, whole; `log` is the absolute path of its log file.

    `memory_peak_mib` is the most it was seen to use on one GPU, `gpu_memory_mib` what there was
    of that; None when unknown. `place` is that of its worker's allocation, if it had one. `origin`
    comes without its packages.
    """

    number: int
    worker: str
    outcome: Outcome | None
    exit_code: int | None
    signal: int | None
    started_at: float
    ended_at: float | None
    duration_s: float | None
    error: str | None
    traceback: str | None
    metrics: Mapping[str, Any]
    log: str
    memory_peak_mib: int | None = None
    gpu_memory_mib: int | None = None
    place: str | None = None
    origin: Origin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One task, whole.

    Attributes:
        failures: Counted failures since it was last retried by an operator.
        last_error: Of its latest attempt that ended badly, or None.
        result: The metrics of the attempt that completed it, or None.
        folder: Absolute path of its folder (logs, and `files` for the script).
        timeout_s: How long an attempt may take, or None.
    """

    task: str
    sweep: str
    state: TaskState
    params: Params
    seed: int
    priority: int
    failures: int
    losses: int
    max_attempts: int
    last_error: str | None
    result: Mapping[str, Any] | None
    folder: str
    timeout_s: float | None = None
    attempts: tuple[AttemptRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, for people who follow.

    Attributes:
        id: Counts up over the whole ledger.
        at: Seconds since the epoch, on the clock of the machine that wrote it.
        kind: An `Outcome`, or `started`, `retried`, `sweep_paused`, `worker_lost`, ...
        data: What belongs to it: error, failures, max_attempts, state, ...
    """

    id: int
    at: float
    kind: str
    task: str | None = None
    number: int | None = None
    worker: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
