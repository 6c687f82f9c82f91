"""The values of the ledger: what a task, an attempt and a worker are, and what follows what.

Everything here is frozen and pure; nothing here reads a file, a clock or the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from gpuledger.errors import LeaseLost
from gpuledger.origin import Origin, origin_from
from gpuledger.spec import Params, RunSettings


class TaskState(StrEnum):
    """Where a task stands."""

    PENDING = "pending"  # waits for a worker
    RUNNING = "running"  # has one open attempt
    COMPLETED = "completed"  # ended well
    FAILED = "failed"  # ended badly, as often as it may
    CANCELLED = "cancelled"  # an operator said no


class Outcome(StrEnum):
    """How an attempt ended; an attempt without one is open."""

    COMPLETED = "completed"
    FAILED = "failed"  # exit code, signal, exception
    OOM = "oom"  # GPU or host memory ran out
    TIMED_OUT = "timed_out"  # over its time, or silent for too long
    LOST = "lost"  # its worker or machine died
    INTERRUPTED = "interrupted"  # given back: Ctrl-C, preemption, stop
    CANCELLED = "cancelled"  # an operator ended it


COUNTED_AS_FAILURE = frozenset({Outcome.FAILED, Outcome.OOM, Outcome.TIMED_OUT})
"""The outcomes that use up one of a task's `max_attempts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerIdentity:
    """A worker process, told apart from every other there was.

    Attributes:
        nonce: Random, new for each process.
        name: `<host>:gpu2`, `<host>:cpu`; made unique among the live by the ledger (`#2`).
        host: Host name, for people.
        machine: Boot id and process-number namespace: equal means `pid` can be looked up here.
        pid: Process number.
        pid_start: Start time of that process in clock ticks since boot, so that a reused
            number is not taken for the worker.
        gpus: Indices or UUIDs for CUDA_VISIBLE_DEVICES; empty means CPU.
        gpu_memory_mib: Memory of the smallest of them; None when unknown or CPU.
        gpu_name: Model of the first, None when unknown or CPU.
        details: What else is known of its place, as JSON values: `slurm` has job, node, restarts.
    """

    nonce: str
    name: str
    host: str
    machine: str
    pid: int
    pid_start: int
    gpus: tuple[str, ...] = ()
    gpu_memory_mib: int | None = None
    gpu_name: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """The right to end one attempt: it fences everyone who lost the task meanwhile."""

    task: str
    number: int
    nonce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One attempt, given to a worker to run.

    `usual_s` is how long such a task takes: as the sweep file says, or as its sweep's completed
    ones took; None when that is not known.
    """

    token: Token
    sweep: str
    params: Params
    seed: int
    failures: int
    settings: RunSettings
    usual_s: float | None = None

    @property
    def task(self) -> str:
        """The task's name."""
        return self.token.task

    @property
    def number(self) -> int:
        """The attempt's number, from 1."""
        return self.token.number


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A short attempt that has ended; instants are seconds since the epoch, by its worker.

    `params` are what it ran with; None when that is not known.
    """

    token: Token
    ending: Ending
    started_at: float
    ended_at: float
    params: Params | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What became of finished attempts, in their order, and what the worker holds now.

    Attributes:
        ended: `LeaseLost` for those that were not its own any more.
        lost_running: Why the task that runs is not the worker's any more, or None.
        held: The next tasks to start.
        next: What an ordinary claim found, where nothing could be held.
    """

    ended: tuple[Ended | LeaseLost, ...] = ()
    lost_running: LeaseLost | None = None
    held: tuple[Claim, ...] = ()
    next: Claim | NothingToDo | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NothingToDo:
    """Why a claim found no task.

    Attributes:
        pending: Pending tasks of the sweeps asked for that are not paused: they wait for
            another worker, or for the end of this worker's `avoid` window.
        running: Tasks that others run; they may come back.
        held: Pending tasks of sweeps that an operator paused.
        broken: Names of the sweeps with pending tasks that gpuledger paused.
        misfits: By name, why this worker cannot take the pending tasks of other sweeps; these
            count in none of the numbers above.
    """

    pending: int = 0
    running: int = 0
    held: int = 0
    broken: tuple[str, ...] = ()
    misfits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What became of a task, and of its worker, when an attempt was ended.

    Attributes:
        state: The task's state now.
        failures: Its counted failures now.
        max_attempts: How many it may have.
        suspect: The worker failed three tasks in a row that nobody else failed: it should cool
            down; the tasks got those attempts back.
        sweep_paused: Why the sweep was paused by this failure, or None.
        next: What the worker runs next, when it asked for that.
    """

    state: TaskState
    failures: int
    max_attempts: int
    suspect: bool = False
    sweep_paused: str | None = None
    next: Claim | NothingToDo | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt ended, as its worker saw it.

    Attributes:
        outcome: See `Outcome`.
        exit_code: Of the command; None when it ended by a signal or never started.
        signal: Number of the signal that ended it, or None.
        error: One line that says what happened; None when completed.
        traceback: The whole (last) Python traceback, at most 64 KiB, or None.
        metrics: The last values the script reported.
        duration_s: How long it ran, on the worker's clock.
        fatal: Another attempt makes no sense (`gpuledger.Fatal`, `no_retry_codes`).
        memory_peak_mib: The most memory it was seen to use on one GPU, or None.
        origin: Where it came from, or None.
    """

    outcome: Outcome
    exit_code: int | None = None
    signal: int | None = None
    error: str | None = None
    traceback: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    duration_s: float | None = None
    fatal: bool = False
    memory_peak_mib: int | None = None
    origin: Origin | None = None


def ending_from(values: Mapping[str, Any]) -> Ending:
    """Return an ending that `asdict` made JSON of."""
    origin = values.get("origin")
    return Ending(
        **{
            **values,
            "outcome": Outcome(values["outcome"]),
            "origin": None if origin is None else origin_from(origin),
        }
    )


def state_after(
    ending: Outcome,
    *,
    failures: int,
    losses: int,
    max_attempts: int,
    max_losses: int,
    fatal: bool = False,
    cancel_requested: bool = False,
) -> TaskState:
    """Return the state of a task whose attempt just ended.

    Args:
        ending: The attempt's outcome.
        failures: Counted failures, this one included.
        losses: Lost attempts, this one included.
        max_attempts: Failures that make a task failed.
        max_losses: Losses that make a task failed.
        fatal: Another attempt makes no sense.
        cancel_requested: An operator wants the task not to run again.
    """
    if ending is Outcome.COMPLETED:
        return TaskState.COMPLETED
    if ending is Outcome.CANCELLED or cancel_requested:
        return TaskState.CANCELLED
    if ending in COUNTED_AS_FAILURE and (fatal or failures >= max_attempts):
        return TaskState.FAILED
    if ending is Outcome.LOST and losses >= max_losses:
        return TaskState.FAILED
    return TaskState.PENDING
