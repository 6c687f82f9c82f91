"""The only module that asks NVML; no other one knows its names or its errors.

What the driver does not say is None. A machine without a driver has no GPUs and a sentence that
says why; a GPU that is lost keeps its place with `problem` set. Nothing here raises because of
hardware, but any call may hang in a broken driver: ask in a thread that nobody waits for.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpuledger.errors import Unavailable

MIB = 1 << 20
ANSWER_S = 60.0
"""A driver without persistence mode needs seconds for each GPU; after this it does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that computes on a GPU; `memory_mib` is None where the driver does not say."""

    pid: int
    memory_mib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU of this machine, or one MIG instance of it.

    Attributes:
        index: In the order of the PCI bus, as `nvidia-smi` and CUDA_DEVICE_ORDER=PCI_BUS_ID count.
        uuid: `GPU-...` or `MIG-...`; empty when the driver does not say.
        processes: Those that compute on it, of all users; None when that is not permitted.
        instances: The MIG instances that it is split into.
        instance: Number of this MIG instance on its GPU; None for a whole GPU.
        problem: Why it could not be asked (it fell off the bus, say), or None.
        lost: It will not answer again before it, or the machine, was reset.
    """

    index: int
    uuid: str
    name: str | None = None
    memory_total_mib: int | None = None
    memory_used_mib: int | None = None
    utilisation_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    processes: tuple[GpuProcess, ...] | None = None
    instances: tuple[Gpu, ...] = ()
    instance: int | None = None
    problem: str | None = None
    lost: bool = False

    @property
    def label(self) -> str:
        """What people call it: `2`, or `2.0` for the first MIG instance of that GPU."""
        return str(self.index) if self.instance is None else f"{self.index}.{self.instance}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """All GPUs of this machine, or why there are none; `driver` is its version where asked for."""

    gpus: tuple[Gpu, ...]
    problem: str | None = None
    driver: str | None = None

    def find(self, name: str) -> Gpu | None:
        """Return the GPU or MIG instance that CUDA would take a name for, or None."""
        every = [each for gpu in self.gpus for each in (gpu, *gpu.instances)]
        return next((gpu for gpu in every if _is_called(gpu, name)), None)


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


def list_gpus(*, timeout_s: float = ANSWER_S) -> GpuReport:
    """Ask the driver for all GPUs and their MIG instances; one that hangs is not waited for."""
    answers: list[GpuReport] = []

    def ask() -> None:
        with contextlib.closing(Driver()) as driver:
            report = driver.report()
            answers.append(replace(report, driver=driver.version()))

    thread = threading.Thread(target=ask, name="nvml", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not answers:
        return GpuReport(gpus=(), problem=f"the NVIDIA driver did not answer for {timeout_s:g} s")
    return answers[0]


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


# --- what is visible --------------------------------------------------------------------------


def _visible(environ: Mapping[str, str], report: GpuReport) -> list[list[Chosen]]:
    """Return what CUDA would see here, in its order: a GPU, or the MIG instances that are it."""
    outer = environ.get("CUDA_VISIBLE_DEVICES")
    if outer is None:
        return [_choices(gpu, str(gpu.index), position=gpu.index) for gpu in report.gpus]
    visible: list[list[Chosen]] = []
    for position, name in enumerate(part.strip() for part in outer.split(",")):
        gpu = report.find(name)
        if gpu is not None:
            visible.append(_choices(gpu, name, position=position))
        elif name.startswith("MIG-"):
            visible.append([_unlisted(name, position)])
        else:
            break  # CUDA ignores everything after the first name that is not valid
    return visible


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
    gpu = report.find(name)
    if gpu is not None:
        uuids = {each.uuid for each in gpu.instances or (gpu,)}
        return [chosen for chosen in every if chosen.uuid in uuids]
    known = [chosen for chosen in every if chosen.visible == name]
    return known or ([_unlisted(name, None)] if len(name) > 4 and name[:4] == "MIG-" else [])


def _is_called(gpu: Gpu, name: str) -> bool:
    """Tell whether CUDA would take a name for this GPU: its index, or the start of its UUID."""
    if name.isdecimal():
        return gpu.instance is None and int(name) == gpu.index
    return len(name) > len("GPU-") and gpu.uuid.startswith(name)


def _is_lost(chosen: Chosen, report: GpuReport) -> bool:
    return any(gpu.label == chosen.label and gpu.problem for gpu in report.gpus)


def _not_there(
    name: str, visible: Sequence[Sequence[Chosen]], report: GpuReport, environ: Mapping[str, str]
) -> Unavailable:
    if not visible:
        return _nothing_there(report, environ)
    return Unavailable(
        f"there is no GPU {name!a} here; nothing was started", hint=_those(visible, report)
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
        why = f"CUDA_VISIBLE_DEVICES={environ.get('CUDA_VISIBLE_DEVICES', '')!a} hides all of them"
    else:
        why = "the driver lists none"
    return Unavailable(
        f"no GPU can be used here: {why}; nothing was started", hint="--cpu runs on the CPU"
    )


# --- NVML -------------------------------------------------------------------------------------


class Driver:
    """NVML, kept open between two questions: opening it can take seconds for each GPU."""

    def __init__(self) -> None:
        self._nvml: Any = None

    def report(self) -> GpuReport:
        """Return all GPUs as they are now; after any problem NVML is opened anew next time."""
        try:
            nvml = self._open()
            with _failures(nvml):
                count = nvml.nvmlDeviceGetCount()
                found = GpuReport(gpus=tuple(_gpu(nvml, index) for index in range(count)))
        except _NoDriver as missing:
            self.close()
            return GpuReport(gpus=(), problem=str(missing))
        if any(gpu.problem for gpu in found.gpus):
            self.close()
        return found

    def version(self) -> str | None:
        """Return the driver's version, None when NVML is not open or does not say."""
        nvml = self._nvml
        if nvml is None:
            return None
        with contextlib.suppress(nvml.NVMLError):
            return _text(nvml.nvmlSystemGetDriverVersion())
        return None

    def close(self) -> None:
        """Let go of NVML."""
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlShutdown()

    def _open(self) -> Any:
        if self._nvml is None:
            try:
                import pynvml  # not on machines without NVIDIA, and not with --cpu
            except ImportError as error:
                raise _NoDriver("nvidia-ml-py is not installed") from error
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError as error:
                raise _NoDriver(f"the NVIDIA driver does not answer ({error})") from error
            self._nvml = pynvml
        return self._nvml


