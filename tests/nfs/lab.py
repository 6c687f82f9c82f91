"""Runs a story of `tests.nfs.stories` inside the NFS lab, and returns what it found out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def lab_folder() -> Path:
    """Return the folder of the labs: beside the checkout, or where GPULEDGER_LAB says."""
    return Path(os.environ.get("GPULEDGER_LAB", REPOSITORY.parent / "shared" / "lab"))


def require_lab() -> Path:
    """Return the program that starts the NFS lab, or skip, saying why."""
    program = lab_folder() / "nfs" / "run"
    if not program.exists():
        pytest.skip(f"the NFS lab is not there ({program}; GPULEDGER_LAB names another place)")
    if shutil.which("apt-get") is None:
        pytest.skip("the NFS lab needs packages of Debian (apt-get)")
    return program


def tell(
    story: str, *arguments: str, options: Sequence[str], timeout_s: float = 300.0
) -> dict[str, Any]:
    """Run a story in a lab of its own and return the JSON value of its last line."""
    program = require_lab()
    command = [sys.executable, "-m", "tests.nfs.stories", story, *arguments]
    done = subprocess.run(
        [str(program), *options, "--timeout", str(int(timeout_s)), "--", *command],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(REPOSITORY)},
        timeout=timeout_s + 60,
    )  # fmt: skip
    if done.returncode == 125 and "apt-get download failed" in done.stderr:
        pytest.skip("the NFS lab's packages cannot be had (does apt-get update work?)")
    told = f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    assert done.returncode == 0, told
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    value["_told"] = told
    return value
