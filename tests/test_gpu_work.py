"""Workers on GPUs that are not there: real processes, the real nvidia-ml-py, a scripted driver."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fake_nvml import ALLOCATE, FakeGpu, FakePart, describe, environment
from tests.helpers import wait_until
from tests.shell import environment as shell_environment
from tests.shell import gpuledger, records, tasks, worker, write_sweep

SMALL = FakeGpu(uuid="GPU-aaaa", name="FAKE T4", memory_mib=16384)
SMALL_2 = FakeGpu(uuid="GPU-abab", name="FAKE T4", memory_mib=16384)
LARGE = FakeGpu(uuid="GPU-bbbb", name="FAKE A100", memory_mib=40960)
LARGE_2 = FakeGpu(uuid="GPU-bcbc", name="FAKE A100", memory_mib=40960)

RECORD = """
import json, os, pathlib, sys, time
def record(**more):
    names = ("CUDA_VISIBLE_DEVICES", "GPULEDGER_WORKER", "GPULEDGER_TASK", "GPULEDGER_MEMORY_MIB")
    seen = {name.rpartition("_")[2].lower(): os.environ.get(name) for name in names}
    with open("record.jsonl", "a") as file:
        file.write(json.dumps({**seen, "pid": os.getpid(), **more}) + "\\n")
def wait_for(name):
    while not pathlib.Path(name).exists():
        time.sleep(0.01)
"""


def init(folder: Path, script: str, text: str = "", *, name: str = "exp", more: str = "") -> None:
    (folder / f"{name}.py").write_text(RECORD + ALLOCATE + script)
    sweep = write_sweep(
        folder, script="", text=f'command = "python {name}.py"\n{text}\n{more}', name=name
    )
    gpuledger("init", str(sweep), "--lease=3s", "--heartbeat=0.2s", cwd=folder)


def status(folder: Path) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(gpuledger("status", "--json", cwd=folder).stdout)
    return shown


def notes(folder: Path) -> str:
    return " | ".join(str(one["note"]) for one in status(folder)["workers"])


def outcomes(folder: Path, task: str) -> list[tuple[str, str]]:
    return [(one["worker"], one["outcome"]) for one in tasks(folder)[task]["attempts"]]


@contextlib.contextmanager
def stranger() -> Iterator[int]:
    """A live process that belongs to no task."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_tasks_go_where_what_they_need_is(tmp_path: Path) -> None:
    small = environment(tmp_path, [SMALL, SMALL_2], name="small")
    large = environment(tmp_path, [LARGE, LARGE_2], name="large")
    needs = '[resources]\nmin_memory = "20GB"\ngpu_name = "a100|h100"\n'
    init(tmp_path, "record()\n", "seeds = 4", more=needs)

    with worker("--gpus", "all", cwd=tmp_path, **small) as alpha:
        assert alpha.wait() == 0
    assert "needs 20 GB of GPU memory, alpha:gpu0 has 17 GB" in alpha.text()
    assert records(tmp_path / "record.jsonl") == []

    with worker("--gpu", "0", "--wait", cwd=tmp_path, **small) as alpha:
        wait_until(lambda: "no pending task fits" in notes(tmp_path), because="no note")
        (sweep,) = status(tmp_path)["sweeps"]
        assert "alpha:gpu0 has 17 GB" in sweep["misfit"]
        once = gpuledger("status", "--once", cwd=tmp_path).stdout
        assert "no live worker can take its pending tasks" in once
        with worker("--gpus", "all", cwd=tmp_path, host="beta", **large) as beta:
            assert beta.wait() == 0, beta.text()
        alpha.send(signal.SIGTERM)
        assert alpha.wait() == 130
    assert {one["worker"] for one in records(tmp_path / "record.jsonl")} <= {
        "beta:gpu0",
        "beta:gpu1",
    }
    assert status(tmp_path)["counts"]["completed"] == 4


