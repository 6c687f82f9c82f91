"""The batch script, the queue's lines and the time that is left: all that needs no Slurm."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from gpuledger import slurm, slurm_jobs
from gpuledger.allocation import (
    LAST_CALL_S,
    WARNING_S,
    Allocation,
    Place,
    parse_time_left,
    place_of,
)
from gpuledger.errors import BadUsage
from gpuledger.slurm import Job, Request, dead_in_a_row, parse_queue, render, surplus
from gpuledger.slurm_jobs import Submission, WorkerFacts
from tests.helpers import ManualClock
from tests.shell import gpuledger, write_sweep

HOSTILE = ["$(touch pwned)", "`touch pwned`", "; touch pwned", "a b", "ü", "'", '"', "-rf", "*"]


def script(folder: Path, **values: object) -> str:
    request = Request(**{"workers": 2, "gpus_per_worker": 0, "options": {}, **values})  # type: ignore[arg-type]
    return render(request, ledger=folder, program=["/bin/echo", "gpuledger"])


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_is_anything_but_a_word(tmp_path: Path, value: str) -> None:
    folder = tmp_path / value.replace("/", "_") / ".gpuledger"
    (folder / "slurm").mkdir(parents=True)
    try:
        text = script(folder, work=(f"--sweep={value}",), wrap=("/usr/bin/env",))
    except BadUsage:  # a folder's name that Slurm could not be told
        assert value in ("'", '"')
        text = script(tmp_path, work=(f"--sweep={value}",), wrap=("/usr/bin/env",))
        (tmp_path / "slurm").mkdir()
    file = tmp_path / "script.sh"
    file.write_text(text)
    env = {**os.environ, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(
        ["bash", str(file)], capture_output=True, text=True, check=True, cwd=tmp_path, env=env
    )
    assert f"--sweep={value}\n" in done.stdout, "the last word, as it was"
    assert not (tmp_path / "pwned").exists()
    assert (Path(shlex.split(text.split(": >")[1].split("/${")[0])[0]) / "7_1.began").exists()


@pytest.mark.parametrize("value", ['a"b', "a\nb", "a\\b", "a'b", "\x1b[31m", ""])
def test_what_has_no_place_in_a_directive_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(BadUsage, match="nothing was submitted"):
        script(tmp_path, options={"partition": value})
    with pytest.raises(BadUsage, match="nothing was submitted"):
        script(tmp_path, extra=(f"--comment={value}",))


def test_the_script_says_what_was_asked_for(tmp_path: Path) -> None:
    text = script(
        tmp_path,
        workers=8,
        gpus_per_worker=2,
        throttle=3,
        options={"time": "4:00:00", "partition": "gpu", "qos": None, "constraint": "a100|h100"},
        extra=("--mail-type=FAIL", "-x", "n7"),
        setup="module load cuda\n",
        wrap=("apptainer", "exec", "--nv", "my image.sif"),
    )
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    for line in (
        "#SBATCH --array=1-8%3", "#SBATCH --open-mode=append", "#SBATCH --signal=B:USR1@120",
        "#SBATCH --requeue", "#SBATCH --gres=gpu:2", "#SBATCH --time=4:00:00",
        "#SBATCH --partition=gpu", '#SBATCH --constraint="a100|h100"',
        "#SBATCH --mail-type=FAIL", "#SBATCH -x n7", "module load cuda",
    ):  # fmt: skip
        assert line in lines
    assert "qos" not in text
    assert lines[-1].startswith("exec apptainer exec --nv 'my image.sif' /bin/echo gpuledger work")
    assert lines[-1].endswith("--gpus=all --gpus-per-task=2")
    with pytest.raises(BadUsage, match="no option"):
        script(tmp_path, extra=("n7",))


def test_the_queue_is_read_and_odd_lines_are_left_out() -> None:
    jobs = parse_queue("12_1|RUNNING|None|n1|1:00\n12_2|PENDING|Resources||2:00\nslurm: odd\n")
    assert jobs == [
        Job(id="12_1", state="RUNNING", reason="None", node="n1"),
        Job(id="12_2", state="PENDING", reason="Resources", node=""),
    ]
    assert surplus(jobs, 1) == ["12_2"]
    assert surplus(jobs, 2) == []
    assert surplus(jobs, 0) == ["12_2"], "what runs is not cancelled"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("1:05", 65), ("2:00:00", 7200), ("1-00:00:01", 86401), ("UNLIMITED", None),
     ("INVALID", None), ("", None), ("NOT_SET", None)],
)  # fmt: skip
def test_the_time_left_is_understood(text: str, seconds: float | None) -> None:
    assert parse_time_left(text) == seconds


def test_an_array_task_is_named_so_that_it_alone_is_meant() -> None:
    env = {"SLURM_JOB_ID": "40", "SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "3"}
    assert place_of(env) == Place(job="40_3", node="?")
    named = {**env, "SLURMD_NODENAME": "n7", "SLURM_RESTART_COUNT": "2"}
    assert place_of(named) == Place(job="40_3", node="n7", restarts=2)
    assert place_of({"SLURM_JOB_ID": "40"}) == Place(job="40", node="?")
    assert place_of({}) is None
    assert place_of({"SLURM_JOB_ID": "x; rm"}) is None


@pytest.mark.parametrize(
    ("left_s", "usual_s", "elapsed_s", "warned", "handed_back"),
    [
        (3600, 7200, 0, True, False),  # a warning so early means: finish and leave
        (WARNING_S, 100, 90, True, False),  # it will be done
        (WARNING_S, 1000, 90, True, True),
        (WARNING_S, None, 90, True, False),  # nobody knows: as long as there is time
        (WARNING_S, 1000, 90, False, False),
        (LAST_CALL_S - 1, None, 90, False, True),
        (LAST_CALL_S - 1, 91, 90, True, True),
    ],
)
def test_who_is_handed_back(
    left_s: float, usual_s: float | None, elapsed_s: float, warned: bool, handed_back: bool
) -> None:
    allocation = Allocation(Place(job="1", node="n"), time_left_s=left_s, clock=ManualClock())
    verdict = allocation.verdict(usual_s=usual_s, elapsed_s=elapsed_s, warned=warned)
    assert (verdict is not None) is handed_back
    endless = Allocation(Place(job="1", node="n"), time_left_s=None, clock=ManualClock())
    assert endless.verdict(usual_s=usual_s, elapsed_s=elapsed_s, warned=warned) is None


def died(folder: Path, task: str, *, after_s: float = 5.0) -> None:
    (folder / "slurm").mkdir(exist_ok=True)
    for name, at in ((f"{task}.began", 1000.0), (f"{task}.log", 1000.0 + after_s)):
        path = folder / "slurm" / name
        path.write_text("boom\n")
        os.utime(path, (at, at))


def test_only_quick_deaths_without_a_claim_in_a_row_count(tmp_path: Path) -> None:
    tasks = [f"9_{number}" for number in range(1, 6)]
    for task in tasks:
        died(tmp_path, task)
    none: frozenset[str] = frozenset()
    assert len(dead_in_a_row(tasks, tmp_path, queued=none, claimed=none)) == 5
    assert dead_in_a_row(tasks, tmp_path, queued=none, claimed=frozenset({"9_4"})) == []
    assert dead_in_a_row(tasks[:2], tmp_path, queued=none, claimed=none) == []
    waits = dead_in_a_row(tasks, tmp_path, queued=frozenset({"9_5"}), claimed=none)
    assert waits == ["9_4", "9_3", "9_2", "9_1"]
    died(tmp_path, "9_5", after_s=90.0)
    assert dead_in_a_row(tasks, tmp_path, queued=none, claimed=none) == []


def test_each_array_task_has_one_standing(tmp_path: Path) -> None:
    died(tmp_path, "9_5")
    submission = Submission(id="9", at=0.0, workers=7, script="x")
    queued = [
        Job(id="9_1", state="PENDING", reason="Priority", node=""),
        Job(id="9_2", state="RUNNING", reason="None", node="n1"),
        Job(id="9_3", state="RUNNING", reason="None", node="n2"),
    ]
    facts = [
        WorkerFacts(name="n1:gpu0", job="9_2", live=True, task="exp_0_0", attempts=1),
        WorkerFacts(name="n3:gpu0", job="9_4", live=False, task=None, attempts=3),
        WorkerFacts(name="n4:gpu0", job="9_7", live=True, task="exp_0_1", attempts=1),
    ]
    rows = slurm_jobs.rows([submission], queued, facts, tmp_path)
    assert [(row["job"], row["state"]) for row in rows] == [
        ("9_1", "waits"), ("9_2", "works"), ("9_3", "silent"), ("9_4", "left"),
        ("9_5", "died"), ("9_6", "left"), ("9_7", "silent"),
    ]  # fmt: skip
    assert rows[0]["says"] == "Priority"
    assert rows[4]["says"] == "boom"


def test_without_slurm_there_is_one_clear_sentence(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, script="", text='command = ["true"]\n')
    gpuledger("init", str(sweep), cwd=tmp_path)
    bare = {"PATH": str(tmp_path)}
    for command in (["start", "--workers", "2"], ["status"], ["stop"]):
        done = gpuledger("slurm", *command, cwd=tmp_path, env=bare, exit_code=None)
        if command == ["start", "--workers", "2"]:
            assert done.returncode == 69
            assert "this machine has no Slurm" in done.stderr
            assert "Traceback" not in done.stderr


def test_a_worker_outside_slurm_knows_no_allocation() -> None:
    assert slurm.tasks_of("5", 2) == ["5_1", "5_2"]
    assert place_of({"SLURM_JOB_ID": ""}) is None
