"""The rules and the values: what a task, an attempt and a worker are, and what follows what.

Everything here is frozen and pure; nothing here reads a file, a clock or the ledger.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from gpuledger.errors import LeaseLost
from gpuledger.origin import Origin, origin_from
from gpuledger.where import Where

Params = Mapping[str, Any]
"""One point: dotted parameter names to JSON values."""


def params_digest(params: Params) -> bytes:
    """Return 16 bytes that are equal for equal parameters, whatever their order.

    Equal means equal JSON: 1 and 1.0 and true and "1" are four values, since they reach the
    command as four texts.
    """
    import hashlib  # most commands do without

    text = json.dumps(dict(params), sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


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
class RunSettings:
    """How the tasks of a sweep are run; the same for all of them.

    Attributes:
        command: The arguments, placeholders not yet filled in.
        workdir: Absolute folder to start in.
        env: Added to the worker's environment.
        timeout_s: Longest duration of an attempt; None means no limit.
        max_attempts: Counted failures until a task is failed for good.
        max_losses: Lost attempts until a task is failed for good.
        kill_grace_s: Time between TERM and KILL.
        silence_timeout_s: Longest time without output or report; None means no limit.
        avoid_s: How long a failed task is kept from the worker that failed it, while another
            live worker may take it.
        no_retry_codes: Exit codes after which another attempt makes no sense.
        log_limit_bytes: An attempt whose log grows beyond this is ended.
        pause_after: The sweep is paused when this many different tasks failed in a row, without
            one success, and every live worker failed some of them; 0 means never.
        gpus: How many a task needs; 0 is for workers on the CPU, None for those on the CPU or
            on one GPU.
        min_memory_mib: Memory that each of its GPUs must have; None means any.
        gpu_name: Regular expression that the GPU's name contains, any case; None means any.
        time_needed_s: How long a task takes at most, to a worker whose time is limited; None:
            as long as the completed ones took.
        slurm_setup: Lines of shell for the beginning of Slurm's batch scripts.
        record_diff: Keep what differs from the git commit in `workdir`.
        preload: Modules that a process imports once, to be forked for each task.
    """

    command: tuple[str, ...]
    workdir: str
    env: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = 7200.0
    max_attempts: int = 3
    max_losses: int = 5
    kill_grace_s: float = 30.0
    silence_timeout_s: float | None = None
    avoid_s: float = 60.0
    no_retry_codes: tuple[int, ...] = ()
    log_limit_bytes: int = 1 << 30
    pause_after: int = 5
    gpus: int | None = None
    min_memory_mib: int | None = None
    gpu_name: str | None = None
    time_needed_s: float | None = None
    slurm_setup: str = ""
    record_diff: bool = True
    preload: tuple[str, ...] = ()


def settings_to_json(settings: RunSettings) -> str:
    """Return the settings as the ledger keeps them; `settings_from_json` reads it."""
    return json.dumps(asdict(settings), sort_keys=True)


@functools.lru_cache(maxsize=256)
def settings_from_json(text: str) -> RunSettings:
    """Return kept settings; names that this version does not know are left out.

    The value is immutable and its text is the same for all tasks of a sweep: it is read once.
    """
    kept = json.loads(text)
    values = {field.name: kept[field.name] for field in fields(RunSettings) if field.name in kept}
    values["command"] = tuple(values["command"])
    for name in ("no_retry_codes", "preload"):
        values[name] = tuple(values.get(name, ()))
    return RunSettings(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One task as the sweep file describes it; `point` counts from 0 in the file's order."""

    point: int
    seed: int
    params: Params


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSpec:
    """A sweep file, understood.

    Attributes:
        name: Safe as part of a file name.
        file: Absolute path of the file, for people.
        settings: How its tasks are run.
        priority: Higher runs first.
        task_count: How many tasks `tasks` yields.
        tasks: Call it to iterate over all tasks, in the order in which they should run. It may
            be called again; no two tasks have equal parameters and seed.
    """

    name: str
    file: str
    settings: RunSettings
    priority: int
    task_count: int
    tasks: Callable[[], Iterator[TaskSpec]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepChange:
    """What `add_sweep` did, in numbers of tasks.

    Attributes:
        name: The sweep.
        created: False when the sweep was there before.
        added: New tasks.
        kept: Tasks that were there before and still are in the file.
        missing: Tasks of the ledger that are not in the file (any more).
        pruned: Those of `missing` that were pending and are cancelled now.
        settings_changed: Names of the run settings that are different now.
        completed_before: Completed tasks that ran with the former settings.
    """

    name: str
    created: bool
    added: int = 0
    kept: int = 0
    missing: int = 0
    pruned: int = 0
    settings_changed: tuple[str, ...] = ()
    completed_before: int = 0


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
    """A short attempt that has ended; instants are seconds since the epoch, by its worker."""

    token: Token
    ending: Ending
    started_at: float
    ended_at: float


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PastFailure:
    """A counted failure of a task, as far as `may_run_on` needs it.

    Attributes:
        worker: Name of the worker that failed it.
        outcome: One of `COUNTED_AS_FAILURE`.
        age_s: Seconds since it was recorded; only meaningful for the asking worker's own
            failures, since clocks of two machines are never compared. Negative after the
            machine's clock was set back.
        gpu_memory_mib: Memory of the GPU it ran on, or None.
    """

    worker: str
    outcome: Outcome
    age_s: float
    gpu_memory_mib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A live worker, as far as `may_run_on` needs it."""

    name: str
    gpu_memory_mib: int | None = None


def may_run_on(
    worker: Candidate,
    past: Sequence[PastFailure],
    *,
    others: Sequence[Candidate],
    avoid_s: float,
) -> bool:
    """Tell whether `worker` may take a task with these past failures now.

    A task that failed goes to others first: for `avoid_s` after its failure the worker that
    failed it leaves it alone, as long as some other live worker has not failed it. A task that
    ran out of memory goes to a GPU with more memory while a live worker has one, else to another
    worker within the same window, else to any.

    Args:
        worker: Who asks.
        past: The task's counted failures since it was last retried by an operator.
        others: The other live workers that may take tasks of this sweep.
        avoid_s: Length of the window.
    """
    ran_out = [failure for failure in past if failure.outcome is Outcome.OOM]
    too_small = max((failure.gpu_memory_mib or 0 for failure in ran_out), default=0)
    if too_small:
        if (worker.gpu_memory_mib or 0) > too_small:
            return True
        if any((other.gpu_memory_mib or 0) > too_small for other in others):
            return False
    mine = [f for f in past if f.worker == worker.name and -avoid_s < f.age_s < avoid_s]
    if not mine:
        return True
    blamed = {failure.worker for failure in past}
    return all(other.name in blamed for other in others)


SUSPECT_AFTER = 3
"""Failures in a row that make a worker suspect."""

QUICK_S = 60.0
"""A failure sooner than this after the start is quick: the machine may be what is broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentEnding:
    """One of a worker's latest endings, as far as `is_suspect` needs it."""

    task: str
    outcome: Outcome
    duration_s: float
    failed_elsewhere: bool


def is_suspect(latest: Sequence[RecentEnding], *, others: int) -> bool:
    """Tell whether a worker, rather than its tasks, seems to be what is broken.

    Args:
        latest: Its latest endings, newest first; interruptions left out.
        others: Number of other live workers; without one the tasks have no better place.
    """
    if others < 1 or len(latest) < SUSPECT_AFTER:
        return False
    streak = latest[:SUSPECT_AFTER]
    return len({ending.task for ending in streak}) == SUSPECT_AFTER and all(
        ending.outcome is Outcome.FAILED
        and ending.duration_s < QUICK_S
        and not ending.failed_elsewhere
        for ending in streak
    )


def is_broken(
    *, failed_tasks: int, failed_on: frozenset[str], live: frozenset[str], pause_after: int
) -> bool:
    """Tell whether a sweep, rather than its tasks or workers, seems to be what is broken.

    Args:
        failed_tasks: Different tasks that failed since the sweep's last success.
        failed_on: Names of the workers they failed on.
        live: Names of the live workers.
        pause_after: See `RunSettings`.
    """
    return pause_after > 0 and failed_tasks >= pause_after and live <= failed_on


# --- what people look at ---------------------------------------------------------------------


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
        per_hour: Tasks completed an hour, over the last one or since it began.
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
    attempts: tuple[AttemptRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which tasks an operator means; every field narrows it, an empty one does not.

    Attributes:
        names: Task names.
        sweep: Name of a sweep.
        states: Task states.
        error: Text that the last error or its traceback contains, case-insensitive.
        worker: Name of a worker that ran an attempt of it.
        text: Text that the name, a parameter (`lr=0.1`) or the last error contains,
            case-insensitive.
        where: A condition on parameters, facts and metrics.
    """

    names: tuple[str, ...] = ()
    sweep: str | None = None
    states: frozenset[TaskState] = frozenset()
    error: str | None = None
    worker: str | None = None
    text: str | None = None
    where: Where | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskChange:
    """What an operator's command did, in numbers of tasks.

    Attributes:
        changed: Tasks that are in the wanted state now.
        running: Tasks that run: left alone, or (cancel) asked to stop.
        skipped: By state, tasks that were selected but left as they were.
        names: The first few of the changed ones.
        resumed: Sweeps that gpuledger had paused and that go on now.
    """

    changed: int = 0
    running: int = 0
    skipped: Mapping[TaskState, int] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    resumed: tuple[str, ...] = ()


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
