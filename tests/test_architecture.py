"""The layout, held: imports go down only, and each power has one owner."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "gpuledger"

RANK = {
    "errors": 0,
    "clock": 0,
    "guard": 0,  # a program of its own: imports nothing of the package
    "warm": 0,  # the same
    "launcher": 3,
    "where": 0,
    "task": 0,  # in users' scripts: the same
    "spec": 0.5,
    "model": 1,
    "routing": 1.5,
    "suspicion": 1.5,
    "views": 1.5,
    "selection": 1.5,
    "schema": 1,
    "mounts": 0,
    "modes": 0,
    "revalidation": 0,
    "line": 0.5,
    "locks": 1,
    "findings": 1,
    "sweep_values": 1,
    "sweep_words": 2,
    "sweep_parameters": 3,
    "sweep_points": 4,
    "sweep_run": 4,
    "sweep_resources": 4,
    "sweep": 5,
    "store": 2,
    "chosen": 2,
    "why": 2,
    "eta": 3,
    "results": 2,
    "parquet": 3,
    "steps": 3,
    "reports": 2,
    "heartbeat": 2,
    "outbox": 2,
    "diary": 3,
    "backups": 4,
    "gpu": 2,
    "gpu_choice": 3,
    "resources": 2,
    "gpu_watch": 4,
    "gpu_rules": 5,
    "gpu_gate": 6,
    "machine": 1,
    "running_task": 1,
    "process": 2,
    "signals": 2,
    "traceback_reader": 2,
    "display": 3,
    "probe": 3,
    "origin": 0,  # a value
    "origin_git": 3,
    "origin_reader": 4,
    "queries": 3,
    "snapshots": 4,
    "report": 4,
    "operations": 4,
    "claims": 5,
    "endings": 6,
    "batches": 6.5,
    "ledger": 7,
    "recovery": 7,
    "hook": 7,
    "hosts": 9,
    "slurm": 3,
    "slurm_jobs": 8,
    "allocation": 2,
    "rhythm": 2,
    "room": 2,
    "checkup": 8,
    "peer": 8,
    "lookout": 7,
    "pulse": 7,
    "patience": 7.5,
    "company": 7.5,
    "readiness": 7.5,
    "recorder": 7.7,
    "runner": 7,
    "fleet": 7,
    "worker": 8,
    "cli": 10,
    "ui": 10,  # stands on how cli reads; cli starts it
    "__init__": 1,  # imports task
    "__main__": 11,
}
SAME_RANK_ALLOWED = {
    ("display", "display"),
    ("cli", "cli"),
    ("ui", "ui"),
    ("ui", "cli"),
    ("cli", "ui"),
    ("report", "report"),
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, at its top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "gpuledger":
                found |= {alias.name for alias in node.names if alias.name in RANK}
            elif node.module.startswith("gpuledger."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("gpuledger.")
            }
    return found


def test_every_module_has_a_rank() -> None:
    assert {name_of(path) for path in MODULES} == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    name = name_of(path)
    for other in imports(path):
        fine = RANK[other] < RANK[name] or (name, other) in SAME_RANK_ALLOWED
        assert fine, f"{name} imports {other}"


SQL = re.compile(r"\b(SELECT .* FROM|INSERT (OR \w+ )?INTO|UPDATE \w+ SET|DELETE FROM)\b", re.S)
OWNERS = {
    SQL: {
        "ledger",
        "claims",
        "endings",
        "batches",
        "operations",
        "queries",
        "snapshots",
        "chosen",
        "schema",
        "store",
        "backups",
        "recovery",
        "hosts",
        "slurm_jobs",
        # These ask ledgers of their own making, to try a disk or another host.
        "checkup",
        "peer",
        "probe",
    },
    re.compile(r"\bsqlite3\.connect\("): {"store"},
    re.compile(r"\bfilelock\b"): {"locks"},
    re.compile(r"\bsubprocess\."): {"process"},
    re.compile(r"\bos\.(fork|kill|killpg)\("): {"process", "machine", "guard", "signals", "warm"},
    re.compile(r"\bsignal\.signal\("): {"signals", "process", "guard"},
    re.compile(r"\bimport pynvml\b"): {"gpu"},
    re.compile(r"\bimport pyarrow\b"): {"parquet"},
    re.compile(r"\btime\.(time|monotonic|clock_gettime|sleep)\("): {
        "clock",
        "guard",
        "task",
        "warm",
    },
    re.compile(r"\bdatetime\.now\("): {"clock"},
}


@pytest.mark.parametrize("pattern", OWNERS, ids=lambda pattern: pattern.pattern)
def test_each_power_has_one_owner(pattern: re.Pattern[str]) -> None:
    users = {name_of(path) for path in MODULES if pattern.search(path.read_text(encoding="utf-8"))}
    assert users <= OWNERS[pattern], users - OWNERS[pattern]


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_users_script_loads_nothing_heavy() -> None:
    loaded = loaded_by("import gpuledger")
    heavy = {"typer", "rich", "filelock", "pynvml", "sqlite3", "json", "typing", "pathlib"}
    assert not loaded & heavy


def test_a_machine_without_gpus_never_loads_nvml() -> None:
    loaded = loaded_by(
        "import gpuledger.worker, gpuledger.cli.work, gpuledger.cli.run, gpuledger.cli.status"
    )
    assert "pynvml" not in loaded


def test_asking_for_the_version_loads_neither_rich_nor_the_ledger() -> None:
    loaded = loaded_by("import gpuledger.cli.app")
    assert not loaded & {"rich.console", "sqlite3", "filelock", "gpuledger.ledger"}
