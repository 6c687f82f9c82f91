"""A file system that fails at one call: a library that is loaded before all others."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("shim.c")


def build(folder: Path) -> Path:
    """Build the library, or skip, saying why."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: calls cannot be made to fail (apt install gcc)")
    library = folder / "failing_calls.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(SOURCE)],
        check=True,
    )
    return library
