"""gpuledger's workers under a real Slurm: `python -m pytest -m slurm`.

The short set of it is `-m "slurm and not exhaustive"`.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gpuledger import slurm_jobs
from gpuledger.ledger import Ledger
from tests.fake_nvml import FakeGpu, environment
from tests.helpers import wait_until
from tests.shell import records, write_sweep
from tests.slurm.cluster import Cluster, cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

BOTH = [pytest.param("linuxproc", marks=pytest.mark.exhaustive), "cgroup"]

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

GATED = (
    RECORD
    + """
record(what="began")
while not os.path.exists("go"):
    time.sleep(0.1)
record(what="ended")
"""
)

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
    try:
        wait_until(
            lambda: lab.counts(folder)["completed"] == count,
            because=f"{count} tasks are completed",
            timeout_s=timeout_s,
        )
    except AssertionError as error:
        logs = [path.read_text() for path in (folder / ".gpuledger" / "slurm").rglob("*.log")]
        raise AssertionError(f"{error}: {lab.counts(folder)} {lab.jobs()} {logs}") from None


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
        init(lab, tmp_path, GATED, "seeds = 60")
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

        def nodes() -> list[str]:
            rows = json.loads(lab.gpuledger("slurm", "status", "--json", cwd=tmp_path))
            return sorted({row["node"] for row in rows if row["state"] == "works"})

        def interrupted() -> int:
            outcomes = [a["outcome"] for task in lab.tasks(tmp_path) for a in task["attempts"]]
            return outcomes.count("interrupted")

        def began() -> int:
            return sum(line["what"] == "began" for line in records(tmp_path / "record.jsonl"))

        wait_until(lambda: len(running()) == 8, because="all of them work", timeout_s=90)
        wait_until(lambda: began() == 8, because="all of them run a task", timeout_s=60)
        shown = lab.gpuledger("status", "--once", cwd=tmp_path)
        assert f"slurm {job}_" in shown
        one, two, *_ = running()
        lab.slurm("scancel", one)
        lab.slurm("scontrol", "requeue", two)
        wait_until(lambda: interrupted() == 2, because="both handed back", timeout_s=60)
        lab.slurm(
            "sbatch", "--partition=high", f"--nodelist={nodes()[0]}", "--exclusive", "--time=5",
            "--output=/dev/null", "--wrap", "sleep 5",
        )  # fmt: skip
        wait_until(lambda: interrupted() >= 3, because="a node was preempted", timeout_s=90)
        lab.kill_node(nodes()[-1])
        (tmp_path / "go").touch()
        drained(lab, tmp_path, 60)
        tasks = lab.tasks(tmp_path)
        assert {task["state"] for task in tasks} == {"completed"}
        assert sum(task["failures"] for task in tasks) == 0, "none was charged"
        assert overlapping(tmp_path) == []
        outcomes = [attempt["outcome"] for task in tasks for attempt in task["attempts"]]
        assert outcomes.count("completed") == 60
        assert outcomes.count("completed") + outcomes.count("interrupted") == len(outcomes)
        assert "preempted" in lab.log().lower()
        devices = {line["devices"] for line in records(tmp_path / "record.jsonl")}
        assert devices == {"0", "1"}
        shown = lab.gpuledger("show", tasks[0]["task"], "--json", cwd=tmp_path)
        assert f"slurm {job}_" in shown
        wait_until(lambda: not running(), because="an empty queue costs money", timeout_s=60)


@pytest.mark.exhaustive  # Slurm's time limits have a resolution of a minute: it takes four
@pytest.mark.parametrize("proctrack", ["linuxproc", "cgroup"])
def test_a_task_half_done_goes_on_after_the_time_limit(tmp_path: Path, proctrack: str) -> None:
    with cluster("--nodes", "1", "--proctrack", proctrack) as lab:
        init(lab, tmp_path, LONG, "seeds = 1")
        lab.gpuledger(
            "slurm", "start", "--workers", "1", "--gpus-per-worker", "0", "--time", "2",
            cwd=tmp_path,
        )  # fmt: skip
        wait_until(lab.start_now, because="it was requeued", timeout_s=200)
        drained(lab, tmp_path, 1)
        (task,) = lab.tasks(tmp_path)
        outcomes = [attempt["outcome"] for attempt in task["attempts"]]
        assert outcomes == ["interrupted", "completed"], "it was handed back, not failed"
        assert task["failures"] == task["losses"] == 0
        began = [line["step"] for line in records(tmp_path / "record.jsonl") if "step" in line]
        assert len(began) == 3, "nothing was begun when its end had come"
        assert began[0] == 0
        assert began[1] > 20, "it went on where it was"
        shown = lab.gpuledger("show", task["task"], cwd=tmp_path)
        assert "restart 1" in " ".join(shown.split()), shown  # long names wrap its lines
        wait_until(lambda: lab.jobs() == {}, because="nothing is left", timeout_s=60)


STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("began", "a").close()
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize("proctrack", BOTH)
def test_a_stubborn_task_is_handed_back_before_slurm_kills_its_worker(
    tmp_path: Path, proctrack: str
) -> None:
    with cluster("--nodes", "1", "--proctrack", proctrack, "--kill-wait", "14") as lab:
        init(lab, tmp_path, STUBBORN, "seeds = 1")
        lab.gpuledger(
            "slurm", "start", "--workers", "1", "--gpus-per-worker", "0", "--time", "30",
            cwd=tmp_path,
        )  # fmt: skip
        wait_until((tmp_path / "began").exists, because="it runs", timeout_s=60)
        stopped = lab.gpuledger("slurm", "stop", "--now", cwd=tmp_path)
        assert "1 running hand their task back" in stopped
        wait_until(lambda: lab.jobs() == {}, because="it ended", timeout_s=90)
        (task,) = lab.tasks(tmp_path)
        assert [attempt["outcome"] for attempt in task["attempts"]] == ["interrupted"]
        assert task["state"] == "pending"


def test_allocations_follow_what_is_pending_and_can_be_stopped(tmp_path: Path) -> None:
    cpu = ("--gpus-per-worker", "0", "--time", "30")
    with cluster("--nodes", "2", "--cpus", "2") as lab:
        init(lab, tmp_path, SHORT, "seeds = 1")
        autoscale = ("slurm", "start", "--workers", "4", *cpu, "--autoscale", "--", "--hold")
        said = lab.gpuledger(*autoscale, cwd=tmp_path)
        assert "1 worker" in said, "no more than there are tasks"
        assert "are coming" in lab.gpuledger(*autoscale, cwd=tmp_path)

        # More to do, when it begins: it submits what is missing, within --workers.
        change_seeds(lab, tmp_path, 7)
        (first,) = lab.jobs()
        lab.slurm("scontrol", "release", first)
        wait_until(lambda: len(lab.jobs()) == 4, because="more were submitted", timeout_s=60)
        # These are on hold, the first one does it all, and cancels them when it ends.
        drained(lab, tmp_path, 7)
        wait_until(lambda: lab.jobs() == {}, because="none is wanted", timeout_s=60)
        log = next((tmp_path / ".gpuledger" / "slurm").glob("*_1.log")).read_text()
        assert "submitted 3 more allocations" in log
        assert "cancelled 3 waiting allocations" in log
        assert "no task is pending" in lab.gpuledger(*autoscale, cwd=tmp_path)

        change_seeds(lab, tmp_path, 400)
        lab.gpuledger("slurm", "start", "--workers", "6", *cpu, cwd=tmp_path)
        wait_until(lambda: lab.counts(tmp_path)["running"] == 4, because="they run", timeout_s=60)
        stopped = lab.gpuledger("slurm", "stop", cwd=tmp_path)
        assert stopped == "Cancelled 2 waiting; 4 running finish their task and leave.\n"
        wait_until(lambda: lab.jobs() == {}, because="they left", timeout_s=60)
        counts = lab.counts(tmp_path)
        assert counts["pending"] > 0
        assert counts["running"] == 0
        tasks = lab.tasks(tmp_path)
        outcomes = {attempt["outcome"] for task in tasks for attempt in task["attempts"]}
        assert outcomes == {"completed"}, "who ran finished its task"


def test_stop_can_be_said_again_and_means_no_job_of_others(tmp_path: Path) -> None:
    cpu = ("--gpus-per-worker", "0", "--time", "30")
    with cluster("--nodes", "2", "--cpus", "2") as lab:
        init(lab, tmp_path, GATED, "seeds = 9")
        lab.slurm("sbatch", "--array=1-1", "--output=/dev/null", "--wrap", "sleep 600")
        lab.gpuledger("slurm", "start", "--workers", "3", *cpu, cwd=tmp_path)
        wait_until(lambda: lab.counts(tmp_path)["running"] == 3, because="they run", timeout_s=60)
        first = next(iter(lab.jobs())).partition("_")[0]
        ledger = Ledger.open(tmp_path / ".gpuledger")
        (ours,) = slurm_jobs.submissions(ledger)
        stranger = str(int(ours.id) - 1)
        assert first in (stranger, ours.id)
        slurm_jobs.record(ledger, replace(ours, id=stranger, script="/other/cluster.sh"))

        (victim,) = [job for job in lab.jobs() if job == f"{ours.id}_3"]
        lab.slurm("scontrol", "requeuehold", "State=SpecialExit", victim)
        wait_until(lambda: lab.jobs()[victim] == "SPECIAL_EXIT", because="it is held", timeout_s=60)
        stopped = lab.gpuledger("slurm", "stop", cwd=tmp_path)
        assert stopped == "Cancelled 1 waiting; 2 running finish their task and leave.\n"
        again = lab.gpuledger("slurm", "stop", "--now", cwd=tmp_path)
        assert again == "Cancelled 0 waiting; 2 running hand their task back.\n"
        wait_until(lambda: list(lab.jobs()) == [f"{stranger}_1"], because="they left", timeout_s=60)
        assert lab.counts(tmp_path)["running"] == 0
        assert {task["state"] for task in lab.tasks(tmp_path)} == {"pending"}


def test_an_allocation_that_could_not_be_recorded_records_itself(tmp_path: Path) -> None:
    with cluster("--nodes", "1") as lab:
        init(lab, tmp_path, GATED, "seeds = 2")
        said = lab.gpuledger(
            "slurm", "start", "--workers", "2", "--gpus-per-worker", "0", "--time", "30",
            "--json", "--", "--hold", cwd=tmp_path,
        )  # fmt: skip
        job = json.loads(said.splitlines()[0])["job"]
        ledger = Ledger.open(tmp_path / ".gpuledger")
        (known,) = slurm_jobs.submissions(ledger)
        ledger.store.write(lambda db: db.execute("DELETE FROM slurm_job"), operation="forget")
        assert lab.gpuledger("slurm", "stop", "--now", cwd=tmp_path).startswith("Cancelled 0")
        lab.slurm("scontrol", "release", job)
        wait_until(lambda: lab.counts(tmp_path)["running"] == 2, because="they run", timeout_s=60)
        (found,) = slurm_jobs.submissions(ledger)
        assert (found.id, found.workers, found.script) == (job, 2, known.script)
        assert "2 running" in lab.gpuledger("slurm", "stop", "--now", cwd=tmp_path)
        wait_until(lambda: lab.jobs() == {}, because="they left", timeout_s=60)


def test_what_is_asked_for_beats_what_the_profile_says(tmp_path: Path) -> None:
    with cluster("--nodes", "1") as lab:
        init(lab, tmp_path, SHORT, "seeds = 1")
        lab.env = {**lab.env, "SBATCH_PARTITION": "high", "SBATCH_TIMELIMIT": "7"}
        lab.gpuledger(
            "slurm", "start", "--workers", "1", "--gpus-per-worker", "0", "--time", "40",
            "--partition", "main", "--", "--hold", cwd=tmp_path,
        )  # fmt: skip
        assert lab.slurm("squeue", "-h", "-o", "%P %l") == "main 40:00\n"


def change_seeds(lab: Cluster, folder: Path, count: int) -> None:
    (folder / "exp.toml").write_text(
        f'command = ["{{python}}", "train.py"]\nseeds = {count}\n', encoding="utf-8"
    )
    lab.gpuledger("init", "exp.toml", cwd=folder)


def test_no_name_does_anything_in_the_script_and_setup_and_wrap_are_used(tmp_path: Path) -> None:
    folder = tmp_path / "it's $(touch pwned); touch pwned #%A `touch pwned` ö"
    folder.mkdir()
    script = RECORD + "record(what='ended', setup=os.environ['SETUP'], wrap=os.environ['WRAP'])\n"
    with cluster("--nodes", "1") as lab:
        init(lab, folder, script, "seeds = 1\n[slurm]\nsetup = \"export SETUP='a b'\"")
        start = ("slurm", "start", "--workers", "1", "--gpus-per-worker", "0", "--sweep", "exp")
        wrap = ("--wrap", "env 'WRAP=$(touch pwned)'")
        printed = lab.gpuledger(*start, *wrap, "--print", cwd=folder)
        assert " -P -m gpuledger " in printed, "a random.py beside the sweep is not ours"
        assert lab.jobs() == {}
        said = lab.gpuledger(*start, *wrap, "--json", cwd=folder)
        job = json.loads(said.splitlines()[0])
        assert Path(job["script"]).read_text() == printed
        drained(lab, folder, 1)
        (line,) = records(folder / "record.jsonl")
        assert line["setup"] == "a b"
        assert line["wrap"] == "$(touch pwned)"
        assert (folder / ".gpuledger" / "slurm" / f"{job['job']}_1.log").exists()
        assert not list(tmp_path.rglob("pwned"))


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


def test_slurm_gives_what_was_asked_for_and_two_gpus_are_one_workers(tmp_path: Path) -> None:
    nvml = environment(tmp_path, [FakeGpu(uuid=f"GPU-{n}") for n in range(2)])
    with cluster("--nodes", "2", "--gpus", "2", "--cpus", "4") as lab:
        init(lab, tmp_path, GATED, "seeds = 3\n[resources]\ngpus = 2")
        setup = tmp_path / "setup.sh"
        setup.write_text("".join(f"export {name}={value}\n" for name, value in nvml.items()))
        asked = (
            "slurm", "start", "--workers", "2", "--gpus-per-worker", "2", "--time", "1:30:00",
            "--partition", "high", "--account", "lab", "--qos", "normal", "--cpus", "3",
            "--mem", "100M", "--throttle", "1", "--setup", "setup.sh",
        )  # fmt: skip
        refused = lab.gpuledger(*asked, "--constraint", "a100", cwd=tmp_path, exit_code=69)
        assert "feature" in refused.lower(), "no node of this cluster has it"
        said = lab.gpuledger(*asked, "--", "--comment=by gpuledger", cwd=tmp_path)
        job = re.findall(r"job (\d+)", said)[0]
        wait_until(lambda: lab.counts(tmp_path)["running"] == 1, because="it runs", timeout_s=60)

        seen = lab.slurm("scontrol", "show", "job", f"{job}_1")
        for fact in (
            "Partition=high", "TimeLimit=01:30:00", "CPUs/Task=3", "MinMemoryNode=100M",
            "ArrayTaskThrottle=1", "gpu:2", "Comment=by gpuledger", "Requeue=1",
        ):  # fmt: skip
            assert fact in seen, seen
        assert sorted(lab.jobs().values()) == ["PENDING", "RUNNING"], "one at a time"
        (tmp_path / "go").touch()
        drained(lab, tmp_path, 3)
        assert {line["devices"] for line in records(tmp_path / "record.jsonl")} == {"0,1"}
        wait_until(lambda: lab.jobs() == {}, because="nothing is left", timeout_s=60)


def test_what_cannot_fit_is_not_begun_and_nobody_waits_for_it(tmp_path: Path) -> None:
    with cluster("--nodes", "1") as lab:
        init(lab, tmp_path, SHORT, 'seeds = 1\n[run]\ntime_needed = "1h"')
        start = ("slurm", "start", "--workers", "1", "--gpus-per-worker", "0", "--time")
        lab.gpuledger(*start, "20", cwd=tmp_path)
        logs = tmp_path / ".gpuledger" / "slurm"
        wait_until(lambda: list(logs.glob("*_1.log")), because="it began", timeout_s=60)
        wait_until(lambda: lab.jobs() == {}, because="it left, and does not come back")

        assert lab.counts(tmp_path)["pending"] == 1
        assert lab.tasks(tmp_path)[0]["attempts"] == []
        log = next(logs.glob("*_1.log")).read_text()
        assert "not for this worker" in log, log
        lab.gpuledger(*start, "2:00:00", cwd=tmp_path)
        drained(lab, tmp_path, 1)


@pytest.mark.exhaustive  # Slurm looks seldom for what it may preempt: it takes two minutes
def test_a_preemption_with_time_to_spare_hands_back_what_would_not_be_done(tmp_path: Path) -> None:
    """USR1 comes first, and SIGTERM 20 s or more later: the task is asked to end in between."""
    with cluster("--nodes", "1", "--preempt-user-signal", "--grace", "20") as lab:
        init(lab, tmp_path, LONG, "seeds = 1")
        lab.gpuledger(
            "slurm", "start", "--workers", "1", "--gpus-per-worker", "0", "--time", "30",
            "--partition", "main", cwd=tmp_path,
        )  # fmt: skip
        checkpoints = (tmp_path / ".gpuledger" / "runs").glob
        wait_until(lambda: list(checkpoints("*/files/step")), because="it runs", timeout_s=60)
        lab.slurm(
            "sbatch", "--partition=high", "--exclusive", "--time=5", "--output=/dev/null",
            "--wrap", "sleep 1",
        )  # fmt: skip

        def attempts() -> list[str]:
            return [each["outcome"] for each in lab.tasks(tmp_path)[0]["attempts"]]

        wait_until(lambda: attempts()[:1] == ["interrupted"], because="back", timeout_s=90)
        wait_until(lab.start_now, because="it was requeued", timeout_s=200)
        drained(lab, tmp_path, 1)
        assert attempts() == ["interrupted", "completed"]
        assert lab.tasks(tmp_path)[0]["failures"] == 0
        began = [line["step"] for line in records(tmp_path / "record.jsonl") if "step" in line]
        assert began[1] > 0, "it went on where it was"
        wait_until(lambda: lab.jobs() == {}, because="nothing is left", timeout_s=60)
