from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType

from gpuledger.display import text as texts
from gpuledger.display.bars import shares
from gpuledger.display.cells import cut, fold
from gpuledger.display.failures import causes
from gpuledger.display.highlight import highlight
from gpuledger.display.lines import claimed_line, ended_line, event_line, waiting_line
from gpuledger.display.results import results_table
from gpuledger.display.show import task_detail
from gpuledger.display.slurm import slurm_table
from gpuledger.display.status import status_view
from gpuledger.display.tasks import tasks_table
from gpuledger.model import Claim, Ended, Ending, NothingToDo, Outcome, TaskState, Token
from gpuledger.spec import RunSettings
from gpuledger.views import (
    AttemptRecord,
    Counts,
    Event,
    FailureView,
    GpuView,
    Snapshot,
    SweepView,
    TaskRecord,
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
WIDE = "学習率🚀" * 15 + "e\u0301" * 40 + "👩‍👩‍👧❤️🏳️‍🌈"


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
        per_hour=42.0,
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
        per_hour=12.0,
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


@pytest.mark.parametrize("width", WIDTHS)
def test_where_each_try_ran_is_told_whatever_the_width(width: int) -> None:
    place = "slurm 4711_2 on n7, restart 1"
    record = replace(records()[0], attempts=(attempt(1), attempt(2, place=place)))
    assert f"try 2: {place}" in drawn(task_detail(record), width=width)


def test_of_old_allocations_only_the_latest_are_listed() -> None:
    usual = {"node": "n1", "worker": None, "task": None, "says": "ran 3 attempts"}
    rows = [{**usual, "job": f"{n}_1", "state": "left"} for n in range(1, 34)]
    rows.insert(0, {**usual, "job": "9_9", "state": "works"})

    lines = drawn(slurm_table(rows), width=80).splitlines()

    assert [line.split()[0] for line in lines if "attempts" in line] == [
        "9_9", *(f"{n}_1" for n in range(14, 34)),
    ]  # fmt: skip
    assert "13 more ended before" in lines[-1]


def test_what_is_drawn_is_the_same_in_a_terminal_but_for_the_colours() -> None:
    view = status_view(busy(), width=100)
    coloured = drawn(view, width=100, force_terminal=True, color_system="truecolor")
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == drawn(view, width=100)


def test_only_colours_are_used_that_can_be_read_on_light_and_dark() -> None:
    views = [status_view(busy(), width=100), tasks_table(records()), task_detail(records()[0])]
    for view in views:
        coloured = drawn(view, width=100, force_terminal=True, color_system="truecolor")
        codes = {c for run in re.findall(r"\x1b\[([\d;]*)m", coloured) for c in run.split(";")}
        assert codes <= {"0", "1", "2", "31", "32", "33", "35", "36"}
        assert "31" in codes


def test_a_colour_ends_with_what_it_says() -> None:
    console = Console(file=io.StringIO(), width=140, force_terminal=True, _environ={})
    styles = {
        segment.text.strip(): str(segment.style)
        for segment in console.render(status_view(busy(), width=140))
        if segment.text.strip()
    }
    assert styles["3 sweeps"] == "bold"
    assert styles["374/1284 completed"] == "green"
    assert styles["7 failed"] == "red"
    assert styles["4 running"] == "cyan"
    assert styles["37 tasks:"] == "bold red"
    assert styles[MISSING.replace("17", "0")] == "red"
    assert styles["(gpuledger resume ablation)"] == "dim"


def test_no_color_and_pipes_get_no_colours() -> None:
    view = status_view(busy(), width=100)
    assert "\x1b" not in drawn(view, width=100)
    plain = drawn(view, width=100, force_terminal=True, no_color=True, color_system="truecolor")
    assert not re.search(r"\x1b\[[\d;]*3\d", plain)


def test_a_console_without_unicode_gets_ascii_in_the_same_columns() -> None:
    ascii_file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=ascii_file, width=100, _environ={})
    for scene in (busy(), hostile()):
        console.print(status_view(scene, width=100))
    ascii_file.seek(0)
    lines = ascii_file.read().splitlines()
    expected = [*status(busy(), width=100), *status(hostile(), width=100)]
    assert [len(line) for line in lines] == [cell_len(line) for line in expected]
    assert any("#####>x....." in line for line in lines)


