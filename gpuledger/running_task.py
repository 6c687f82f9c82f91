"""The processes of a running task: the one that was started and all that came from it.

A task runs in a session of its own, its worker is the subreaper of all that comes from it, and
nothing of a task can ever enter the worker's session. So whatever descends from the worker and is
in another session belongs to the task: however often it forked, whatever it calls itself.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from gpuledger.clock import SystemClock
from gpuledger.guard import (
    Process,
    all_processes,
    freeze_all,
    is_running,
    open_pidfd,
    read_proc,
    read_process,
    send,
)

RESCAN_S = 1.0
"""Longest time between two looks at a tree that is being ended."""

LOOKS = 1000
"""How often a task that flees from process to process is looked for at a time."""

BLIND_WAIT_S = 0.05
"""The same where the kernel offers no descriptors of processes."""

KILL_WAIT_S = 30.0
"""What the kernel gets to end killed processes before they are reported as left."""

Hurry = Callable[[float], bool]
"""Waits for at most so many seconds, shorter when SIGCHLD came; True means: wait no longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended: with an exit code or by a signal, the other is None."""

    exit_code: int | None = None
    signal: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """What `stop` did.

    Attributes:
        asked: Processes that got TERM.
        killed: Processes that had to be killed.
        left: Numbers of those that hang in the kernel and live on nevertheless.
    """

    asked: int = 0
    killed: int = 0
    left: tuple[int, ...] = ()


# --- who is who ------------------------------------------------------------------------------


class Started(Protocol):
    """A process that this one started, as `subprocess` has it."""

    pid: int

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs."""


class Forked:
    """A child that this process did not start itself; it answers as Popen does."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self._code = 0  # SIGCHLD is ignored here: nobody knows
            else:
                self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code


class Child:
    """A started process and a descriptor of it, both this process's to reap and close."""

    def __init__(self, popen: Started) -> None:
        self.pid = popen.pid
        self.popen = popen
        self._pidfd: int | None = None
        with suppress(ProcessLookupError):  # SIGCHLD is ignored here: the kernel reaped it
            self._pidfd = open_pidfd(popen.pid)  # else not reaped: the number is still its own

    def fileno(self) -> int:
        """Return the descriptor, or -1."""
        return -1 if self._pidfd is None else self._pidfd

    def poll(self) -> Exit | None:
        """Return how it ended, or None while it runs."""
        code = self.popen.poll()
        if code is None:
            return None
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        return Exit(signal=-code) if code < 0 else Exit(exit_code=code)


Strangers = frozenset[tuple[int, int]]
"""Number and start of children in other sessions that are no task's: what hooks left running."""


def strangers(*, besides: int | None = None) -> Strangers:
    """Return those that are there while no task runs, but for one; the dead ones are reaped."""
    session, found = os.getsid(0), set()
    for process in _lister()(os.getpid()):
        if process.pid == besides:
            continue
        is_apart = process.session != session
        if is_apart and is_running(process):
            found.add((process.pid, process.start))
        elif process.state == "Z" and (is_apart or _is_adopted(process.pid)):
            with suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
    return frozenset(found)


def _is_adopted(pid: int) -> bool:
    """Tell whether a child in this session is none that this process started and waits for.

    Those lead a process group each.
    """
    try:
        return os.getpgid(pid) != pid
    except ProcessLookupError:
        return False


