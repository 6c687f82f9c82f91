"""Where attempts come from: real git repositories, real workers, and no secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuledger.clock import SystemClock
from gpuledger.diary import Diary, read_diaries
from gpuledger.errors import BadSweepFile
from gpuledger.ledger import Ledger
from gpuledger.model import Claim, Ending, Finished, Outcome, Token
from gpuledger.origin import (
    KEPT_NAMES,
    LONGEST_TEXT,
    MOST_ARGUMENTS,
    Origin,
    Packages,
    digest_of,
    kept_arguments,
    kept_variables,
)
from gpuledger.origin_git import MOST_DIFF_BYTES, GitAnswer, GitQuestion, ask_git
from gpuledger.origin_reader import OriginReader, Start, interpreter_of, packages_of
from gpuledger.outbox import letters, post
from gpuledger.process import ask
from gpuledger.sweep import read_sweep
from tests import fake_nvml
from tests.helpers import ManualClock, failure, identity, spec, wait_until
from tests.shell import environment, gpuledger, processes_with, tasks, worker, write_sweep

README = Path(__file__).resolve().parent.parent / "README.md"
CANARY = "canary-7f3a9c"
IDENTITY = ("-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false")


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *IDENTITY, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def repository(folder: Path, **files: str) -> str:
    """Make a repository of these files; return its commit."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet")
    for name, content in {"train.py": "print(1)\n", **files}.items():
        (folder / name).write_text(content, encoding="utf-8")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "one")
    return git(folder, "rev-parse", "HEAD")


def asked(
    folder: Path, *, diffs: Path | None = None, timeout_s: float = 60.0, **environ: str
) -> GitAnswer:
    question = GitQuestion(
        workdir=str(folder), diffs=diffs, environ=environment(**environ), timeout_s=timeout_s
    )
    return ask_git(question, clock=SystemClock())


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


# --- git --------------------------------------------------------------------------------------


def test_a_clean_repository_has_a_commit_and_no_difference(tmp_path: Path) -> None:
    commit = repository(tmp_path / "repo")
    (tmp_path / "repo" / "untracked.txt").touch()

    answer = asked(tmp_path / "repo", diffs=tmp_path / "diffs")

    assert (answer.commit, answer.dirty, answer.diff, answer.problem) == (commit, False, None, None)
    assert not (tmp_path / "diffs").exists()


def test_a_difference_is_kept_once_and_can_be_applied(tmp_path: Path) -> None:
    repo, diffs = tmp_path / "repo", tmp_path / "diffs"
    commit = repository(repo)
    (repo / "train.py").write_text("print(2)\n", encoding="utf-8")
    (repo / "new.bin").write_bytes(bytes(range(256)))
    git(repo, "add", "new.bin")

    first, second = asked(repo, diffs=diffs), asked(repo, diffs=diffs)

    assert (first.commit, first.dirty, first.diff_cut) == (commit, True, False)
    assert first.diff == second.diff
    (kept,) = diffs.iterdir()
    assert kept.name == f"{first.diff}.diff"
    assert digest_of(kept.read_bytes()) == first.diff
    git(repo, "reset", "--quiet", "--hard")
    git(repo, "apply", str(kept))
    assert (repo / "train.py").read_text(encoding="utf-8") == "print(2)\n"
    assert (repo / "new.bin").read_bytes() == bytes(range(256))


def test_the_difference_of_the_whole_repository_is_kept_whatever_git_is_configured_to(
    tmp_path: Path,
) -> None:
    repo, diffs = tmp_path / "repo", tmp_path / "diffs"
    repository(repo)
    (repo / "below").mkdir()
    (repo / "train.py").write_text("print(2)\n", encoding="utf-8")
    for name, value in (
        ("diff.relative", "true"), ("diff.noprefix", "true"), ("color.ui", "always"),
        ("diff.external", "echo external"), ("core.pager", "echo pager"),
    ):  # fmt: skip
        git(repo, "config", name, value)

    answer = asked(repo / "below", diffs=diffs)

    text = (diffs / f"{answer.diff}.diff").read_text(encoding="utf-8")
    assert text.startswith("diff --git a/train.py b/train.py\n")
    assert text.endswith("-print(1)\n+print(2)\n")


