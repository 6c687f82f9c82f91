"""GPUs: which are there, which are meant, and a sweep that needs the larger one."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from gpuledger.errors import Unavailable
from gpuledger.gpu import Gpu, GpuReport
from gpuledger.gpu_choice import resolve
from tests.fake_nvml import FakeGpu, describe, environment
from tests.helpers import wait_until
from tests.shell import gpuledger, records, tasks, worker, write_sweep

SMALL = FakeGpu(uuid="GPU-aaaa", name="FAKE T4", memory_mib=4096)
LARGE = FakeGpu(uuid="GPU-bbbb", name="FAKE A100", memory_mib=24576)

REPORT = GpuReport(
    gpus=(
        Gpu(index=0, uuid="GPU-aaaa-1", name="T4", memory_total_mib=4096),
        Gpu(index=1, uuid="GPU-bbbb-2", name="A100", memory_total_mib=40960),
        Gpu(index=2, uuid="GPU-cccc-3", name="A100", memory_total_mib=40960),
    )
)


def chosen(selector: str, outer: str | None = None) -> list[tuple[str, str]]:
    environ = {} if outer is None else {"CUDA_VISIBLE_DEVICES": outer}
    return [(one.label, one.visible) for one in resolve(selector, environ=environ, report=REPORT)]


@pytest.mark.parametrize(
    ("selector", "outer", "expected"),
    [
        ("1", None, [("1", "1")]),
        ("2,0,2", None, [("2", "2"), ("0", "0")]),
        ("all", None, [("0", "0"), ("1", "1"), ("2", "2")]),
        ("1", "2,0", [("0", "0")]),
        ("all", "2,0", [("2", "2"), ("0", "0")]),
        ("0", "GPU-cccc", [("2", "GPU-cccc")]),
        ("GPU-bbbb", None, [("1", "1")]),
        ("GPU-bbbb", "1", [("1", "1")]),
        ("MIG-1234", None, [("-mig-1234", "MIG-1234")]),
        ("0", "MIG-1234", [("-mig-1234", "MIG-1234")]),
        ("all", "0,9,1", [("0", "0")]),
        ("all", "0, 2", [("0", "0"), ("2", "2")]),
        ("all", "2nd,1st", [("2", "2"), ("1", "1")]),
        ("all", "1,GPU-cccc", [("1", "1")]),
        ("all", "GPU-cccc,1", [("2", "GPU-cccc")]),
        ("all", "0,-1,1", [("0", "0")]),
    ],
)
def test_an_operators_words_mean(
    selector: str, outer: str | None, expected: list[tuple[str, str]]
) -> None:
    assert chosen(selector, outer) == expected


@pytest.mark.parametrize(
    ("selector", "outer"),
    [("3", None), ("x", None), ("", None), ("GPU-", None), ("GPU-zzzz", None), ("1", "2"),
     ("GPU-aaaa", "1"), ("all", ""), ("all", "-1"), ("0", ""), ("all", "NoDevFiles"),
     ("all", "1,1"), ("all", "GPU-cccc,GPU-cccc-3")],
)  # fmt: skip
def test_what_is_not_there_is_refused_and_what_is_there_named(
    selector: str, outer: str | None
) -> None:
    with pytest.raises(Unavailable) as caught:
        chosen(selector, outer)
    assert "nothing was started" in caught.value.problem
    assert caught.value.exit_code == 69


def test_the_beginning_of_several_uuids_is_refused() -> None:
    twins = GpuReport(gpus=tuple(Gpu(index=i, uuid=f"GPU-aaaa-{i}") for i in (0, 1)))
    with pytest.raises(Unavailable, match="2 GPUs have UUIDs that begin with 'GPU-aaaa'"):
        resolve("GPU-aaaa", environ={}, report=twins)
    assert [one.label for one in resolve("GPU-aaaa-1", environ={}, report=twins)] == ["1"]


SCRIPT = """
import json, os, sys, time
seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER",
        "GPULEDGER_WORKER", "GPULEDGER_ATTEMPT")}
with open("record.jsonl", "a") as file:
    file.write(json.dumps(seen) + "\\n")