def test_a_foreign_process_is_waited_for(tmp_path: Path) -> None:
    env = environment(tmp_path, [LARGE])
    gpus = Path(env["FAKE_NVML"])
    init(tmp_path, "record()\nwait_for('go')\n", "seeds = 2")
    with stranger() as pid, worker("--gpu", "0", "--wait-free", cwd=tmp_path, **env) as one:
        wait_until(lambda: len(records(tmp_path / "record.jsonl")) == 1, because="not started")
        describe(gpus, [FakeGpu(uuid="GPU-bbbb", processes=((pid, 9000),))])
        (tmp_path / "go").touch()
        wait_until(lambda: f"pid {pid}" in notes(tmp_path), because="it did not wait")
        assert "GPU 0 is in use by python" in notes(tmp_path)
        assert len(records(tmp_path / "record.jsonl")) == 1
        describe(gpus, [LARGE])
        assert one.wait() == 0, one.text()
    assert status(tmp_path)["counts"]["completed"] == 2


def test_a_worker_that_waits_for_its_gpu_leaves_when_others_did_the_work(tmp_path: Path) -> None:
    with stranger() as pid:
        busy = environment(tmp_path, [FakeGpu(uuid="GPU-bbbb", processes=((pid, 9000),))])
        init(tmp_path, "record()\n", "seeds = 2")
        with worker("--gpu", "0", "--wait-free", "10GB", cwd=tmp_path, **busy) as alpha:
            alpha.wait_for("GPU 0 is in use by")
            with worker("--cpu", cwd=tmp_path, host="beta") as beta:
                assert beta.wait() == 0
            assert alpha.wait() == 0
    assert {one["worker"] for one in records(tmp_path / "record.jsonl")} == {"beta:cpu"}


def test_a_gpu_in_use_is_warned_of_and_left_out_of_the_free_ones(tmp_path: Path) -> None:
    with stranger() as pid:
        used = FakeGpu(uuid="GPU-aaaa", name="FAKE T4", processes=((pid, 2000),))
        env = environment(tmp_path, [used, LARGE])
        init(tmp_path, "record()\n")
        done = gpuledger("work", "--gpus", "free", cwd=tmp_path, env=env)
        assert f"Left alone: GPU 0 is in use by python (pid {pid}," in done.stderr
        (seen,) = records(tmp_path / "record.jsonl")
        assert seen["devices"] == "1"
        done = gpuledger("work", "--gpu", "0", cwd=tmp_path, env=env)
        assert "GPU 0 is in use by python" in done.stderr
        describe(Path(env["FAKE_NVML"]), [used])
        done = gpuledger("work", "--gpus", "free", cwd=tmp_path, env=env, exit_code=69)
        assert "no GPU is free here now" in done.stderr


LOSES = """
record()
wait_for('lost') if 'alpha' in os.environ['GPULEDGER_WORKER'] else None
if 'alpha' in os.environ['GPULEDGER_WORKER']:
    raise RuntimeError('CUDA error: unspecified launch failure')
"""


def test_a_lost_gpu_is_not_the_tasks_fault_and_eats_no_queue(tmp_path: Path) -> None:
    env = environment(tmp_path, [LARGE], name="alpha")
    other = environment(tmp_path, [LARGE], name="beta")
    init(tmp_path, LOSES, "seeds = 5")
    with worker("--gpu", "0", cwd=tmp_path, **env) as alpha:
        wait_until(lambda: len(records(tmp_path / "record.jsonl")) == 1, because="not started")
        describe(Path(env["FAKE_NVML"]), [FakeGpu(uuid="GPU-bbbb", state="lost")])
        (tmp_path / "lost").touch()
        wait_until(lambda: "is gone" in notes(tmp_path), because="its loss was not shown")
        wait_until(lambda: "claiming nothing" in alpha.text(), because="it did not say so")
        with worker("--gpu", "0", cwd=tmp_path, host="beta", **other) as beta:
            assert beta.wait() == 0, beta.text()
        assert alpha.wait() == 0
    assert outcomes(tmp_path, "exp_0_0") == [("alpha:gpu0", "lost"), ("beta:gpu0", "completed")]
    first = tasks(tmp_path)["exp_0_0"]
    assert (first["failures"], first["losses"]) == (0, 1)
    assert "GPU 0 is gone (GPU is lost): RuntimeError: CUDA error" in first["attempts"][0]["error"]
    assert len(records(tmp_path / "record.jsonl")) == 6


