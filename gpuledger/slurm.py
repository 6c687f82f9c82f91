"""Lets Slurm start workers that pull from the ledger; gpuledger schedules nothing itself.

A submission is one array job whose script ends with `exec gpuledger work`: exec, so that the
worker is what Slurm sends its signals to. Scripts, logs and a mark of each start are in
`slurm/` in the ledger's folder. What Slurm's commands print is parsed from formats that were
asked for; the commands are sbatch, squeue, scancel and scontrol.
"""

from __future__ import annotations

import os
import re
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuledger.errors import BadUsage, LedgerError, Unavailable
from gpuledger.process import Answer, CannotStart, ask

FOLDER = "slurm"
COMMAND_TIMEOUT_S = 60.0
COMMAND_LIMIT_BYTES = 64 << 20
WARNING_S = 120
WARNING_SHARE = 0.25
"""Of a short allocation the warning takes no more: it would come before the first task."""

DEAD_IN_A_ROW = 3
QUICKLY_S = 60.0
LOG_TAIL_LINES = 8
LOG_TAIL_BYTES = 16384
OPTION = re.compile(r"-[A-Za-z]|--[a-z][a-z0-9-]*")
SQUEUE_FORMAT = "%i|%T|%r|%N|%M|%o"
NOT_PASSED_ON: Mapping[str, str] = {
    **dict.fromkeys(("--wait", "-W"), "it would not return before the workers end"),
    **dict.fromkeys(("--array", "-a"), "--workers and --throttle say that"),
    "--test-only": "that is 'slurm start --test'",
    "--wrap": "there is a script already",
}
OF_THE_JOB = ("SLURM_", "SLURMD_", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "GPULEDGER_HOST")
"""What a job's environment says of that job alone: one that it submits must not inherit it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the operator wants of Slurm.

    Attributes:
        workers: Allocations, one worker each.
        gpus_per_worker: 0 means the CPU.
        options: Values of sbatch's options by name, as in `time`; None are left out.
        throttle: At most so many at a time, or None.
        extra: More options of sbatch, as on its command line.
        setup: Lines of shell for the beginning of the script.
        wrap: Command that runs the worker, as in `apptainer exec --nv image.sif`.
        work: More options of `gpuledger work`.
    """

    workers: int
    gpus_per_worker: int = 1
    options: Mapping[str, str | None]
    throttle: int | None = None
    extra: tuple[str, ...] = ()
    setup: str = ""
    wrap: tuple[str, ...] = ()
    work: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One array task as squeue shows it.

    Attributes:
        id: `123_4`.
        state: As in `PENDING`, `RUNNING`.
        reason: Why it waits, as Slurm says.
        node: Empty while it waits.
        elapsed: How long it runs, as in `1:02:03`.
        script: Path of its script, as it was submitted; empty: not known.
    """

    id: str
    state: str
    reason: str
    node: str
    elapsed: str = ""
    script: str = ""


class SlurmFailed(LedgerError):
    """A command of Slurm refused; nothing was submitted."""

    exit_code = 69


# --- the script ---------------------------------------------------------------------------------


def render(request: Request, *, ledger: Path, program: Sequence[str]) -> str:
    """Return the batch script.

    Args:
        request: What is wanted.
        ledger: The ledger's folder.
        program: How to start gpuledger, as in `/venv/bin/python -m gpuledger`.

    Raises:
        BadUsage: A value that has no place in a batch script.
    """
    logs = str(ledger / FOLDER).replace("%", "%%")
    lines = [
        "#!/bin/bash",
        "# Written by 'gpuledger slurm start': each task of this array is one worker.",
        _directive("--job-name", "gpuledger"),
        _directive("--array", array(request.workers, request.throttle)),
        _directive("--output", f"{logs}/%A_%a.log"),
        _directive("--open-mode", "append"),
        "# SIGUSR1 a while before the end: the worker finishes or hands back what it runs.",
        _directive("--signal", f"B:USR1@{_warning_s(request.options.get('time'))}"),
        "#SBATCH --requeue",
        _directive("--nodes", "1"),
        _directive("--ntasks", "1"),
    ]
    if request.gpus_per_worker:
        lines.append(_directive("--gres", f"gpu:{request.gpus_per_worker}"))
    for name, value in request.options.items():
        if value is not None:
            lines.append(_directive(f"--{name}", value))
    lines += [f"#SBATCH {line}" for line in _extra_lines(request.extra)]
    began = (
        shlex.quote(str(ledger / FOLDER)) + "/${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}.began"
    )
    lines += ["", "# Tells 'gpuledger slurm status' that this script ran.", f": >{began}"]
    lines += [
        "# Until the worker listens; it knows by itself when its time is up.",
        "trap '' USR1",
        "",
    ]
    if request.setup.strip():
        lines += ["# --- setup", request.setup.rstrip("\n"), "# --- end of setup", ""]
    lines += [
        "# exec: the worker itself gets Slurm's signals.",
        f"exec {_work(request, ledger, program)}",
    ]
    return "\n".join(lines) + "\n"


def _warning_s(limit: str | None) -> int:
    """Return how long before its end a job is warned; Slurm may do so a minute earlier."""
    whole_s = None if limit is None else limit_s(limit)
    return min(WARNING_S, int(WARNING_SHARE * whole_s)) if whole_s else WARNING_S  # 0: no limit


def limit_s(text: str) -> float | None:
    """Return the seconds of a time limit as sbatch reads it; None for what is no such limit.

    `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`, `days-hours:minutes`,
    `days-hours:minutes:seconds` (sbatch(1), '--time').
    """
    days, dash, clock = text.strip().rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in (*parts, *([days] if dash else []))) or len(parts) > 3:
        return None
    numbers = [float(part) for part in parts]
    if not dash:
        numbers = {1: [0.0, *numbers, 0.0], 2: [0.0, *numbers], 3: numbers}[len(numbers)]
    hours, minutes, seconds = [*numbers, 0.0, 0.0][:3]
    return ((float(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _work(request: Request, ledger: Path, program: Sequence[str]) -> str:
    device = ["--cpu"]
    if request.gpus_per_worker:
        device = ["--gpus=all"]
        if request.gpus_per_worker > 1:
            device.append(f"--gpus-per-task={request.gpus_per_worker}")
    words = [*request.wrap, *program, "work", f"--ledger={ledger}", *device, *request.work]
    return " ".join(shlex.quote(word) for word in words)


def array(workers: int, throttle: int | None) -> str:
    """Return the value of sbatch's `--array` for so many workers."""
    return f"1-{workers}" + (f"%{throttle}" if throttle is not None else "")


