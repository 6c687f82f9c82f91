"""This machine: its name, whether a process on it lives, and what its kernel killed for memory."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from gpuledger.guard import is_running, read_process


def host_name() -> str:
    """Return this host's short name, or `GPULEDGER_HOST` where several hosts share one name.

    Only letters, digits, `.`, `_` and `-` are kept of it, 64 characters at most.
    """
    given = os.environ.get("GPULEDGER_HOST", "").strip()
    name = given or os.uname().nodename.partition(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:64] or "localhost"


def this_machine() -> str:
    """Return what must be equal for a process number to mean the same process.

    Boot id, process-number namespace and host name: containers of one machine differ in the
    second, copies of one running virtual machine at best in the third (`GPULEDGER_HOST`).
    """
    return f"{_boot_and_namespace()}:{host_name()}"


@functools.cache
def _boot_and_namespace() -> str:
    """Neither changes while a process lives, and an idle worker asks often."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    return f"{boot_id}:{namespace}"


def pid_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when there is none."""
    process = read_process(pid)
    return None if process is None else process.start


def is_alive(machine: str, pid: int, pid_start: int) -> bool | None:
    """Tell whether a worker's process still runs; None when that cannot be known here.

    Args:
        machine: Its `this_machine()`.
        pid: Its process number.
        pid_start: Its `pid_start`; another process of the same number is not taken for it.
    """
    if pid < 1 or machine != this_machine():
        return None
    process = read_process(pid)
    if process is not None:
        return process.start == pid_start and is_running(process)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # /proc may hide the processes of others, which are there nevertheless
    return None


def oom_kill_count() -> int | None:
    """Return how many processes the kernel has killed for want of memory, where this one lives.

    It counts those of this process's control group, or of the whole machine where groups do not
    count. Only a difference means anything. None when the kernel does not say.
    """
    for counter in (*_group_counters(), Path("/proc/vmstat")):
        try:
            text = counter.read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
        if found:
            return int(found[1])
    return None


def _group_counters() -> Iterator[Path]:
    """Yield where the counter of this process's control group may be, the best first."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in lines.splitlines():
        _, controllers, group = line.split(":", 2)
        below = group.lstrip("/")
        if "memory" in controllers.split(","):
            # In a container the path may be the host's, and the mount point the group itself.
            for folder in (Path("/sys/fs/cgroup/memory") / below, Path("/sys/fs/cgroup/memory")):
                yield folder / "memory.oom_control"
        elif not controllers:
            for folder in (Path("/sys/fs/cgroup") / below, Path("/sys/fs/cgroup")):
                yield folder / "memory.events"
