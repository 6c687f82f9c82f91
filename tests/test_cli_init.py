"""init: what becomes of a sweep file, where the ledger goes, and what stays as it was."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from gpuledger.ledger import Ledger
from gpuledger.model import WorkerIdentity
from tests.cli_support import run

SWEEP = """
command = "python train.py --lr {lr} --seed {seed}"
seeds = [42, 43]
[parameters]
lr = [0.1, 0.01]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, the current one, with a sweep file of four tasks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPULEDGER_DIR", raising=False)
    (tmp_path / "exp1.toml").write_text(SWEEP, encoding="utf-8")
    return tmp_path


def ledger_at(folder: Path) -> Ledger:
    return Ledger.open(folder / ".gpuledger")


def test_init_makes_a_ledger_here_with_a_task_for_every_point_and_seed(here: Path) -> None:
    told = run("init", "exp1.toml")
    assert f"Ledger: {here / '.gpuledger'} (new)" in told.stdout
    assert "Sweep exp1: 4 tasks added." in told.stdout
    assert "gpuledger work" in told.stderr
    assert len(ledger_at(here).tasks()) == 4


def test_only_its_owner_can_look_into_a_new_ledger(here: Path) -> None:
    run("init", "exp1.toml")
    assert stat.S_IMODE((here / ".gpuledger").stat().st_mode) == 0o700


def test_a_shared_ledger_is_open_to_its_group(here: Path) -> None:
    run("init", "exp1.toml", "--shared")
    assert stat.S_IMODE((here / ".gpuledger").stat().st_mode) == 0o2770


