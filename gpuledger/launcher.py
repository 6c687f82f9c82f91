"""Starts tasks: each as a process of its own, from a warm process where the sweep asks for one.

A warm process (`warm.py`) has imported the modules of `[run] preload` and is forked for each task.
One is kept, for one kind of task: one interpreter, folder, environment. It is of no use to
commands that are not `python script.py` or `python -m module`, and to modules that do not bear
it; whatever is wrong with it, tasks start normally, and that is said once.
"""

from __future__ import annotations

import os
import re
import select
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpuledger import warm as warm_program
from gpuledger.clock import Clock
from gpuledger.process import CannotStart, Helper, adopt, open_log, start, with_python
from gpuledger.running_task import RunningTask
from gpuledger.warm import (
    BUSY,
    GOES,
    HERE,
    MODULE,
    ORDER,
    READY,
    REFUSED,
    ROOM,
    SCRIPT,
    STALE,
    UNFIT,
    packed,
)

IMPORT_WAIT_S = 300.0
"""What importing gets: a file server may be slow, and it would be as slow to the task."""

ANSWER_WAIT_S = 10.0
"""What a warm process gets to answer, before it is killed and the task started normally."""

RENEW_AFTER = 500
"""Tasks that are forked from one warm process."""

PATIENCE = 3
"""Warm processes in a row that may end unasked, before they are given up."""

MOST_ROOM = 1 << 16
LONGEST_COMMAND = 1000
PYTHON = re.compile(r"python[0-9.]*")
HARMLESS_FLAGS = ("-u",)

PER_TASK = ("WANDB_NAME", "MLFLOW_RUN_NAME")
"""Variables that differ from task to task, besides all that begin with GPULEDGER_."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A task to start; see `process.start`.

    Attributes:
        argv: Its command.
        cwd: Folder to start in.
        env: Its whole environment.
        log: File that output and errors are appended to.
        preload: Modules that the warm process imports; empty: none is wanted.
    """

    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    log: Path
    preload: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What must be equal for two tasks to come from the same warm process."""

    program: tuple[str, ...]
    cwd: Path
    folder: str
    preload: tuple[str, ...]
    env: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a command is run by a warm process.

    Attributes:
        kind: Of which kind it must be.
        runs: `SCRIPT` or `MODULE`.
        argv: The command, its interpreter found.
        skipped: Arguments before the script's path, or before the module's name.
    """

    kind: Kind
    runs: bytes
    argv: list[str]
    skipped: int


