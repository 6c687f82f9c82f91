"""`python -m tests.benchmarks`: run them all; `--write` puts the figures into the README.

They judge nothing. `--quick` takes a few minutes, the whole three quarters of an hour. Peers that
are not installed (`pip install '.[benchmarks]'`) are left out, with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks import capacity, growth, idle, overhead, recovery, report, throughput
from tests.benchmarks.measure import machine, reference_ms, versions

ROOT = Path(__file__).resolve().parent.parent.parent
ON_NFS = Path(__file__).resolve().parent / "nfs.json"
"""Costs measured on NFSv4.2 in a lab (server and clients on one machine); see `capacity`."""

RESULTS = Path(__file__).resolve().parent / "results.json"
PICTURE = ROOT / "examples" / "benchmarks.svg"


def parts(given: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what can be measured, by name, in the order of the report."""
    quick = given.quick
    torch_python = given.torch_python if overhead.has_torch(given.torch_python) else None
    nfs = json.loads(given.nfs.read_text(encoding="utf-8"))
    sizes = [1_000, 10_000, 100_000] + ([] if quick else [1_000_000])
    return {
        "throughput": lambda: throughput.run(
            counts=[1, 4, 16],
            rounds=1 if quick else 3,
            seconds=0.5 if quick else 1.0,
            many=None if quick else 64,
        ),
        "overhead": lambda: overhead.run(
            rounds=1 if quick else 3,
            tasks=100 if quick else 400,
            torch_tasks=4 if quick else 10,
            torch_python=None if quick else torch_python,
        ),
        "growth": lambda: growth.run(sizes, rounds=20 if quick else 100),
        "idle": lambda: idle.run(workers=200, seconds=10 if quick else 60),
        "recovery": lambda: _recovery(quick=quick),
        "capacity": lambda: _in_scratch(lambda folder: capacity.run(folder, quick=quick, nfs=nfs)),
    }


def main() -> None:
    """Run what was asked for, print the tables, and write them where that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--write", action="store_true", help="update results, picture and README")
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help="leave the other parts as they are"
    )
    parser.add_argument("--torch-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument(
        "--nfs", type=Path, metavar="FILE", default=ON_NFS, help="costs measured on NFS (JSON)"
    )
    given = parser.parse_args()
    chosen = parts(given)
    if given.only:
        unknown = set(given.only).difference(chosen)
        if unknown:
            parser.error(
                f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(chosen)}"
            )
    results: dict[str, Any] = {}
    if given.only and RESULTS.exists():
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    results |= {
        "date": datetime.now(UTC).date().isoformat(),
        "quick": given.quick,
        "machine": machine(),
        "versions": versions(),
        "reference": _in_scratch(reference_ms),
    }
    for name, measure in chosen.items():
        if given.only and name not in given.only:
            continue
        began = time.monotonic()
        print(f"== {name}", flush=True)
        results[name] = measure()
        print(f"   {time.monotonic() - began:.0f} s", flush=True)
    print(report.markdown(results))
    if given.write:
        write(results)


def write(results: dict[str, Any]) -> None:
    """Write the figures, the picture and the README's tables."""
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if "throughput" in results:
        PICTURE.write_text(report.svg(results["throughput"]), encoding="utf-8")
    readme = ROOT / "README.md"
    text = report.into_readme(readme.read_text(encoding="utf-8"), results)
    readme.write_text(text, encoding="utf-8")


def _recovery(*, quick: bool) -> dict[str, Any]:
    found = recovery.run(rounds=1 if quick else 3)
    if not quick:
        found["default"] = recovery.run_with_default_lease(rounds=3)
    return found


def _in_scratch(measure: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="gpuledger-bench-") as scratch:
        return measure(Path(scratch))


if __name__ == "__main__":
    main()