def _directive(name: str, value: str) -> str:
    return f"#SBATCH {name}={_quoted(value, name)}"


def _quoted(value: str, name: str) -> str:
    """Quote for an #SBATCH line; Slurm reads it itself, no shell does."""
    if not value or not value.isprintable() or '"' in value or "\\" in value:
        raise BadUsage(
            f"{value!r} cannot be given to Slurm as {name}; nothing was submitted",
            hint="leave out double quotes, backslashes and control characters",
        )
    return value if re.fullmatch(r"[\w.,:%+\-=@/]+", value) else f'"{value}"'


def _extra_lines(extra: Sequence[str]) -> list[str]:
    """Put an option and its value, given apart, into one line."""
    lines: list[str] = []
    for word in extra:
        if word.startswith("-"):
            lines.append(_option(word))
        elif lines and "=" not in lines[-1] and " " not in lines[-1]:
            lines[-1] += f" {_quoted(word, lines[-1])}"
        else:
            raise _no_option(word)
    return lines


def _option(word: str) -> str:
    name, equals, value = word.partition("=")
    if name in NOT_PASSED_ON:
        raise BadUsage(
            f"{name} cannot be passed on to sbatch: {NOT_PASSED_ON[name]}; nothing was submitted"
        )
    if not OPTION.fullmatch(name):
        if word.startswith("--") or not OPTION.fullmatch(word[:2]):
            raise _no_option(word)
        return f"{word[:2]} {_quoted(word[2:], word[:2])}"  # -xn7
    return f"{name}={_quoted(value, name)}" if equals else name