def test_a_gpu_that_comes_back_is_used_again(tmp_path: Path) -> None:
    env = environment(tmp_path, [LARGE])
    script = (
        "record()\nif not pathlib.Path('lost').exists():\n    wait_for('lost')\n    sys.exit(1)"
    )
    init(tmp_path, script, "seeds = 2")
    with worker("--gpu", "0", cwd=tmp_path, **env) as one:
        wait_until(lambda: len(records(tmp_path / "record.jsonl")) == 1, because="not started")
        describe(Path(env["FAKE_NVML"]), [FakeGpu(uuid="GPU-bbbb", state="lost")])
        (tmp_path / "lost").touch()
        one.wait_for("claiming nothing")
        describe(Path(env["FAKE_NVML"]), [LARGE])
        assert one.wait() == 0, one.text()
    assert status(tmp_path)["counts"]["completed"] == 2


def test_a_gpu_whose_number_another_one_has_now_gets_no_task(tmp_path: Path) -> None:
    env = environment(tmp_path, [SMALL, LARGE])
    init(tmp_path, "record()\nwait_for('go')\n", "seeds = 2")
    with worker("--gpu", "1", cwd=tmp_path, **env) as one:
        wait_until(lambda: len(records(tmp_path / "record.jsonl")) == 1, because="not started")
        describe(Path(env["FAKE_NVML"]), [LARGE, SMALL])  # one fell off the bus, another came
        (tmp_path / "go").touch()
        one.wait_for("the driver has another one in its place); claiming nothing")
        one.send(signal.SIGTERM)
        assert one.wait() == 130
    assert len(records(tmp_path / "record.jsonl")) == 1


def test_a_task_that_hangs_on_a_lost_gpu_is_ended(tmp_path: Path) -> None:
    env = environment(tmp_path, [LARGE])
    init(tmp_path, "record()\ntime.sleep(600)\n")
    with worker("--gpu", "0", cwd=tmp_path, **env) as one:
        wait_until(lambda: len(records(tmp_path / "record.jsonl")) == 1, because="not started")
        describe(Path(env["FAKE_NVML"]), [FakeGpu(uuid="GPU-bbbb", state="lost")])
        wait_until(
            lambda: outcomes(tmp_path, "exp_0_0") == [("alpha:gpu0", "lost")],
            because="it was not ended",
            timeout_s=40,
        )
        one.send(signal.SIGTERM)
        assert one.wait() == 130


def test_each_mig_instance_is_a_gpu(tmp_path: Path) -> None:
    parts = (FakePart(uuid="MIG-1111"), FakePart(uuid="MIG-2222", memory_mib=9728))
    env = environment(tmp_path, [FakeGpu(uuid="GPU-bbbb", parts=parts)])
    script = "record()\nwait_for(os.environ['GPULEDGER_TASK'] + '.go')\n"
    init(tmp_path, script, "seeds = 2")
    with worker("--gpus", "all", cwd=tmp_path, **env) as both:
        wait_until(lambda: len(records(tmp_path / "record.jsonl")) == 2, because="not started")

        def memory() -> object:
            return sorted(
                (one["name"], gpu["memory_total_mib"])
                for one in status(tmp_path)["workers"]
                for gpu in one["gpus"]
            )

        expected = [("alpha:gpu0.0", 4864), ("alpha:gpu0.1", 9728)]
        wait_until(lambda: memory() == expected, because="the instances are not shown")
        for seed in (0, 1):
            (tmp_path / f"exp_0_{seed}.go").touch()
        assert both.wait() == 0
    seen = {(one["worker"], one["devices"]) for one in records(tmp_path / "record.jsonl")}
    assert seen == {("alpha:gpu0.0", "MIG-1111"), ("alpha:gpu0.1", "MIG-2222")}


