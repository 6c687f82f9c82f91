"""The only module that asks NVML; no other one knows its names or its errors.

What the driver does not say is None. A machine without a driver has no GPUs and a sentence that
says why; a GPU that is lost keeps its place with `problem` set. Nothing here raises because of
hardware.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpuledger.errors import Unavailable
from gpuledger.model import GpuView

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU of this machine.

    Attributes:
        index: In the order of the PCI bus, as `nvidia-smi` and CUDA_DEVICE_ORDER=PCI_BUS_ID count.
        uuid: `GPU-...`; empty when the driver does not say.
        problem: Why it could not be asked (it fell off the bus, say), or None.
    """

    index: int
    uuid: str
    name: str | None = None
    memory_total_mib: int | None = None
    memory_used_mib: int | None = None
    utilisation_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """All GPUs of this machine, or why there are none."""

    gpus: tuple[Gpu, ...]
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A GPU for one worker.

    Attributes:
        label: Its index on the machine: the worker's name ends with it.
        visible: For the task's CUDA_VISIBLE_DEVICES.
        selector: What `resolve` understands as this GPU, for another process.
        memory_mib: None when unknown.
        model: None when unknown.
    """

    label: str
    visible: str
    selector: str
    memory_mib: int | None
    model: str | None


def list_gpus() -> GpuReport:
    """Ask the driver for all GPUs; MIG instances are chosen by their UUID and not listed."""
    try:
        with _nvml() as nvml:
            count = nvml.nvmlDeviceGetCount()
            return GpuReport(gpus=tuple(_gpu(nvml, index) for index in range(count)))
    except _NoDriver as missing:
        return GpuReport(gpus=(), problem=str(missing))


def resolve(selector: str, *, environ: Mapping[str, str], report: GpuReport) -> tuple[Chosen, ...]:
    """Return the GPUs that an operator means, each once.

    Args:
        selector: `all`, or indices into what is visible, and UUIDs: `0,1`, `GPU-5c1f...`.
        environ: Its CUDA_VISIBLE_DEVICES (of a cluster, a container) limits what is visible.
        report: From `list_gpus`.

    Raises:
        Unavailable: One of them does not exist; the hint names those that do.
    """
    visible = _visible(environ, report)
    if selector == "all":
        if not visible:
            raise _nothing_there(report, environ)
        return tuple(visible)
    chosen: list[Chosen] = []
    for part in selector.split(","):
        found = _find(part.strip(), visible, report)
        if found is None:
            raise _not_there(part.strip(), visible, report, environ)
        if found not in chosen:
            chosen.append(found)
    return tuple(chosen)


def sample(visible: Sequence[str]) -> tuple[GpuView, ...]:
    """Return how the GPUs of a worker are doing; what is not known is None.

    Args:
        visible: Indices or UUIDs, as in `Chosen.visible`.
    """
    report = list_gpus()
    views = []
    for name in visible:
        gpu = next((gpu for gpu in report.gpus if _is_called(gpu, name)), None)
        if gpu is None:
            views.append(GpuView(index=name))
        else:
            views.append(
                GpuView(
                    index=str(gpu.index),
                    name=gpu.name,
                    memory_total_mib=gpu.memory_total_mib,
                    memory_used_mib=gpu.memory_used_mib,
                    utilisation_percent=gpu.utilisation_percent,
                    temperature_c=gpu.temperature_c,
                    power_w=gpu.power_w,
                )
            )
    return tuple(views)


# --- what is visible --------------------------------------------------------------------------


def _visible(environ: Mapping[str, str], report: GpuReport) -> list[Chosen]:
    """Return what CUDA would see here, in its order."""
    outer = environ.get("CUDA_VISIBLE_DEVICES")
    if outer is None:
        return [_chosen(gpu, str(gpu.index), gpu.index) for gpu in report.gpus]
    visible: list[Chosen] = []
    for position, name in enumerate(part.strip() for part in outer.split(",")):
        gpu = next((gpu for gpu in report.gpus if _is_called(gpu, name)), None)
        if gpu is not None:
            visible.append(_chosen(gpu, name, position))
        elif name.startswith("MIG-"):
            visible.append(_unlisted(name, position))
        else:
            break  # CUDA ignores everything after the first name that is not valid
    return visible


def _chosen(gpu: Gpu, name: str, position: int) -> Chosen:
    return Chosen(
        label=str(gpu.index),
        visible=name,
        selector=str(position),
        memory_mib=gpu.memory_total_mib,
        model=gpu.name,
    )


def _unlisted(name: str, position: int | None) -> Chosen:
    """A MIG instance: CUDA knows it by its UUID alone."""
    selector = name if position is None else str(position)
    return Chosen(
        label=f"-{name[:12].lower()}", visible=name, selector=selector, memory_mib=None, model=None
    )


def _find(name: str, visible: Sequence[Chosen], report: GpuReport) -> Chosen | None:
    if name.isdecimal():
        return next((chosen for chosen in visible if chosen.selector == str(int(name))), None)
    if name.startswith("MIG-"):
        known = next((chosen for chosen in visible if chosen.visible == name), None)
        return known or _unlisted(name, None)
    labels = {str(gpu.index) for gpu in report.gpus if _is_called(gpu, name)}
    return next((chosen for chosen in visible if chosen.label in labels), None)


def _is_called(gpu: Gpu, name: str) -> bool:
    """Tell whether CUDA would take a name for this GPU: its index, or the start of its UUID."""
    if name.isdecimal():
        return int(name) == gpu.index
    return len(name) > len("GPU-") and gpu.uuid.startswith(name)


def _not_there(
    name: str, visible: Sequence[Chosen], report: GpuReport, environ: Mapping[str, str]
) -> Unavailable:
    if not visible:
        return _nothing_there(report, environ)
    there = ", ".join(
        f"{chosen.selector} ({chosen.model})" if chosen.model else chosen.selector
        for chosen in visible
    )
    return Unavailable(f"there is no GPU {name!a} here; nothing was started", hint=f"GPUs: {there}")


def _nothing_there(report: GpuReport, environ: Mapping[str, str]) -> Unavailable:
    if report.problem is not None:
        why = report.problem
    elif report.gpus:
        why = f"CUDA_VISIBLE_DEVICES={environ.get('CUDA_VISIBLE_DEVICES', '')!a} hides all of them"
    else:
        why = "the driver lists none"
    return Unavailable(
        f"no GPU can be used here: {why}; nothing was started", hint="--cpu runs on the CPU"
    )


# --- NVML -------------------------------------------------------------------------------------


class _NoDriver(Exception):
    """NVML cannot be used at all on this machine."""


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    try:
        import pynvml  # not on machines without NVIDIA, and not with --cpu
    except ImportError as error:
        raise _NoDriver("nvidia-ml-py is not installed") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise _NoDriver(f"the NVIDIA driver does not answer ({error})") from error
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise _NoDriver(f"the NVIDIA driver failed ({error})") from error
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu:
    def ask(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except nvml.NVMLError:
            return None

    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        return Gpu(index=index, uuid="", problem=str(error))
    memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    rates = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    power_mw = ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    return Gpu(
        index=index,
        uuid=_text(ask(lambda: nvml.nvmlDeviceGetUUID(handle))) or "",
        name=_text(ask(lambda: nvml.nvmlDeviceGetName(handle))),
        memory_total_mib=None if memory is None else int(memory.total) // MIB,
        memory_used_mib=None if memory is None else int(memory.used) // MIB,
        utilisation_percent=None if rates is None else int(rates.gpu),
        temperature_c=ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        power_w=None if power_mw is None else power_mw / 1000,
    )


def _text(value: object) -> str | None:
    if isinstance(value, bytes):  # older versions of the library
        return value.decode(errors="replace")
    return None if value is None else str(value)
