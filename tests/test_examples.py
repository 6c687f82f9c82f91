"""The examples, as their READMEs say: by hand, under a worker, failing and mended."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpuledger.reports import Report, read_last
from tests.helpers import wait_until
from tests.shell import environment, gpuledger, states, tasks, worker

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

needs_sklearn = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None,
    reason="scikit-learn is not installed (pip install '.[quickstart]')",
)
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or importlib.util.find_spec("torchvision") is None,
    reason="PyTorch is not installed (pip install '.[torch]')",
)
TINY = (
    "--data=fake", "--epochs=2", "--limit=64", "--width=4", "--batch-size=16", "--workers=0",
    "--device=cpu",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the examples, so that runs leave nothing in the repository."""
    shutil.copytree(
        EXAMPLES,
        tmp_path / "examples",
        ignore=shutil.ignore_patterns("data", "classes.txt", ".gpuledger"),
    )
    return tmp_path


def by_hand(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script.name, *arguments],
        cwd=script.parent,
        env=environment(PYTHONWARNINGS="ignore"),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@needs_sklearn
@pytest.mark.timeout(300)
def test_the_quickstart_runs_fails_where_its_readme_says_and_is_mended(folder: Path) -> None:
    quickstart = folder / "examples" / "quickstart"
    gpuledger(
        "run", str(quickstart / "sweep.toml"), "--cpu", "--slots", "2", cwd=folder,
        exit_code=1, timeout_s=250,
    )  # fmt: skip

    counts = states(folder)
    assert (counts["completed"], counts["failed"], counts["total"]) == (12, 2, 14)
    failed = tasks(folder)["quickstart_6_0"]
    assert failed["state"] == "failed"
    assert len(failed["attempts"]) == 3
    assert "classes.txt" in failed["last_error"]

    shutil.copy(quickstart / "classes.example.txt", quickstart / "classes.txt")
    gpuledger("retry", "--failed", cwd=folder)
    gpuledger("work", "--cpu", cwd=folder)

    assert states(folder)["completed"] == 14
    results = json.loads(gpuledger("results", "--format", "json", cwd=folder).stdout)
    assert len(results) == 14
    assert "val_accuracy" in json.dumps(results)
    mended = tasks(folder)["quickstart_6_0"]
    assert 0.9 < mended["result"]["val_accuracy"] <= 1


@needs_sklearn
def test_the_quickstart_script_runs_by_hand(folder: Path) -> None:
    script = folder / "examples" / "quickstart" / "train.py"
    before = sorted(script.parent.iterdir())

    done = by_hand(script, "--model", "svm", "--size", "large", "--seed", "3")

    assert done.returncode == 0, done.stderr
    assert "mean accuracy 0.9" in done.stdout
    assert sorted(path for path in script.parent.iterdir() if path.name != "__pycache__") == before


@needs_sklearn
def test_the_quickstart_refuses_what_it_does_not_know_at_once(folder: Path) -> None:
    quickstart = folder / "examples" / "quickstart"
    sweep = quickstart / "sweep.toml"
    text = sweep.read_text(encoding="utf-8").partition("[[include]]")
    wrong = '[parameters]\nmodel = ["smv"]\n'
    head, _, _ = text[0].partition("[parameters]")
    run = "[run]" + text[2].partition("[run]")[2]
    sweep.write_text(head.replace("seeds = 2", "seeds = 1") + wrong + run, encoding="utf-8")

    gpuledger("init", str(sweep), cwd=folder)
    gpuledger("work", "--cpu", cwd=folder, exit_code=1)

    task = tasks(folder)["quickstart_0_0"]
    assert task["state"] == "failed"
    assert [attempt["exit_code"] for attempt in task["attempts"]] == [2]
    assert "invalid choice: 'smv'" in gpuledger("logs", "quickstart_0_0", cwd=folder).stdout


@needs_torch
@pytest.mark.torch
@pytest.mark.timeout(300)
def test_the_cifar10_script_runs_by_hand_on_made_up_images(folder: Path) -> None:
    done = by_hand(folder / "examples" / "cifar10" / "train.py", *TINY)

    assert done.returncode == 0, done.stderr
    assert "epoch 2/2" in done.stdout


@needs_torch
@pytest.mark.torch
@pytest.mark.timeout(300)
def test_cifar10_keeps_a_checkpoint_and_resumes_from_it(folder: Path) -> None:
    cifar10 = folder / "examples" / "cifar10"
    sweep = cifar10 / "sweep.toml"
    command = " ".join(["python train.py", *TINY, "--seed={seed}", "--lr={lr}"])
    sweep.write_text(
        f'command = "{command}"\n[parameters]\nlr = [0.1]\n[run]\ntimeout = "5m"\n',
        encoding="utf-8",
    )
    gpuledger("init", str(sweep), cwd=folder)
    gpuledger("work", "--cpu", cwd=folder, timeout_s=200)

    task = tasks(folder)["sweep_0_0"]
    assert task["state"] == "completed", task["last_error"]
    assert set(task["result"]) == {"loss", "val_accuracy"}

    sweep.write_text(sweep.read_text().replace("--epochs=2", "--epochs=3"), encoding="utf-8")
    gpuledger("init", str(sweep), cwd=folder)
    gpuledger("retry", "--completed", "sweep_0_0", cwd=folder)
    gpuledger("work", "--cpu", cwd=folder, timeout_s=200)

    log = gpuledger("logs", "sweep_0_0", cwd=folder).stdout
    assert "resumed after epoch 2 and 0 images" in log
    assert "epoch 3/3" in log
    assert "epoch 2/3" not in log