"""


def test_work_on_all_gpus_is_one_worker_each(tmp_path: Path) -> None:
    env = environment(tmp_path, [SMALL, LARGE])
    script = SCRIPT + (
        "import pathlib\n"
        "pathlib.Path(seen['GPULEDGER_WORKER']).touch()\n"
        "while not all(pathlib.Path(f'alpha:gpu{n}').exists() for n in (0, 1)): time.sleep(0.01)\n"
    )
    sweep = write_sweep(tmp_path, script=script, text='command = "python train.py"\nseeds = 4\n')
    gpuledger("init", str(sweep), cwd=tmp_path)

    with worker("--gpus", "all", cwd=tmp_path, **env) as both:
        assert both.wait() == 0, both.text()

    seen = records(tmp_path / "record.jsonl")
    assert {(one["GPULEDGER_WORKER"], one["CUDA_VISIBLE_DEVICES"]) for one in seen} == {
        ("alpha:gpu0", "0"),
        ("alpha:gpu1", "1"),
    }
    assert {one["CUDA_DEVICE_ORDER"] for one in seen} == {"PCI_BUS_ID"}


def test_all_workers_of_a_parent_leave_with_it(tmp_path: Path) -> None:
    env = environment(tmp_path, [SMALL, LARGE])
    sweep = write_sweep(
        tmp_path, script=SCRIPT + "time.sleep(600)\n", text='command = "python train.py"\nseeds = 2'
    )
    gpuledger("init", str(sweep), cwd=tmp_path)

    with worker("--gpu", "0,1", cwd=tmp_path, **env) as both:
        wait_until(lambda: len(records(tmp_path / "record.jsonl")) == 2, because="not started")
        both.send(signal.SIGTERM)
        assert both.wait(timeout_s=25) == 130

    assert {
        attempt["outcome"] for task in tasks(tmp_path).values() for attempt in task["attempts"]
    } == {"interrupted"}


def test_a_gpu_that_is_not_there_is_an_error_with_a_hint(tmp_path: Path) -> None:
    env = environment(tmp_path, [SMALL, LARGE])
    sweep = write_sweep(tmp_path, script="", text='command = "true"')
    gpuledger("init", str(sweep), cwd=tmp_path)

    done = gpuledger("work", "--gpu", "7", cwd=tmp_path, env=env, exit_code=69)

    assert "there is no GPU '7' here" in done.stderr
    assert "0 (FAKE T4), 1 (FAKE A100)" in done.stderr


def test_out_of_memory_on_a_small_gpu_is_mended_by_a_large_one(tmp_path: Path) -> None:
    script = SCRIPT + (
        "if 'alpha' in seen['GPULEDGER_WORKER']:\n"
        "    class OutOfMemoryError(RuntimeError): pass\n"
        "    OutOfMemoryError.__module__ = 'torch'\n"
        "    raise OutOfMemoryError('CUDA out of memory. Tried to allocate 9.00 GiB.')\n"
    )
    small = environment(tmp_path, [SMALL], name="small")
    large = environment(tmp_path, [LARGE], name="large")
    busy = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\n"
    (tmp_path / "busy.py").write_text(busy)
    (tmp_path / "busy.toml").write_text('command = "python busy.py"\n')
    gpuledger("init", "busy.toml", cwd=tmp_path)
    with worker("--gpu", "0", cwd=tmp_path, host="beta", **large) as beta:
        beta.wait_for("busy_0_0")
        # Without avoid, only the memory keeps the small one from trying again at once.
        text = 'command = "python train.py"\n[run]\navoid = "0s"\n'
        gpuledger("init", str(write_sweep(tmp_path, script=script, text=text)), cwd=tmp_path)
        with worker("--gpu", "0", cwd=tmp_path, **small) as alpha:
            alpha.wait_for("CUDA out of memory")
            (tmp_path / "go").touch()
            assert beta.wait() == 0
            assert alpha.wait() == 0

    attempts = tasks(tmp_path)["exp_0_0"]["attempts"]
    assert [(one["worker"], one["outcome"]) for one in attempts] == [
        ("alpha:gpu0", "oom"),
        ("beta:gpu0", "completed"),
    ]


def test_status_shows_the_gpus_and_survives_their_loss(tmp_path: Path) -> None:
    env = environment(tmp_path, [LARGE])
    sweep = write_sweep(
        tmp_path, script=SCRIPT + "time.sleep(600)\n", text='command = "python train.py"\n'
    )
    gpuledger("init", str(sweep), "--lease=3s", "--heartbeat=0.2s", cwd=tmp_path)

    def utilisation() -> object:
        shown = json.loads(gpuledger("status", "--json", cwd=tmp_path).stdout)
        gpus = [gpu for one in shown["workers"] for gpu in one["gpus"]]
        return (
            (gpus[0].get("utilisation_percent"), gpus[0].get("memory_used_mib")) if gpus else None
        )

    with worker("--gpu", "0", cwd=tmp_path, **env) as one:
        wait_until(lambda: utilisation() == (40, 512), because="no GPU was shown")
        describe(Path(env["FAKE_NVML"]), [FakeGpu(uuid="GPU-bbbb", state="lost")])
        wait_until(lambda: utilisation() == (None, None), because="its loss was not shown")
        assert one.process.poll() is None
        one.send(signal.SIGTERM)
        assert one.wait() == 130
