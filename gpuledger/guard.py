"""The only program that outlives a worker: it ends or freezes the tasks of one that cannot.

`process.py` starts it as `python -I -S guard.py NONCE FENCE_S`, with one end of a socket pair as
its standard input; it imports nothing but the standard library, and little of that, since one runs
beside every worker. The worker sends `renewed` and when, whenever its lease was renewed. When the
other end closes, the worker is gone, and every process of its tasks is killed. When nothing came
for `FENCE_S`, the worker is stopped or hangs, and every process of its tasks is frozen before
another worker can take the task over; thawing is left to the worker, which looks at its lease
first. After `rests`, until the next `renewed`, nothing runs and the guard only waits. What is
needed to find and signal processes is shared with `process.py`.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

TYPE_CHECKING = False  # spares this small program the import of `typing`
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MARK = "GPULEDGER_MARK"
"""Name of the environment variable that tells a task's processes from all others."""

RENEWED = b"renewed"
RESTS = b"rests"
TASK = b"task"
FROZEN = b"frozen"

PASSES = 1000
"""How often new processes are looked for at a time: some task may fork faster than we look."""

KILL_WAIT_S = 3600.0
"""How long the guard tries to kill what hangs in the kernel, before it gives up."""


class Process:
    """One line of /proc: a process as it was at one moment.

    Attributes:
        pid: Its number.
        state: One letter; `Z` is a zombie, `T` is stopped.
        parent: Number of its parent.
        session: Number of its session.
        start: Start in clock ticks since boot: with `pid` it names the process for good.
    """

    __slots__ = ("parent", "pid", "session", "start", "state")

    def __init__(self, *, pid: int, state: str, parent: int, session: int, start: int) -> None:
        self.pid = pid
        self.state = state
        self.parent = parent
        self.session = session
        self.start = start


def read_process(pid: int) -> Process | None:
    """Return the process of that number, or None when there is none (or it is hidden)."""
    stat = read_proc(f"/proc/{pid}/stat")
    if b")" not in stat:
        return None
    fields = stat[stat.rindex(b")") + 1 :].split()  # the name before it may contain anything
    return Process(
        pid=pid,
        state=fields[0].decode(),
        parent=int(fields[1]),
        session=int(fields[3]),
        start=int(fields[19]),
    )


def read_proc(path: str) -> bytes:
    """Return a file of /proc, nothing when it is not ours to read or its process ended."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    parts = []
    try:
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    except OSError:
        pass  # ended while it was read
    finally:
        os.close(descriptor)
    return b"".join(parts)


def all_processes(*, of_user: int | None = None) -> Iterator[Process]:
    """Yield every process there is, or those of one user."""
    with os.scandir("/proc") as entries:
        for entry in entries:
            if not entry.name.isdigit():
                continue
            try:
                if of_user is not None and entry.stat().st_uid != of_user:
                    continue
            except OSError:
                continue  # it ended meanwhile
            process = read_process(int(entry.name))
            if process is not None:
                yield process


def is_running(process: Process) -> bool:
    """Tell whether any of its code can still run; a zombie's cannot."""
    if process.state in "Xx":
        return False
    if process.state != "Z":
        return True
    try:  # a process whose first thread ended before the others looks like a zombie
        with os.scandir(f"/proc/{process.pid}/task") as threads:
            return sum(1 for _ in threads) > 1
    except OSError:
        return False


def marked(mark: str, *, session: Process | None = None) -> list[Process]:
    """Return this user's running processes that carry a mark.

    Args:
        mark: Whole value of `GPULEDGER_MARK`, or its beginning up to a dot: the worker's nonce
            alone means all of its attempts.
        session: First process of a session whose members count as marked, too: a program that
            overwrites its own environment or cleans that of its children is found by it.
    """
    wanted = f"\0{MARK}={mark}".encode()
    leader = read_process(session.pid) if session is not None else None
    if session is not None and leader is not None and leader.start != session.start:
        session = None  # the number belongs to somebody else now
    found = []
    for process in all_processes(of_user=os.geteuid()):
        if session is not None and process.session == session.pid:
            belongs = True
        else:
            environment = b"\0" + read_proc(f"/proc/{process.pid}/environ") + b"\0"
            belongs = wanted + b"\0" in environment or wanted + b"." in environment
        if belongs and is_running(process):
            found.append(process)
    return found


def open_pidfd(pid: int) -> int | None:
    """Return a descriptor for a process, readable once it ended.

    Returns:
        None where the kernel, a container's rules or this Python do not offer them.

    Raises:
        ProcessLookupError: There is no such process.
    """
    opener = getattr(os, "pidfd_open", None)  # absent when Python was built on an old system
    if opener is None:
        return None
    try:
        return int(opener(pid))
    except ProcessLookupError:
        raise
    except OSError:
        return None


