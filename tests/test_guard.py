"""The guard ends what a killed worker left, and freezes what a stopped worker cannot."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpuledger import guard as guard_module
from gpuledger.clock import SystemClock
from gpuledger.guard import (
    FROZEN,
    MARK,
    RESTS,
    TASK,
    Process,
    freeze_all,
    is_running,
    kill_all,
    marked,
    read_process,
    send,
    watch,
)
from gpuledger.process import CannotStart, Guard
from tests.helpers import wait_until

NONCE = f"g{os.getpid()}"
"""Tests that run beside these must not take our tasks for theirs."""


def now_s() -> float:
    return SystemClock().boottime()


def gone(pid: int) -> bool:
    process = read_process(pid)
    return process is None or not is_running(process)


def state(pid: int) -> str | None:
    process = read_process(pid)
    return None if process is None else process.state


@contextmanager
def sleeper(**env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A task of a worker, run by the test itself."""
    with subprocess.Popen(["sleep", "60"], env={**os.environ, **env}) as child:
        wait_until(
            lambda: Path(f"/proc/{child.pid}/comm").read_text() == "sleep\n", because="no exec"
        )
        try:
            yield child
        finally:
            child.kill()


@pytest.fixture
def guard() -> Iterator[Guard]:
    guard = Guard.start(NONCE, fence_s=3600)
    yield guard
    guard.close()
    assert gone(guard.pid)


# --- finding and signalling ------------------------------------------------------------------


def test_a_mark_counts_up_to_a_dot() -> None:
    with sleeper(**{MARK: f"{NONCE}.exp_0_1.2"}) as child:
        for mark in (NONCE, f"{NONCE}.exp_0_1", f"{NONCE}.exp_0_1.2"):
            # Right after its exec a process has no environment to be read yet.
            wait_until(lambda mark=mark: marked(mark), because="its mark was not seen")  # type: ignore[misc]
            assert [process.pid for process in marked(mark)] == [child.pid]
        for mark in (NONCE[:-1], f"{NONCE}.exp_0_1.", f"{NONCE}.exp_0_1.22", "exp_0_1"):
            assert marked(mark) == []


def test_the_mark_must_be_the_value_of_its_variable() -> None:
    with sleeper(**{f"X_{MARK}": NONCE, "OTHER": f"{MARK}={NONCE}"}):
        assert marked(NONCE) == []


def test_a_dead_process_carries_no_mark() -> None:
    with sleeper(**{MARK: NONCE}) as child:
        child.kill()
        wait_until(lambda: state(child.pid) == "Z", because="it should be a zombie")

        assert marked(NONCE) == []


def test_a_session_is_found_without_marks_unless_its_number_is_somebody_elses() -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as child:
        leader = read_process(child.pid)
        assert leader is not None
        former = Process(
            pid=leader.pid, state="S", parent=1, session=leader.pid, start=leader.start - 1
        )
        try:
            assert [process.pid for process in marked(NONCE, session=leader)] == [child.pid]
            assert marked(NONCE, session=former) == []
        finally:
            child.kill()


def test_a_later_process_of_the_same_number_gets_no_signal() -> None:
    with sleeper() as child:
        process = read_process(child.pid)
        assert process is not None
        former = Process(pid=process.pid, state="S", parent=1, session=1, start=process.start - 1)

        assert not send(former, signal.SIGKILL)
        assert send(process, 0)
        assert not gone(child.pid)
    assert not send(process, 0)


def test_a_zombie_whose_threads_go_on_is_running(tmp_path: Path) -> None:
    script = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print("ready", flush=True)