def test_a_huge_difference_is_cut_and_said_to_be(tmp_path: Path) -> None:
    repo, diffs = tmp_path / "repo", tmp_path / "diffs"
    repository(repo)
    (repo / "train.py").write_text("x" * 99 + "\n" + ("y" * 99 + "\n") * 30_000, encoding="utf-8")

    answer = asked(repo, diffs=diffs)

    assert (answer.dirty, answer.diff_cut, answer.problem) == (True, True, None)
    assert (diffs / f"{answer.diff}.diff").stat().st_size == MOST_DIFF_BYTES


def test_a_repository_without_a_commit_says_so(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "train.py").touch()
    git(tmp_path, "add", "train.py")

    answer = asked(tmp_path, diffs=tmp_path / "diffs")

    assert (answer.commit, answer.dirty, answer.diff) == (None, True, None)
    assert answer.problem == "the repository has no commit yet"


def test_a_folder_that_is_no_repository_says_so(tmp_path: Path) -> None:
    answer = asked(tmp_path, GIT_CEILING_DIRECTORIES=str(tmp_path.parent))
    assert answer.problem == "the folder is in no git repository"


def test_a_folder_that_is_gone_is_a_problem_of_git(tmp_path: Path) -> None:
    assert asked(tmp_path / "gone").problem == "git failed with exit code 128"


def test_a_machine_without_git_says_so(tmp_path: Path) -> None:
    assert asked(tmp_path, PATH=str(tmp_path)).problem == "git is not installed"


def test_a_git_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    mark = f"hangs-{tmp_path.name}-{os.getpid()}"
    program(tmp_path / "bin" / "git", "#!/bin/sh\nsleep 600 &\nsleep 600\n")

    answer = asked(tmp_path, timeout_s=0.2, PATH=f"{tmp_path / 'bin'}:/bin:/usr/bin", MARKED=mark)

    assert answer.problem == "git did not answer within 0.2 s"
    wait_until(lambda: not processes_with(mark), because="what git started is still there")


def test_variables_that_name_another_repository_are_not_passed_on(tmp_path: Path) -> None:
    commit = repository(tmp_path / "repo")
    repository(tmp_path / "other", other="1")
    other = str(tmp_path / "other" / ".git")

    answer = asked(tmp_path / "repo", GIT_DIR=other, GIT_INDEX_FILE=f"{other}/index")

    assert (answer.commit, answer.dirty) == (commit, False)


def test_neither_hooks_nor_a_monitor_run_and_nothing_is_written(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    repository(repo)
    ran = tmp_path / "ran"
    monitor = program(tmp_path / "monitor", f"#!/bin/sh\ntouch {ran}\n")
    program(repo / ".git" / "hooks" / "post-index-change", f"#!/bin/sh\ntouch {ran}\n")
    git(repo, "config", "core.fsmonitor", str(monitor))
    index = repo / ".git" / "index"
    os.utime(repo / "train.py", (1, 1))  # git would refresh its index
    before = index.read_bytes()

    assert asked(repo).dirty is False
    assert not ran.exists()
    assert index.read_bytes() == before


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "-n", "ü\udcff", '"q"', "# branch.oid x"])
def test_hostile_names_of_folders_and_files(tmp_path: Path, name: str) -> None:
    repo = tmp_path / name
    commit = repository(repo)
    (repo / name).write_text("1\n", encoding="utf-8")
    git(repo, "add", "--", name)

    answer = asked(repo, diffs=tmp_path / "diffs")

    assert (answer.commit, answer.dirty, answer.problem) == (commit, True, None)
    assert answer.diff is not None


def test_a_difference_that_cannot_be_kept_leaves_the_commit(tmp_path: Path) -> None:
    commit = repository(tmp_path / "repo")
    (tmp_path / "repo" / "train.py").write_text("print(2)\n", encoding="utf-8")
    (tmp_path / "diffs").write_text("in the way", encoding="utf-8")

    answer = asked(tmp_path / "repo", diffs=tmp_path / "diffs")

    assert (answer.commit, answer.dirty, answer.diff) == (commit, True, None)
    assert answer.problem is not None
    assert answer.problem.startswith("the difference could not be kept: ")


def test_differences_in_a_ledger_of_a_group_are_open_to_it(tmp_path: Path) -> None:
    repository(tmp_path / "repo")
    (tmp_path / "repo" / "train.py").write_text("print(2)\n", encoding="utf-8")
    ledger = Ledger.create(tmp_path / "ledger", shared=True)

    answer = asked(tmp_path / "repo", diffs=ledger.folder / "diffs")

    assert (ledger.folder / "diffs").stat().st_mode & 0o7777 == 0o2770
    kept = ledger.folder / "diffs" / f"{answer.diff}.diff"
    assert kept.stat().st_mode & 0o777 == 0o640


