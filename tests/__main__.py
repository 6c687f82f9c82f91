"""`python -m tests`: format, lint, types and tests, several at once; arguments go to pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_AT_ONCE = 4
"""Test processes; most of them start processes of their own."""


def main(arguments: list[str]) -> int:
    """Run every check, also after one failed; return 1 when any did."""
    python = [sys.executable, "-m"]
    at_once = min(len(os.sched_getaffinity(0)), MOST_AT_ONCE)
    checks = {
        "format": [*python, "ruff", "format", "--check", "."],
        "lint": [*python, "ruff", "check", "."],
        "types": [*python, "mypy"],
        "tests": [*python, "pytest", "-q", "-n", str(at_once), "--dist", "worksteal", *arguments],
    }
    failed = []
    for name, command in checks.items():
        print(f"== {name}", flush=True)
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