def signal_pidfd(descriptor: int, signum: int) -> bool:
    """Signal the process of such a descriptor; False when it ended, or that is not possible."""
    if not hasattr(signal, "pidfd_send_signal"):
        return False
    try:
        signal.pidfd_send_signal(descriptor, signum)
    except OSError:
        return False
    return True


def send(process: Process, signum: int) -> bool:
    """Signal exactly this process, never a later one of the same number; False when not sent."""
    try:
        descriptor = open_pidfd(process.pid)
    except ProcessLookupError:
        return False
    try:
        current = read_process(process.pid)
        if current is None or current.start != process.start:
            return False
        if descriptor is not None and hasattr(signal, "pidfd_send_signal"):
            signal.pidfd_send_signal(descriptor, signum)
        else:
            os.kill(process.pid, signum)
    except OSError:
        return False  # ended meanwhile, or it took another user's rights
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return True


def freeze_all(find: Callable[[], list[Process]]) -> list[Process]:
    """Stop what `find` finds, again until it finds nothing new, and return all of it.

    What is stopped cannot fork: afterwards the processes can be killed without one escaping.
    """
    frozen: dict[tuple[int, int], Process] = {}
    for _ in range(PASSES):
        fresh = [process for process in find() if (process.pid, process.start) not in frozen]
        if not fresh:
            break
        for process in fresh:
            frozen[process.pid, process.start] = process
            send(process, signal.SIGSTOP)
    return list(frozen.values())


def kill_all(find: Callable[[], list[Process]], *, wait_s: float) -> int:
    """Kill what `find` finds until it finds nothing, for at most `wait_s`; return how many."""
    killed: set[tuple[int, int]] = set()
    deadline = _boottime() + wait_s
    pause_s = 0.005
    while True:
        for process in freeze_all(find):
            if send(process, signal.SIGKILL):
                killed.add((process.pid, process.start))
        if not find() or _boottime() >= deadline:
            return len(killed)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 1.0)


def watch(channel: int, *, nonce: str, fence_s: float) -> None:
    """Watch over the tasks of one worker until it is gone, then kill what it left."""
    task: Process | None = None
    heard_at = _boottime()
    told = rests = False
    step_s = min(max(fence_s / 8, 0.05), 5.0)
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while True:
        if poll.poll(None if rests else step_s * 1000):
            message = _receive(channel)
            if not message:
                break
            if message.startswith(RENEWED):
                heard_at = float(message.split()[1])
                told = rests = False
            elif message == RESTS:
                rests = True
            elif message.startswith(TASK):
                task = read_process(int(message.split()[1]))
        silent = not rests and _boottime() - heard_at >= fence_s
        # What hangs in the kernel stops when it comes back: again and again, but told once.
        if silent and _freeze(channel, nonce, task) and not told:
            told = True
            _say(f"no sign of life from the worker for {fence_s:.0f} s; its task is frozen")
    killed = kill_all(lambda: marked(nonce, session=task), wait_s=KILL_WAIT_S)
    if killed:
        _say(f"the worker died; killed {killed} process(es) of its task")


def main() -> None:
    """Run as a program; the end of its standard input is the only thing that ends it."""
    for name in ("INT", "TERM", "HUP", "QUIT", "TSTP", "TTIN", "TTOU", "USR1", "USR2", "PIPE"):
        signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)
    os.set_blocking(0, False)
    watch(0, nonce=sys.argv[1], fence_s=float(sys.argv[2]))


def _freeze(channel: int, nonce: str, task: Process | None) -> bool:
    """Stop what runs, and tell the worker; return whether anything did."""
    fresh = [p for p in freeze_all(lambda: marked(nonce, session=task)) if p.state not in "Tt"]
    if not fresh:
        return False
    with suppress(OSError):  # it is gone, which is seen next, or has many notices unread
        # Sent after the last one was stopped: a worker that thaws upon this notice thaws all.
        os.write(channel, FROZEN)
    return True


def _receive(channel: int) -> bytes:
    """Return one message, or nothing when the worker is gone."""
    try:
        return os.read(channel, 4096)
    except BlockingIOError:
        return b"nothing"
    except OSError:
        return b""  # it died with notices unread


def _say(text: str) -> None:
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    if poll.poll(0):  # a full pipe or a stopped terminal must not keep the guard from its work
        with suppress(OSError):
            os.write(2, f"gpuledger guard: {text}\n".encode())


def _boottime() -> float:
    # This program cannot import clock.py; sleep of the machine counts, as it does for leases.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


if __name__ == "__main__":
    main()