def test_a_dumb_terminal_gets_ascii() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, _environ={"TERM": "dumb"})
    with console.capture() as capture:
        console.print(status_view(busy(), width=80))
    assert capture.get().isascii()


def test_a_picture_shows_the_status_and_is_well_formed(tmp_path: Path) -> None:
    path = tmp_path / "status.svg"
    save_svg(hostile(), path, 100, title="gpuledger <status>")
    picture = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    shown = "".join(picture.itertext()).replace("\xa0", " ")
    assert "gpuledger <status>" in shown
    assert "[red]x[/red]" in shown


# --- what it says -----------------------------------------------------------------------------


def test_an_idle_gpu_beside_pending_tasks_catches_the_eye() -> None:
    output = "\n".join(status(busy(), width=140))
    assert "1 GPU worker idle" in output
    assert re.search(r"lab-02:gpu0 .* IDLE", output)
    assert re.search(r"lab-02:gpu1 .* idle .* suspect, cools down 60 s", output)


def test_an_idle_gpu_is_nothing_special_when_all_that_waits_is_paused() -> None:
    paused = replace(busy().sweeps[1], counts=Counts(pending=9))
    output = "\n".join(status(replace(busy(), sweeps=(paused,)), width=120))
    assert "IDLE" not in output
    assert "GPU worker idle" not in output


def test_pending_tasks_without_a_worker_say_how_to_start_one() -> None:
    alone = replace(busy(), workers=())
    assert "no worker is running: gpuledger work --gpu 0 (or --cpu)" in status(alone, width=80)
    assert "gpuledger work" not in "\n".join(status(busy(), width=80))
    begins = drawn(status_view(alone, width=80, starting=2), width=80)
    assert "2 workers starting" in begins
    assert "no worker is running" not in begins
    assert "starting" not in drawn(status_view(busy(), width=80, starting=2), width=80)


def test_an_empty_ledger_says_what_to_do_first() -> None:
    assert "start with: gpuledger init sweep.toml" in status(empty(), width=80)


def test_a_sweep_without_tasks_is_shown_and_not_done() -> None:
    sweep = SweepView(name="nothing", counts=Counts(), created_at=NOW)
    lines = status(replace(empty(), sweeps=(sweep,)), width=80)
    assert any("nothing" in line and "no tasks" in line for line in lines)


def test_an_unreachable_ledger_says_so_first() -> None:
    first = status(unreachable(), width=160)[0]
    assert first.startswith("ledger not readable since 2023-11-14 22:13:20: ledger /home/ada/exp/")
    assert first.endswith("showing the last good answer")


def test_only_an_old_sign_of_life_is_mentioned() -> None:
    one = busy().workers[0]
    for age_s, said in ((24.9, False), (None, False), (25.1, True)):
        snapshot = replace(busy(), workers=(replace(one, heartbeat_age_s=age_s),))
        assert ("silent for 25 s" in "\n".join(status(snapshot, width=140))) is said


def test_the_attempt_counts_failures_and_never_more_than_there_are() -> None:
    one = busy().workers[0]
    for failures, shown in ((0, "1/3"), (2, "3/3"), (3, "3/3")):
        snapshot = replace(busy(), workers=(replace(one, failures=failures),))
        assert f" {shown} " in "\n".join(status(snapshot, width=140))


def test_failures_are_grouped_by_outcome_and_error_whatever_numbers_it_has() -> None:
    found = causes(
        [
            failure("a_1_0", error="shard 17 is missing at 0x7f00"),
            failure("a_2_0", error="shard 3 is missing at 0xab12"),
            failure("a_3_0", error="shard 3 is broken"),
            failure("a_4_0", error="shard 3 is broken", outcome=Outcome.TIMED_OUT),
            failure("a_5_0", error=None),
        ]
    )
    assert [cause.tasks for cause in found] == [2, 1, 1, 1]
    assert found[0].latest.task == "a_1_0"
    codes = [failure(f"a_{code}_0", error=f"exit code {code}, no output") for code in (1, 42, 43)]
    assert [cause.tasks for cause in causes(codes)] == [1, 1, 1]


