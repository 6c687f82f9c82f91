"""Runs one attempt from its start to its end: environment, limits, stop requests, diagnosis.

The worker's main thread is in `run` while a task runs. It wakes when the task ends, when a
signal comes, and once a second to look at the clock, the log and the lease.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gpuledger.clock import Clock
from gpuledger.launcher import Launcher, Order
from gpuledger.machine import oom_kill_count
from gpuledger.model import Claim, Ending, Outcome, WorkerIdentity
from gpuledger.modes import make_folder
from gpuledger.process import CannotStart
from gpuledger.reports import read_last
from gpuledger.running_task import Exit, Hurry, RunningTask
from gpuledger.signals import Signals
from gpuledger.sweep_run import render_command
from gpuledger.traceback_reader import read_failure

TICK_S = 1.0
LEAVING_GRACE_S = 15.0
"""Longest grace of a task whose worker was told to leave: it is out within 25 s of a SIGTERM."""

NO_ROOM = "the disk of its log is full"

SHELL_SIGNAL_BASE = 128
"""A shell says so many plus the signal's number for a command that a signal ended."""

BLIND_S = 10.0
"""Who did not look for so long was stopped itself, or slept with its machine."""

TOGETHER_S = 1.0
"""Signals sent to a task and its worker at once arrive within this."""

BRIEF_SHARE = 0.02
"""After a success one waits for no longer than this share of the time that the task took."""


class LeaseGone(Exception):
    """The worker was found dead meanwhile: its task was killed, nothing is to be recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where an attempt's files are."""

    log: Path
    report: Path
    task_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a worker lends to the attempt that it runs.

    Attributes:
        worker: Whose attempt it is.
        signals: What the operator asked of this process.
        lease: Answers "ours", "unsure" (no sign of life could be written for too long: the task
            must not go on), "regained" (after that, or after the guard froze it) or "lost".
        stop_requested: Whether an operator wants the running attempt ended now.
        say: Prints one line.
        launcher: Starts the task.
        started: Called with the task's processes once they run, for the guard.
        environ: The worker's environment.
        clock: This machine's.
        gpu_lost: Which GPU of the task has been gone for a while, or None.
        leaving_grace_s: Longest grace of a task whose worker got SIGTERM.
        time_is_up: Why the task must be handed back because this worker's time ends, or None.
        shares_signals: Whether who ends this worker signals its task as well, as Slurm may.
        disk_is_full: Whether nothing can be written beside the task's log; asked after a failure.
        tick_s: How long to wait until the next look at all this.
    """

    worker: WorkerIdentity
    signals: Signals
    lease: Callable[[], str]
    stop_requested: Callable[[], bool]
    say: Callable[[str], None]
    launcher: Launcher
    started: Callable[[RunningTask], None]
    environ: Mapping[str, str]
    clock: Clock
    gpu_lost: Callable[[], str | None] = lambda: None
    leaving_grace_s: float = LEAVING_GRACE_S
    time_is_up: Callable[[], str | None] = lambda: None
    shares_signals: bool = False
    disk_is_full: Callable[[], bool] = lambda: False
    tick_s: Callable[[], float] = lambda: TICK_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why a running attempt must be ended now, and how patiently."""

    outcome: Outcome
    error: str
    grace_s: float


def files_of(folder: Path, claim: Claim) -> Files:
    """Return the paths of an attempt's files below the ledger's folder."""
    runs = folder / "runs" / claim.task
    return Files(
        log=runs / f"attempt-{claim.number}.log",
        report=runs / f"attempt-{claim.number}.jsonl",
        task_dir=runs / "files",
    )


def command(claim: Claim, files: Files) -> list[str]:
    """Return the attempt's command, every placeholder filled in."""
    return render_command(
        claim.settings,
        params=claim.params,
        seed=claim.seed,
        task=claim.task,
        task_dir=str(files.task_dir),
    )


def mark(claim: Claim) -> str:
    """Return what every process of this attempt carries in its environment."""
    return f"{claim.token.nonce}.{claim.task}.{claim.number}"


