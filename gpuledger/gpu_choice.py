"""Which GPUs an operator means, as CUDA would understand it; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from gpuledger.errors import Unavailable
from gpuledger.gpu import Gpu, GpuReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A GPU for one worker.

    Attributes:
        label: Its index on the machine: the worker's name ends with it.
        visible: For the task's CUDA_VISIBLE_DEVICES.
        selector: What `resolve` understands as this GPU, for another process.
        memory_mib: None when unknown.
        model: None when unknown.
        uuid: To know it again; empty when unknown.
    """

    label: str
    visible: str
    selector: str
    memory_mib: int | None
    model: str | None
    uuid: str = ""


def resolve(selector: str, *, environ: Mapping[str, str], report: GpuReport) -> tuple[Chosen, ...]:
    """Return the GPUs that an operator means, each once; those with MIG instances as these.

    Args:
        selector: `all`, or indices into what is visible, and UUIDs: `0,1`, `GPU-5c1f...`.
        environ: Its CUDA_VISIBLE_DEVICES (of a cluster, a container) limits what is visible.
        report: From `list_gpus`.

    Raises:
        Unavailable: One of them does not exist, or does not answer; the hint names those that do.
    """
    visible = _visible(environ, report)
    if selector == "all":
        usable = [chosen for group in visible for chosen in group if not _is_lost(chosen, report)]
        if not usable:
            raise _nothing_there(report, environ)
        return tuple(usable)
    chosen: list[Chosen] = []
    for part in selector.split(","):
        found = _find(part.strip(), visible, report)
        if not found:
            raise _not_there(part.strip(), visible, report, environ)
        for one in found:
            if _is_lost(one, report):
                raise _does_not_answer(one, visible, report)
            if one not in chosen:
                chosen.append(one)
    return tuple(chosen)


def hides_all(environ: Mapping[str, str], report: GpuReport) -> bool:
    """Tell whether CUDA_VISIBLE_DEVICES leaves none of the GPUs here: as people say the CPU."""
    return bool(report.gpus) and not _visible(environ, report)


# --- what is visible --------------------------------------------------------------------------


def _visible(environ: Mapping[str, str], report: GpuReport) -> list[list[Chosen]]:
    """Return what CUDA would see here, in its order: a GPU, or the MIG instances that are it."""
    outer = environ.get("CUDA_VISIBLE_DEVICES")
    if outer is None:
        return [_choices(gpu, str(gpu.index), position=gpu.index) for gpu in report.gpus]
    visible: list[list[Chosen]] = []
    seen: set[str] = set()
    for position, name in enumerate(_names(outer)):
        gpu = report.find(name)
        identity = name if gpu is None else gpu.label
        if identity in seen:
            return []  # CUDA sees nothing when one is named twice
        seen.add(identity)
        if gpu is not None:
            visible.append(_choices(gpu, name, position=position))
        elif name.startswith("MIG-"):
            visible.append([_unlisted(name, position)])
        else:
            break  # CUDA ignores everything after the first name that is not valid
    return visible


def _names(outer: str) -> list[str]:
    """Return the names in a CUDA_VISIBLE_DEVICES, up to the first of another kind.

    CUDA takes the number that an index begins with, and ignores what follows: `1st` is 1.
    """
    parts = [part.strip() for part in outer.split(",")]
    kind = parts[0][:4]
    if kind in ("GPU-", "MIG-"):
        return list(takewhile(lambda part: part.startswith(kind), parts))
    numbers = takewhile(bool, (re.match(r"[0-9]+", part) for part in parts))
    return [str(int(number[0])) for number in numbers if number]


def _choices(gpu: Gpu, name: str, *, position: int) -> list[Chosen]:
    """Return a GPU, or all its MIG instances: without naming one CUDA would take the first."""
    if not gpu.instances:
        return [_chosen(gpu, name, str(position))]
    return [_chosen(each, each.uuid, each.uuid) for each in gpu.instances]


def _chosen(gpu: Gpu, name: str, selector: str) -> Chosen:
    return Chosen(
        label=gpu.label,
        visible=name,
        selector=selector,
        memory_mib=gpu.memory_total_mib,
        model=gpu.name,
        uuid=gpu.uuid,
    )


def _unlisted(name: str, position: int | None) -> Chosen:
    """A MIG instance that NVML does not list: CUDA may know it by its UUID all the same."""
    selector = name if position is None else str(position)
    return Chosen(
        label=f"-{name[:12].lower()}", visible=name, selector=selector, memory_mib=None, model=None
    )


def _find(name: str, visible: Sequence[Sequence[Chosen]], report: GpuReport) -> Sequence[Chosen]:
    """Return the GPU of that name, or its MIG instances; nothing when there is none."""
    if name.isdecimal():
        return visible[int(name)] if int(name) < len(visible) else ()
    every = [chosen for group in visible for chosen in group]
    gpu = _the_one(name, report)
    if gpu is not None:
        uuids = {each.uuid for each in gpu.instances or (gpu,)}
        return [chosen for chosen in every if chosen.uuid in uuids]
    known = [chosen for chosen in every if chosen.visible == name]
    return known or ([_unlisted(name, None)] if len(name) > 4 and name[:4] == "MIG-" else [])


def _the_one(name: str, report: GpuReport) -> Gpu | None:
    found = report.called(name)
    if len(found) > 1:
        raise Unavailable(
            f"{len(found)} GPUs have UUIDs that begin with {name!r}; nothing was started",
            hint=f"more of it: {', '.join(gpu.uuid for gpu in found)}",
        )
    return found[0] if found else None


def _is_lost(chosen: Chosen, report: GpuReport) -> bool:
    return any(gpu.label == chosen.label and gpu.problem for gpu in report.gpus)


def _not_there(
    name: str, visible: Sequence[Sequence[Chosen]], report: GpuReport, environ: Mapping[str, str]
) -> Unavailable:
    if not visible:
        return _nothing_there(report, environ)
    outer = environ.get("CUDA_VISIBLE_DEVICES")
    limited = "" if outer is None else f"; CUDA_VISIBLE_DEVICES={outer!r} hides any others"
    return Unavailable(
        f"there is no GPU {name!r} here; nothing was started",
        hint=f"{_those(visible, report)}{limited}",
    )


def _does_not_answer(
    chosen: Chosen, visible: Sequence[Sequence[Chosen]], report: GpuReport
) -> Unavailable:
    why = next((gpu.problem for gpu in report.gpus if gpu.label == chosen.label), None)
    return Unavailable(
        f"GPU {chosen.selector} cannot be used ({why}); nothing was started",
        hint=_those(visible, report),
    )


def _those(visible: Sequence[Sequence[Chosen]], report: GpuReport) -> str:
    there = ", ".join(
        f"{chosen.selector} ({chosen.model})" if chosen.model else chosen.selector
        for group in visible
        for chosen in group
        if not _is_lost(chosen, report)
    )
    return f"GPUs: {there}" if there else "--cpu runs on the CPU"


def _nothing_there(report: GpuReport, environ: Mapping[str, str]) -> Unavailable:
    if report.problem is not None:
        why = report.problem
    elif report.gpus and all(gpu.problem for gpu in report.gpus):
        why = f"none of them answers ({report.gpus[0].problem})"
    elif report.gpus:
        why = f"CUDA_VISIBLE_DEVICES={environ.get('CUDA_VISIBLE_DEVICES', '')!r} hides all of them"
    else:
        why = "the driver lists none"
    return Unavailable(
        f"no GPU can be used here: {why}; nothing was started", hint="--cpu runs on the CPU"
    )
