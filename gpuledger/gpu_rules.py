"""When a GPU counts as free, as given back, as lost: pure rules over samples."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from gpuledger.gpu_watch import Holder, Sample, WatchedGpu
from gpuledger.resources import size

SLACK_MIB = 256
"""Memory that comes and goes without meaning: contexts of the driver, ECC, rounding."""

BUSY_SHARE = 0.1
"""A GPU of which more is used, by others, is not free."""

NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What there was on a GPU before a task started; None where it was not known."""

    used_mib: int | None = None
    unexplained_mib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The high-water mark of one attempt on one GPU.

    Attributes:
        memory_mib: The most that was seen, or None.
        named: The driver listed a process of this very attempt: its list can be relied on.
    """

    memory_mib: int | None = None
    named: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """What the last task left on the worker's GPUs.

    Attributes:
        text: In a few words for people, with the processes that hold it.
        certain: It is the last task's, or nobody's: starting another one makes no sense.
    """

    text: str
    certain: bool


def before(gpu: WatchedGpu) -> Before:
    """Return what is on a GPU now, to compare with later."""
    return Before(used_mib=gpu.view.memory_used_mib, unexplained_mib=unexplained(gpu))


def peak_after(peak: Peak, gpu: WatchedGpu, *, owner: str, start: Before, shared: bool) -> Peak:
    """Return the high-water mark with one more sample taken into account.

    Per process where the driver says so, else what is used on the whole GPU, unless others
    share it.
    """
    mine = [holder for holder in gpu.holders or () if holder.owner == owner]
    named = peak.named or bool(mine)
    held = [holder.memory_mib for holder in mine]
    used = gpu.view.memory_used_mib
    now: int | None = None
    if mine and None not in held:
        now = sum(memory or 0 for memory in held)
    elif used is not None and not shared and not named:
        if used > (start.used_mib or 0) + SLACK_MIB or gpu.holders is None:
            now = used
    elif used is not None and not shared and mine:
        now = used
    known = [memory for memory in (peak.memory_mib, now) if memory is not None]
    return Peak(memory_mib=max(known) if known else None, named=named)


def held_by(gpu: WatchedGpu, owner: str, start: Before) -> int | None:
    """Return what a running task seems to hold now, in MiB; 0 or None before it has any."""
    if gpu.holders is not None:
        mine = [holder for holder in gpu.holders if holder.owner == owner]
        if mine and all(holder.memory_mib is not None for holder in mine):
            return sum(holder.memory_mib or 0 for holder in mine)
    used = gpu.view.memory_used_mib
    return None if used is None else max(used - (start.used_mib or 0) - SLACK_MIB, 0)


def lost(sample: Sample | None) -> str | None:
    """Return which GPU of the worker is gone, and why, or None."""
    for gpu in sample.gpus if sample is not None else ():
        if gpu.lost is not None:
            return f"GPU {gpu.view.index} is gone ({gpu.lost})"
    return None


def foreign(gpu: WatchedGpu, ours: Collection[str]) -> tuple[Holder, ...]:
    """Return the processes on a GPU that belong to none of our workers."""
    return tuple(holder for holder in gpu.holders or () if holder.owner not in ours)


def not_free(gpu: WatchedGpu, *, ours: Collection[str], free_mib: int | None) -> str | None:
    """Return why a GPU does not count as free, or None.

    Args:
        gpu: As it is now.
        ours: Nonces of the workers whose tasks do not count.
        free_mib: Memory that must be free; None means nearly all of it.
    """
    name = f"GPU {gpu.view.index}"
    strangers = foreign(gpu, ours)
    if strangers:
        return f"{name} is in use by {told(strangers)}"
    total, used, free = gpu.view.memory_total_mib, gpu.view.memory_used_mib, free_memory(gpu)
    if total is None or (used if free_mib is None else free) is None:
        return f"{name} does not say how much memory is free"
    busy_mib = max(BUSY_SHARE * total, 4 * SLACK_MIB)
    own = sum(holder.memory_mib or 0 for holder in gpu.holders or () if holder.owner in ours)
    if free_mib is not None and free is not None and free < free_mib:
        return f"{name} has {size(free)} of {size(total)} free"
    if free_mib is None and used is not None and used - own > busy_mib:
        return f"{name} has {size(used)} of {size(total)} in use"
    return None


def free_memory(gpu: WatchedGpu) -> int | None:
    """Return the memory that nobody has, in MiB; None when not known."""
    total, used = gpu.view.memory_total_mib, gpu.view.memory_used_mib
    if gpu.free_mib is not None or total is None or used is None:
        return gpu.free_mib
    return total - used


def unexplained(gpu: WatchedGpu) -> int | None:
    """Return the used memory that no listed process holds, in MiB; None when not known."""
    used = gpu.view.memory_used_mib
    if used is None:
        return None
    held = [holder.memory_mib for holder in gpu.holders or ()]
    if None in held:
        return None
    return used - gpu.service_mib - sum(memory or 0 for memory in held)


def remains(
    gpu: WatchedGpu, *, owner: str, start: Before, peak: Peak, shared: bool
) -> Remains | None:
    """Return what the last task left on a GPU, or None when its memory is back."""
    mine = [holder for holder in gpu.holders or () if holder.owner == owner]
    name = f"GPU {gpu.view.index}"
    if mine:
        return Remains(text=f"{name}: {told(mine)} of the last task", certain=True)
    if shared and gpu.holders is None:
        return None  # what the others on this GPU hold cannot be told apart
    now, then = unexplained(gpu), start.unexplained_mib
    if now is None or then is None or now - then <= SLACK_MIB:
        return None
    who = f"held by {told(gpu.holders)}" if gpu.holders else "no process is seen to hold it"
    certain = gpu.holders is not None and peak.named
    return Remains(text=f"{name}: {size(now - then)} not given back, {who}", certain=certain)


def told(holders: Iterable[Holder]) -> str:
    """Return processes for people: `python (pid 77, mia, 9.2 GB)`."""
    every = list(holders)
    parts = []
    for holder in every[:NAMED]:
        facts = [f"pid {holder.pid}", holder.user, _held(holder)]
        parts.append(f"{holder.name or 'a process'} ({', '.join(f for f in facts if f)})")
    if len(every) > NAMED:
        parts.append(f"{len(every) - NAMED} more")
    return ", ".join(parts)


def _held(holder: Holder) -> str | None:
    return None if holder.memory_mib is None else size(holder.memory_mib)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Whether a task that started has its memory: it reported, or holds the same for a while.

    Attributes:
        since_s: When the memory last changed, or None before the first look.
        memory: What each GPU had then.
    """

    since_s: float | None = None
    memory: Sequence[int | None] = field(default=())

    def looked(self, memory: Sequence[int | None], *, now_s: float) -> Settled:
        """Return this with one more look taken into account."""
        same = len(memory) == len(self.memory) and all(
            now is not None and then is not None and abs(now - then) <= max(64, then // 50)
            for then, now in zip(self.memory, memory, strict=True)
        )
        return self if same else Settled(since_s=now_s, memory=tuple(memory))
