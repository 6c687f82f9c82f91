"""The benchmarks count right, and the README says what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.benchmarks import __main__ as program
from tests.benchmarks import capacity, peers, report, throughput
from tests.benchmarks.capacity import Costs
from tests.helpers import wait_until

ROOT = Path(__file__).resolve().parent.parent
COSTS = Costs(task_s=0.002, roster_s=0.0004, roster_row_s=5e-6)


def answer(
    *names: str, began_s: float = 0.0, ended_s: float = 2.0, longest_s: float = 0.1
) -> dict[str, Any]:
    return {"names": names, "began_s": began_s, "ended_s": ended_s, "longest_s": longest_s}


def test_a_task_that_two_workers_got_is_counted_as_such() -> None:
    found = throughput.combine([answer("a", "b"), answer("b", "c", longest_s=0.7)])

    assert (found.done, found.twice, found.longest_s) == (4, 1, 0.7)


def test_the_rate_is_over_the_time_of_all_workers() -> None:
    found = throughput.combine([answer("a", ended_s=1.0), answer("b", began_s=1.0, ended_s=4.0)])

    assert found.per_s == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["gpuledger_ledger", "sqlite_wal", "sqlite_flock"])
def test_several_processes_take_every_task_once(name: str) -> None:
    found = throughput.measure(name, workers=3, seconds=0.2)

    assert found.done > 3
    assert found.twice == 0


def test_what_is_not_installed_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = peers.load("sqlite_wal")
    monkeypatch.setattr(peer, "NEEDS", "no_such_module")
    monkeypatch.setattr(peers, "NAMES", ("sqlite_wal",))

    found = throughput.run(counts=[1], rounds=1, seconds=0.1, many=None)

    assert found["peers"] == {}
    assert "no_such_module is not installed" in found["left_out"][peer.LABEL]


def test_a_peer_that_breaks_is_left_out_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, *, workers: int, seconds: float) -> None:
        raise throughput.BrokenPeer(f"{name} fell over")

    monkeypatch.setattr(throughput, "measure", broken)
    monkeypatch.setattr(peers, "NAMES", ("sqlite_wal",))

    found = throughput.run(counts=[1, 4], rounds=2, seconds=0.1, many=None)

    assert found["peers"] == {}
    assert "sqlite_wal fell over" in found["left_out"].values()


def test_a_published_error_has_no_paths() -> None:
    assert throughput._last_line("x\nError: cannot read /data/me/x today") == (
        "Error: cannot read today"
    )


@pytest.mark.parametrize(
    ("workers", "task_s"), [(100, 1.0), (1_000, 1.0), (1_000, 60.0), (5_000, 60.0), (10_000, 600.0)]
)
def test_the_model_agrees_with_the_simulation(workers: int, task_s: float) -> None:
    modelled = capacity.utilisation(COSTS, workers=workers, task_s=task_s)
    simulated = capacity.simulate(
        COSTS, workers=workers, task_s=task_s, horizon_s=max(6 * task_s, 600.0)
    )

    assert modelled == pytest.approx(simulated, abs=0.06)


def test_one_worker_more_than_the_most_is_too_many() -> None:
    most = capacity.most_workers(COSTS, task_s=60.0)

    assert capacity.utilisation(COSTS, workers=most, task_s=60.0) >= capacity.ENOUGH
    assert capacity.utilisation(COSTS, workers=most + 1, task_s=60.0) < capacity.ENOUGH


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(program.RESULTS.read_text(encoding="utf-8"))
    return found


def test_the_readme_shows_the_results_that_are_kept() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    assert report.into_readme(readme, results()) == readme


def test_the_picture_shows_the_results_that_are_kept() -> None:
    assert program.PICTURE.read_text(encoding="utf-8") == report.svg(results()["throughput"])


def test_the_results_name_no_machine_and_no_folder() -> None:
    text = program.RESULTS.read_text(encoding="utf-8")

    assert "/home" not in text
    assert "/tmp" not in text
    assert not {"host", "hostname", "nodename"} & set(results()["machine"])


def test_a_peers_server_runs_for_as_long_as_it_is_measured(tmp_path: Path) -> None:
    program = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"

    def server(folder: Path) -> list[str]:
        return ["sh", "-c", f'cd {folder} && exec {sys.executable} -c "{program}"']

    with throughput._server_of(SimpleNamespace(server=server), tmp_path):
        pid = wait_until(lambda: _content(tmp_path / "pid"), because="it runs")
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()


def _content(path: Path) -> str:
    return path.read_text() if path.exists() else ""