def test_each_cause_has_a_line_before_one_has_a_traceback() -> None:
    failures = tuple(failure(f"a_{word}_0", error=f"{word} is missing") for word in "abcd")
    lines = status(replace(busy(), sweeps=(), workers=(), failures=failures), width=80, height=9)
    assert len([line for line in lines if "1 task: " in line]) == 4
    lines = status(replace(busy(), sweeps=(), workers=(), failures=failures), width=80, height=5)
    assert lines[-1] == "… 2 more causes of failures"


def test_without_a_height_nobody_is_left_out() -> None:
    output = "\n".join(status(crowd(), width=80))
    assert all(f"node-{i:03d}:gpu0" in output for i in range(200))


def test_with_a_height_the_striking_workers_stay_and_the_others_are_counted() -> None:
    lines = status(crowd(), width=80, height=24)
    shown = [line for line in lines if line.startswith("node-")]
    assert {"node-077:gpu0", "node-150:gpu0"} <= {line.split()[0] for line in shown}
    assert f"… {200 - len(shown)} more workers: {200 - len(shown)} running" in lines
    assert len(lines) <= 24


def test_with_a_height_unfinished_sweeps_stay_and_the_others_are_counted() -> None:
    done = tuple(
        SweepView(name=f"old{i}", counts=Counts(completed=3), created_at=NOW) for i in range(60)
    )
    lines = status(replace(busy(), sweeps=done + busy().sweeps[:1]), width=80, height=20)
    assert any(line.startswith("resnet-lr ") for line in lines)
    hidden = 60 - len([line for line in lines if line.startswith("old")])
    assert f"… {hidden} more sweeps, {hidden} of them done" in lines


def test_columns_that_nobody_needs_are_not_there() -> None:
    cpu = WorkerView(name="lab-03:cpu", task="a_0_0", number=1, max_attempts=3, elapsed_s=1.0)
    lines = status(replace(busy(), workers=(cpu,)), width=140)
    heading = next(line.split() for line in lines if line.startswith("worker "))
    assert heading == ["worker", "task", "try", "time"]


def test_show_has_every_parameter_unrounded_and_the_whole_traceback() -> None:
    output = drawn(task_detail(replace(records()[0], timeout_s=5400.0)), width=200)
    assert re.search(r"timeout +1h 30m", output)
    assert "0.00012345678901" in output
    for line in TRACEBACK.splitlines():
        assert line in output
    assert "/home/ada/exp/.gpuledger/runs/resnet-lr_7_0/attempt-3.log" in output


def test_a_long_line_of_a_traceback_is_folded_and_not_cut() -> None:
    long = attempt(1, traceback="ValueError: " + "".join(f"{i:04d}" for i in range(200)))
    output = drawn(task_detail(replace(records()[0], attempts=(long,))), width=40)
    assert "".join(f"{i:04d}" for i in range(200)) in output.replace("\n", "")


def test_lists_without_tasks_say_so() -> None:
    assert drawn(tasks_table([]), width=80) == "no such task\n"
    assert drawn(results_table([]), width=80) == "no such task\n"


# --- lines ------------------------------------------------------------------------------------

CLAIM = Claim(
    token=Token(task="exp1_0_42", number=2, nonce="n"),
    sweep="exp1",
    params={},
    seed=42,
    failures=0,
    settings=RunSettings(command=("true",), workdir="/"),
)


def ended(outcome: Outcome, state: TaskState, *, failures: int = 0, **more: Any) -> str:
    suspect = more.pop("suspect", False)
    return ended_line(
        replace(CLAIM, failures=failures),
        "lab-01:gpu0",
        Ending(outcome=outcome, **more),
        Ended(state=state, failures=failures, max_attempts=3, suspect=suspect),
    )


def test_a_failed_attempt_is_told_in_the_familiar_words() -> None:
    assert ended(Outcome.FAILED, TaskState.PENDING, error="FileNotFoundError: 'x'") == (
        "Task exp1_0_42 failed on lab-01:gpu0 (attempt 1/3): FileNotFoundError: 'x'. Reassigning."
    )
    assert ended(Outcome.FAILED, TaskState.FAILED, failures=2, error="boom") == (
        "Task exp1_0_42 failed on lab-01:gpu0 (attempt 3/3): boom. "
        "Failed for good after 3 attempts."
    )
    assert ended(Outcome.FAILED, TaskState.FAILED, error="no!").endswith(
        "(attempt 1/3): no! Failed for good: another attempt makes no sense."
    )