class RunningTask:
    """The processes of a task: the one that was started and all that came from it.

    A worker has one of them at a time. Used as a context manager, it kills what is left of the
    task at the end of the block.
    """

    def __init__(self, child: Child, *, strangers: Strangers = frozenset()) -> None:
        self.pid = child.pid
        self._child = child
        self._strangers = strangers
        self._session = os.getsid(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.descendants():
            self.stop(grace_s=0)

    def fileno(self) -> int:
        """Return a descriptor that is readable once the first process ended.

        Returns:
            -1 when that end is known already, or where the kernel offers no such descriptor;
            then SIGCHLD is the sign.
        """
        return self._child.fileno()

    def poll(self) -> Exit | None:
        """Return how the first process ended, or None while it runs; others may live on."""
        return self._child.poll()

    def descendants(self) -> tuple[int, ...]:
        """Return the numbers of all running processes of the task, parents before children.

        Adopted ones that ended are reaped. Only `poll` reaps the first.
        """
        return tuple(process.pid for process in self._tree())

    def freeze(self) -> int:
        """Stop every process of the task; return how many there are."""
        return len(freeze_all(self._tree))

    def thaw(self) -> int:
        """Let every process of the task go on; return how many there are."""
        return sum(send(process, signal.SIGCONT) for process in self._tree())

    def stop(
        self, *, grace_s: float, hurry: Hurry | None = None, kill_wait_s: float = KILL_WAIT_S
    ) -> Stopped:
        """End every process of the task: TERM, wait, KILL, until none is left.

        Args:
            grace_s: Time between TERM and KILL; 0 means no TERM. A frozen task is thawed.
            hurry: What waits meanwhile; it may do the worker's other duties. When it returns
                True the grace is over.
            kill_wait_s: How long to wait for killed processes that hang in the kernel.

        Returns:
            What was done; when `left` is not empty, call it again later, and start nothing else.
        """
        if not self.descendants():  # as after most tasks: one look instead of seven
            return Stopped()
        asked = 0
        if grace_s > 0:
            asked = sum([send(process, signal.SIGTERM) for process in self._tree()])
            self.thaw()
            self._wait_until_gone(grace_s, hurry or self._wait)
        killed: set[int] = set()
        deadline = SystemClock().boottime() + kill_wait_s
        step_s = 0.02
        while True:
            for process in freeze_all(self._tree):
                if send(process, signal.SIGKILL):
                    killed.add(process.pid)
            self._wait_until_gone(step_s, self._wait)
            step_s = min(2 * step_s, RESCAN_S)
            left = self.descendants()
            if not left or SystemClock().boottime() >= deadline:
                return Stopped(asked=asked, killed=len(killed), left=left)
            if hurry is not None:
                hurry(0)  # its other duties go on

    def _wait_until_gone(self, limit_s: float, wait: Hurry) -> None:
        """Return when no process of the task is left, the time is over or `wait` says so."""
        deadline = SystemClock().boottime() + limit_s
        while self.descendants():
            remaining_s = deadline - SystemClock().boottime()
            if remaining_s <= 0 or wait(min(remaining_s, RESCAN_S)):
                return

    def _wait(self, timeout_s: float) -> bool:
        """Wait until one of the task's processes that are children of this process ends.

        The others cannot be the last to go: each becomes a child, or its parent is there still.
        """
        poll = select.poll()
        with ExitStack() as descriptors:
            for process in self._tree():
                if process.parent == os.getpid():
                    with suppress(ProcessLookupError):
                        descriptor = open_pidfd(process.pid)
                        if descriptor is None:
                            timeout_s = min(timeout_s, BLIND_WAIT_S)
                        else:
                            descriptors.callback(os.close, descriptor)
                            poll.register(descriptor, select.POLLIN)
            poll.poll(timeout_s * 1000)
        return False

    def _tree(self) -> list[Process]:
        """Return the task's running processes, parents first; reap the adopted dead.

        An empty answer is certain: whatever ends leaves a zombie that only this process reaps,
        after what it had forked became this process's child. So where nothing runs but something
        ended, one looks again.
        """
        for _ in range(LOOKS):
            self.poll()
            tree = self._look()
            running = [process for process in tree if is_running(process)]
            for process in set(tree).difference(running):
                if process.parent == os.getpid() and process.pid != self.pid:
                    with suppress(ChildProcessError):
                        os.waitpid(process.pid, os.WNOHANG)
            if running or not tree:
                break
        return running or tree

    def _look(self) -> list[Process]:
        """Return the task's processes, the dead among them, parents first."""
        children_of = _lister()
        tree = [
            process
            for process in children_of(os.getpid())
            if process.session != self._session
            and (process.pid, process.start) not in self._strangers
        ]
        seen = {process.pid for process in tree}
        for process in tree:  # grows while it is read
            fresh = [child for child in children_of(process.pid) if child.pid not in seen]
            seen.update(child.pid for child in fresh)
            tree.extend(fresh)
        return tree


def _lister() -> Callable[[int], list[Process]]:
    is_listed = os.access(f"/proc/self/task/{os.getpid()}/children", os.F_OK)
    return _children_of if is_listed else _children_by_parent()


def _children_of(pid: int) -> list[Process]:
    """Return a process's children, as the kernel lists them for each of its threads."""
    numbers: list[bytes] = []
    with suppress(OSError), os.scandir(f"/proc/{pid}/task") as threads:
        for thread in threads:
            numbers += read_proc(f"{thread.path}/children").split()
    found = (read_process(int(number)) for number in numbers)
    return [process for process in found if process is not None]


def _children_by_parent() -> Callable[[int], list[Process]]:
    """Return the same, from one look at all processes, for kernels that list no children."""
    children: dict[int, list[Process]] = {}
    for process in all_processes():
        children.setdefault(process.parent, []).append(process)
    return lambda pid: children.get(pid, [])
