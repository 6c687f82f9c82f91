"""What a sweep file says, once it is understood: the tasks, and how they are run."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

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