def test_the_most_memory_of_an_attempt_is_kept_and_shown(tmp_path: Path) -> None:
    env = environment(tmp_path, [LARGE])
    with stranger() as pid:
        gpu = FakeGpu(uuid="GPU-bbbb", memory_mib=40960, processes=((pid, 7000),))
        describe(Path(env["FAKE_NVML"]), [gpu])
        script = "allocate(3000)\nwait_for('seen')\nallocate(100)\nwait_for('go')\n"
        init(tmp_path, script)
        with worker("--gpu", "0", cwd=tmp_path, **env) as one:

            def used() -> object:
                return [
                    g["memory_used_mib"] for w in status(tmp_path)["workers"] for g in w["gpus"]
                ]

            wait_until(lambda: used() == [10512], because="its memory was not seen")
            (tmp_path / "seen").touch()
            wait_until(lambda: used() == [7612], because="its memory did not fall")
            (tmp_path / "go").touch()
            assert one.wait() == 0
    (attempt,) = tasks(tmp_path)["exp_0_0"]["attempts"]
    assert (attempt["memory_peak_mib"], attempt["gpu_memory_mib"]) == (3000, 40960)
    assert "2.9/40G" in gpuledger("show", "exp_0_0", cwd=tmp_path, env={"COLUMNS": "200"}).stdout


def test_where_processes_are_not_told_the_gpus_memory_counts(tmp_path: Path) -> None:
    env = environment(tmp_path, [FakeGpu(uuid="GPU-bbbb", state="denied", used_mib=600)])
    init(tmp_path, "allocate(3000)\nwait_for('go')\n", "seeds = 2")
    with worker("--gpu", "0", cwd=tmp_path, **env) as one:
        wait_until(
            lambda: "3600" in json.dumps(status(tmp_path)["workers"]), because="it was not seen"
        )
        (tmp_path / "go").touch()
        assert one.wait() == 0, one.text()
    assert tasks(tmp_path)["exp_0_0"]["attempts"][0]["memory_peak_mib"] == 3600


def test_where_a_process_is_told_with_no_memory_the_gpus_counts(tmp_path: Path) -> None:
    env = environment(tmp_path, [FakeGpu(uuid="GPU-bbbb", state="boxed", used_mib=600)])
    init(tmp_path, "allocate(3000)\nwait_for('go')\n")
    with worker("--gpu", "0", cwd=tmp_path, **env) as one:
        wait_until(
            lambda: "3600" in json.dumps(status(tmp_path)["workers"]), because="it was not seen"
        )
        (tmp_path / "go").touch()
        assert one.wait() == 0, one.text()
    assert tasks(tmp_path)["exp_0_0"]["attempts"][0]["memory_peak_mib"] == 3600


STARTS = """
import gpuledger
allocate(2000)
record(at="start")
wait_for(os.environ['GPULEDGER_TASK'] + '.go')
record(at="report")
gpuledger.report(step=1)
wait_for('end')
"""


