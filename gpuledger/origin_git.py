"""Asks git what a folder's code is: the commit, whether it is changed, and the difference.

Git runs what a repository's configuration says, so all that can be turned off is: hooks, the
file-system monitor, external diffs, pagers, prompts, and fetching from anywhere. It writes
nothing, and it is never waited for longer than told.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpuledger.clock import Clock
from gpuledger.origin import digest_of
from gpuledger.process import Answer, CannotStart, ask

FOLDER = "diffs"
MOST_DIFF_BYTES = 1 << 20
STATUS_BYTES = 1 << 16
"""The commit is in the first lines, and one changed file is enough to be dirty."""

GIT = (
    "git",
    "--no-optional-locks",
    "--no-pager",
    *("-c", "core.fsmonitor=false"),
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "protocol.allow=never"),
)
STATUS = (
    *("status", "--porcelain=v2", "--branch", "-z"),
    *("--untracked-files=no", "--ignore-submodules=dirty"),
)
DIFF = (
    *("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--no-relative", "--binary"),
    *("--ignore-submodules=dirty", "--src-prefix=a/", "--dst-prefix=b/", "HEAD", "--"),
)
SETTINGS = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "LC_ALL": "C",
}
PASSED_ON = ("GIT_CONFIG", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM")
"""Of the GIT_ variables only these say nothing about which repository is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GitAnswer:
    """What git said of a folder; see the fields of the same name of `Origin`.

    Attributes:
        asked_at_s: When, on this machine's clock since it started.
        took_s: How long it took.
    """

    commit: str | None = None
    dirty: bool | None = None
    diff: str | None = None
    diff_cut: bool = False
    problem: str | None = None
    asked_at_s: float = 0.0
    took_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GitQuestion:
    """What to ask git.

    Attributes:
        workdir: The folder.
        diffs: Folder that differences are kept in; None: they are not asked for.
        environ: The worker's environment.
        timeout_s: What git gets, all in all.
    """

    workdir: str
    diffs: Path | None
    environ: Mapping[str, str]
    timeout_s: float


def ask_git(question: GitQuestion, *, clock: Clock) -> GitAnswer:
    """Return what git says of a folder, in about `timeout_s` at most; never raises."""
    began_s = clock.boottime()
    found = _status(question)
    if found.dirty and found.commit is not None and question.diffs is not None:
        left_s = question.timeout_s - (clock.boottime() - began_s)
        found = _with_diff(found, question, question.diffs, timeout_s=left_s)
    return _timed(found, began_s, clock)


def _status(question: GitQuestion) -> GitAnswer:
    answer = _run(question, STATUS, timeout_s=question.timeout_s, limit_bytes=STATUS_BYTES)
    if isinstance(answer, GitAnswer):
        return answer
    commit, dirty = None, answer.cut
    for record in answer.output.split(b"\0"):
        if record.startswith(b"# branch.oid "):
            commit = record.removeprefix(b"# branch.oid ").decode("ascii", "replace")
        elif record and not record.startswith(b"#"):
            dirty = True
    if commit == "(initial)":
        return GitAnswer(dirty=dirty, problem="the repository has no commit yet")
    if commit is None or not (commit.isalnum() and len(commit) <= 64):
        return GitAnswer(problem="git gave no answer that is understood")
    return GitAnswer(commit=commit, dirty=dirty)


def _with_diff(
    found: GitAnswer, question: GitQuestion, diffs: Path, *, timeout_s: float
) -> GitAnswer:
    answer = _run(question, DIFF, timeout_s=timeout_s, limit_bytes=MOST_DIFF_BYTES)
    if isinstance(answer, GitAnswer):
        return _changed(found, problem=f"no difference was kept: {answer.problem}")
    digest = digest_of(answer.output)
    try:
        _keep(diffs, digest, answer.output)
    except OSError as error:
        why = os.strerror(error.errno or 0).lower()
        return _changed(found, problem=f"the difference could not be kept: {why}")
    return _changed(found, diff=digest, diff_cut=answer.cut)


def _changed(
    found: GitAnswer, *, diff: str | None = None, diff_cut: bool = False, problem: str | None = None
) -> GitAnswer:
    return GitAnswer(
        commit=found.commit, dirty=found.dirty, diff=diff, diff_cut=diff_cut, problem=problem
    )


def _timed(found: GitAnswer, began_s: float, clock: Clock) -> GitAnswer:
    return GitAnswer(
        commit=found.commit,
        dirty=found.dirty,
        diff=found.diff,
        diff_cut=found.diff_cut,
        problem=found.problem,
        asked_at_s=began_s,
        took_s=clock.boottime() - began_s,
    )


def _run(
    question: GitQuestion, command: tuple[str, ...], *, timeout_s: float, limit_bytes: int
) -> Answer | GitAnswer:
    """Return what git printed, or an answer that says why it did not."""
    try:
        answer = ask(
            [*GIT, "-C", question.workdir, *command],
            env=_environment(question.environ),
            timeout_s=timeout_s,
            limit_bytes=limit_bytes,
        )
    except CannotStart as problem:
        missing = problem.exit_code == 127
        return GitAnswer(problem="git is not installed" if missing else "git cannot be started")
    if answer.cut or answer.exit_code == 0:
        return answer
    if answer.exit_code is None:
        return GitAnswer(problem=f"git did not answer within {question.timeout_s:g} s")
    if b"not a git repository" in answer.errors:
        return GitAnswer(problem="the folder is in no git repository")
    if b"dubious ownership" in answer.errors:
        return GitAnswer(problem="git does not trust the owner of the folder (safe.directory)")
    return GitAnswer(problem=f"git failed with exit code {answer.exit_code}")


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in environ.items()
        if not name.startswith("GIT_") or name.startswith(PASSED_ON)
    }
    return {**inherited, **SETTINGS}


def _keep(diffs: Path, digest: str, content: bytes) -> None:
    """Write a difference once; whoever reads it sees all of it."""
    path = diffs / f"{digest}.diff"
    if path.exists():
        return
    with contextlib.suppress(FileExistsError):
        diffs.mkdir()
        diffs.chmod(diffs.parent.stat().st_mode & 0o7777)  # a group's ledger is the group's
    draft = diffs / f".{digest}-{secrets.token_hex(4)}"
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o640)  # whatever the umask: the folder says who gets here
            file.write(content)
        draft.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
