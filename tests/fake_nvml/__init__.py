"""GPUs that are not there: a library in C, loaded by the real nvidia-ml-py in real processes."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("nvml.c")


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeGpu:
    """One GPU; `state` is `ok` or `lost`."""

    uuid: str
    name: str = "FAKE A100"
    memory_mib: int = 24576
    used_mib: int = 512
    utilisation_percent: int = 40
    temperature_c: int = 50
    power_w: int = 100
    state: str = "ok"


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


def describe(script: Path, gpus: list[FakeGpu]) -> None:
    """Write the GPUs down; processes that see them notice at their next call."""
    draft = script.with_suffix(".draft")
    draft.write_text(
        "".join(
            f"{gpu.uuid} {gpu.memory_mib} {gpu.used_mib} {gpu.utilisation_percent}"
            f" {gpu.temperature_c} {gpu.power_w} {gpu.state} {gpu.name}\n"
            for gpu in gpus
        ),
        encoding="utf-8",
    )
    draft.replace(script)