def _no_option(word: str) -> BadUsage:
    return BadUsage(
        f"{word!r} is no option of sbatch; nothing was submitted",
        hint="after --, as in: gpuledger slurm start --workers 4 -- --mail-type=FAIL",
    )


# --- Slurm's commands ------------------------------------------------------------------------


def submit(script: Path, *, test: bool = False, array: str | None = None) -> str:
    """Give a script to sbatch; return the job's number, or what `--test-only` says."""
    options = ["--test-only"] if test else ["--parsable"]
    options += [f"--array={array}"] if array is not None else []
    answer = call("sbatch", *options, str(script), without=_overriding(script))
    if test:
        return _text(answer.errors or answer.output)
    job = _text(answer.output).split(";")[0]
    if not job.isdigit():
        raise SlurmFailed(f"'sbatch' told no job's number but {job!r}", hint=None)
    return job


def _overriding(script: Path) -> frozenset[str]:
    """Return the variables that would make sbatch pass over what the script says.

    sbatch(1), 'INPUT ENVIRONMENT VARIABLES': they beat #SBATCH lines, and a profile may set some
    as a default.
    """
    said = re.findall(r"^#SBATCH --([a-z-]+)", script.read_text(encoding="utf-8"), re.MULTILINE)
    usual = {f"SBATCH_{name.upper().replace('-', '_')}" for name in said}
    return frozenset(usual | {NAMED_OTHERWISE[name] for name in said if name in NAMED_OTHERWISE})


NAMED_OTHERWISE: Mapping[str, str] = {
    "time": "SBATCH_TIMELIMIT",
    "array": "SBATCH_ARRAY_INX",
    "requeue": "SBATCH_NO_REQUEUE",
    "mem": "SBATCH_MEM_PER_NODE",
}


def queue(job_ids: Sequence[str]) -> list[Job]:
    """Return the array tasks of these jobs that Slurm still knows."""
    if not job_ids:
        return []
    # All of the user's: squeue fails as a whole when it has forgotten one of the numbers.
    answer = call("squeue", "--me", "-h", "-r", "-o", SQUEUE_FORMAT)
    wanted = set(job_ids)
    jobs = [job for job in parse_queue(_text(answer.output)) if job.id.partition("_")[0] in wanted]
    return [job for job in jobs if job.state not in ENDED_STATES]


NO_ANSWER = "did not answer"
GONE = ("nvalid job id", "already complet")
REQUEUE_TRIES = 3
REQUEUE_PAUSE_S = 2.0

