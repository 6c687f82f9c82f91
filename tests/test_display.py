from __future__ import annotations

import io
import os
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from gpuledger.display import text as texts
from gpuledger.display.bars import shares, state_bar
from gpuledger.display.cells import cut, fold
from gpuledger.display.failures import causes
from gpuledger.display.lines import claimed_line, ended_line, event_line, waiting_line
from gpuledger.display.results import results_table
from gpuledger.display.show import task_detail
from gpuledger.display.status import status_view
from gpuledger.display.tasks import tasks_table
from gpuledger.model import (
    AttemptRecord,
    Claim,
    Counts,
    Ended,
    Ending,
    Event,
    FailureView,
    GpuView,
    NothingToDo,
    Outcome,
    RunSettings,
    Snapshot,
    SweepView,
    TaskRecord,
    TaskState,
    Token,
    WorkerView,
)
from tests.pictures import save_svg

GOLDEN = Path(__file__).parent / "golden" / "display"
NOW = 1_700_000_000.0
WIDTHS = (60, 80, 140)

TRACEBACK = """Traceback (most recent call last):
  File "/home/ada/exp/train.py", line 88, in <module>
    main()
    ~~~~^^
  File "/home/ada/exp/train.py", line 71, in main
    data = load(params["data"])
  File "/home/ada/exp/data.py", line 12, in load
    return open(path, "rb")
           ^^^^^^^^^^^^^^^^
FileNotFoundError: [Errno 2] No such file or directory: 'data/shard-17.bin'
"""
MISSING = "FileNotFoundError: [Errno 2] No such file or directory: 'data/shard-17.bin'"
HOSTILE = "[red]x[/red]\x1b[31m\x9b2J\r\n\u202egpj.exe\u2066\u200b\x00\ud800"
WIDE = "学習率🚀" * 15 + "e\u0301" * 40 + "👩‍👩‍👧❤️🏳️‍🌈"  # noqa: RUF001


@pytest.fixture(autouse=True)
def utc() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def drawn(renderable: RenderableType, *, width: int, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, _environ={}, legacy_windows=False, **options)
    console.print(renderable)
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def status(snapshot: Snapshot, *, width: int, height: int | None = None) -> list[str]:
    return drawn(status_view(snapshot, width=width, height=height), width=width).splitlines()


def failure(task: str, **changed: Any) -> FailureView:
    usual = FailureView(
        task=task,
        sweep=task.rsplit("_", 2)[0],
        state=TaskState.PENDING,
        number=2,
        failures=2,
        max_attempts=3,
        worker="lab-01:gpu0",
        outcome=Outcome.FAILED,
        error=MISSING,
        traceback=TRACEBACK,
        ended_at=NOW - 90,
    )
    return replace(usual, **changed)


def a100(used_gib: int, busy: int | None) -> tuple[GpuView, ...]:
    gpu = GpuView(
        index="0",
        name="NVIDIA A100",
        memory_total_mib=80 * 1024,
        memory_used_mib=used_gib * 1024,
        utilisation_percent=busy,
    )
    return (gpu,)


def empty() -> Snapshot:
    return Snapshot(taken_at=NOW, ledger="/home/ada/exp/.gpuledger", counts=Counts())