def environment(
    claim: Claim, worker: WorkerIdentity, files: Files, outer: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment of the task's process."""
    return {
        "PYTHONUNBUFFERED": "1",  # what a script printed before it crashed is in the log
        **_run_names(claim),
        **outer,
        **claim.settings.env,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(worker.gpus),
        "GPULEDGER_TASK": claim.task,
        "GPULEDGER_SWEEP": claim.sweep,
        "GPULEDGER_ATTEMPT": str(claim.number),
        "GPULEDGER_SEED": str(claim.seed),
        "GPULEDGER_PARAMS": json.dumps(dict(claim.params)),
        "GPULEDGER_TASK_DIR": str(files.task_dir),
        "GPULEDGER_REPORT": str(files.report),
        "GPULEDGER_WORKER": worker.name,
        "GPULEDGER_MARK": mark(claim),
        **_memory(worker),
    }


def _run_names(claim: Claim) -> dict[str, str]:
    """Return what experiment trackers call the run, unless somebody has said otherwise."""
    return {
        "WANDB_RUN_GROUP": claim.sweep,
        "WANDB_NAME": claim.task,
        "MLFLOW_RUN_NAME": claim.task,
    }


def _memory(worker: WorkerIdentity) -> dict[str, str]:
    """Return what tells a task how much GPU memory it has: all of it, or its share."""
    if worker.gpu_memory_mib is None:
        return {}
    return {"GPULEDGER_MEMORY_MIB": str(worker.gpu_memory_mib)}


def run(claim: Claim, files: Files, around: Surroundings) -> Ending:
    """Run one attempt, wait until nothing of it is left, and return how it ended.

    Raises:
        LeaseGone: The worker was found dead meanwhile; nothing is to be recorded.
        OSError: Its files cannot be made; nothing was started.
    """
    _make_room(files)
    began_s = around.clock.boottime()
    ooms = oom_kill_count()
    try:
        task = _start(claim, files, around)
    except CannotStart as problem:
        ending = _not_started(problem)
    else:
        if isinstance(task, Verdict):
            return Ending(outcome=task.outcome, error=task.error)
        around.started(task)
        with task:
            verdict = _wait(claim, task, files, around)
        ended = task.poll()
        ending = _ending(claim, files, verdict, ended, ooms_before=ooms)
        if verdict is None and ending.outcome is not Outcome.COMPLETED and around.disk_is_full():
            ending = _without_room(ending)
    report = read_last(files.report)
    return replace(
        ending,
        metrics=dict(report.metrics) if report else {},
        duration_s=around.clock.boottime() - began_s,
    )


def _start(claim: Claim, files: Files, around: Surroundings) -> RunningTask | Verdict:
    """Start the task; a verdict when it must end before the modules it needs were imported."""
    settings = claim.settings
    order = Order(
        argv=command(claim, files),
        cwd=Path(settings.workdir),
        env=environment(claim, around.worker, files, around.environ),
        log=files.log,
        preload=settings.preload,
    )
    while (task := around.launcher.start(order)) is None:
        around.signals.wait(around.tick_s(), also=[around.launcher.fileno()])
        around.signals.suspend_if_asked()
        if around.lease() == "lost":
            raise LeaseGone
        verdict = _asked_to_end(claim, around)
        if verdict is not None:
            return verdict
    return task


def _make_room(files: Files) -> None:
    """Make the task's folder; move aside what an attempt of this number left behind.

    One that ended with its worker before the ledger knew of it counts for nothing: its output and
    its report are not this one's.
    """
    task_dir = files.task_dir
    was_there = task_dir.exists()
    for folder in (task_dir.parent.parent, task_dir.parent, task_dir):
        make_folder(folder)
    for path in (files.log, files.report) if was_there else ():
        with suppress(FileNotFoundError):
            path.rename(path.with_name(f"unrecorded-{path.name}"))


def _wait(claim: Claim, task: RunningTask, files: Files, around: Surroundings) -> Verdict | None:
    """Wait for the end of the task and of all that it started; end it early when it must."""
    limits, began_s = _Limits(claim, files, around.clock), around.clock.boottime()
    frozen = False
    while True:
        around.signals.wait(around.tick_s(), also=[task.fileno()])
        limits.look(frozen=frozen)
        if task.poll() is not None:
            _end(task, claim, around, grace_s=claim.settings.kill_grace_s)
            return _died_with_us(task.poll(), around, ran_s=around.clock.boottime() - began_s)
        if around.signals.take_suspend():
            task.freeze()
            around.signals.suspend_self()
            limits.look(frozen=True)
            frozen = True
        lease = around.lease()
        if lease == "lost":
            _end(task, claim, around, grace_s=0.0)
            raise LeaseGone
        if lease == "unsure" and not frozen:
            around.say(f"{claim.task}: no sign of life could be written, its processes wait")
            task.freeze()
            frozen = True
        elif lease == "regained" or (lease == "ours" and frozen):
            task.thaw()
            frozen = False
        verdict = _asked_to_end(claim, around) or (None if frozen else limits.exceeded())
        if verdict is not None:
            around.say(f"{claim.task}: {verdict.error}; ending its processes")
            _end(task, claim, around, grace_s=verdict.grace_s)
            return verdict


def _end(task: RunningTask, claim: Claim, around: Surroundings, *, grace_s: float) -> None:
    """End all that is left of the task; nothing else may start on its GPU before that."""
    left = task.stop(grace_s=grace_s, hurry=_hurry(around)).left
    while left and not around.signals.terminates and around.signals.interrupts < 3:
        around.say(f"{claim.task}: processes {left} hang in the kernel and cannot be killed yet")
        left = task.stop(grace_s=0.0, hurry=_hurry(around)).left


def _died_with_us(ended: Exit | None, around: Surroundings, *, ran_s: float) -> Verdict | None:
    """A cluster may send its TERM to the task as well, and the task may be the first to see it.

    One that handles it may end with any code, with 0, too, when it wrote a checkpoint. Where
    only the worker is told, 0 says that the task is done.
    """
    if ended is None or (ended.exit_code == 0 and not around.shares_signals):
        return None
    asked = {signal.SIGTERM, signal.SIGINT}
    is_asked = ended.signal in asked or (ended.exit_code or 0) - SHELL_SIGNAL_BASE in asked
    if is_asked or (around.shares_signals and ended.exit_code != 0):
        _wait_to_be_told(around, TOGETHER_S)
    elif around.shares_signals:
        _wait_to_be_told(around, min(BRIEF_SHARE * ran_s, TOGETHER_S))
    if around.signals.must_leave:
        return Verdict(outcome=Outcome.INTERRUPTED, error="stopped with its worker", grace_s=0.0)
    return None


def _wait_to_be_told(around: Surroundings, wait_s: float) -> None:
    """Give this process's own signal the time to come; others (SIGCHLD) end no wait of this."""
    until_s = around.clock.boottime() + wait_s
    while not around.signals.must_leave:
        left_s = until_s - around.clock.boottime()
        if left_s <= 0:
            return
        around.signals.wait(left_s)


def _hurry(around: Surroundings) -> Hurry:
    """Return a wait that answers whether to KILL at once.

    That is at the third Ctrl-C, and once a worker that was told to leave has waited for as long
    as it may: whoever told it will not wait for the rest of a long grace.
    """
    told_s: float | None = None

    def wait(timeout_s: float) -> bool:
        nonlocal told_s
        around.signals.wait(timeout_s)
        now_s = around.clock.boottime()
        if told_s is None and around.signals.must_leave:
            told_s = now_s
        waited_s = 0.0 if told_s is None else now_s - told_s
        return waited_s > around.leaving_grace_s or around.signals.interrupts >= 3

    return wait


def _not_started(problem: CannotStart) -> Ending:
    """A machine without memory or processes to spare hands the task back, uncounted."""
    outcome = Outcome.INTERRUPTED if problem.machine_at_fault else Outcome.FAILED
    return Ending(outcome=outcome, exit_code=problem.exit_code, error=problem.problem)


def _asked_to_end(claim: Claim, around: Surroundings) -> Verdict | None:
    signals = around.signals
    grace_s = min(claim.settings.kill_grace_s, LEAVING_GRACE_S)
    if signals.terminates:
        return Verdict(
            outcome=Outcome.INTERRUPTED,
            error="the worker was told to leave",
            grace_s=min(grace_s, around.leaving_grace_s),
        )
    if signals.interrupts >= 3:
        return Verdict(outcome=Outcome.INTERRUPTED, error="killed by Ctrl-C", grace_s=0.0)
    if signals.interrupts == 2:
        return Verdict(outcome=Outcome.INTERRUPTED, error="handed back by Ctrl-C", grace_s=grace_s)
    if around.stop_requested():
        return Verdict(
            outcome=Outcome.CANCELLED,
            error="cancelled by an operator",
            grace_s=claim.settings.kill_grace_s,
        )
    lost = around.gpu_lost()
    if lost is not None:
        return Verdict(outcome=Outcome.LOST, error=lost, grace_s=grace_s)
    time_is_up = around.time_is_up()
    if time_is_up is not None:
        return Verdict(outcome=Outcome.INTERRUPTED, error=time_is_up, grace_s=grace_s)
    return None


class _Limits:
    """The limits of one attempt: its time, its silence, the size of its log.

    Time in which the task was frozen, or the machine slept, is not the task's.
    """

    def __init__(self, claim: Claim, files: Files, clock: Clock) -> None:
        self._settings = claim.settings
        self._files = files
        self._clock = clock
        self._began_s = self._looked_s = clock.boottime()
        self._sizes = (0, 0)
        self._heard_s = self._began_s

    def look(self, *, frozen: bool) -> None:
        """Let the time since the last look count, unless the task was frozen, or nobody looked."""
        now_s = self._clock.boottime()
        since_s, self._looked_s = now_s - self._looked_s, now_s
        if frozen or since_s > BLIND_S:
            self._began_s += since_s
            self._heard_s += since_s

    def exceeded(self) -> Verdict | None:
        """Return why the attempt must end, or None."""
        now_s = self._clock.boottime()
        settings = self._settings
        sizes = (_size(self._files.log), _size(self._files.report))
        if sizes != self._sizes:
            self._sizes, self._heard_s = sizes, now_s
        if settings.timeout_s is not None and now_s - self._began_s > settings.timeout_s:
            return self._verdict(Outcome.TIMED_OUT, f"over its timeout of {settings.timeout_s:g} s")
        silence_s = settings.silence_timeout_s
        if silence_s is not None and now_s - self._heard_s > silence_s:
            return self._verdict(Outcome.TIMED_OUT, f"silent for {silence_s:g} s")
        if sizes[0] > settings.log_limit_bytes:
            mib = settings.log_limit_bytes / (1 << 20)
            return self._verdict(Outcome.FAILED, f"its log grew over log_limit ({mib:g} MiB)")
        return None

    def _verdict(self, outcome: Outcome, error: str) -> Verdict:
        return Verdict(outcome=outcome, error=error, grace_s=self._settings.kill_grace_s)


def _ending(
    claim: Claim,
    files: Files,
    verdict: Verdict | None,
    ended: Exit | None,
    *,
    ooms_before: int | None,
) -> Ending:
    exit_code = ended.exit_code if ended else None
    number = ended.signal if ended else None
    if verdict is None and exit_code == 0:
        return Ending(outcome=Outcome.COMPLETED, exit_code=0)
    oom_killed = _rose(ooms_before, oom_kill_count())
    found = read_failure(files.log, exit_code=exit_code, signal=number, oom_killed=oom_killed)
    if verdict is not None:
        return Ending(
            outcome=verdict.outcome,
            exit_code=exit_code,
            signal=number,
            error=verdict.error,
            traceback=found.traceback,
        )
    return Ending(
        outcome=found.outcome,
        exit_code=exit_code,
        signal=number,
        error=found.error,
        traceback=found.traceback,
        fatal=found.fatal or exit_code in claim.settings.no_retry_codes,
    )


def _without_room(ending: Ending) -> Ending:
    """Where nothing can be written all tasks fail: it is handed back, unless it knew better."""
    if ending.fatal:
        return ending
    error = f"{NO_ROOM}: {ending.error}" if ending.error else NO_ROOM
    return replace(ending, outcome=Outcome.INTERRUPTED, error=error)


def _size(path: Path) -> int:
    """Return bytes; on NFS, asking sends what was written, so that others can follow it."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _rose(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after > before
