"""Finds out where attempts come from, beside the running task: nobody waits for the answers.

One thread asks git, looks up the interpreter and its packages, and asks for the GPUs. What does
not change is asked once a worker; git is asked for each attempt as long as it is quick.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpuledger import gpu
from gpuledger.clock import Clock
from gpuledger.origin import (
    Origin,
    Packages,
    digest_of,
    kept_arguments,
    kept_packages,
    kept_variables,
    packages_text,
)
from gpuledger.origin_git import FOLDER, GitAnswer, GitQuestion, ask_git

GIT_TIMEOUT_S = 5.0
PATIENCE_S = 2.0
"""How long the end of an attempt waits for what is not known yet; a short task meets this."""

REST = 20
"""After an answer git is left alone for so many times what it took: it gets a twentieth."""

PYTHON = re.compile(r"(python|pypy)[0-9.]*")
LONGEST_FIRST_LINE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """An attempt that starts.

    Attributes:
        argv: Its command, every placeholder filled in.
        workdir: The folder that it starts in.
        env: Its whole environment.
        host: Host name.
        gpus: As in its CUDA_VISIBLE_DEVICES; empty on the CPU.
        record_diff: Keep what is changed since the commit.
    """

    argv: Sequence[str]
    workdir: str
    env: Mapping[str, str]
    host: str
    gpus: tuple[str, ...]
    record_diff: bool


class OriginReader:
    """Tells where the attempts of one worker come from: `begin` with each, `take` at its end."""

    def __init__(
        self,
        folder: Path,
        *,
        environ: Mapping[str, str],
        clock: Clock,
        git_timeout_s: float = GIT_TIMEOUT_S,
    ) -> None:
        self._diffs = folder / FOLDER
        self._environ = environ
        self._clock = clock
        self._git_timeout_s = git_timeout_s
        self._thread: threading.Thread | None = None
        # Each is replaced as a whole by the thread, so that `take` may read at any time.
        self._git: dict[tuple[str, bool], GitAnswer] = {}
        self._interpreter: str | None = None
        self._packages: dict[str, tuple[Packages, str] | None] = {}
        self._gpus: tuple[tuple[str, ...], str | None] | None = None
        self._start: Start | None = None
        self._looked_at: Start | None = None
        self._began_s = 0.0

    def begin(self, start: Start) -> None:
        """Look into an attempt that is about to start; returns at once."""
        self._start = start
        self._began_s = self._clock.boottime()
        if self._thread is not None and self._thread.is_alive():
            return  # it hangs in a driver or a file system; what is known has to do
        self._thread = threading.Thread(
            target=self._look, args=(start,), name="origin", daemon=True
        )
        self._thread.start()

    def take(self, *, patience_s: float = PATIENCE_S) -> Origin | None:
        """Return where the attempt that began last comes from, as far as that is known by now."""
        start = self._start
        if start is None:
            return None
        if self._thread is not None:
            self._thread.join(max(patience_s, 0.0))
        origin = Origin(
            argv=kept_arguments(start.argv),
            workdir=start.workdir,
            host=start.host,
            variables=kept_variables(start.env),
        )
        origin = self._with_git(origin, start)
        if self._gpus is not None:
            origin = replace(origin, gpus=self._gpus[0], driver=self._gpus[1])
        return self._with_packages(origin) if self._looked_at is start else origin

    def _with_git(self, origin: Origin, start: Start) -> Origin:
        answer = self._git.get((start.workdir, start.record_diff))
        if answer is None:
            return replace(origin, git_problem="git did not answer before the attempt ended")
        return replace(
            origin,
            commit=answer.commit,
            dirty=answer.dirty,
            diff=answer.diff,
            diff_cut=answer.diff_cut,
            git_problem=answer.problem,
            git_age_s=round(max(self._began_s - answer.asked_at_s, 0.0), 3),
        )

    def _with_packages(self, origin: Origin) -> Origin:
        interpreter = self._interpreter
        found = None if interpreter is None else self._packages.get(interpreter)
        if found is None:
            return replace(origin, interpreter=interpreter)
        packages, digest = found
        return replace(
            origin,
            interpreter=interpreter,
            python=packages.python,
            environment=digest,
            packages=packages,
        )

    # --- in the thread ------------------------------------------------------------------------

    def _look(self, start: Start) -> None:
        self._ask_git(start)
        with contextlib.suppress(OSError, ValueError):  # a folder that cannot be looked into
            self._interpreter = interpreter_of(start.argv, start.workdir, start.env)
            self._find_packages(self._interpreter)
            self._looked_at = start
        if start.gpus and self._gpus is None:
            self._gpus = _gpus(start.gpus)

    def _ask_git(self, start: Start) -> None:
        key = (start.workdir, start.record_diff)
        before = self._git.get(key)
        if before is not None:
            rests_until_s = before.asked_at_s + (1 + REST) * before.took_s
            if self._clock.boottime() < rests_until_s:
                return
        question = GitQuestion(
            workdir=start.workdir,
            diffs=self._diffs if start.record_diff else None,
            environ=self._environ,
            timeout_s=self._git_timeout_s,
        )
        self._git[key] = ask_git(question, clock=self._clock)

    def _find_packages(self, interpreter: str | None) -> None:
        if interpreter is None or interpreter in self._packages:
            return
        packages = packages_of(interpreter)
        self._packages[interpreter] = (
            None if packages is None else (packages, digest_of(packages_text(packages).encode()))
        )


# --- the interpreter and its packages ---------------------------------------------------------


def interpreter_of(argv: Sequence[str], workdir: str, env: Mapping[str, str]) -> str | None:
    """Return the path of the Python that a command starts, itself or in its first line."""
    program = _program(argv[0], workdir, env) if argv else None
    if program is None or PYTHON.fullmatch(Path(program).name):
        return program
    words = _first_line(Path(program))
    if words and Path(words[0]).name == "env":
        words = [word for word in words[1:] if not word.startswith("-")]
    if not words or not PYTHON.fullmatch(Path(words[0]).name):
        return None
    return _program(words[0], workdir, env)


def _program(name: str, workdir: str, env: Mapping[str, str]) -> str | None:
    if "/" in name:
        return str(Path(workdir, name))
    found = shutil.which(name, path=env.get("PATH", os.defpath))
    if found is not None:
        return str(Path(workdir, found))
    return sys.executable or None if name in ("python", "python3") else None


def _first_line(path: Path) -> list[str]:
    """Return the words after `#!`, none for another kind of file."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        line = file.readline(LONGEST_FIRST_LINE)
    return os.fsdecode(line[2:]).split() if line.startswith(b"#!") else []


def packages_of(interpreter: str) -> Packages | None:
    """Return what an interpreter finds, without starting it; None when that cannot be told."""
    if _is_own(interpreter):
        return kept_packages(platform.python_version(), _installed(sys.path))
    folders = sorted(Path(interpreter).parent.parent.glob("lib/python3*/site-packages"))
    if not folders:
        return None
    return kept_packages(None, _installed([str(folder) for folder in folders]))


def _is_own(interpreter: str) -> bool:
    own, other = Path(sys.executable), Path(interpreter)
    return own.parent == other.parent and other.exists() and own.samefile(other)


def _installed(path: Sequence[str]) -> Iterator[tuple[str, str]]:
    for found in importlib.metadata.distributions(path=list(path)):
        with contextlib.suppress(Exception):  # whatever is wrong with one package's own files
            name, version = found.name, found.version
            if isinstance(name, str) and isinstance(version, str):
                yield name, version


def _gpus(names: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """Return the models of the GPUs, and the driver's version."""
    report = gpu.list_gpus()
    found = [report.find(name) for name in names]
    return tuple(each.name for each in found if each is not None and each.name), report.driver
