"""What workers run on: turns the options of `work` into one device for each worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from gpuledger.cli.output import note
from gpuledger.errors import BadUsage, Unavailable

if TYPE_CHECKING:
    from gpuledger.clock import Clock
    from gpuledger.gpu import GpuReport
    from gpuledger.gpu_choice import Chosen
    from gpuledger.gpu_gate import GpuGate
    from gpuledger.gpu_watch import GpuWatch

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What one worker runs on.

    Attributes:
        label: Last part of the worker's name: `gpu2`, `gpu0+1`, `cpu`.
        visible: For CUDA_VISIBLE_DEVICES; empty means CPU.
        option: How another process is told to use it.
        memory_mib: Of the smallest GPU, or this worker's share of it; None when unknown or CPU.
        model: Of the GPU; None when unknown or CPU.
        gpus: What it consists of.
        sharing: How many workers share it.
    """

    label: str
    visible: tuple[str, ...] = ()
    option: tuple[str, ...] = ("--cpu",)
    memory_mib: int | None = None
    model: str | None = None
    gpus: tuple[Chosen, ...] = ()
    sharing: int = 1


class WorkCommand(TyperCommand):
    """Understands `--wait-free` without a value as well."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a `--wait-free` that no value follows an empty one."""
        given = list(args)
        for place, word in enumerate(given):
            following = given[place + 1 : place + 2]
            if word == "--wait-free" and (not following or following[0].startswith("-")):
                given[place] = "--wait-free="
        return super().parse_args(ctx, given)


def free_memory(wait_free: str | None) -> int | None:
    """Return what `--wait-free` asks for, in MiB; None when it names no size."""
    from gpuledger.sweep_words import parse_size

    if not wait_free:
        return None
    try:
        return -(-parse_size(wait_free) // MIB)
    except ValueError as error:
        raise BadUsage(
            f"--wait-free: {error}; nothing was started", hint="for example --wait-free 10GB"
        ) from error


def refuse_unless(fine: bool, one: str, other: str) -> None:
    """Raise for options that do not go together."""
    if not fine:
        raise BadUsage(
            f"{one} does not go with {other}; nothing was started", hint="leave one of them out"
        )


def gpu_devices(
    selector: str,
    *,
    group: bool,
    per_task: int,
    slots: int,
    one_of: int | None,
    free_mib: int | None,
    waits: bool,
    environ: Mapping[str, str],
) -> list[Device]:
    """Return one device for each worker on GPUs.

    Args:
        selector: Of `--gpu`, or `all` or `free`.
        group: It came from `--gpus`.
        per_task: GPUs of one worker.
        slots: Workers that share each.
        one_of: For the process of a single worker: how many share its GPU, itself included.
        free_mib: What must be free; None means nearly all.
        waits: The worker will wait until it is free: no warning.
        environ: Of this process.

    Raises:
        BadUsage: The options make no sense.
        Unavailable: There is no such GPU, or none is free.
    """
    from gpuledger.gpu import list_gpus  # NVML is not touched without need
    from gpuledger.gpu_choice import resolve

    if group and selector not in ("all", "free"):
        raise BadUsage(
            f"--gpus takes 'all' or 'free', not {selector!r}; nothing was started",
            hint="for some: --gpu 0,1",
        )
    refuse_unless(per_task == 1 or slots == 1, "--slots", "--gpus-per-task")
    report = list_gpus()
    chosen = resolve(selector if not group else "all", environ=environ, report=report)
    if group and selector == "free":
        chosen = _free(chosen, report, free_mib=free_mib)
    elif not waits and one_of is None:
        _warn_of_others(chosen, report)
    groups = list(_groups(chosen, per_task))
    return [_device(each, sharing=one_of or slots) for each in groups for _ in range(slots)]


def guard_gpus(
    device: Device, ledger_uuid: str, *, clock: Clock, wait_free: str | None
) -> tuple[GpuWatch | None, GpuGate | None]:
    """Return what watches a worker's GPUs and decides about them; nothing for the CPU."""
    if not device.gpus:
        return None, None
    from gpuledger.gpu_gate import GateOptions, GpuGate, Turn
    from gpuledger.gpu_watch import GpuWatch
    from gpuledger.outbox import outbox_folder

    turn = None
    folder = outbox_folder(ledger_uuid) if device.sharing > 1 else None
    if folder is not None:
        turn = Turn(folder / f"starting-{device.gpus[0].uuid or device.label}")
    options = GateOptions(
        wait_free=wait_free is not None, free_mib=free_memory(wait_free), sharing=device.sharing
    )
    watch = GpuWatch(device.gpus, clock=clock)
    return watch, GpuGate(watch, clock=clock, options=options, turn=turn)


def _groups(chosen: Sequence[Chosen], per_task: int) -> Iterator[tuple[Chosen, ...]]:
    if per_task > 1 and any(one.visible.startswith("MIG-") for one in chosen):
        raise BadUsage(
            "a task can use one MIG instance only; nothing was started",
            hint="leave --gpus-per-task out",
        )
    left = len(chosen) % per_task
    if left:
        raise BadUsage(
            f"{len(chosen)} GPUs cannot be shared out by {per_task}; nothing was started",
            hint=f"name a multiple of {per_task} with --gpu",
        )
    for first in range(0, len(chosen), per_task):
        yield tuple(chosen[first : first + per_task])


def _device(gpus: tuple[Chosen, ...], *, sharing: int) -> Device:
    known = [gpu.memory_mib for gpu in gpus if gpu.memory_mib is not None]
    memory_mib = min(known) // sharing if len(known) == len(gpus) else None
    option = [f"--gpu={','.join(gpu.selector for gpu in gpus)}"]
    option += [f"--gpus-per-task={len(gpus)}"] if len(gpus) > 1 else []
    option += [f"--one-of={sharing}"]
    return Device(
        label="gpu" + "+".join(gpu.label for gpu in gpus),
        visible=tuple(gpu.visible for gpu in gpus),
        option=tuple(option),
        memory_mib=memory_mib,
        model=gpus[0].model,
        gpus=gpus,
        sharing=sharing,
    )


def _free(
    chosen: Sequence[Chosen], report: GpuReport, *, free_mib: int | None
) -> tuple[Chosen, ...]:
    """Return those that nobody uses now; say why the others are left out."""
    from gpuledger.gpu_rules import not_free
    from gpuledger.gpu_watch import watched

    free = []
    for one in chosen:
        why = not_free(watched(one, report), ours=(), free_mib=free_mib)
        if why is None:
            free.append(one)
        else:
            note(f"Left alone: {why}.")
    if not free:
        raise Unavailable(
            "no GPU is free here now; nothing was started",
            hint="--gpus all --wait-free starts as soon as one is",
        )
    return tuple(free)


def _warn_of_others(chosen: Sequence[Chosen], report: GpuReport) -> None:
    from gpuledger.gpu_rules import told
    from gpuledger.gpu_watch import watched

    for one in chosen:
        gpu = watched(one, report)
        if gpu.holders:
            note(f"GPU {gpu.view.index} is in use by {told(gpu.holders)}; --wait-free would wait.")