def test_the_other_endings_are_told_alike() -> None:
    metrics = {"loss": 0.0123, "acc": 0.9, "curve": [1, 2]}
    assert claimed_line(CLAIM, "w:cpu") == "Task exp1_0_42 started on w:cpu (attempt 1/3)"
    assert ended(Outcome.COMPLETED, TaskState.COMPLETED, metrics=metrics, duration_s=63.0) == (
        "Task exp1_0_42 completed on lab-01:gpu0 (attempt 1/3) in 1m 03s: loss 0.0123, acc 0.9"
    )
    assert ended(Outcome.OOM, TaskState.PENDING, failures=1, error="CUDA out of memory") == (
        "Task exp1_0_42 ran out of memory on lab-01:gpu0 (attempt 2/3): "
        "CUDA out of memory. Reassigning."
    )
    assert ended(Outcome.TIMED_OUT, TaskState.PENDING, error="over 2h").endswith(
        "timed out on lab-01:gpu0 (attempt 1/3): over 2h. Reassigning."
    )
    assert ended(Outcome.INTERRUPTED, TaskState.PENDING, error="Ctrl-C") == (
        "Task exp1_0_42 was handed back on lab-01:gpu0 (attempt 1/3): Ctrl-C. Back in the queue."
    )
    assert ended(Outcome.LOST, TaskState.FAILED, error="died").endswith(
        "died. Failed for good: it was lost too often."
    )
    assert ended(Outcome.CANCELLED, TaskState.CANCELLED, error="by an operator") == (
        "Task exp1_0_42 was cancelled on lab-01:gpu0 (attempt 1/3): by an operator"
    )
    assert ended(Outcome.FAILED, TaskState.CANCELLED, error="x").endswith(
        "It was cancelled and will not run again."
    )
    assert ended(Outcome.FAILED, TaskState.PENDING, error="x", suspect=True).endswith(
        "Reassigning; it does not count, this worker is suspect."
    )


def test_an_error_never_takes_more_than_a_line() -> None:
    line = ended(Outcome.FAILED, TaskState.PENDING, error="a\nb\x1b[31m" + "x" * 10_000)
    assert "a b\\x1b[31mxxx" in line
    assert len(line) < 600


def test_a_waiting_worker_says_for_what() -> None:
    assert waiting_line(NothingToDo(pending=1, running=3, held=5)) == (
        "Waiting: 3 tasks still running elsewhere, 1 task kept for other workers, "
        "5 tasks in paused sweeps"
    )
    assert waiting_line(NothingToDo()) == "Waiting: no task"


def event(kind: str, **changed: Any) -> str:
    usual = Event(id=1, at=NOW, kind=kind, worker="w:gpu0")
    stamp, _, text = event_line(replace(usual, **changed)).partition("  ")
    assert stamp == "2023-11-14 22:13:20"
    return text


def test_events_are_told_as_the_worker_told_them() -> None:
    data = {"failures": 1, "max_attempts": 3, "state": "pending", "error": "boom"}
    one: dict[str, Any] = {"task": "a_0_0", "number": 4}
    assert event("failed", data=data, **one) == (
        "Task a_0_0 failed on w:gpu0 (attempt 1/3): boom. Reassigning."
    )
    assert event("interrupted", data=data, **one) == (
        "Task a_0_0 was handed back on w:gpu0 (attempt 2/3): boom. Back in the queue."
    )
    done = {"failures": 0, "max_attempts": 3, "state": "completed", "duration_s": 4}
    assert event("completed", data=done | {"metrics": {"acc": 1.0}}, **one) == (
        "Task a_0_0 completed on w:gpu0 (attempt 1/3) in 4.0 s: acc 1"
    )
    assert event("started", data={"failures": 1, "max_attempts": 3}, **one) == (
        "Task a_0_0 started on w:gpu0 (attempt 2/3)"
    )


