"""Draws what a worker's GPUs do beyond load and memory: how hot they are, what they draw."""

from __future__ import annotations

from rich.text import Text

from gpuledger.display.grid import Cell, pieces
from gpuledger.display.text import memory
from gpuledger.views import AttemptRecord, GpuView, WorkerView

HOT_C = 85
WARM_C = 75


def heat(worker: WorkerView) -> Cell | None:
    """Return the temperature of the hottest GPU and the power of all; None when not known."""
    degrees = [gpu.temperature_c for gpu in worker.gpus if gpu.temperature_c is not None]
    watts = [gpu.power_w for gpu in worker.gpus if gpu.power_w is not None]
    parts = []
    if degrees:
        parts.append(Text(f"{max(degrees)}°C", style=_heat_style(max(degrees))))
    if watts:
        parts.append(Text(f"{sum(watts):.0f}W"))
    return pieces(parts, gap=" ") if parts else None


def problems(gpus: tuple[GpuView, ...]) -> list[str]:
    """Return what is wrong with a worker's GPUs, for its note."""
    return [f"GPU {gpu.index}: {gpu.problem}" for gpu in gpus if gpu.problem]


def peak(attempt: AttemptRecord) -> str:
    """Return the most memory of an attempt and what its GPU has, as `18/80G`; '' if unknown."""
    if attempt.memory_peak_mib is None:
        return ""
    return memory(attempt.memory_peak_mib, attempt.gpu_memory_mib)


def _heat_style(degrees: int) -> str:
    if degrees >= HOT_C:
        return "bold red"
    return "yellow" if degrees >= WARM_C else ""