ctypes.CDLL(None).syscall(60, 0)
"""
    if os.uname().machine != "x86_64":
        pytest.skip("the number of the system call is that of x86-64")
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        wait_until(lambda: state(child.pid) == "Z", because="its first thread should end")
        process = read_process(child.pid)
        assert process is not None
        try:
            assert is_running(process)
        finally:
            child.kill()
            child.wait()


def test_everything_new_is_frozen_before_anything_is_killed() -> None:
    with sleeper() as first, sleeper() as second:
        found = [read_process(first.pid), read_process(second.pid)]
        looks: list[int] = []

        def find() -> list[Process]:
            looks.append(1)  # the second process appears with the second look
            return [process for process in found[: len(looks)] if process is not None]

        assert len(freeze_all(find)) == 2
        assert len(looks) == 3
        pids = (first.pid, second.pid)
        wait_until(lambda: set(map(state, pids)) == {"T"}, because="both should be stopped")


def test_killing_gives_up_after_its_time() -> None:
    with sleeper() as child:
        process = read_process(child.pid)
        assert process is not None

        assert kill_all(lambda: [process], wait_s=0.05) == 1


# --- the watch -------------------------------------------------------------------------------

WORKER = """
import os, sys
from pathlib import Path
from gpuledger.clock import SystemClock
from gpuledger.process import Guard, become_subreaper, start
become_subreaper()
guard = Guard.start(sys.argv[3], fence_s=float(sys.argv[1]))
env = {**os.environ, "GPULEDGER_MARK": sys.argv[3] + ".exp_0_1.1"}
task = start([sys.executable, "-c", sys.argv[2]], cwd=Path.cwd(), env=env, log=Path("log"))
guard.covers(task)
print(guard.pid, task.pid, flush=True)
while sys.stdin.readline():
    guard.renewed(SystemClock().boottime())
    print(guard.froze(), flush=True)
"""

DAEMONS = """
import os, sys, time
def note(name):
    with open(name + ".tmp", "w") as file:
        file.write(str(os.getpid()))
    os.rename(name + ".tmp", name)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        note("daemon")
        time.sleep(60)
    os._exit(0)
if os.fork() == 0:
    note("unmarked")
    os.execve("/bin/sleep", ["sleep", "60"], {})
time.sleep(60)
"""


@contextmanager
def worker(folder: Path, *, fence_s: float, task: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(fence_s), task, NONCE],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def two_numbers(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    assert process.stdout is not None
    first, second = process.stdout.readline().split()
    return int(first), int(second)


def beat(process: subprocess.Popen[bytes]) -> bool:
    """Let the worker renew once; tell whether the guard froze its task."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    return process.stdout.readline() == b"True\n"


def read_pid(path: Path) -> int:
    return int(wait_until(lambda: path.exists() and path.read_text(), because=f"no {path.name}"))


def test_everything_of_a_killed_workers_task_is_killed(tmp_path: Path) -> None:
    with worker(tmp_path, fence_s=3600, task=DAEMONS) as process:
        guard, task = two_numbers(process)
        daemon = read_pid(tmp_path / "daemon")
        unmarked = read_pid(tmp_path / "unmarked")
        wait_until(
            lambda: Path(f"/proc/{unmarked}/environ").read_bytes() == b"", because="no exec yet"
        )
        os.kill(process.pid, signal.SIGKILL)

        everything = (task, daemon, unmarked, guard)
        wait_until(lambda: all(map(gone, everything)), because="all should be gone")
        assert process.stderr is not None
        said = process.stderr.read().decode()

    assert "gpuledger guard: the worker died; killed" in said


def test_a_stopped_workers_task_is_frozen_until_the_worker_thaws_it(tmp_path: Path) -> None:
    with worker(tmp_path, fence_s=2.0, task=DAEMONS) as process:
        guard, task = two_numbers(process)
        pids = [task, read_pid(tmp_path / "daemon"), read_pid(tmp_path / "unmarked")]
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: set(map(state, pids)) == {"T"}, because="all should be frozen")

        process.send_signal(signal.SIGCONT)
        wait_until(lambda: beat(process), because="the worker should learn of it")
        assert [state(pid) for pid in pids] == ["T", "T", "T"]

        process.kill()
        wait_until(lambda: all(map(gone, (*pids, guard))), because="frozen ones are killed, too")
        assert process.stderr is not None
        said = process.stderr.read().decode()

    assert "no sign of life from the worker for" in said