def test_init_from_a_folder_below_adds_to_the_ledger_above(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("init", "exp1.toml")
    below = here / "deep" / "below"
    below.mkdir(parents=True)
    (below / "exp2.toml").write_text(SWEEP, encoding="utf-8")
    monkeypatch.chdir(below)
    run("init", "exp2.toml")
    assert not (below / ".gpuledger").exists()
    assert [sweep.name for sweep in ledger_at(here).snapshot().sweeps] == ["exp1", "exp2"]


def test_init_again_adds_what_is_new_and_keeps_names_and_history(here: Path) -> None:
    run("init", "exp1.toml")
    ledger = ledger_at(here)
    worker = ledger.register(
        WorkerIdentity(nonce="n", name="w", host="h", machine="m", pid=1, pid_start=1)
    )
    claim = ledger.claim(worker)
    (here / "exp1.toml").write_text(
        SWEEP.replace("[0.1, 0.01]", "[0.1, 0.5]") + "[run]\nmax_attempts = 5\n", encoding="utf-8"
    )
    before = {task.task: (task.params, task.seed) for task in ledger.tasks()}

    told = run("init", "exp1.toml").stdout

    assert "Sweep exp1: 2 tasks added, 2 kept as they are." in told
    assert "2 tasks no longer in the file: 0 cancelled, 2 kept (--prune" in told
    assert "max_attempts" in told
    after = {task.task: (task.params, task.seed) for task in ledger.tasks()}
    assert after.items() >= before.items()
    assert len(after) == 6
    assert ledger.claim(worker).task == claim.task  # type: ignore[union-attr]


def test_prune_cancels_pending_tasks_that_left_the_file(here: Path) -> None:
    run("init", "exp1.toml")
    (here / "exp1.toml").write_text(SWEEP.replace("[0.1, 0.01]", "[0.1]"), encoding="utf-8")
    told = run("init", "exp1.toml", "--prune").stdout
    assert "2 tasks no longer in the file: 2 cancelled, 0 kept." in told
    assert ledger_at(here).snapshot().counts.cancelled == 2


def test_a_dry_run_shows_commands_and_leaves_no_trace(here: Path) -> None:
    told = run("init", "exp1.toml", "--dry-run")
    assert "Sweep exp1: 4 tasks" in told.stdout
    assert "python train.py --lr 0.1 --seed 42" in told.stdout
    assert "... and 1 more" in told.stdout
    assert "Nothing was changed" in told.stderr
    assert [path.name for path in here.iterdir()] == ["exp1.toml"]


def test_a_dry_run_says_what_would_become_of_the_ledger(here: Path) -> None:
    run("init", "exp1.toml")
    (here / "exp1.toml").write_text(SWEEP.replace("0.01]", "0.5]"), encoding="utf-8")
    before = (here / ".gpuledger" / "ledger.db").read_bytes()

    told = run("init", "exp1.toml", "--dry-run").stdout

    assert "Sweep exp1: 2 tasks added, 2 kept as they are." in told
    assert "2 tasks no longer in the file" in told
    plan = json.loads(run("init", "exp1.toml", "--dry-run", "--json").stdout)
    assert (plan["would"]["added"], plan["would"]["missing"]) == (2, 2)
    assert (here / ".gpuledger" / "ledger.db").read_bytes() == before


def test_how_long_an_attempt_may_take_is_said(here: Path) -> None:
    assert (
        "ended after 2h 00m ([run] timeout); a task has 3 attempts"
        in run("init", "exp1.toml").stdout
    )
    (here / "exp1.toml").write_text(f'{SWEEP}[run]\ntimeout = "none"\nmax_attempts = 1\n')
    assert "as long as it needs; a task has 1 attempt." in run("init", "exp1.toml").stdout


@pytest.mark.parametrize(
    ("command", "warned"),
    [
        ("python train.py {args}", True),
        ("python3 -u train.py", True),
        ("python there.py", False),
        ("python -m train.py", False),
        ("python {lr}.py", False),
        ("sh train.py", False),
    ],
)
def test_a_script_that_is_not_there_is_noticed(here: Path, command: str, warned: bool) -> None:
    (here / "there.py").touch()
    (here / "a.toml").write_text(f'command = "{command}"\n[parameters]\nlr = [1]\n')
    told = run("init", "a.toml", "--dry-run").stderr
    assert (f"Warning: there is no {here / 'train.py'}." in told) is warned


def test_another_ledger_beside_the_sweep_file_is_noticed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("init", "exp1.toml")
    above = here / "above"
    above.mkdir()
    monkeypatch.chdir(above)
    (above / ".gpuledger").mkdir()
    told = run("init", str(here / "exp1.toml"), "--dry-run").stderr
    assert f"Warning: {here / '.gpuledger'} is a ledger, too" in told
    given = run("init", str(here / "exp1.toml"), "--ledger", str(here))
    assert "a ledger, too" not in given.stderr
    (here / "link").symlink_to(above)
    above.joinpath(".gpuledger").rmdir()
    assert "a ledger, too" not in run("init", "../link/../exp1.toml", "--dry-run").stderr


def test_a_plan_that_cannot_be_made_stops_no_dry_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("init", "exp1.toml")
    database = here / ".gpuledger" / "ledger.db"
    with database.open("r+b") as file:  # as an older version made it
        file.seek(60)
        file.write((1).to_bytes(4, "big"))
    before = database.read_bytes()
    told = run("init", "exp1.toml", "--dry-run")
    assert "is not looked up" in told.stderr
    assert "Sweep exp1: 4 tasks" in told.stdout
    assert database.read_bytes() == before
    database.write_bytes(b"no database at all" * 999)
    assert "Sweep exp1: 4 tasks" in run("init", "exp1.toml", "--dry-run").stdout


def test_a_name_too_long_for_a_file_is_no_error(here: Path) -> None:
    (here / "a.toml").write_text(f'command = "python {"a" * 300}.py"\n[parameters]\nlr = [1]\n')
    assert "Warning: there is no " in run("init", "a.toml", "--dry-run").stderr


def test_control_characters_of_a_sweep_file_are_shown_not_obeyed(here: Path) -> None:
    evil = SWEEP.replace("[0.1, 0.01]", r'["\u001b[2J\u202e"]')
    (here / "evil.toml").write_text(evil, encoding="utf-8")
    shown = run("init", "evil.toml", "--dry-run").stdout
    assert r"\x1b[2J" in shown
    assert not set(shown) & set("\x1b\u202e")


def test_a_dry_run_as_json_has_the_commands_as_argument_lists(here: Path) -> None:
    plan = json.loads(run("init", "exp1.toml", "--dry-run", "--json").stdout)
    assert plan["tasks"] == 4
    assert plan["commands"][0] == ["python", "train.py", "--lr", "0.1", "--seed", "42"]


def test_init_as_json_says_what_it_did(here: Path) -> None:
    done = json.loads(run("init", "exp1.toml", "--json").stdout)
    assert done["ledger"] == str(here / ".gpuledger")
    assert (done["name"], done["created"], done["added"]) == ("exp1", True, 4)


@pytest.mark.parametrize(
    "content", [b"command = [", b"\xff\xfe\x00", b"", b"[parameters]\nlr = [1]\n"]
)
def test_a_bad_file_is_one_sentence_and_leaves_the_ledger_as_it_was(
    here: Path, content: bytes
) -> None:
    run("init", "exp1.toml")
    (here / "bad.toml").write_bytes(content)
    counter = ledger_at(here).store.change_counter()
    told = run("init", "bad.toml", exit_code=65)
    assert told.stderr.count("error: ") == 1
    assert told.stdout == ""
    assert ledger_at(here).store.change_counter() == counter


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_bad_first_file_makes_no_ledger(here: Path, name: str) -> None:
    assert "error: " in run("init", name, exit_code=65).stderr
    assert not (here / ".gpuledger").exists()


def test_lease_and_heartbeat_are_those_of_the_new_ledger(here: Path) -> None:
    run("init", "exp1.toml", "--lease", "30s", "--heartbeat", "2s")
    assert (ledger_at(here).lease_s, ledger_at(here).heartbeat_s) == (30, 2)


def test_a_short_lease_alone_gets_a_heartbeat_that_fits(here: Path) -> None:
    run("init", "exp1.toml", "--lease", "6s")
    assert ledger_at(here).heartbeat_s == 2


@pytest.mark.parametrize(
    "options",
    [
        ["--heartbeat", "30s"],
        ["--heartbeat", "0"],
        ["--lease", "3s", "--heartbeat", "2s"],
        ["--lease", "0.1"],
        ["--lease", "soon"],
    ],
)
def test_times_that_do_not_go_together_are_wrong_usage(here: Path, options: list[str]) -> None:
    assert "nothing was changed" in run("init", "exp1.toml", *options, exit_code=2).stderr
    assert not (here / ".gpuledger").exists()


@pytest.mark.parametrize("options", [["--lease", "90s"], ["--heartbeat", "1s"], ["--shared"]])
def test_what_is_for_a_new_ledger_is_refused_for_an_old_one(here: Path, options: list[str]) -> None:
    run("init", "exp1.toml")
    (here / "exp2.toml").write_text(SWEEP, encoding="utf-8")
    told = run("init", "exp2.toml", *options, exit_code=2).stderr
    assert f"{options[0]} is for a new ledger" in told
    assert len(ledger_at(here).snapshot().sweeps) == 1
    run("init", "exp2.toml", "--lease", "60s")  # what it has already is fine


def test_ledger_names_the_folder_itself_or_the_one_around_it(here: Path) -> None:
    run("init", "exp1.toml", "--ledger", "there.gpuledger")
    assert (here / "there.gpuledger" / "ledger.db").exists()
    assert "0 tasks added" in run("init", "exp1.toml", "--ledger", "there.gpuledger").stdout

    project = here / "project"
    project.mkdir()
    (project / "train.py").touch()
    run("init", "exp1.toml", "--ledger", "project")
    assert (project / ".gpuledger" / "ledger.db").exists()
    assert "exp1_0_42" in run("tasks", "--names", "--ledger", "project").stdout
    assert "exp1_0_42" in run("tasks", "--names", "--ledger", "project/.gpuledger").stdout


def test_pause_and_resume_name_the_sweeps_they_changed(here: Path) -> None:
    run("init", "exp1.toml")
    assert "Paused: exp1." in run("pause", "exp1", "--reason", "moving the data").stdout
    assert ledger_at(here).snapshot().sweeps[0].paused == "moving the data"
    assert "Paused nothing" in run("pause").stdout
    assert json.loads(run("resume", "--json").stdout) == {"resumed": ["exp1"]}
    assert "Resumed nothing" in run("resume").stdout
    assert "no sweep is named 'exp7'" in run("pause", "exp7", exit_code=65).stderr
    assert "no sweep is named '模型\\x1b'" in run("pause", "模型\x1b", exit_code=65).stderr
