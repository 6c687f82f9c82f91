"""The only module that asks NVML; no other one knows its names or its errors.

What the driver does not say is None. A machine without a driver has no GPUs and a sentence that
says why; a GPU that is lost keeps its place with `problem` set. Nothing here raises because of
hardware, but any call may hang in a broken driver: ask in a thread that nobody waits for.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MIB = 1 << 20
ANSWER_S = 60.0
"""A driver without persistence mode needs seconds for each GPU; after this it does not answer."""

MOST_PID = 1 << 22
"""Linux has no greater process number."""


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
        memory_used_mib: By processes; not what the driver has set aside for itself.
        memory_free_mib: Less than the rest where the driver has set some aside.
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
    memory_free_mib: int | None = None
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
        """Return the one GPU or MIG instance that CUDA would take a name for, or None."""
        found = self.called(name)
        return found[0] if len(found) == 1 else None

    def called(self, name: str) -> tuple[Gpu, ...]:
        """Return what has this index, this UUID, or UUIDs that begin so."""
        every = [each for gpu in self.gpus for each in (gpu, *gpu.instances)]
        if name.isdecimal():
            return tuple(g for g in every if g.instance is None and g.index == int(name))
        exact = tuple(gpu for gpu in every if gpu.uuid == name and name)
        if exact or len(name) <= len("GPU-"):
            return exact
        return tuple(gpu for gpu in every if gpu.uuid.startswith(name))


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


class Driver:
    """NVML, kept open between two questions: opening it can take seconds for each GPU."""

    def __init__(self, only: Collection[int] | None = None) -> None:
        """Ask nothing yet; later about all GPUs, or only those with these indices."""
        self._nvml: Any = None
        self._only = only

    def report(self) -> GpuReport:
        """Return the GPUs as they are now; after any problem NVML is opened anew next time.

        An open NVML knows a GPU that was reset only as the lost one that it was.
        """
        try:
            nvml = self._open()
            with _failures(nvml):
                count = nvml.nvmlDeviceGetCount()
                asked = [i for i in range(count) if self._only is None or i in self._only]
                found = GpuReport(gpus=tuple(_gpu(nvml, index) for index in asked))
        except _NoDriver as missing:
            self.close()
            return GpuReport(gpus=(), problem=str(missing))
        if any(gpu.problem for gpu in found.gpus):
            self.close()
        return found

    def version(self) -> str | None:
        """Return the driver's version, None when NVML is not open or does not say."""
        nvml = self._nvml
        return None if nvml is None else _text(_ask(nvml, "nvmlSystemGetDriverVersion"))

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
            except pynvml.NVMLError_LibraryNotFound as error:
                raise _NoDriver("no NVIDIA driver is installed") from error
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
    except Exception as error:  # an nvidia-ml-py that does not go with the driver
        raise _NoDriver(f"nvidia-ml-py failed ({type(error).__name__}: {error})") from error


def _ask(nvml: Any, question: str, *about: Any) -> Any:
    """Return an answer of NVML, None where it, or an older nvidia-ml-py, has none."""
    function = getattr(nvml, question, None)
    if function is None:
        return None
    try:
        return function(*about)
    except nvml.NVMLError:
        return None


# --- one GPU ----------------------------------------------------------------------------------


def _gpu(nvml: Any, index: int) -> Gpu:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        split = _is_split(nvml, handle)
        memory = _memory(nvml, handle, whole=not split)  # a handle may outlive its GPU
    except nvml.NVMLError as error:
        return Gpu(index=index, uuid="", problem=str(error), lost=_is_loss(nvml, error))
    gpu = _asked(nvml, handle, index, memory)
    if not split:
        return gpu
    instances = _instances(nvml, handle, gpu)
    problem = None if instances else "MIG is on, but no instance is there"
    return replace(gpu, instances=instances, problem=problem)


def _is_loss(nvml: Any, error: Any) -> bool:
    """Tell whether an error means that the GPU is gone (an Xid, off the bus) until it is reset."""
    return error.value in (
        nvml.NVML_ERROR_GPU_IS_LOST,
        nvml.NVML_ERROR_RESET_REQUIRED,
        nvml.NVML_ERROR_NOT_FOUND,
    )


def _is_split(nvml: Any, handle: Any) -> bool:
    """Tell whether a GPU is used by its MIG instances only."""
    mode = _ask(nvml, "nvmlDeviceGetMigMode", handle)
    return mode is not None and bool(mode[0])