RUNNING_STATES = frozenset({"RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"})
ENDED_STATES = frozenset(
    {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"}
    | {"OUT_OF_MEMORY", "REVOKED", "PREEMPTED"}
)


def parse_queue(text: str) -> list[Job]:
    """Return the lines of `squeue -o SQUEUE_FORMAT`; odd ones are left out."""
    jobs = []
    separators = SQUEUE_FORMAT.count("|")
    for line in text.splitlines():
        fields = line.split("|", separators)  # the last one, a path, may have some of its own
        if len(fields) == separators + 1:
            task, state, reason, node, elapsed, script = fields
            jobs.append(
                Job(id=task, state=state, reason=reason, node=node, elapsed=elapsed, script=script)
            )
    return jobs


def describe(job: str) -> str:
    """Return what Slurm says of a job, as `NAME=VALUE` words."""
    return _text(call("scontrol", "--oneliner", "show", "job", job).output)


def script_of(job: str) -> str | None:
    """Return the path of the script that a job was made of; None where nobody can say."""
    found = re.search(r"(?:^| )Command=(.*?) WorkDir=", describe(job))
    return found[1] if found else None


def configuration() -> str:
    """Return how this Slurm is configured, one `NAME = VALUE` a line."""
    return _text(call("scontrol", "show", "config").output)


def cancel(jobs: Sequence[str], *options: str) -> None:
    """Cancel jobs, or send them a signal; what has ended meanwhile is no error."""
    if not jobs:
        return
    try:
        call("scancel", *options, *jobs)
    except SlurmFailed as error:
        if not any(said in error.problem for said in GONE):
            raise


def requeue(job: str) -> None:
    """Let Slurm start this very job again; it sends it SIGTERM, and waits two minutes.

    It is asked again after a failure: nobody else would bring back what is left to do.
    """
    for _ in range(REQUEUE_TRIES - 1):
        try:
            call("scontrol", "requeue", job)
            return
        except SlurmFailed as error:
            if NO_ANSWER in error.problem:  # it may have been heard all the same
                raise
            threading.Event().wait(REQUEUE_PAUSE_S)
    call("scontrol", "requeue", job)


def call(program: str, *arguments: str, without: frozenset[str] = frozenset()) -> Answer:
    """Run one of Slurm's commands, without some variables; raise what a user can act on."""
    env = outside_a_job(os.environ)
    try:
        answer = ask(
            [program, *arguments],
            timeout_s=COMMAND_TIMEOUT_S,
            limit_bytes=COMMAND_LIMIT_BYTES,
            cwd=None,
            env={name: value for name, value in env.items() if name not in without},
        )
    except CannotStart as error:
        raise Unavailable(
            f"this machine has no Slurm: there is no command '{program}'; nothing was done",
            hint="run it where sbatch works (a login node), or start workers by hand: "
            "'gpuledger work'",
        ) from error
    if answer.exit_code is None:
        raise SlurmFailed(
            f"'{program}' {NO_ANSWER} for {COMMAND_TIMEOUT_S:g} s",
            hint="is Slurm's controller up? 'scontrol ping' tells",
        )
    if answer.exit_code:
        said = " ".join(_text(answer.errors or answer.output).split())[:400]
        raise SlurmFailed(f"'{program}' refused: {said}", hint=None)
    return answer


def outside_a_job(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for Slurm's commands: nothing of a job, nothing that changes answers.

    Without this a job that a worker submits would have its restart count, and its node's name.
    """
    inside = "SLURM_JOB_ID" in environ
    kept = {
        name: value
        for name, value in environ.items()
        if not ((inside and name.startswith(OF_THE_JOB)) or name.startswith("SQUEUE_"))
        or name.startswith("SLURM_CONF")
    }
    return {**kept, "SLURM_TIME_FORMAT": "standard"}


def _text(said: bytes) -> str:
    return said.decode(errors="replace").strip()


# --- what became of the allocations --------------------------------------------------------------


def dead_in_a_row(
    tasks: Sequence[str], folder: Path, *, queued: frozenset[str], useful: frozenset[str]
) -> list[str]:
    """Return the latest array tasks that ended within a minute, having claimed nothing.

    Empty unless there are `DEAD_IN_A_ROW` of them in a row.

    Args:
        tasks: Ids, the latest last.
        folder: The ledger's.
        queued: Ids that Slurm still has.
        useful: Ids whose worker claimed a task, or left by itself as there was none.
    """
    dead: list[str] = []
    for task in reversed(tasks):
        if task in queued:
            continue
        if task in useful or not _died_quickly(folder, task):
            break
        dead.append(task)
    return dead if len(dead) >= DEAD_IN_A_ROW else []


def _died_quickly(folder: Path, task: str) -> bool:
    began, log = folder / FOLDER / f"{task}.began", log_of(folder, task)
    try:
        return log.stat().st_mtime - began.stat().st_mtime < QUICKLY_S
    except OSError:
        return log.exists()  # the script ended before its first line, or never began


def log_of(folder: Path, task: str) -> Path:
    """Return the path of an array task's log."""
    return folder / FOLDER / f"{task}.log"


def log_tail(folder: Path, task: str) -> str:
    """Return the last lines of an array task's log; empty when there is none."""
    try:
        with log_of(folder, task).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - LOG_TAIL_BYTES, 0))
            text = file.read(LOG_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-LOG_TAIL_LINES:])


def tasks_of(job: str, workers: int) -> list[str]:
    """Return the ids of a job's array tasks."""
    return [f"{job}_{number}" for number in range(1, workers + 1)]


Say = Callable[[str], None]