def busy() -> Snapshot:
    sweeps = (
        SweepView(
            name="resnet-lr",
            counts=Counts(pending=849, running=4, completed=340, failed=7),
            created_at=NOW - 9000,
            mean_s=600.0,
            eta_s=4800.0,
        ),
        SweepView(
            name="ablation",
            counts=Counts(pending=30, completed=10, failed=5, cancelled=15),
            created_at=NOW - 8000,
            paused="5 different tasks failed in a row, on every worker",
        ),
        SweepView(name="warmup", counts=Counts(completed=24), created_at=NOW - 90_000, eta_s=0.0),
    )
    workers = (
        WorkerView(
            name="lab-01:gpu0",
            task="resnet-lr_40_1",
            number=1,
            max_attempts=3,
            elapsed_s=312.4,
            step=1200,
            total=5000,
            metrics={"loss": 0.012345, "acc": 0.9127, "lr": 1.2e-05},
            heartbeat_age_s=2.0,
            has_gpu=True,
            gpus=a100(18, 93),
        ),
        WorkerView(
            name="lab-01:gpu1",
            task="resnet-lr_41_0",
            number=4,
            failures=2,
            max_attempts=3,
            elapsed_s=3790.0,
            heartbeat_age_s=47.0,
            has_gpu=True,
            gpus=a100(79, 4),
        ),
        WorkerView(name="lab-02:gpu0", heartbeat_age_s=1.0, has_gpu=True, gpus=a100(0, 0)),
        WorkerView(
            name="lab-02:gpu1",
            heartbeat_age_s=3.0,
            has_gpu=True,
            gpus=a100(0, 0),
            note="suspect, cools down 60 s",
        ),
        WorkerView(
            name="bignode.cluster.example.org:gpu0,1,2,3",
            task="resnet-lr_42_0",
            number=1,
            max_attempts=3,
            elapsed_s=12.0,
            step=350,
            metrics={"loss": float("nan")},
            heartbeat_age_s=0.4,
            has_gpu=True,
            gpus=a100(40, 99) + a100(41, 97) + a100(40, 12) + a100(40, 55),
        ),
        WorkerView(
            name="lab-03:cpu",
            task="resnet-lr_43_0",
            number=1,
            max_attempts=3,
            elapsed_s=1.0,
            heartbeat_age_s=0.4,
            note="leaves after this task",
        ),
    )
    failures = (
        *(
            failure(
                f"resnet-lr_{i}_0",
                error=MISSING.replace("17", str(i)),
                traceback=TRACEBACK.replace("17", str(i)),
            )
            for i in range(37)
        ),
        failure(
            "resnet-lr_90_0",
            outcome=Outcome.OOM,
            error="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
            traceback=None,
            state=TaskState.FAILED,
            failures=3,
        ),
        failure(
            "ablation_3_1",
            outcome=Outcome.LOST,
            error="its worker or machine died (no heartbeat)",
            traceback=None,
            failures=0,
            state=TaskState.RUNNING,
        ),
    )
    counts = sum((sweep.counts for sweep in sweeps), Counts())
    return Snapshot(
        taken_at=NOW,
        ledger="/home/ada/exp/.gpuledger",
        counts=counts,
        sweeps=sweeps,
        workers=workers,
        failures=failures,
        eta_s=4800.0,
        ended_last_hour=42,
    )


def hostile() -> Snapshot:
    workers = tuple(
        WorkerView(
            name=name,
            task=name,
            number=1,
            max_attempts=3,
            elapsed_s=12.0,
            step=float("inf"),
            total=0.0,
            metrics={name: name, "loss": float("-inf"), "n": 10**400},
            heartbeat_age_s=99.0,
            has_gpu=True,
            gpus=(GpuView(index=name, utilisation_percent=250, memory_total_mib=0),),
            note=name,
        )
        for name in (HOSTILE, WIDE, "plain:gpu0")
    )
    return Snapshot(
        taken_at=NOW,
        ledger=HOSTILE,
        counts=Counts(pending=2, failed=2),
        sweeps=tuple(
            SweepView(name=name, counts=Counts(pending=1, failed=1), created_at=NOW, paused=name)
            for name in (HOSTILE, WIDE)
        ),
        workers=workers,
        failures=tuple(
            failure(name, worker=name, error=name, traceback=f"{name}\n\t{name}")
            for name in (HOSTILE, WIDE)
        ),
        unreachable=HOSTILE + WIDE,
    )


def unreachable() -> Snapshot:
    why = "ledger /home/ada/exp/.gpuledger/ledger.db stayed locked by lab-02 for 60 s"
    return replace(busy(), unreachable=why, workers=busy().workers[:2], failures=())


def all_done() -> Snapshot:
    counts = Counts(completed=1197, failed=3)
    sweep = SweepView(name="resnet-lr", counts=counts, created_at=NOW - 9000, eta_s=0.0)
    return Snapshot(
        taken_at=NOW,
        ledger="/home/ada/exp/.gpuledger",
        counts=counts,
        sweeps=(sweep,),
        failures=(failure("resnet-lr_7_0", state=TaskState.FAILED, failures=3),),
        eta_s=0.0,
        ended_last_hour=12,
    )