def test_the_other_events_are_told_too() -> None:
    assert event("retried", task="a_0_0") == "Task a_0_0 put back into the queue"
    assert event("cancelled", task="a_0_0", worker=None) == "Task a_0_0 cancelled"
    assert event("sweep_added", data={"sweep": "a", "added": 12}) == "Sweep a added, 12 new tasks"
    assert event("sweep_added", data={"sweep": "a", "added": 1}) == "Sweep a added, 1 new task"
    assert event("sweep_paused", data={"sweep": "a", "reason": "why"}) == "Sweep a paused: why"
    assert event("sweep_resumed", data={"sweep": "a"}) == "Sweep a resumed"
    assert event("worker_started") == "Worker w:gpu0 started"
    assert event("worker_left") == "Worker w:gpu0 left"
    assert event("worker_lost") == "Worker w:gpu0 died, or its machine did"
    assert event("worker_suspect", data={"error": "boom"}).endswith("in a row (boom)")
    assert event("from_the_future", data={"x": 1}) == "from_the_future worker=w:gpu0 x=1"


# --- numbers, durations, widths ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, ""),
        (0.42, "0.4 s"),
        (-3, "0 s"),
        (9.96, "10 s"),
        (45, "45 s"),
        (59.7, "1m 00s"),
        (725, "12m 05s"),
        (3780, "1h 03m"),
        (86399.9, "1d 00h"),
        (273_600, "3d 04h"),
        (1e300, "years"),
        (float("nan"), "?"),
        (float("inf"), "?"),
    ],
)
def test_durations_are_short(seconds: float | None, shown: str) -> None:
    assert texts.duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0123, "0.0123"),
        (0.000012, "1.2e-05"),
        (0.0, "0"),
        (3.0, "3"),
        (0.91273, "0.9127"),
        (34567.8, "34568"),
        (1.5e12, "1.5e+12"),
        (123456, "123456"),
        (10**400, "1e400"),
        (-(10**400), "-1e400"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (True, "true"),
        (None, "null"),
        ("a\tb\n\x07", "a b \\x07"),
        ([1, {"a": None}], '[1, {"a": null}]'),
    ],
)
def test_values_are_short_and_safe(value: Any, shown: str) -> None:
    assert texts.value_text(value) == shown


def test_percentages_are_rounded_down_and_bounded() -> None:
    assert texts.percent(999, 1000) == 99
    assert texts.percent(29, 100) == 29
    assert texts.percent(7, 5) == 100
    assert texts.percent(-1, 5) == 0
    for part, whole in (
        (1, 0),
        (1, -1),
        (float("nan"), 1),
        (1, float("nan")),
        (10**400, 1),
        (4e15, 2e-291),
    ):
        assert texts.percent(part, whole) is None


def test_memory_is_in_gib() -> None:
    assert texts.memory(18 * 1024, 80 * 1024) == "18/80G"
    assert texts.memory(512, 8 * 1024) == "0.5/8G"
    assert texts.memory(None, 24 * 1024) == "24G"
    assert texts.memory(None, None) == ""


def test_instants_no_calendar_has_do_no_harm() -> None:
    assert texts.instant(NOW) == "2023-11-14 22:13:20"
    assert texts.moment(NOW - 60, now=NOW) == "22:12"
    assert texts.moment(NOW - 86400, now=NOW) == "2023-11-13 22:13"
    for at in (1e300, -1e300, float("nan"), float("inf")):
        assert texts.instant(at) == "?"


def test_clean_keeps_lines_tabs_and_letters_and_shows_the_rest() -> None:
    text = "naïve 学習 🚀 👩‍🔬\n\tок"
    assert texts.clean(text) == text
    assert texts.clean("\x1b]0;x\x07\r\x9b\u202e\ufeff\ud800\x7f") == (
        "\\x1b]0;x\\x07\\r\\x9b\\u202e\\ufeff\\ud800\\x7f"
    )


def test_a_name_is_cut_before_its_end() -> None:
    assert cut("very-long-sweep_40_12", 12, keep_end=6) == "very-…_40_12"
    assert cut("very-long-sweep_40_12", 6, keep_end=6) == "ve…_12"
    assert cut("学習率学習率", 7) == "学習率…"
    assert cut("short", 5) == "short"
    assert cut("short", 0) == ""


