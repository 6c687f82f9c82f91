"""What a sweep needs of a worker, and whether a worker has it; pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gpuledger.model import WorkerIdentity
from gpuledger.spec import RunSettings

LONGEST_PATTERN = 100
MOST_REPEATS = 3
MOST_GROUPS = 4
WORKERS_NAMED = 3


def misfit(needs: RunSettings, worker: WorkerIdentity) -> str | None:
    """Return why a worker can never take the tasks of a sweep, or None when it can.

    A task gets the number of GPUs that it asked for, no more and no fewer: a worker of two would
    leave one idle. Without such a wish it runs on one GPU, or on the CPU.

    Args:
        needs: The sweep's settings.
        worker: As it registered.
    """
    have = len(worker.gpus)
    on_gpu = needs.min_memory_mib is not None or needs.gpu_name is not None
    if needs.gpus is None:
        if have > 1:
            return f"needs one GPU, {worker.name} uses {have} for each task"
        if on_gpu and not have:
            return f"needs a GPU, {worker.name} has none"
    elif needs.gpus != have:
        return f"needs {_gpus(needs.gpus)}, {worker.name} has {_gpus(have)}"
    if needs.min_memory_mib is not None and have:
        if worker.gpu_memory_mib is None:
            return f"needs {size(needs.min_memory_mib)}, that of {worker.name} is unknown"
        if worker.gpu_memory_mib < needs.min_memory_mib:
            there = size(worker.gpu_memory_mib)
            return f"needs {size(needs.min_memory_mib)} of GPU memory, {worker.name} has {there}"
    if needs.gpu_name is not None and have and not _is_named(needs.gpu_name, worker.gpu_name):
        there = worker.gpu_name or "a GPU of unknown name"
        return f"needs a GPU named {needs.gpu_name}, {worker.name} has {there}"
    return None


TIME_MARGIN_S = 30.0
"""For its start and its end: what takes longer than what is left less this is not begun."""


def too_long(needed_s: float | None, time_left_s: float | None) -> str | None:
    """Return why a task is not begun by a worker whose time ends, or None when it may be.

    Args:
        needed_s: How long such a task takes; None when not known.
        time_left_s: Of the worker's allocation; None means no end.
    """
    if needed_s is None or time_left_s is None or needed_s <= time_left_s - TIME_MARGIN_S:
        return None
    return f"needs about {needed_s / 60:.1f} min, {max(time_left_s, 0) / 60:.1f} min are left"


def no_worker_fits(needs: RunSettings, workers: Sequence[WorkerIdentity]) -> str | None:
    """Return why none of these workers can take the tasks of a sweep.

    None when one can, or when there are no workers at all.
    """
    reasons = []
    for worker in workers:
        reason = misfit(needs, worker)
        if reason is None:
            return None
        reasons.append(reason)
    if not reasons:
        return None
    what, _, _ = reasons[0].partition(", ")
    if all(reason.startswith(f"{what}, ") for reason in reasons):
        told = [reason.removeprefix(f"{what}, ") for reason in reasons[:WORKERS_NAMED]]
        reasons_told = f"{what}: {', '.join(told)}"
    else:
        reasons_told = "; ".join(reasons[:WORKERS_NAMED])
    more = len(reasons) - WORKERS_NAMED
    return f"{reasons_told}, and {more} more" if more > 0 else reasons_told


def pattern_problem(pattern: str) -> str | None:
    """Return why a regular expression is not taken for a GPU's name, or None.

    It is matched while the ledger is locked for all: nothing is accepted that could take long.
    """
    if not pattern or len(pattern) > LONGEST_PATTERN:
        return f"it must have 1 to {LONGEST_PATTERN} characters"
    if not pattern.isprintable():
        return "it has characters that no GPU's name has"
    bare = re.sub(r"\\.", "x", pattern)
    if "(?" in bare or re.search(r"\\[0-9]", pattern) or "{" in bare:
        return "only . | * + ? ^ $ [ ] ( ) and plain characters are understood"
    if re.search(r"\)[*+?]", bare):
        return "a group cannot be repeated or left out"
    if len(re.findall(r"[*+?]", bare)) > MOST_REPEATS or bare.count("(") > MOST_GROUPS:
        return f"it may have {MOST_REPEATS} of * + ? and {MOST_GROUPS} groups at most"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return None


def size(mib: int) -> str:
    """Return an amount of memory in the unit that sweep files use."""
    gigabytes = mib * 1.048576 / 1000
    return f"{gigabytes:.0f} GB" if gigabytes >= 10 else f"{gigabytes:.1f} GB"


def _is_named(pattern: str, name: str | None) -> bool:
    if name is None or pattern_problem(pattern) is not None:  # from a hand-edited ledger
        return False
    return re.search(pattern, name, re.IGNORECASE) is not None


def _gpus(count: int) -> str:
    if not count:
        return "the CPU"
    return "one GPU" if count == 1 else f"{count} GPUs"