class _NoDriver(Exception):
    """NVML cannot be used at all on this machine."""


@contextlib.contextmanager
def _failures(nvml: Any) -> Iterator[None]:
    try:
        yield
    except nvml.NVMLError as error:
        raise _NoDriver(f"the NVIDIA driver failed ({error})") from error


def _gpu(nvml: Any, index: int) -> Gpu:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        return Gpu(index=index, uuid="", problem=str(error), lost=_is_loss(nvml, error))
    try:
        nvml.nvmlDeviceGetMemoryInfo(handle)  # a handle may outlive its GPU
    except nvml.NVMLError as error:
        if _is_loss(nvml, error):
            return Gpu(index=index, uuid="", problem=str(error), lost=True)
    return _asked(nvml, handle, index, instances=_instances(nvml, handle, index))


def _is_loss(nvml: Any, error: Any) -> bool:
    """Tell whether an error means that the GPU is gone (an Xid, off the bus) until it is reset."""
    return error.value in (
        nvml.NVML_ERROR_GPU_IS_LOST,
        nvml.NVML_ERROR_RESET_REQUIRED,
        nvml.NVML_ERROR_NOT_FOUND,
    )


def _instances(nvml: Any, handle: Any, index: int) -> tuple[Gpu, ...]:
    """Return the MIG instances of a GPU; none when it has, or the driver knows, no such thing."""
    try:
        if not nvml.nvmlDeviceGetMigMode(handle)[0]:
            return ()
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:
        return ()
    found: list[Gpu] = []
    for number in range(most):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError:
            continue  # a place without an instance
        found.append(_asked(nvml, part, index, instance=number))
    return tuple(gpu for gpu in found if gpu.uuid)


def _asked(
    nvml: Any,
    handle: Any,
    index: int,
    *,
    instances: tuple[Gpu, ...] = (),
    instance: int | None = None,
) -> Gpu:
    def ask(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except nvml.NVMLError:
            return None

    memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    rates = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    power_mw = ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    processes = ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    return Gpu(
        index=index,
        uuid=_text(ask(lambda: nvml.nvmlDeviceGetUUID(handle))) or "",
        name=_text(ask(lambda: nvml.nvmlDeviceGetName(handle))),
        memory_total_mib=None if memory is None else int(memory.total) // MIB,
        memory_used_mib=None if memory is None else int(memory.used) // MIB,
        utilisation_percent=None if rates is None else int(rates.gpu),
        temperature_c=ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        power_w=None if power_mw is None else power_mw / 1000,
        processes=None if processes is None else tuple(_process(each) for each in processes),
        instances=instances,
        instance=instance,
    )


def _process(found: Any) -> GpuProcess:
    used = found.usedGpuMemory
    return GpuProcess(pid=int(found.pid), memory_mib=None if used is None else int(used) // MIB)


def _text(value: object) -> str | None:
    if isinstance(value, bytes):  # older versions of the library
        return value.decode(errors="replace")
    return None if value is None else str(value)