def test_what_a_command_says_is_bounded(tmp_path: Path) -> None:
    answer = ask(["yes"], env=environment(), timeout_s=60.0, limit_bytes=1000)
    assert (len(answer.output), answer.cut, answer.exit_code) == (1000, True, None)
    command = ["sh", "-c", "pwd; echo bad >&2; exit 3"]
    answer = ask(command, env=environment(), timeout_s=60.0, limit_bytes=1000)
    assert (answer.output, answer.errors, answer.exit_code) == (b"/\n", b"bad\n", 3)


# --- the reader -------------------------------------------------------------------------------


def reader(folder: Path, *, clock: Any = None, **environ: str) -> OriginReader:
    return OriginReader(
        folder, environ=environment(**environ), clock=clock or SystemClock(), git_timeout_s=60.0
    )


def start(workdir: Path, *argv: str, record_diff: bool = True, **env: str) -> Start:
    return Start(
        argv=argv or ("python", "train.py"),
        workdir=str(workdir),
        env=environment(**env),
        host="alpha",
        gpus=(),
        record_diff=record_diff,
    )


def taken(found: OriginReader, attempt: Start) -> Origin:
    found.begin(attempt)
    origin = found.take(patience_s=60.0)
    assert origin is not None
    return origin


def test_git_is_asked_again_for_each_attempt_while_it_is_quick(tmp_path: Path) -> None:
    first = repository(tmp_path / "repo")
    found = reader(tmp_path, clock=ManualClock())  # no time passes: git took none
    assert taken(found, start(tmp_path / "repo")).commit == first
    git(tmp_path / "repo", "commit", "--quiet", "--allow-empty", "--message", "two")
    second = taken(found, start(tmp_path / "repo"))
    assert second.commit == git(tmp_path / "repo", "rev-parse", "HEAD") != first


def test_a_slow_git_is_left_alone_for_a_while_and_its_answer_has_an_age(tmp_path: Path) -> None:
    clock = SlowClock()
    first = repository(tmp_path / "repo")
    found = reader(tmp_path, clock=clock)
    took_s = taken(found, start(tmp_path / "repo")).git_age_s
    assert took_s == 0
    git(tmp_path / "repo", "commit", "--quiet", "--allow-empty", "--message", "two")
    again = taken(found, start(tmp_path / "repo"))
    assert again.commit == first
    assert again.git_age_s > 0
    clock.advance(1000)
    assert taken(found, start(tmp_path / "repo")).commit != first


class SlowClock(ManualClock):
    """A clock on which every look takes a second."""

    def boottime(self) -> float:
        self.advance(1)
        return self.boot