def test_renewals_keep_the_task_going() -> None:
    guard = Guard.start(NONCE, fence_s=1.0)
    try:
        with sleeper(**{MARK: f"{NONCE}.a.1"}) as child:
            beats = 0

            def beat() -> bool:
                nonlocal beats
                beats += 1
                assert guard.renewed(now_s())
                assert not guard.froze()
                return beats >= 150  # at 10 ms each: longer than the fence

            wait_until(beat, because="150 beats take two seconds")
            assert state(child.pid) == "S"

            wait_until(guard.froze, because="silence freezes it")
            wait_until(lambda: state(child.pid) == "T", because="it should be stopped")
    finally:
        guard.close()


HELD = {"0", "1", "2"}


def descriptors(pid: int) -> set[str]:
    return {entry.name for entry in Path(f"/proc/{pid}/fd").iterdir()}


def switches(pid: int) -> int:
    """Return how often a process has waited for something."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_a_guard_that_rests_sleeps_until_something_is_said() -> None:
    resting, other = Guard.start(NONCE, fence_s=1.0), Guard.start(f"{NONCE}o", fence_s=1.0)
    try:
        for each in (resting, other):
            wait_until(lambda pid=each.pid: descriptors(pid) == HELD, because="not begun")  # type: ignore[misc]
        with sleeper(**{MARK: f"{NONCE}.a.1"}) as left, sleeper(**{MARK: f"{NONCE}o.a.1"}) as child:
            assert resting.rests()
            before = {each.pid: switches(each.pid) for each in (resting, other)}
            wait_until(other.froze, because="silence freezes the task of one that does not rest")
            wait_until(lambda: state(child.pid) == "T", because="it should be stopped")
            assert state(left.pid) == "S"
            assert switches(other.pid) - before[other.pid] >= 5
            assert switches(resting.pid) - before[resting.pid] <= 3

            assert resting.covers(SimpleNamespace(pid=left.pid))  # type: ignore[arg-type]
            beats = 0

            def beat() -> bool:
                nonlocal beats
                beats += 1
                assert resting.renewed(now_s())
                assert not resting.froze(), "the rest must not count as silence"
                return beats >= 30

            wait_until(beat, because="30 beats take less than the fence")
            wait_until(resting.froze, because="it does not rest any more")
    finally:
        resting.close()
        other.close()


def test_silence_counts_from_the_renewal_and_not_from_the_end_of_a_rest() -> None:
    guard = Guard.start(NONCE, fence_s=1000.0)
    try:
        with sleeper(**{MARK: f"{NONCE}.a.1"}):
            assert guard.rests()
            assert guard.covers(None)  # may come after that, and says nothing about the rest
            assert guard.renewed(now_s() - 999.5)
            wait_until(guard.froze, because="others count from then")
    finally:
        guard.close()


def test_only_a_renewal_ends_a_rest(tmp_path: Path) -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its, sleeper(**{MARK: f"{NONCE}.a.1"}) as child:
        watching = threading.Thread(
            target=watch, args=(its.fileno(),), kwargs={"nonce": NONCE, "fence_s": 0.2}
        )
        ours.setblocking(False)
        for message in (RESTS, TASK + b" 0"):
            ours.send(message)
        watching.start()
        other = Guard.start(f"{NONCE}o", fence_s=0.2)
        with sleeper(**{MARK: f"{NONCE}o.a.1"}):
            wait_until(other.froze, because="silence freezes the task of one that does not rest")
        other.close()
        assert state(child.pid) == "S"
        with pytest.raises(BlockingIOError):
            ours.recv(64)
        ours.close()
        watching.join()
        assert gone(child.pid)


def test_silence_without_a_task_is_no_news() -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its:
        ours.setblocking(False)
        guard_module._freeze(its.fileno(), NONCE, None)
        with pytest.raises(BlockingIOError):
            ours.recv(64)

        with sleeper(**{MARK: NONCE}) as child:
            guard_module._freeze(its.fileno(), NONCE, None)
            wait_until(lambda: state(child.pid) == "T", because="it should be stopped")
            guard_module._freeze(its.fileno(), NONCE, None)
        assert ours.recv(64) == FROZEN
        with pytest.raises(BlockingIOError):
            ours.recv(64)  # what is frozen already is no news either


def test_a_worker_that_died_with_notices_unread_is_noticed() -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its, sleeper(**{MARK: NONCE}) as child:
        os.write(its.fileno(), FROZEN)
        ours.close()

        watch(its.fileno(), nonce=NONCE, fence_s=3600)

        assert gone(child.pid)


def test_only_the_end_of_its_worker_ends_the_guard(guard: Guard) -> None:
    handled = f"/proc/{guard.pid}/status"
    names = ("INT", "TERM", "HUP", "QUIT", "TSTP", "TTIN", "TTOU", "USR1", "USR2", "PIPE")
    wanted = sum(1 << (getattr(signal, f"SIG{name}") - 1) for name in names)

    def ignored() -> int:
        line = next(ln for ln in Path(handled).read_text().splitlines() if ln.startswith("SigIgn"))
        return int(line.split()[1], 16)

    wait_until(lambda: ignored() & wanted == wanted, because="it should ignore all of these")
    assert os.getpgid(guard.pid) == guard.pid


def test_the_guard_holds_nothing_but_its_line(guard: Guard) -> None:
    # Until it has begun it holds its own source, too.
    wait_until(lambda: descriptors(guard.pid) == HELD, because="it should hold nothing else")
    assert Path(f"/proc/{guard.pid}/fd/1").readlink() == Path("/dev/null")
    assert Path(f"/proc/{guard.pid}/cwd").readlink() == Path("/")


def test_the_guard_of_a_worker_that_is_itself_a_task_is_not_marked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(MARK, "outer.exp_0_1.1")
    guard = Guard.start(NONCE, fence_s=3600)
    try:
        assert MARK.encode() not in Path(f"/proc/{guard.pid}/environ").read_bytes()
    finally:
        guard.close()


def test_the_worker_learns_that_its_guard_is_gone(guard: Guard) -> None:
    assert guard.renewed(now_s())
    assert guard.covers(None)
    os.kill(guard.pid, signal.SIGKILL)
    wait_until(lambda: not guard.renewed(now_s()), because="nobody listens any more")

    assert not guard.covers(None)
    assert not guard.froze()


def test_a_stopped_guard_does_not_stop_its_worker() -> None:
    guard = Guard.start(NONCE, fence_s=3600)
    os.kill(guard.pid, signal.SIGSTOP)
    try:
        assert all(guard.renewed(now_s()) for _ in range(10_000))
    finally:
        guard.close(timeout_s=0.05)
    assert gone(guard.pid)


def test_a_guard_without_a_nonce_is_refused() -> None:
    with pytest.raises(ValueError, match="nonce must not be empty"):
        Guard.start("", fence_s=1)


def test_a_guard_that_cannot_start_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(sys, "executable", "/no/such/python")

    with pytest.raises(CannotStart):
        Guard.start(NONCE, fence_s=1)

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_program_needs_nothing_of_gpuledger() -> None:
    source = Path(guard_module.__file__).read_text(encoding="utf-8")

    assert "from gpuledger" not in source
    assert "import gpuledger" not in source


def test_a_full_error_output_does_not_hold_the_guard_up() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    try:
        try:
            while True:
                os.write(writer, b"x" * 65536)
        except BlockingIOError:
            os.set_blocking(writer, True)
        program = [sys.executable, "-I", "-S", guard_module.__file__, NONCE, "3600"]
        with sleeper(**{MARK: NONCE}) as child:
            ran = subprocess.run(program, stdin=subprocess.DEVNULL, stderr=writer, timeout=20)
            assert ran.returncode == 0
            assert gone(child.pid)
    finally:
        os.close(reader)
        os.close(writer)