def crowd() -> Snapshot:
    one = busy().workers[0]
    workers = tuple(
        replace(one, name=f"node-{i:03d}:gpu0", task=None if i in (77, 150) else f"resnet-lr_{i}_0")
        for i in range(200)
    )
    return replace(busy(), workers=workers)


SCENES: dict[str, tuple[Callable[[], Snapshot], int | None]] = {
    "empty": (empty, None),
    "busy": (busy, None),
    "busy-24-lines": (busy, 24),
    "hostile": (hostile, None),
    "unreachable": (unreachable, None),
    "all-done": (all_done, None),
    "200-workers-24-lines": (crowd, 24),
}


def attempt(number: int, **changed: Any) -> AttemptRecord:
    usual = AttemptRecord(
        number=number,
        worker=f"lab-0{number}:gpu0",
        outcome=Outcome.FAILED,
        exit_code=1,
        signal=None,
        started_at=NOW - 1000 + number * 100,
        ended_at=NOW - 1000 + number * 100 + 63,
        duration_s=63.2,
        error=MISSING,
        traceback=TRACEBACK,
        metrics={},
        log=f"/home/ada/exp/.gpuledger/runs/resnet-lr_7_0/attempt-{number}.log",
    )
    return replace(usual, **changed)


def records() -> list[TaskRecord]:
    failed = TaskRecord(
        task="resnet-lr_7_0",
        sweep="resnet-lr",
        state=TaskState.FAILED,
        params={"optim.lr": 0.00012345678901, "optim.batch_size": 256, "name": "sgd", "aug": None},
        seed=0,
        priority=5,
        failures=3,
        losses=1,
        max_attempts=3,
        last_error=MISSING,
        result=None,
        folder="/home/ada/exp/.gpuledger/runs/resnet-lr_7_0",
        attempts=(
            attempt(1, outcome=Outcome.LOST, exit_code=None, error="its machine died"),
            attempt(2, exit_code=None, signal=9),
            attempt(3),
        ),
    )
    done = replace(
        failed,
        task="resnet-lr_8_1",
        state=TaskState.COMPLETED,
        params={**failed.params, "optim.lr": 0.1},
        seed=1,
        failures=0,
        losses=0,
        last_error=None,
        result={"loss": 0.0123456, "acc": 0.9127, "epochs": 90, "confusion": [[1, 2], [3, 4]]},
        attempts=(attempt(1, outcome=Outcome.COMPLETED, exit_code=0, error=None, traceback=None),),
    )
    waiting = replace(
        failed,
        task="resnet-lr_9_0",
        state=TaskState.PENDING,
        failures=0,
        losses=0,
        last_error=None,
        attempts=(),
    )
    return [failed, done, waiting]


def compare_golden(name: str, output: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("GPULEDGER_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(output, encoding="utf-8")
    assert output == path.read_text(encoding="utf-8")


def assert_harmless(output: str, *, width: int) -> None:
    for line in output.split("\n"):
        assert cell_len(line) <= width
        assert not texts.UNSAFE.search(line)
        assert "\t" not in line
        assert not [c for c in line if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    output.encode("utf-8")


# --- what it looks like -----------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scene", SCENES)
def test_the_status_looks_as_it_was_agreed(scene: str, width: int) -> None:
    make, height = SCENES[scene]
    output = drawn(status_view(make(), width=width, height=height), width=width)
    assert_harmless(output, width=width)
    compare_golden(f"{scene}-{width}", output)


@pytest.mark.parametrize("width", WIDTHS)
def test_lists_of_tasks_look_as_it_was_agreed(width: int) -> None:
    views = {
        "tasks": tasks_table(records()),
        "show": task_detail(records()[0]),
        "show-done": task_detail(records()[1]),
        "results": results_table(records()),
    }
    for name, view in views.items():
        output = drawn(view, width=width)
        assert_harmless(output, width=width)
        compare_golden(f"{name}-{width}", output)
