"""What real drivers say, and do not say: the real nvidia-ml-py asks a library that answers so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fake_nvml import FakeGpu, FakePart, describe, environment
from tests.shell import environment as shell_environment
from tests.shell import gpuledger

ME = os.getpid()
ASKS = """
import json
from dataclasses import asdict
from gpuledger.gpu import list_gpus
print(json.dumps(asdict(list_gpus())))
"""


def asked(folder: Path, *gpus: FakeGpu, driver: int = 570) -> dict[str, Any]:
    """Return what `list_gpus` says in a process that sees these GPUs."""
    env = environment(folder, list(gpus))
    describe(Path(env["FAKE_NVML"]), list(gpus), driver=driver)
    done = subprocess.run(
        [sys.executable, "-c", ASKS],
        env=shell_environment(**env),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def gpu(folder: Path, one: FakeGpu, *, driver: int = 570) -> dict[str, Any]:
    (found,) = asked(folder, one, driver=driver)["gpus"]
    assert isinstance(found, dict)
    return found


def memory(found: dict[str, Any]) -> tuple[int | None, int | None, int | None]:
    return found["memory_total_mib"], found["memory_used_mib"], found["memory_free_mib"]


def test_what_the_driver_set_aside_is_neither_used_nor_free(tmp_path: Path) -> None:
    one = FakeGpu(uuid="GPU-aaaa", memory_mib=8192, used_mib=1000)
    assert memory(gpu(tmp_path, one)) == (8192, 1000, 8192 - 1000 - 300)
    # The first version of the question does not tell it from what is used.
    assert memory(gpu(tmp_path, one, driver=470)) == (8192, 1300, 8192 - 1300)


def test_an_old_driver_knows_an_older_list_of_processes(tmp_path: Path) -> None:
    one = FakeGpu(uuid="GPU-aaaa", processes=((ME, 3000), (1, 500)))
    for driver in (570, 535, 470):  # one of 535 has a newest form that nobody else knows
        assert gpu(tmp_path, one, driver=driver)["processes"] == [
            {"pid": ME, "memory_mib": 3000},
            {"pid": 1, "memory_mib": 500},
        ]


def test_clients_of_mps_are_on_the_list(tmp_path: Path) -> None:
    one = FakeGpu(uuid="GPU-aaaa", processes=((1, 30),), clients=((ME, 3000),))
    assert {each["pid"] for each in gpu(tmp_path, one)["processes"]} == {1, ME}


def test_memory_of_nothing_is_not_known(tmp_path: Path) -> None:
    one = FakeGpu(uuid="GPU-aaaa", processes=((ME, 0),))
    assert gpu(tmp_path, one)["processes"] == [{"pid": ME, "memory_mib": None}]


def test_a_gpu_without_memory_of_its_own_has_the_machines(tmp_path: Path) -> None:
    one = FakeGpu(uuid="GPU-aaaa", name="NVIDIA GB10", state="unified", processes=((ME, 3000),))
    total, used, free = memory(gpu(tmp_path, one))
    assert total == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    assert used == 3000  # of the GPU's processes, not of all
    assert free is not None
    assert 0 < free < total


def test_memory_that_the_operating_system_keeps_is_nobodys(tmp_path: Path) -> None:
    one = FakeGpu(
        uuid="GPU-aaaa", memory_mib=96000, used_mib=40000, state="numa", processes=((ME, 3000),)
    )
    assert memory(gpu(tmp_path, one))[:2] == (96000, 3000)


def test_a_gpu_that_is_split_into_nothing_cannot_be_used(tmp_path: Path) -> None:
    found = gpu(tmp_path, FakeGpu(uuid="GPU-aaaa", state="split"))
    assert found["problem"] == "MIG is on, but no instance is there"
    assert not found["lost"]


def test_a_mig_instance_says_its_memory_and_its_gpus_heat(tmp_path: Path) -> None:
    part = FakePart(uuid="MIG-1111", memory_mib=4864, used_mib=12)
    whole = gpu(tmp_path, FakeGpu(uuid="GPU-aaaa", state="split", parts=(part,), temperature_c=61))
    assert whole["problem"] is None
    assert memory(whole) == (None, None, None)  # told to the administrator only
    (found,) = whole["instances"]
    assert memory(found)[:2] == (4864, 12)
    assert (found["utilisation_percent"], found["temperature_c"], found["power_w"]) == (
        None,
        61,
        None,
    )


@pytest.mark.parametrize(
    ("state", "problem", "lost"),
    [("lost", "GPU is lost", True), ("broken", "Unknown Error", False)],
)
def test_one_gpu_that_fails_leaves_the_others(
    tmp_path: Path, state: str, problem: str, lost: bool
) -> None:
    report = asked(tmp_path, FakeGpu(uuid="GPU-aaaa", state=state), FakeGpu(uuid="GPU-bbbb"))
    first, second = report["gpus"]
    assert report["problem"] is None
    assert (first["problem"], first["lost"]) == (problem, lost)
    assert second["uuid"] == "GPU-bbbb"
    assert second["memory_total_mib"] == 24576


OLD_LIBRARY = """
import json, pynvml
for name in ("nvmlMemory_v2", "nvmlDeviceGetMigMode", "nvmlDeviceGetNumaNodeId",
             "nvmlDeviceGetComputeRunningProcesses_v2",
             "nvmlDeviceGetMPSComputeRunningProcesses_v2"):
    delattr(pynvml, name)
uuid = pynvml.nvmlDeviceGetUUID
pynvml.nvmlDeviceGetUUID = lambda handle: uuid(handle).encode()
"""


@pytest.mark.parametrize(("driver", "listed"), [(570, [ME, 1]), (535, None)])
def test_an_older_nvidia_ml_py_is_enough(
    tmp_path: Path, driver: int, listed: list[int] | None
) -> None:
    one = FakeGpu(uuid="GPU-aaaa", used_mib=500, processes=((ME, 3000), (1, 500)))
    env = environment(tmp_path, [one])
    describe(Path(env["FAKE_NVML"]), [one], driver=driver)
    done = subprocess.run(
        [sys.executable, "-c", OLD_LIBRARY + ASKS],
        env=shell_environment(**env),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (found,) = json.loads(done.stdout)["gpus"]
    assert found["uuid"] == "GPU-aaaa"
    assert found["memory_used_mib"] == 500 + 3500 + 300
    assert found["processes"] is listed or [p["pid"] for p in found["processes"]] == listed


def test_doctor_names_instances_and_what_cannot_be_used(tmp_path: Path) -> None:
    part = FakePart(uuid="MIG-1111", name="A100 MIG 1g", memory_mib=10240)
    split = FakeGpu(uuid="GPU-aaaa", state="split", parts=(part,))
    env = environment(tmp_path, [split, FakeGpu(uuid="GPU-bbbb", state="lost")])
    said = gpuledger("doctor", cwd=tmp_path, env=env, exit_code=None).stdout
    lines = [line.split(maxsplit=3) for line in said.splitlines() if " GPU " in line]
    assert [(line[0], line[2], line[3]) for line in lines] == [
        ("ok", "0.0", "A100 MIG 1g, 10 GiB, MIG-1111"),
        ("BAD", "1", "GPU is lost"),
    ]
