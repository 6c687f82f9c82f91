"""The examples, as their READMEs say: by hand, under a worker, failing and mended."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shell import environment, gpuledger, states, tasks

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
    assert "resumed after epoch 2" in log
    assert "epoch 3/3" in log
    assert "epoch 2/3" not in log


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
