"""backup, recover, and what workers and commands say to a damaged ledger, as their users see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli_support import Lab, make_lab
from tests.helpers import wait_until
from tests.shell import gpuledger, states, worker, write_sweep


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return make_lab(tmp_path / ".gpuledger")


def damage(folder: Path) -> None:
    (folder / "ledger.db").write_bytes(b"this is no database" * 3000)


def test_a_backup_is_made_and_listed(lab: Lab) -> None:
    assert "There is no backup yet" in lab.run("backup", "--list").stderr
    made = json.loads(lab.run("backup", "--json").stdout)
    assert Path(made["path"]).stat().st_size == made["size_bytes"]
    assert "checked" in lab.run("backup").stdout
    assert made["path"] in lab.run("backup", "--list").stdout
    listed = json.loads(lab.run("backup", "--list", "--json").stdout)
    assert made in listed


def test_a_damaged_ledger_is_recovered_in_one_command(lab: Lab) -> None:
    lab.complete(loss=1.0)
    lab.run("backup")
    damage(lab.ledger.folder)

    for command in (["status", "--once"], ["retry", "--failed"], ["backup"], ["work", "--cpu"]):
        said = lab.run(*command, exit_code=74).stderr
        assert "is damaged" in said
        assert "gpuledger recover" in said

    said = lab.run("recover").stdout
    assert "Damage: file is not a database" in said
    assert "damaged files are kept" in said
    assert json.loads(lab.run("status", "--json").stdout)["counts"]["completed"] == 1
    assert "nothing was done" in lab.run("recover").stdout
    told = json.loads(lab.run("recover", "--force", "--json").stdout)
    assert told["epoch"] == 3


def test_a_ledger_whose_file_is_gone_is_recovered(lab: Lab) -> None:
    lab.run("backup")
    (lab.ledger.folder / "ledger.db").unlink()
    assert "its file is missing" in lab.run("recover").stdout
    lab.run("status", "--once")


def test_without_a_backup_it_says_what_else_can_be_done(lab: Lab) -> None:
    damage(lab.ledger.folder)
    said = lab.run("recover", exit_code=69).stderr
    assert "no good backup" in said
    assert "nothing was changed" in said


def test_a_backup_that_is_none_is_not_restored(lab: Lab, tmp_path: Path) -> None:
    bad = tmp_path / "bad.db"
    bad.write_bytes(b"x" * 5000)
    said = lab.run("recover", "--from", str(bad), "--force", exit_code=74).stderr
    assert str(bad) in said
    lab.run("status", "--once")


WAITS = """
import os, time
with open("on", "a") as file:
    file.write("x")
while not os.path.exists("go"):
    time.sleep(0.02)
"""
TEXT = 'command = ["{python}", "train.py"]\n'


def test_workers_stop_at_damage_and_their_outcomes_survive_the_recovery(tmp_path: Path) -> None:
    """Damaged while a task runs: its worker leaves with 74; after `recover` the task is done."""
    gpuledger("init", str(write_sweep(tmp_path, script=WAITS, text=TEXT)), cwd=tmp_path)
    with worker("--cpu", cwd=tmp_path) as running:
        wait_until((tmp_path / "on").exists, because="the task runs")
        damage(tmp_path / ".gpuledger")
        (tmp_path / "go").touch()
        assert running.wait() == 74
        assert "gpuledger recover" in running.text()

    assert "1 new attempt, 1 ending" in gpuledger("recover", cwd=tmp_path).stdout
    assert states(tmp_path)["completed"] == 1


def test_a_worker_lives_through_a_recovery(tmp_path: Path) -> None:
    """The task that runs while others recover the ledger ends as if nothing had been."""
    gpuledger("init", str(write_sweep(tmp_path, script=WAITS, text=TEXT)), cwd=tmp_path)
    with worker("--cpu", cwd=tmp_path) as running:
        wait_until((tmp_path / "on").exists, because="the task runs")
        damage(tmp_path / ".gpuledger")
        assert "1 new attempt, 0 endings" in gpuledger("recover", cwd=tmp_path).stdout
        (tmp_path / "go").touch()
        assert running.wait() == 0, running.text()

    assert (tmp_path / "on").read_text() == "x"
    assert states(tmp_path)["completed"] == 1


def test_a_task_that_the_recovered_ledger_does_not_know_is_ended(tmp_path: Path) -> None:
    """Its diary was lost as well: the running processes are ended before others start it anew."""
    gpuledger("init", str(write_sweep(tmp_path, script=WAITS, text=TEXT)), cwd=tmp_path)
    with worker("--cpu", cwd=tmp_path) as running:
        wait_until((tmp_path / "on").exists, because="the task runs")
        for diary in (tmp_path / ".gpuledger" / "diaries").iterdir():
            diary.unlink()
        damage(tmp_path / ".gpuledger")
        gpuledger("recover", cwd=tmp_path)
        running.wait_for("lease lost, its processes were killed")
        (tmp_path / "go").touch()
        assert running.wait() == 0, running.text()

    assert states(tmp_path)["completed"] == 1
    assert (tmp_path / "on").read_text() == "xx"