def test_slots_share_a_gpu_and_start_one_after_another(tmp_path: Path) -> None:
    env = environment(tmp_path, [LARGE])
    init(tmp_path, STARTS, "seeds = 3")

    def told() -> list[str]:
        return [record["at"] for record in records(tmp_path / "record.jsonl")]

    def somebody_waits() -> bool:
        return "another task is starting on this GPU" in notes(tmp_path)

    with worker("--gpu", "0", "--slots", "3", cwd=tmp_path, **env) as three:
        for started in range(3):
            so_far = ["start", "report"] * started + ["start"]
            wait_until(lambda n=so_far: told() == n, because=f"only {started} started")  # type: ignore[misc]
            if started < 2:
                wait_until(somebody_waits, because="nobody waits")
            (tmp_path / f"{records(tmp_path / 'record.jsonl')[-1]['task']}.go").touch()
        wait_until(lambda: len(told()) == 6, because="no report")
        (tmp_path / "end").touch()
        assert three.wait() == 0, three.text()
    seen = records(tmp_path / "record.jsonl")
    assert [one["at"] for one in seen] == ["start", "report"] * 3
    assert {one["worker"] for one in seen} == {"alpha:gpu0", "alpha:gpu0#2", "alpha:gpu0#3"}
    assert {one["mib"] for one in seen} == {str(40960 // 3)}


def test_a_task_of_two_gpus_gets_two(tmp_path: Path) -> None:
    env = environment(tmp_path, [LARGE, LARGE_2, SMALL, SMALL_2])
    init(tmp_path, "record()\n", "seeds = 2", more="[resources]\ngpus = 2\n")
    init(tmp_path, "record()\n", name="one")
    with worker("--gpus", "all", "--gpus-per-task", "2", cwd=tmp_path, **env) as both:
        assert both.wait() == 0
    assert "needs one GPU, alpha:gpu0+1 uses 2 for each task" in both.text()
    seen = {(one["worker"], one["devices"]) for one in records(tmp_path / "record.jsonl")}
    assert seen <= {("alpha:gpu0+1", "0,1"), ("alpha:gpu2+3", "2,3")}
    assert status(tmp_path)["counts"]["pending"] == 1


def test_run_takes_the_gpus_that_are_visible_or_else_the_cpu(tmp_path: Path) -> None:
    env = environment(tmp_path, [LARGE, LARGE_2])
    (tmp_path / "exp.py").write_text(RECORD + "record()\n")
    (tmp_path / "exp.toml").write_text('command = "python exp.py"\n')
    for outer in ("1", ""):
        gpuledger("run", "exp.toml", cwd=tmp_path, env={**env, "CUDA_VISIBLE_DEVICES": outer})
        gpuledger("retry", "--completed", "exp_0_0", cwd=tmp_path)
    seen = [one["worker"].partition(":")[2] for one in records(tmp_path / "record.jsonl")]
    assert seen == ["gpu1", "cpu"]


def test_tasks_for_the_cpu_are_left_to_it(tmp_path: Path) -> None:
    env = environment(tmp_path, [LARGE])
    init(tmp_path, "record()\n", more="[resources]\ngpus = 0\n")
    gpuledger("work", "--gpu", "0", cwd=tmp_path, env=env)
    assert records(tmp_path / "record.jsonl") == []
    gpuledger("work", "--cpu", cwd=tmp_path)
    assert [one["worker"][-4:] for one in records(tmp_path / "record.jsonl")] == [":cpu"]


def test_a_driver_that_hangs_stops_nothing_but_the_numbers(tmp_path: Path) -> None:
    env = environment(tmp_path, [LARGE])
    init(tmp_path, "record()\nwait_for('go')\n", "seeds = 3")
    with worker("--gpu", "0", cwd=tmp_path, **env) as one:
        wait_until(lambda: len(records(tmp_path / "record.jsonl")) == 1, because="not started")
        describe(Path(env["FAKE_NVML"]), [FakeGpu(uuid="GPU-bbbb", state="hangs")])
        (tmp_path / "go").touch()
        assert one.wait() == 0, one.text()
    assert status(tmp_path)["counts"]["completed"] == 3


def test_a_driver_that_never_answers_is_not_waited_for(tmp_path: Path) -> None:
    env = environment(tmp_path, [FakeGpu(uuid="GPU-bbbb", state="hangs")])
    code = "from gpuledger.gpu import list_gpus; print(list_gpus(timeout_s=0.3).problem)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=shell_environment(**env),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout == "the NVIDIA driver did not answer for 0.3 s\n"