class Launcher:
    """Starts the tasks of one worker and keeps its warm process."""

    def __init__(self, *, say: Callable[[str], None], clock: Clock) -> None:
        self._say = say
        self._clock = clock
        self._warm: _Warm | None = None
        self._unfit: set[Kind] = set()
        self._told: set[str] = set()
        self._deaths = 0
        self._stales = 0

    def start(self, order: Order) -> RunningTask | None:
        """Start a task; None while its modules are being imported: wait on `fileno`, ask again.

        Raises:
            CannotStart: The command (or the folder) is wrong, or the machine has no room for it.
            OSError: The log cannot be written; nothing was started.
        """
        plan = self._plan(order) if order.preload else None
        if plan is None:
            return _cold(order)
        warm = self._warm
        if warm is None or warm.kind != plan.kind or warm.forks >= RENEW_AFTER:
            return None if self._renew(order, plan) else _cold(order)
        if not warm.is_ready:
            heard = _hear([warm.line], 0.0)
            if heard is None and self._clock.boottime() - warm.began_s < IMPORT_WAIT_S:
                return None
            if heard is None:
                self._give_up(plan, f"importing took more than {IMPORT_WAIT_S:g} s")
                return _cold(order)
            if heard[1] != READY:
                self._learn(heard[1], plan)
                return None if self._may_try_again(order, plan) else _cold(order)
            warm.is_ready = True
        return self._forked(order, plan, warm)

    def fileno(self) -> int:
        """Return a descriptor that is readable when importing has ended; -1 when nothing does."""
        return -1 if self._warm is None else self._warm.line.fileno()

    def close(self) -> None:
        """End the warm process; tasks that came from it go on."""
        if self._warm is not None:
            self._warm.end()
            self._warm = None

    # --- which commands ---------------------------------------------------------------------

    def _plan(self, order: Order) -> Plan | None:
        """Return how a warm process runs the command, or None when it is started normally."""
        argv = with_python(order.argv, order.env)
        first = 1
        while first < len(argv) and argv[first] in HARMLESS_FLAGS:
            first += 1
        runs = MODULE if argv[first : first + 1] == ["-m"] else SCRIPT
        rest = argv[first + 1 :] if runs == MODULE else argv[first:]
        if (
            not argv
            or not PYTHON.fullmatch(Path(argv[0]).name)
            or not rest
            or (runs == SCRIPT and not rest[0].endswith(".py"))
        ):
            self._tell(
                f"{' '.join(argv[:2])!r} is not started from a warm process: only "
                "'python script.py' and 'python -m module' are"
            )
            return None
        script = Path(order.cwd, rest[0])
        if not order.cwd.is_dir() or (runs == SCRIPT and not script.is_file()):
            return None  # the interpreter itself says it best
        folder = script.resolve().parent if runs == SCRIPT else order.cwd.resolve()
        kind = Kind(
            program=tuple(argv[:first]),
            cwd=order.cwd,
            folder=str(folder),
            preload=order.preload,
            env=tuple(sorted((k, v) for k, v in order.env.items() if not _is_per_task(k))),
        )
        skipped = len(argv) - len(rest)
        return (
            None if kind in self._unfit else Plan(kind=kind, runs=runs, argv=argv, skipped=skipped)
        )

    # --- the warm process -------------------------------------------------------------------

    def _renew(self, order: Order, plan: Plan) -> bool:
        """Start another warm process in the place of the last; False when none can be."""
        self.close()
        try:
            self._warm = _Warm(plan.kind, order.env, began_s=self._clock.boottime())
        except CannotStart:
            return False  # which the task will not be able to either, and say so
        except OSError as error:
            self._tell(f"no warm process could be started ({error}); the task starts normally")
            return False
        return True

    def _forked(self, order: Order, plan: Plan, warm: _Warm) -> RunningTask | None:
        """Let the warm process fork the task; start it normally when that fails."""
        output = open_log(order.log)
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours:
            try:
                socket.send_fds(warm.line, [ORDER], [its.fileno(), output])
            except OSError:
                pass  # it is dead: its last words, if any, are read below
            finally:
                its.close()
                os.close(output)
            heard = _hear([ours, warm.line], ANSWER_WAIT_S)
            if heard is not None and heard[0] is ours and heard[1].startswith(HERE):
                task = self._told_to_go(int(heard[1][len(HERE) :]), ours, plan, order)
                if task is not None:
                    warm.forks += 1
                    self._deaths = self._stales = 0
                return task or _cold(order)
            if heard == (ours, b""):
                heard = _hear([warm.line], 0.0) or heard  # its last words, if any
        if heard is None:
            self._learn(b"", plan, why=f"it did not answer within {ANSWER_WAIT_S:g} s")
            return _cold(order)
        self._learn(heard[1], plan)
        if heard[1] == BUSY:
            return _cold(order)
        return None if self._may_try_again(order, plan) else _cold(order)

    def _told_to_go(
        self, pid: int, channel: socket.socket, plan: Plan, order: Order
    ) -> RunningTask | None:
        """Tell a forked process what it is; None when it did not become it, and is gone."""
        try:
            task = adopt(pid)
        except ProcessLookupError:
            return None
        text = packed(
            kind=plan.runs,
            cwd=str(order.cwd),
            argv=plan.argv,
            skipped=plan.skipped,
            env=order.env,
        )
        answer = b""
        channel.settimeout(ANSWER_WAIT_S)
        with suppress(OSError):
            channel.sendall(text)
            answer = channel.recv(1000)
        if answer == GOES:
            return task
        if answer.startswith(REFUSED):
            reason = answer[len(REFUSED) :].decode(errors="replace")
            self._tell(f"a task was started normally, not from the warm process: {reason}")
        with task:
            task.stop(grace_s=0)
        task.poll()
        return None

    def _learn(self, message: bytes, plan: Plan, *, why: str = "it ended unasked") -> None:
        """Act on what a warm process said instead of forking; nothing means that it is dead."""
        if message.startswith(UNFIT):
            self._give_up(plan, message[len(UNFIT) :].decode(errors="replace"))
        elif message == BUSY:
            pass
        else:
            self.close()
            if message.startswith(STALE):
                self._stales += 1
                why = f"{message[len(STALE) :].decode(errors='replace')} changes all the time"
            else:
                self._deaths += 1
            if max(self._deaths, self._stales) >= PATIENCE:
                self._give_up(plan, why)

    def _may_try_again(self, order: Order, plan: Plan) -> bool:
        return plan.kind not in self._unfit and self._renew(order, plan)

    def _give_up(self, plan: Plan, reason: str) -> None:
        self.close()
        self._unfit.add(plan.kind)
        self._deaths = self._stales = 0
        self._tell(
            f"preload {list(plan.kind.preload)} is of no use, tasks start normally: {reason}"
        )

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._say(line)


class _Warm:
    """A warm process and the line to it."""

    def __init__(self, kind: Kind, env: Mapping[str, str], *, began_s: float) -> None:
        self.kind = kind
        self.began_s = began_s
        self.is_ready = False
        self.forks = 0
        own = [f"{name}={value}" for name, value in env.items() if _is_per_task(name)]
        room = min(2 * sum(map(len, own)) + 4096, MOST_ROOM)
        self.line, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line.setblocking(False)
        try:
            self._process = Helper(
                [
                    *kind.program,
                    str(Path(warm_program.__file__).resolve()),
                    str(its.fileno()),
                    kind.folder,
                    *kind.preload,
                    " " * LONGEST_COMMAND,
                ],
                cwd=kind.cwd,
                env={**dict(kind.env), ROOM: " " * room},
                line=its.fileno(),
            )
        except CannotStart:
            self.line.close()
            raise
        finally:
            its.close()

    def end(self) -> None:
        """Kill it: it has nothing to tidy up."""
        self.line.close()
        self._process.kill()


def _is_per_task(name: str) -> bool:
    return name.startswith("GPULEDGER_") or name in PER_TASK


def _cold(order: Order) -> RunningTask:
    return start(order.argv, cwd=order.cwd, env=order.env, log=order.log)


def _hear(sockets: Sequence[socket.socket], wait_s: float) -> tuple[socket.socket, bytes] | None:
    """Return the first message on any, empty at its end; None when none came in time."""
    poll = select.poll()
    by_number = {each.fileno(): each for each in sockets}
    for number in by_number:
        poll.register(number, select.POLLIN)
    ready = {number for number, _ in poll.poll(wait_s * 1000)}
    for number, each in by_number.items():
        if number in ready:
            try:
                return each, each.recv(4096)
            except OSError:
                return each, b""
    return None