@given(numbers=st.lists(st.integers(0, 10**9), min_size=1, max_size=5), width=st.integers(0, 80))
def test_a_bar_is_exactly_as_wide_as_it_should_and_leaves_no_state_out(
    numbers: list[int], width: int
) -> None:
    cells = shares(numbers, width)
    assert sum(cells) == (width if sum(numbers) else 0)
    present = [cell for cell, number in zip(cells, numbers, strict=True) if number]
    assert all(cell == 0 for cell, number in zip(cells, numbers, strict=True) if not number)
    if width >= len(present):
        assert all(present)


# --- any text whatever ------------------------------------------------------------------------

ANYTHING = st.text(st.characters(), max_size=60) | st.sampled_from([HOSTILE, WIDE, "a" * 999])
FLOATS = st.floats() | st.integers()
JSON = ANYTHING | FLOATS | st.none() | st.booleans() | st.lists(ANYTHING, max_size=2)
METRICS = st.dictionaries(ANYTHING, JSON, max_size=4)
COUNTS = st.builds(
    Counts, **dict.fromkeys([state.value for state in TaskState], st.integers(0, 10**7))
)
SWEEPS = st.builds(
    SweepView,
    name=ANYTHING,
    counts=COUNTS,
    created_at=st.floats(),
    paused=st.none() | ANYTHING,
    mean_s=st.none() | st.floats(),
    eta_s=st.none() | st.floats(),
)
GPUS = st.builds(
    GpuView,
    index=ANYTHING,
    name=ANYTHING,
    memory_total_mib=st.none() | st.integers(-5, 10**7),
    memory_used_mib=st.none() | st.integers(-5, 10**7),
    utilisation_percent=st.none() | st.integers(-5, 300),
)
WORKERS = st.builds(
    WorkerView,
    name=ANYTHING,
    task=st.none() | ANYTHING,
    failures=st.integers(0, 9),
    max_attempts=st.none() | st.integers(1, 9),
    elapsed_s=st.none() | st.floats(),
    step=st.none() | FLOATS,
    total=st.none() | FLOATS,
    metrics=METRICS,
    heartbeat_age_s=st.none() | st.floats(),
    has_gpu=st.booleans(),
    gpus=st.lists(GPUS, max_size=3).map(tuple),
    note=st.none() | ANYTHING,
)
FAILURES = st.builds(
    FailureView,
    task=ANYTHING,
    sweep=ANYTHING,
    state=st.sampled_from(TaskState),
    number=st.integers(1, 9),
    failures=st.integers(0, 9),
    max_attempts=st.integers(1, 9),
    worker=ANYTHING,
    outcome=st.sampled_from(Outcome),
    error=st.none() | ANYTHING,
    traceback=st.none() | ANYTHING,
    ended_at=st.floats(),
)
SNAPSHOTS = st.builds(
    Snapshot,
    taken_at=st.floats(),
    ledger=ANYTHING,
    counts=COUNTS,
    sweeps=st.lists(SWEEPS, max_size=4).map(tuple),
    workers=st.lists(WORKERS, max_size=6).map(tuple),
    failures=st.lists(FAILURES, max_size=6).map(tuple),
    eta_s=st.none() | st.floats(),
    per_hour=st.floats(),
    unreachable=st.none() | ANYTHING,
)
ATTEMPTS = st.builds(
    AttemptRecord,
    number=st.integers(1, 99),
    worker=ANYTHING,
    outcome=st.none() | st.sampled_from(Outcome),
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    started_at=st.floats(),
    ended_at=st.none() | st.floats(),
    duration_s=st.none() | st.floats(),
    error=st.none() | ANYTHING,
    traceback=st.none() | ANYTHING,
    metrics=METRICS,
    log=ANYTHING,
)
TASKS = st.builds(
    TaskRecord,
    task=ANYTHING,
    sweep=ANYTHING,
    state=st.sampled_from(TaskState),
    params=METRICS,
    seed=st.integers(),
    priority=st.integers(),
    failures=st.integers(0, 9),
    losses=st.integers(0, 9),
    max_attempts=st.integers(1, 9),
    last_error=st.none() | ANYTHING,
    result=st.none() | METRICS,
    folder=ANYTHING,
    attempts=st.lists(ATTEMPTS, max_size=3).map(tuple),
)
EVENTS = st.builds(
    Event,
    id=st.integers(),
    at=st.floats(),
    kind=st.sampled_from([*Outcome, "started", "sweep_paused", "worker_suspect"]) | ANYTHING,
    task=st.none() | ANYTHING,
    number=st.none() | st.integers(1, 9),
    worker=st.none() | ANYTHING,
    data=METRICS
    | st.fixed_dictionaries({"failures": JSON, "error": JSON, "metrics": JSON, "duration_s": JSON}),
)
EXAMPLES = settings(max_examples=150, deadline=None)


