"""gpuledger's workers under a real Slurm: `python -m pytest -m slurm`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.fake_nvml import FakeGpu, environment
from tests.helpers import wait_until
from tests.shell import records, write_sweep
from tests.slurm.cluster import Cluster, cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

RECORD = """
import json, os, sys, time
def record(**more):
    names = ("GPULEDGER_TASK", "GPULEDGER_ATTEMPT", "CUDA_VISIBLE_DEVICES", "GPULEDGER_WORKER")
    seen = {name.rpartition("_")[2].lower(): os.environ.get(name) for name in names}
    line = json.dumps({**seen, "at": time.monotonic(), **more}) + "\\n"
    descriptor = os.open("record.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)
"""

SHORT = RECORD + "record(what='began'); time.sleep(1.5); record(what='ended')\n"

STEPS = 85
LONG = (
    RECORD
    + f"""
from pathlib import Path
checkpoint = Path(os.environ["GPULEDGER_TASK_DIR"]) / "step"
step = int(checkpoint.read_text()) if checkpoint.exists() else 0
record(what="began", step=step)
while step < {STEPS}:
    time.sleep(1)
    step += 1
    checkpoint.write_text(str(step))
record(what="ended", step=step)
"""
)


def init(lab: Cluster, folder: Path, script: str, text: str) -> None:
    write_sweep(folder, script=script, text=f'command = ["{{python}}", "train.py"]\n{text}\n')
    lab.gpuledger("init", "exp.toml", "--lease=20s", "--heartbeat=1s", cwd=folder)


def drained(lab: Cluster, folder: Path, count: int, *, timeout_s: float = 300.0) -> None:
    wait_until(
        lambda: lab.counts(folder)["completed"] == count,
        because=f"{count} tasks are completed: {lab.counts(folder)} {lab.jobs()}",
        timeout_s=timeout_s,
    )


def overlapping(folder: Path) -> list[str]:
    """Return the tasks that began again before they had ended, by their own records."""
    spans: dict[str, list[float]] = {}
    bad = []
    for line in records(folder / "record.jsonl"):
        if line["what"] == "ended":
            spans.setdefault(line["task"], []).append(line["at"])
        elif line["task"] in spans:
            bad.append(line["task"])  # it had ended well, and ran once more
    return bad


@pytest.mark.parametrize("proctrack", ["linuxproc", "cgroup"])
def test_sixty_tasks_are_completed_once_whatever_slurm_does(tmp_path: Path, proctrack: str) -> None:
    """scancel, requeue, preemption, a node that is gone: nothing of it is charged to a task."""
    nvml = environment(tmp_path, [FakeGpu(uuid=f"GPU-{n}") for n in range(2)])
    with cluster("--nodes", "4", "--gpus", "2", "--proctrack", proctrack) as lab:
        init(lab, tmp_path, SHORT, "seeds = 60")
        setup = tmp_path / "setup.sh"
        setup.write_text("".join(f"export {name}={value}\n" for name, value in nvml.items()))
        said = lab.gpuledger(
            "slurm", "start", "--workers", "8", "--setup", "setup.sh", "--partition", "main",
            "--time", "30", cwd=tmp_path,
        )  # fmt: skip
        job = re.findall(r"job (\d+)", said)[0]

        def running() -> list[str]:
            rows = json.loads(lab.gpuledger("slurm", "status", "--json", cwd=tmp_path))
            return [row["job"] for row in rows if row["state"] == "works"]

        wait_until(lambda: len(running()) >= 6, because="they work", timeout_s=90)
        one, two, *_ = running()
        lab.slurm("scancel", one)
        lab.slurm("scontrol", "requeue", two)
        lab.slurm(
            "sbatch", "--partition=high", "--nodes=1", "--exclusive", "--time=5",
            "--output=/dev/null", "--wrap", "sleep 5",
        )  # fmt: skip
        wait_until(
            lambda: lab.counts(tmp_path)["completed"] >= 20, because="20 are done", timeout_s=120
        )
        nodes = {
            row["node"]
            for row in json.loads(lab.gpuledger("slurm", "status", "--json", cwd=tmp_path))
            if row["state"] == "works"
        }
        if nodes:
            lab.slurm("pkill", "-KILL", "-f", f"slurmd.* -N {sorted(nodes)[-1]}( |$)", check=False)
        drained(lab, tmp_path, 60)
        tasks = lab.tasks(tmp_path)
        assert {task["state"] for task in tasks} == {"completed"}
        assert sum(task["failures"] for task in tasks) == 0, "none was charged"
        assert overlapping(tmp_path) == []
        outcomes = [attempt["outcome"] for task in tasks for attempt in task["attempts"]]
        assert outcomes.count("completed") == 60
        assert "interrupted" in outcomes, "the cancelled one's, at least"
        devices = {line["devices"] for line in records(tmp_path / "record.jsonl")}
        assert devices == {"0", "1"}
        shown = lab.gpuledger("show", tasks[0]["task"], "--json", cwd=tmp_path)
        assert f"slurm {job}_" in shown
        wait_until(lambda: not running(), because="an empty queue costs money", timeout_s=60)


def test_a_task_half_done_goes_on_after_the_time_limit(tmp_path: Path) -> None:
    with cluster("--nodes", "1") as lab:
        init(lab, tmp_path, LONG, "seeds = 1")
        lab.gpuledger(
            "slurm", "start", "--workers", "1", "--gpus-per-worker", "0", "--time", "2",
            cwd=tmp_path,
        )  # fmt: skip
        drained(lab, tmp_path, 1, timeout_s=400)
        (task,) = lab.tasks(tmp_path)
        outcomes = [attempt["outcome"] for attempt in task["attempts"]]
        assert outcomes[-1] == "completed"
        assert set(outcomes[:-1]) == {"interrupted"}, "it was handed back, not failed"
        assert task["failures"] == task["losses"] == 0
        began = [line["step"] for line in records(tmp_path / "record.jsonl") if "step" in line]
        assert began[0] == 0
        assert began[1] > 20, "it went on where it was"


def test_allocations_follow_what_is_pending_and_can_be_stopped(tmp_path: Path) -> None:
    with cluster("--nodes", "2", "--cpus", "2") as lab:
        init(lab, tmp_path, SHORT, "seeds = 3")
        said = lab.gpuledger(
            "slurm", "start", "--workers", "6", "--gpus-per-worker", "0", "--autoscale",
            "--time", "30", cwd=tmp_path,
        )  # fmt: skip
        assert "3 workers" in said, "no more than there are tasks"
        drained(lab, tmp_path, 3)
        wait_until(lambda: lab.jobs() == {}, because="they left", timeout_s=60)

        (tmp_path / "exp.toml").write_text(
            'command = ["{python}", "train.py"]\nseeds = 40\n', encoding="utf-8"
        )
        lab.gpuledger("init", "exp.toml", cwd=tmp_path)
        lab.gpuledger(
            "slurm", "start", "--workers", "6", "--gpus-per-worker", "0", "--autoscale",
            "--time", "30", cwd=tmp_path,
        )  # fmt: skip
        wait_until(
            lambda: "RUNNING" in lab.jobs().values() and lab.counts(tmp_path)["running"] > 0,
            because="they run",
            timeout_s=60,
        )
        stopped = lab.gpuledger("slurm", "stop", cwd=tmp_path)
        assert "finish their task and leave" in stopped
        wait_until(lambda: lab.jobs() == {}, because="they left", timeout_s=60)
        counts = lab.counts(tmp_path)
        assert counts["pending"] > 0
        assert counts["running"] == 0
        tasks = lab.tasks(tmp_path)
        outcomes = {attempt["outcome"] for task in tasks for attempt in task["attempts"]}
        assert outcomes == {"completed"}, "who ran finished its task"


def test_three_dead_allocations_are_enough(tmp_path: Path) -> None:
    with cluster("--nodes", "2") as lab:
        init(lab, tmp_path, SHORT, "seeds = 4")
        (tmp_path / "setup.sh").write_text("echo no module named cuda/99 >&2\nexit 3\n")
        start = (
            "slurm", "start", "--workers", "3", "--gpus-per-worker", "0", "--setup", "setup.sh",
        )  # fmt: skip
        lab.gpuledger(*start, cwd=tmp_path)
        wait_until(lambda: lab.jobs() == {}, because="they died", timeout_s=60)

        said = lab.gpuledger(*start, cwd=tmp_path, exit_code=69)
        assert "ended within a minute without claiming a task" in said
        assert "no module named cuda/99" in said
        shown = lab.gpuledger("slurm", "status", cwd=tmp_path)
        assert shown.count("died") == 3
        (tmp_path / "setup.sh").write_text("")
        lab.gpuledger(*start, "--force", cwd=tmp_path)
        drained(lab, tmp_path, 4)


def test_slurm_itself_says_what_it_thinks_of_the_script(tmp_path: Path) -> None:
    with cluster("--nodes", "1") as lab:
        init(lab, tmp_path, SHORT, "seeds = 1")
        said = lab.gpuledger(
            "slurm", "start", "--workers", "2", "--test", "--time", "5", "--mem", "100",
            "--", "--comment=a b; touch /tmp/never", "--mail-type=NONE", cwd=tmp_path,
        )  # fmt: skip
        assert "to start at" in said
        refused = lab.gpuledger(
            "slurm", "start", "--workers", "2", "--partition", "nowhere", cwd=tmp_path,
            exit_code=69,
        )  # fmt: skip
        assert "invalid partition" in refused.lower()
