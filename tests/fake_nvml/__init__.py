"""GPUs that are not there: a library in C, loaded by the real nvidia-ml-py in real processes."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("nvml.c")


@dataclass(frozen=True, slots=True, kw_only=True)
class FakePart:
    """One MIG instance of a GPU."""

    uuid: str
    name: str = "FAKE A100 MIG 1g.5gb"
    memory_mib: int = 4864
    used_mib: int = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeGpu:
    """One GPU; for what `state` may be, see nvml.c.

    `processes` are pairs of a process number and MiB, over those that use `ALLOCATE`; `clients`
    are those of the daemon of MPS.
    """

    uuid: str
    name: str = "FAKE A100"
    memory_mib: int = 24576
    used_mib: int = 512
    utilisation_percent: int = 40
    temperature_c: int = 50
    power_w: int = 100
    state: str = "ok"
    processes: tuple[tuple[int, int], ...] = ()
    clients: tuple[tuple[int, int], ...] = ()
    parts: tuple[FakePart, ...] = ()


ALLOCATE = """
import os, pathlib
def allocate(mib, gpu=None):
    index = os.environ["CUDA_VISIBLE_DEVICES"] if gpu is None else gpu
    folder = pathlib.Path(os.environ["FAKE_NVML"] + ".held")
    folder.mkdir(exist_ok=True)
    draft = folder / f"draft-{os.getpid()}"
    draft.write_text(str(mib))
    draft.rename(folder / f"{index}-{os.getpid()}")
"""
"""For scripts: `allocate(mib)` holds so much memory of the task's GPU until the process ends."""


def environment(folder: Path, gpus: list[FakeGpu], *, name: str = "gpus") -> dict[str, str]:
    """Build the library and describe its GPUs; return what a process needs to see them."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: the fake NVML library cannot be built (apt install gcc)")
    library = folder / "libnvidia-ml.so.1"
    if not library.exists():
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(SOURCE)],
            check=True,
        )
    script = folder / name
    describe(script, gpus)
    return {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML": str(script)}


def describe(script: Path, gpus: list[FakeGpu], *, driver: int = 570) -> None:
    """Write the GPUs down; processes that see them notice at their next call."""
    draft = script.with_suffix(".draft")
    lines = "".join(_lines(gpu) for gpu in gpus) + f"driver {driver}\n"
    draft.write_text(lines, encoding="utf-8")
    draft.replace(script)


def _lines(gpu: FakeGpu) -> str:
    used_mib = gpu.used_mib + sum(mib for _, mib in gpu.processes + gpu.clients)
    lines = [
        f"gpu {gpu.uuid} {gpu.memory_mib} {used_mib} {gpu.utilisation_percent}"
        f" {gpu.temperature_c} {gpu.power_w} {gpu.state} {gpu.name}"
    ]
    lines += [f"proc {pid} {mib}" for pid, mib in gpu.processes]
    lines += [f"mps {pid} {mib}" for pid, mib in gpu.clients]
    lines += [
        f"mig {part.uuid} {part.memory_mib} {part.used_mib} {part.name}" for part in gpu.parts
    ]
    return "".join(f"{line}\n" for line in lines)