@EXAMPLES
@given(snapshot=SNAPSHOTS, width=st.integers(1, 160), height=st.none() | st.integers(1, 40))
def test_nothing_in_a_snapshot_harms_the_terminal(
    snapshot: Snapshot, width: int, height: int | None
) -> None:
    output = drawn(status_view(snapshot, width=width, height=height), width=width)
    assert_harmless(output, width=width)
    if height is not None:
        assert output.count("\n") <= height


@EXAMPLES
@given(records=st.lists(TASKS, min_size=1, max_size=3), width=st.integers(1, 160))
def test_nothing_in_a_task_harms_the_terminal(records: list[TaskRecord], width: int) -> None:
    for view in (tasks_table(records), results_table(records), task_detail(records[0])):
        assert_harmless(drawn(view, width=width), width=width)


@EXAMPLES
@given(happened=EVENTS, name=ANYTHING, error=ANYTHING, metrics=METRICS)
def test_nothing_that_happened_takes_more_than_a_harmless_line(
    happened: Event, name: str, error: str, metrics: dict[str, Any]
) -> None:
    claim = replace(CLAIM, token=Token(task=name, number=1, nonce="n"))
    now_pending = Ended(state=TaskState.PENDING, failures=1, max_attempts=3)
    lines = [event_line(happened), claimed_line(claim, name)]
    for outcome in Outcome:
        ending = Ending(outcome=outcome, error=error, metrics=metrics, duration_s=1.0)
        lines.append(ended_line(claim, name, ending, now_pending))
    for line in lines:
        assert "\n" not in line
        assert_harmless(line, width=10_000)


@EXAMPLES
@given(text=ANYTHING, width=st.integers(1, 40), keep_end=st.integers(0, 8))
def test_text_is_cut_and_folded_to_its_width(text: str, width: int, keep_end: int) -> None:
    safe = texts.one_line(text)
    assert cell_len(cut(safe, width, keep_end=keep_end)) <= width
    folded = fold(safe, width)
    assert all(cell_len(piece) <= width for piece in folded)
    if width > 1:
        assert "".join(folded) == safe


# --- what it costs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "not_loaded"),
    [
        ("text", ["rich", "typer"]),
        ("lines", ["rich", "typer"]),
        ("status", ["pygments", "markdown_it", "rich.progress", "rich.syntax", "rich.markdown"]),
    ],
)
def test_what_every_command_imports_is_light(module: str, not_loaded: list[str]) -> None:
    code = f"import sys, gpuledger.display.{module}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(not_loaded) & set(ran.stdout.split())


def coloured(line: str) -> list[tuple[str, str]]:
    return [(str(s.style), s.text) for s in highlight(line).render(Console()) if s.text.strip()]


def test_a_traceback_is_coloured() -> None:
    assert coloured('  File "a.py", line 3, in <module>') == [
        ("not dim cyan", '  File "a.py"'),
        ("dim", ", line "),
        ("not dim magenta", "3"),
        ("dim", ", in "),
        ("bold not dim", "<module>"),
    ]
    assert coloured("    return open('data', 3)  # why") == [
        ("magenta", "return"),
        ("bold", "open"),
        ("none", "("),
        ("green", "'data'"),
        ("none", ", "),
        ("cyan", "3"),
        ("none", ")  "),
        ("dim", "# why"),
    ]
    assert coloured("KeyError: 'x'") == [("bold red", "KeyError"), ("red", ": 'x'")]
    assert coloured("Traceback (most recent call last):")[0][0] == "dim"


@given(st.text(max_size=200))
def test_colours_change_no_letter(text: str) -> None:
    line = texts.one_line(text)
    assert highlight(f"    {line}").plain == f"    {line}"
    assert highlight(line).plain == line