# Ends its own process group, as a worker does, when the loss is computed for the so-manieth time.
INTERRUPTED = """
import os, runpy, signal, sys
from torch import nn
forward, left = nn.CrossEntropyLoss.forward, int(sys.argv.pop(1))
def counting(self, *given):
    global left
    left -= 1
    if left == 0:
        os.killpg(0, signal.SIGTERM)
    return forward(self, *given)
nn.CrossEntropyLoss.forward = counting
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def as_task(
    folder: Path, script: Path, *arguments: str, code: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script as a worker would, with a task's folder and its report beside it."""
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, *([script.name] if code is None else ["-c", code]), *arguments],
        cwd=script.parent,
        env=environment(
            GPULEDGER_TASK="x_0_0",
            GPULEDGER_TASK_DIR=str(folder),
            GPULEDGER_REPORT=str(folder / "report.jsonl"),
            OMP_NUM_THREADS="1",
            PYTHONWARNINGS="ignore",
        ),
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def weights(folder: Path) -> dict[str, Any]:
    import torch

    kept: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    return {name: value.tolist() for name, value in kept.items()}


@needs_torch
@pytest.mark.torch
@pytest.mark.timeout(300)
@pytest.mark.parametrize("loaders", [0, 2])
def test_sigterm_in_an_epoch_saves_it_and_the_rest_is_trained_later(
    folder: Path, loaders: int
) -> None:
    script = folder / "examples" / "cifar10" / "train.py"
    options = [*TINY, "--limit=640", f"--workers={loaders}"]

    done = as_task(folder / "task", script, "45", *options, code=INTERRUPTED)

    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "told to stop in epoch 2, after 80 images" in done.stdout
    assert [path.name for path in (folder / "task").glob("*.draft")] == []

    done = as_task(folder / "task", script, *options)

    assert done.returncode == 0, done.stderr
    assert "resumed after epoch 1 and 80 images of the next" in done.stdout
    assert "epoch 1/2:" not in done.stdout
    last = read_last(folder / "task" / "report.jsonl")
    assert last is not None
    assert (last.step, last.total) == (2, 2)

    if loaders == 0:  # as if nothing had been
        as_task(folder / "whole", script, *options)
        assert weights(folder / "task") == weights(folder / "whole")
        assert last == read_last(folder / "whole" / "report.jsonl")


@needs_torch
@pytest.mark.torch
@pytest.mark.timeout(300)
def test_a_run_that_has_nothing_left_to_do_still_has_its_result(folder: Path) -> None:
    """An attempt may be lost after its last checkpoint, before its worker recorded the result."""
    script = folder / "examples" / "cifar10" / "train.py"
    as_task(folder / "task", script, *TINY)
    report = folder / "task" / "report.jsonl"
    before = read_last(report)
    report.unlink()

    done = as_task(folder / "task", script, *TINY)

    assert done.returncode == 0, done.stderr
    assert isinstance(before, Report)
    assert set(before.metrics) == {"loss", "val_accuracy"}
    assert read_last(report) == before


@needs_torch
@pytest.mark.torch
@pytest.mark.timeout(300)
def test_fewer_images_than_a_batch_are_trained_on(folder: Path) -> None:
    script = folder / "examples" / "cifar10" / "train.py"

    done = by_hand(script, *TINY, "--limit=10", "--epochs=1")

    assert done.returncode == 0, done.stderr
    assert "epoch 1/1: loss 2." in done.stdout


@needs_torch
@pytest.mark.torch
@pytest.mark.timeout(300)
def test_a_cifar10_worker_that_is_told_to_leave_hands_back_a_task_that_goes_on(
    folder: Path,
) -> None:
    cifar10 = folder / "examples" / "cifar10"
    sweep = cifar10 / "sweep.toml"
    command = " ".join(["python train.py", *TINY, "--epochs=40"])
    sweep.write_text(f'command = "{command}"\n', encoding="utf-8")
    gpuledger("init", str(sweep), cwd=folder)
    log = folder / ".gpuledger" / "runs" / "sweep_0_0" / "attempt-1.log"

    with worker("--cpu", cwd=folder) as first:
        wait_until(
            lambda: log.exists() and "epoch 1/40" in log.read_text(encoding="utf-8"),
            because="the first epoch never ended",
            timeout_s=90,
        )
        first.send(signal.SIGTERM)
        first.wait()
    assert tasks(folder)["sweep_0_0"]["state"] == "pending"

    gpuledger("work", "--cpu", cwd=folder, timeout_s=200)

    task = tasks(folder)["sweep_0_0"]
    assert [one["outcome"] for one in task["attempts"]] == ["interrupted", "completed"]
    assert task["failures"] == 0
    assert set(task["result"]) == {"loss", "val_accuracy"}
    assert "resumed after epoch" in gpuledger("logs", "sweep_0_0", cwd=folder).stdout


@needs_torch
@pytest.mark.torch
@pytest.mark.timeout(300)
def test_a_download_that_fails_is_told_by_the_ledger(folder: Path) -> None:
    """No proxy listens there: with or without internet, the download fails the same way."""
    cifar10 = folder / "examples" / "cifar10"
    sweep = cifar10 / "sweep.toml"
    nowhere = "http://127.0.0.1:9"
    sweep.write_text(
        'command = "python train.py --epochs=1 --device=cpu"\n[run]\nmax_attempts = 1\n'
        f'env = {{ http_proxy = "{nowhere}", https_proxy = "{nowhere}" }}\n',
        encoding="utf-8",
    )
    gpuledger("init", str(sweep), cwd=folder)
    gpuledger("work", "--cpu", cwd=folder, exit_code=1, timeout_s=200)

    task = tasks(folder)["sweep_0_0"]
    assert task["state"] == "failed"
    assert "URLError" in task["last_error"]
    assert "download" in task["attempts"][0]["traceback"]
    assert "URLError" in gpuledger("show", "sweep_0_0", cwd=folder).stdout
