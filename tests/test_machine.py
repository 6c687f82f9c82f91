"""This machine: names, processes that can or cannot be seen, and the kernel's counters."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuledger import machine
from gpuledger.machine import host_name, is_alive, oom_kill_count, this_machine


@pytest.mark.parametrize("pid", [-4_000_000, -1, 0])
def test_an_impossible_number_is_nobody_known(pid: int) -> None:
    assert is_alive(this_machine(), pid, 1) is None


def test_a_number_too_large_is_dead() -> None:
    assert is_alive(this_machine(), 1 << 40, 1) is False


@pytest.mark.parametrize(("refusal", "alive"), [(PermissionError, None), (None, None)])
def test_a_hidden_process_is_not_taken_for_dead(
    monkeypatch: pytest.MonkeyPatch, refusal: type[Exception] | None, alive: bool | None
) -> None:
    def kill(pid: int, signum: int) -> None:
        if refusal is not None:
            raise refusal

    monkeypatch.setattr(machine, "read_process", lambda pid: None)
    monkeypatch.setattr(os, "kill", kill)
    assert is_alive(this_machine(), os.getpid(), 1) is alive


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("gpu-7.lab", "gpu-7.lab"),
        ("a b:c\x1b[2J", "a-b-c-2J"),
        ("x" * 99, "x" * 64),
        (" ", os.uname().nodename.partition(".")[0]),
    ],
)
def test_a_host_may_be_given_a_name(monkeypatch: pytest.MonkeyPatch, given: str, name: str) -> None:
    monkeypatch.setenv("GPULEDGER_HOST", given)

    assert host_name() == name
    assert this_machine().endswith(f":{name}")


def test_the_first_counter_that_counts_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").write_text("low 0\nhigh 0\n")
    (tmp_path / "events").write_text("oom 5\noom_kill 3\noom_group_kill 9\n")
    counters = [tmp_path / "none", tmp_path / "empty", tmp_path / "events"]
    monkeypatch.setattr(machine, "_group_counters", lambda: counters)

    assert oom_kill_count() == 3


def test_the_machine_counts_where_groups_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_group_counters", lambda: [])
    counted = "oom_kill " in Path("/proc/vmstat").read_text()

    assert (oom_kill_count() is not None) is counted


def test_a_control_group_is_found_by_its_path() -> None:
    counters = [str(path) for path in machine._group_counters()]

    assert all(path.startswith("/sys/fs/cgroup") for path in counters)
    assert len(counters) == len(set(counters)) or "/sys/fs/cgroup/memory.events" in counters