def test_nobody_waits_for_a_git_that_hangs(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    program(tmp_path / "bin" / "git", f"#!/bin/sh\nread line < {pipe}\n")
    found = reader(tmp_path, PATH=f"{tmp_path / 'bin'}:/bin:/usr/bin")
    found.begin(start(tmp_path))
    found.begin(start(tmp_path, "python", "second.py"))  # the first is still being looked into

    origin = found.take(patience_s=0.0)

    assert origin is not None
    assert origin.argv == ("python", "second.py")
    assert origin.git_problem == "git did not answer before the attempt ended"
    assert (origin.commit, origin.interpreter, origin.packages) == (None, None, None)
    pipe.write_text("go\n", encoding="utf-8")
    found.take(patience_s=60.0)


def test_the_interpreter_of_an_earlier_attempt_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    program(tmp_path / "bin" / "git", f"#!/bin/sh\n[ ! -e {pipe} ] || read line < {pipe}\n")
    path = f"{tmp_path / 'bin'}:/bin:/usr/bin"
    found = reader(tmp_path, clock=ManualClock(), PATH=path)
    assert taken(found, start(tmp_path, sys.executable, "first.py")).interpreter == sys.executable
    os.mkfifo(pipe)
    found.begin(start(tmp_path, "sh", "second.sh"))

    origin = found.take(patience_s=0.0)

    assert origin is not None
    assert (origin.argv, origin.interpreter) == (("sh", "second.sh"), None)
    assert (origin.packages, origin.environment, origin.python) == (None, None, None)
    pipe.write_text("go\n", encoding="utf-8")
    found.take(patience_s=60.0)


def test_the_packages_of_this_interpreter_are_known(tmp_path: Path) -> None:
    origin = taken(reader(tmp_path), start(tmp_path, sys.executable, "train.py"))
    assert origin.interpreter == sys.executable
    assert origin.python == sys.version.split()[0]
    assert origin.packages is not None
    assert origin.packages.versions["pytest"] == pytest.__version__
    assert origin.environment is not None


def test_the_packages_of_another_interpreter_are_read_without_starting_it(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    python = program(tmp_path / "venv" / "bin" / "python3", f"#!/bin/sh\ntouch {ran}\n")
    site = tmp_path / "venv" / "lib" / "python3.12" / "site-packages"
    for folder, metadata in (
        ("torch-2.9.dist-info", "Metadata-Version: 2.1\nName: torch\nVersion: 2.9\n"),
        ("broken-1.dist-info", "\x00\xff nonsense"),
    ):
        (site / folder).mkdir(parents=True)
        (site / folder / "METADATA").write_text(metadata, encoding="latin-1")

    assert packages_of(str(python)) == Packages(python=None, versions={"torch": "2.9"})
    assert not ran.exists()


def test_the_interpreter_is_the_one_that_the_command_starts(tmp_path: Path) -> None:
    own = program(tmp_path / "bin" / "python3", "")
    launcher = program(tmp_path / "bin" / "torchrun", f"#!{own}\nimport torch\n")
    program(tmp_path / "bin" / "by-env", "#!/usr/bin/env -S python3 -u\n")
    program(tmp_path / "bin" / "shell", "#!/bin/sh\n")
    env = {"PATH": str(tmp_path / "bin")}

    def found(*argv: str) -> str | None:
        return interpreter_of(argv, str(tmp_path), env)

    assert found("python3", "train.py") == str(own)
    assert found("bin/python3", "train.py") == str(own)
    assert found("torchrun") == found(str(launcher)) == found("by-env") == str(own)
    assert found("python") == sys.executable  # what a worker starts where there is none
    assert found("shell") is found("missing") is found("/") is None


# --- what is kept -----------------------------------------------------------------------------


def test_only_listed_variables_are_kept_and_never_secrets() -> None:
    kept = kept_variables(
        {
            "OMP_NUM_THREADS": "3",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "GPULEDGER_PARAMS": "{}",
            "GPULEDGER_SEED": "1",
            "GPULEDGER_TOKEN": CANARY,
            "CUDA_API_KEY": CANARY,
            "WANDB_API_KEY": CANARY,
            "HOME": CANARY,
        }
    )
    assert kept == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "GPULEDGER_PARAMS": "{}",
        "OMP_NUM_THREADS": "3",
    }


@pytest.mark.parametrize("name", sorted(KEPT_NAMES))
def test_every_variable_that_is_kept_is_in_the_readme(name: str) -> None:
    assert f"`{name}`" in README.read_text(encoding="utf-8")
    assert kept_variables({name: "1"}) == {name: "1"}


def test_commands_and_values_of_any_length_stay_small() -> None:
    assert len(kept_variables({"XLA_FLAGS": "x" * 100_000})["XLA_FLAGS"]) == LONGEST_TEXT
    argv = kept_arguments(["x" * 100_000] * 1000)
    assert len(argv) == MOST_ARGUMENTS + 1
    assert max(map(len, argv)) == LONGEST_TEXT


# --- in the ledger ----------------------------------------------------------------------------

ORIGIN = Origin(
    argv=("python", "\x1b[31m.py"),
    commit="a" * 40,
    dirty=True,
    environment="e" * 32,
    packages=Packages(python="3.11.7", versions={"torch": "2.9"}),
)
BARE = replace(ORIGIN, packages=None)


def a_ledger(folder: Path) -> tuple[Ledger, Claim]:
    ledger = Ledger.create(folder / "ledger")
    ledger.add_sweep(spec())
    claim = ledger.claim(ledger.register(identity()))
    assert isinstance(claim, Claim)
    return ledger, claim


def kept(ledger: Ledger) -> Origin | None:
    return ledger.task("exp_0_0").attempts[0].origin


def test_every_way_to_end_an_attempt_keeps_its_origin(tmp_path: Path) -> None:
    for number, how in enumerate(("complete", "fail", "release")):
        ledger, claim = a_ledger(tmp_path / str(number))
        if how == "complete":
            ledger.complete(claim.token, origin=ORIGIN)
        elif how == "fail":
            ledger.fail(claim.token, failure(origin=ORIGIN))
        else:
            ledger.release(claim.token, Ending(outcome=Outcome.INTERRUPTED, origin=ORIGIN))
        assert kept(ledger) == BARE
        assert ledger.packages("e" * 32) == ORIGIN.packages
        assert ledger.packages("f" * 32) is None


def test_a_late_success_brings_its_origin(tmp_path: Path) -> None:
    ledger, claim = a_ledger(tmp_path)
    ledger.reap({"n1": lambda: True})
    assert kept(ledger) is None
    ledger.complete(claim.token, origin=ORIGIN)
    assert kept(ledger) == BARE
    assert ledger.packages("e" * 32) == ORIGIN.packages


def test_outbox_and_diary_give_back_what_they_got(tmp_path: Path) -> None:
    token = Token(task="exp_0_0", number=1, nonce="n1")
    ending = Ending(outcome=Outcome.COMPLETED, origin=ORIGIN)
    post(
        tmp_path,
        identity(),
        Finished(token=token, ending=ending, started_at=1.0, ended_at=2.0),
    )
    assert [letter.finished.ending for letter in letters(tmp_path)] == [ending]

    diary = Diary(tmp_path, identity())
    diary.ended(token, ending, at=1.0)
    diary.ended(token, ending, at=2.0)
    first, second = read_diaries(tmp_path)
    assert first.ending == ending
    assert second.ending == replace(ending, origin=BARE)


# --- with a worker ----------------------------------------------------------------------------


def origin_of(folder: Path, task: str = "exp_0_0") -> dict[str, Any]:
    shown = json.loads(gpuledger("show", task, "--env", "--json", cwd=folder).stdout)
    origin: dict[str, Any] = shown["attempts"][-1]["origin"]
    digest = origin["environment"]
    return {**origin, "packages": shown["environments"].get(digest, {}).get("versions")}


def ran(folder: Path, text: str = "", *, script: str = "", **env: str) -> None:
    sweep = write_sweep(folder, script=script, text=f'command = "python train.py"\n{text}')
    gpuledger("init", str(sweep), cwd=folder)
    with worker("--cpu", cwd=folder, **env) as one:
        assert one.wait() == 0, one.text()


def files_with(folder: Path, text: str) -> list[Path]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert folder / "ledger.db" in paths
    return [path for path in paths if text.encode() in path.read_bytes()]


def test_a_worker_records_where_its_attempts_come_from(tmp_path: Path) -> None:
    commit = repository(tmp_path)
    ran(tmp_path, script="print(2)\n", OMP_NUM_THREADS="3")

    origin = origin_of(tmp_path)
    assert (origin["commit"], origin["dirty"], origin["host"]) == (commit, True, "alpha")
    assert origin["argv"] == ["python", "train.py"]
    assert origin["workdir"] == str(tmp_path)
    assert origin["variables"]["OMP_NUM_THREADS"] == "3"
    assert origin["packages"]["pytest"] == pytest.__version__
    diff = tmp_path / ".gpuledger" / "diffs" / f"{origin['diff']}.diff"
    assert "+print(2)" in diff.read_text(encoding="utf-8")
    assert tasks(tmp_path)["exp_0_0"]["attempts"][0]["origin"] == {
        "commit": commit,
        "dirty": True,
        "environment": origin["environment"],
    }
    shown = gpuledger("show", "exp_0_0", "--env", cwd=tmp_path, env={"COLUMNS": "400"}).stdout
    assert f"{commit}, with changes" in shown
    assert str(diff) in shown
    assert f"{Path(sys.executable).with_name('python')} {sys.version.split()[0]}" in shown


def test_a_sweep_may_keep_its_differences_to_itself(tmp_path: Path) -> None:
    repository(tmp_path)
    ran(tmp_path, "[run]\nrecord_diff = false\n", script=f"print('{CANARY}')\n")
    origin = origin_of(tmp_path)
    assert (origin["dirty"], origin["diff"]) == (True, None)
    assert not (tmp_path / ".gpuledger" / "diffs").exists()


def test_record_diff_is_true_or_false(tmp_path: Path) -> None:
    text = 'command = "python train.py"\n[run]\nrecord_diff = "no"\n'
    with pytest.raises(BadSweepFile, match="record_diff must be true or false"):
        read_sweep(write_sweep(tmp_path, script="", text=text))


def test_a_secret_in_the_environment_reaches_no_file_of_the_ledger(tmp_path: Path) -> None:
    repository(tmp_path)
    names = (
        "WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL", "CUDA_SECRET",
        "GPULEDGER_TOKEN", "SLURM_JWT",
    )  # fmt: skip
    secrets = dict.fromkeys(names, CANARY)
    script = "import os, sys; sys.exit(0 if os.environ['HF_TOKEN'] else 1)\n"
    ran(tmp_path, script=script, OMP_NUM_THREADS="31337", **secrets)

    assert origin_of(tmp_path)["variables"]["OMP_NUM_THREADS"] == "31337"
    assert files_with(tmp_path / ".gpuledger", "31337")  # so this would find the canary
    assert files_with(tmp_path / ".gpuledger", CANARY) == []


def test_a_hanging_git_leaves_the_worker_going(tmp_path: Path) -> None:
    program(tmp_path / "bin" / "git", "#!/bin/sh\nsleep 600\n")
    path = f"{tmp_path / 'bin'}:{environment()['PATH']}"
    ran(tmp_path, "seeds = 3\n", PATH=path)
    known = [task["attempts"][0] for task in tasks(tmp_path).values()]
    assert [attempt["outcome"] for attempt in known] == ["completed"] * 3
    assert {attempt["origin"]["commit"] for attempt in known} == {None}
    # It was not waited for as long as git may take.
    assert origin_of(tmp_path)["git_problem"] == "git did not answer before the attempt ended"


def test_a_task_that_has_not_ended_shows_no_origin(tmp_path: Path) -> None:
    text = 'command = "python train.py"\n'
    gpuledger("init", str(write_sweep(tmp_path, script="", text=text)), cwd=tmp_path)
    shown = gpuledger("show", "exp_0_0", "--env", cwd=tmp_path).stdout
    assert "what it came from is not known: it has no attempt yet" in shown


def test_what_an_origin_says_never_reaches_the_terminal_raw(tmp_path: Path) -> None:
    ledger, claim = a_ledger(tmp_path)
    hostile = "\x1b]0;title\x07[red]"
    found = replace(
        ORIGIN,
        workdir=hostile,
        git_problem=hostile,
        interpreter=hostile,
        variables={hostile: hostile},
        packages=Packages(python=hostile, versions={hostile: hostile}),
    )
    ledger.complete(claim.token, origin=found)
    option = f"--ledger={ledger.folder}"
    shown = gpuledger("show", "exp_0_0", "--env", option, cwd=tmp_path).stdout
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert shown.count("[red]") >= 6


def test_gpus_and_driver_are_named(tmp_path: Path) -> None:
    card = fake_nvml.FakeGpu(uuid="GPU-aaaa", name="FAKE T4", memory_mib=4096)
    env = fake_nvml.environment(tmp_path, [card])
    sweep = write_sweep(tmp_path, script="", text='command = "python train.py"\n')
    gpuledger("init", str(sweep), cwd=tmp_path)
    with worker("--gpu", "0", cwd=tmp_path, **env) as one:
        assert one.wait() == 0, one.text()
    origin = origin_of(tmp_path)
    assert (origin["gpus"], origin["driver"]) == (["FAKE T4"], "555.42.06")


# --- experiment trackers ----------------------------------------------------------------------

NAMES = """
import json, os
names = ("WANDB_RUN_GROUP", "WANDB_NAME", "MLFLOW_RUN_NAME")
with open("names.json", "w") as file:
    json.dump([os.environ.get(name) for name in names], file)
"""


@pytest.mark.parametrize(
    ("run", "outer", "expected"),
    [
        ("", {}, ["exp", "exp_0_0", "exp_0_0"]),
        ("", {"WANDB_NAME": "mine"}, ["exp", "mine", "exp_0_0"]),
        ('[run.env]\nWANDB_RUN_GROUP = "ours"\n', {}, ["ours", "exp_0_0", "exp_0_0"]),
        ('[run.env]\nMLFLOW_RUN_NAME = "a"\n', {"MLFLOW_RUN_NAME": "b"}, ["exp", "exp_0_0", "a"]),
    ],
)
def test_trackers_name_runs_after_tasks_unless_told(
    tmp_path: Path, run: str, outer: Mapping[str, str], expected: list[str]
) -> None:
    ran(tmp_path, run, script=NAMES, **outer)
    assert json.loads((tmp_path / "names.json").read_text(encoding="utf-8")) == expected