def _instances(nvml: Any, handle: Any, whole: Gpu) -> tuple[Gpu, ...]:
    """Return the MIG instances of a GPU; they are as hot as it is."""
    found: list[Gpu] = []
    for number in range(_ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        part = _ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
        if part is None:
            continue  # a place without an instance
        try:
            memory = _memory(nvml, part, whole=False)
        except nvml.NVMLError:
            memory = _Memory()
        gpu = _asked(nvml, part, whole.index, memory)
        found.append(replace(gpu, instance=number, temperature_c=whole.temperature_c))
    return tuple(gpu for gpu in found if gpu.uuid)


def _asked(nvml: Any, handle: Any, index: int, memory: _Memory) -> Gpu:
    rates = _ask(nvml, "nvmlDeviceGetUtilizationRates", handle)
    power_mw = _ask(nvml, "nvmlDeviceGetPowerUsage", handle)
    processes = _processes(nvml, handle)
    if memory.is_pooled:
        memory = replace(memory, used_mib=_held(processes))
    return Gpu(
        index=index,
        uuid=_text(_ask(nvml, "nvmlDeviceGetUUID", handle)) or "",
        name=_text(_ask(nvml, "nvmlDeviceGetName", handle)),
        memory_total_mib=memory.total_mib,
        memory_used_mib=memory.used_mib,
        memory_free_mib=memory.free_mib,
        utilisation_percent=None if rates is None else int(rates.gpu),
        temperature_c=_ask(nvml, "nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
        power_w=None if power_mw is None else power_mw / 1000,
        processes=processes,
    )


def _text(value: object) -> str | None:
    if isinstance(value, bytes):  # older versions of the library
        return value.decode(errors="replace")
    return None if value is None else str(value)


# --- its memory -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    """`is_pooled`: the operating system gives it out, and may keep what no process has."""

    total_mib: int | None = None
    used_mib: int | None = None
    free_mib: int | None = None
    is_pooled: bool = False


def _memory(nvml: Any, handle: Any, *, whole: bool) -> _Memory:
    """Return a GPU's memory; raise NVMLError only when the GPU does not work.

    The first version of the question counts what the driver has set aside as used.
    """
    unsaid = (
        nvml.NVML_ERROR_NOT_SUPPORTED,
        nvml.NVML_ERROR_NO_PERMISSION,
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        getattr(nvml, "NVML_ERROR_ARGUMENT_VERSION_MISMATCH", None),
    )
    error_code = None
    second = getattr(nvml, "nvmlMemory_v2", None)
    for version in (() if second is None else (second,), ()):
        try:
            found = nvml.nvmlDeviceGetMemoryInfo(handle, *version)
        except nvml.NVMLError as error:
            if error.value not in unsaid:
                raise
            error_code = error.value
            continue
        total, free = int(found.total), int(found.free)
        used = total - free - int(getattr(found, "reserved", 0))
        pooled = _ask(nvml, "nvmlDeviceGetNumaNodeId", handle) is not None
        return _Memory(
            total_mib=total // MIB, used_mib=used // MIB, free_mib=free // MIB, is_pooled=pooled
        )
    if whole and error_code == nvml.NVML_ERROR_NOT_SUPPORTED:
        return _host_memory()  # every GPU with memory of its own supports the question
    return _Memory()


def _host_memory(place: Path = Path("/proc/meminfo")) -> _Memory:
    """Return the memory of a GPU that has the machine's, and none of its own."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = place.read_text(encoding="ascii").splitlines()
        kib = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)}
        total, free = kib["MemTotal"] // 1024, kib["MemAvailable"] // 1024
        return _Memory(total_mib=total, free_mib=free, is_pooled=True)
    return _Memory()


# --- its processes ----------------------------------------------------------------------------


def _processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...] | None:
    """Return who computes on a GPU, also through NVIDIA's sharing daemon (MPS)."""
    found = _listed(nvml, "nvmlDeviceGetComputeRunningProcesses", handle)
    if found is None:
        return None
    found += _listed(nvml, "nvmlDeviceGetMPSComputeRunningProcesses", handle) or []
    return tuple({each.pid: _process(each) for each in found}.values())


def _listed(nvml: Any, question: str, handle: Any) -> list[Any] | None:
    """Ask with the newest form that both know: a driver before 510 knows the second only.

    Without a version nvidia-ml-py would raise what is no NVMLError where the newest is unknown.
    Drivers and an nvidia-ml-py of early 535 have a newest form of their own: what the others take
    it for has processes that no Linux has.
    """
    for version in ("_v3", "_v2"):
        found = _ask(nvml, f"{question}{version}", handle)
        if found is not None and all(0 < each.pid <= MOST_PID for each in found):
            return list(found)
    return None


def _process(found: Any) -> GpuProcess:
    """Whoever computes holds memory: 0 is what some drivers say in a container."""
    return GpuProcess(pid=int(found.pid), memory_mib=int(found.usedGpuMemory or 0) // MIB or None)


def _held(processes: Sequence[GpuProcess] | None) -> int | None:
    held = [process.memory_mib for process in processes or ()]
    return None if processes is None or None in held else sum(memory or 0 for memory in held)
