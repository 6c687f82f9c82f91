"""Real processes: how they start, how they end, and that none is left."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gpuledger import process as process_module
from gpuledger import running_task as running_task_module
from gpuledger.clock import SystemClock
from gpuledger.guard import MARK, is_running, read_proc, read_process
from gpuledger.launcher import Launcher, Order
from gpuledger.machine import is_alive, pid_start, this_machine
from gpuledger.process import (
    PR_SET_CHILD_SUBREAPER,
    CannotStart,
    become_subreaper,
    kill_marked,
    run_hook,
    spawn_worker,
    start,
)
from gpuledger.running_task import Exit, RunningTask
from tests.helpers import wait_until

pytestmark = pytest.mark.usefixtures("no_process_is_left")

Start = Callable[..., RunningTask]

NONCE = f"n{os.getpid()}"
"""Tests that run beside these must not take our tasks for theirs."""


@pytest.fixture
def no_process_is_left() -> Iterator[None]:
    become_subreaper()
    before = children()
    yield
    left = children() - before
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert left == set()


EXEC = """
import os, signal, sys
for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
    signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(params=["cold", "warm"])
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start tasks, normally or from a warm process: there what is asked for takes its place."""
    started: list[RunningTask] = []
    is_warm = request.param == "warm"
    said: list[str] = []
    launcher = Launcher(say=said.append, clock=SystemClock())
    script = tmp_path / "a folder" / "exec.py"
    script.parent.mkdir()
    script.write_text(EXEC, encoding="utf-8")

    def run(argv: Sequence[str], **env: str) -> RunningTask:
        order = Order(
            argv=[sys.executable, str(script), *argv] if is_warm else argv,
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(Path.cwd()),
                MARK: f"{NONCE}-other",
                **env,
            },
            log=tmp_path / "log",
            preload=("decimal",) if is_warm else (),
        )
        while (task := launcher.start(order)) is None:
            assert select.select([launcher.fileno()], [], [], 20)[0]
        started.append(task)
        if is_warm:
            wait_until(
                lambda: script.name.encode() not in read_proc(f"/proc/{task.pid}/cmdline"),
                because="it should have become what was asked for",
            )
        return task

    yield run
    for task in started:
        with task:
            pass
    launcher.close()
    assert said == []


@pytest.fixture
def run_python(run: Start) -> Start:
    def run_python(script: str, **env: str) -> RunningTask:
        return run([sys.executable, "-c", textwrap.dedent(script)], **env)

    return run_python


def children() -> set[int]:
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {int(pid) for pid in found}


def open_descriptors() -> list[str]:
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


def gone(pid: int) -> bool:
    process = read_process(pid)
    return process is None or not is_running(process)


def state(pid: int) -> str | None:
    process = read_process(pid)
    return None if process is None else process.state


def finish(task: RunningTask) -> Exit:
    ended = wait_until(task.poll, because="the task should have ended")
    assert ended is not None
    return ended


def read_pid(path: Path) -> int:
    return int(wait_until(lambda: path.exists() and path.read_text(), because=f"no {path.name}"))


# --- starting --------------------------------------------------------------------------------


def test_a_task_says_how_it_ended(run: Start) -> None:
    assert finish(run(["sh", "-c", "exit 7"])) == Exit(exit_code=7)
    assert finish(run(["sh", "-c", "kill -SEGV $$"])) == Exit(signal=signal.SIGSEGV)
    assert finish(run(["true"])) == Exit(exit_code=0)


def test_output_and_errors_are_appended_to_the_log(run: Start, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")

    finish(run(["sh", "-c", "echo out; echo err >&2"]))

    assert (tmp_path / "log").read_text() == "before\nout\nerr\n"


def test_a_log_that_was_truncated_is_not_filled_up(run: Start, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("x" * 100)
    task = run(["sh", "-c", "while ! [ -e go ]; do sleep 0.01; done; echo end"])
    (tmp_path / "log").write_text("")
    (tmp_path / "go").touch()
    finish(task)

    assert (tmp_path / "log").read_text() == "end\n"


def test_a_task_reads_nothing_and_sees_only_its_own_environment(run: Start, tmp_path: Path) -> None:
    finish(run(["sh", "-c", "cat; pwd; env | grep -c GREETING; echo $GREETING"], GREETING="hi"))

    assert (tmp_path / "log").read_text() == f"{tmp_path}\n1\nhi\n"


def test_a_task_inherits_no_descriptor(run: Start, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        finish(run(["ls", "/proc/self/fd"]))
    finally:
        os.close(reader)
        os.close(writer)

    assert (tmp_path / "log").read_text().split() == ["0", "1", "2", "3"]  # 3 is the folder


def test_a_task_begins_with_default_signals(run: Start, tmp_path: Path) -> None:
    former = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGUSR1, signal.SIGHUP)}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        finish(run(["cat", "/proc/self/status"]))
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for signum, handler in former.items():
            signal.signal(signum, handler)

    status = dict(line.split(":\t") for line in (tmp_path / "log").read_text().splitlines())
    assert int(status["SigIgn"], 16) == 0  # SIGPIPE, too, which Python ignores
    assert int(status["SigBlk"], 16) == 0


def test_a_task_leads_a_session_of_its_own(run: Start) -> None:
    task = run(["sleep", "60"])

    assert os.getsid(task.pid) == task.pid


@pytest.mark.parametrize(
    ("make", "problem", "exit_code"),
    [
        (lambda d: ["no-such-program", "x"], "command not found: 'no-such-program'", 127),
        (lambda d: ["./none\n"], r"command not found: './none\n'", 127),
        (lambda d: [str(d / "data")], "not an executable file", 126),
        (lambda d: [str(d)], "not an executable file", 126),
        (lambda d: [str(d / "no-hash-bang")], "nor a script with a #! line", 126),
        (lambda d: ["./bad-hash-bang"], "the interpreter in its first line", 127),
        (lambda d: ["true", "x" * 4_000_000], "are too long for this system", 126),
        (lambda d: ["true", "a\0b"], "embedded null byte", 126),
        (lambda d: ["true", "\ud800"], "cannot start 'true'", 126),
        (lambda d: [], "the command is empty", 127),
    ],
)
def test_what_cannot_be_started_is_said_in_one_line(
    tmp_path: Path, make: Callable[[Path], list[str]], problem: str, exit_code: int
) -> None:
    (tmp_path / "data").write_text("x")
    for name, text in (("no-hash-bang", "x\n"), ("bad-hash-bang", "#!/no/such\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    before = open_descriptors()

    with pytest.raises(CannotStart) as caught:
        start(make(tmp_path), cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, log=tmp_path / "log")

    assert problem in str(caught.value)
    assert "\n" not in caught.value.problem
    assert caught.value.exit_code == exit_code
    assert not caught.value.machine_at_fault
    assert open_descriptors() == before


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"cannot start 'true' in '.*/none': no such file") as e:
        start(["true"], cwd=tmp_path / "none", env={}, log=tmp_path / "log")
    assert e.value.exit_code == 126


def test_a_machine_without_room_is_not_the_commands_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(CannotStart, match="resource temporarily unavailable") as caught:
        start(["true"], cwd=tmp_path, env={}, log=tmp_path / "log")
    assert caught.value.machine_at_fault


def test_a_log_that_cannot_be_opened_is_not_the_commands_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        start(["true"], cwd=tmp_path, env={}, log=tmp_path / "none" / "log")


@pytest.mark.parametrize("run", ["cold"], indirect=True)
@pytest.mark.parametrize("name", ["python", "python3"])
def test_python_means_this_one_where_there_is_none(run: Start, tmp_path: Path, name: str) -> None:
    finish(run([name, "-c", "import sys; print(sys.executable)"], PATH=str(tmp_path)))

    assert (tmp_path / "log").read_text().strip() == sys.executable


def test_the_python_of_the_path_comes_first(run: Start, tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\necho mine\n")
    (tmp_path / "python").chmod(0o755)

    finish(run(["python"], PATH=str(tmp_path)))

    assert (tmp_path / "log").read_text() == "mine\n"


# --- waiting ---------------------------------------------------------------------------------


def test_the_descriptor_is_readable_once_the_task_ended(run: Start) -> None:
    task = run(["true"])

    assert select.select([task.fileno()], [], [], 20)[0] == [task.fileno()]
    assert task.poll() == Exit(exit_code=0)
    assert task.fileno() == -1
    assert task.poll() == Exit(exit_code=0)


DAEMON = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with open("daemon.tmp", "w") as file:
            file.write(str(os.getpid()))
        os.rename("daemon.tmp", "daemon")
        time.sleep(60)
    os._exit(0)
os.wait()
while not os.path.exists("daemon"):
    time.sleep(0.01)
sys.exit(7)
"""


def test_a_daemon_belongs_to_the_task_after_the_task_itself_ended(
    run_python: Start, tmp_path: Path
) -> None:
    task = run_python(DAEMON)
    assert finish(task) == Exit(exit_code=7)
    daemon = read_pid(tmp_path / "daemon")

    assert task.descendants() == (daemon,)

    done = task.stop(grace_s=0.05)
    assert (done.asked, done.killed, done.left) == (1, 1, ())
    assert gone(daemon)


def test_looking_for_descendants_steals_no_exit_code(run: Start) -> None:
    task = run(["sh", "-c", "exit 7"])
    other = subprocess.Popen(["sh", "-c", "exit 5"])
    wait_until(lambda: state(task.pid) == state(other.pid) == "Z", because="both should end")

    assert task.descendants() == ()

    assert task.poll() == Exit(exit_code=7)
    assert other.wait() == 5


def test_dead_orphans_are_reaped(run_python: Start, tmp_path: Path) -> None:
    task = run_python("""
        import os, time
        if os.fork() == 0:
            if os.fork() == 0:
                with open("orphan", "w") as file:
                    file.write(str(os.getpid()))
                os._exit(0)
            os._exit(0)
        os.wait()
        time.sleep(60)
    """)
    orphan = read_pid(tmp_path / "orphan")

    wait_until(
        lambda: task.descendants() == (task.pid,) and read_process(orphan) is None,
        because="the orphan should have been reaped",
    )


def test_what_ended_unseen_is_no_descendant(run_python: Start, tmp_path: Path) -> None:
    task = run_python("""
        import os, time
        if os.fork() == 0:
            with open("orphan", "w") as file:
                file.write(str(os.getpid()))
            while not os.path.exists("go"):
                time.sleep(0.01)
    """)
    finish(task)
    orphan = read_pid(tmp_path / "orphan")
    assert task.descendants() == (orphan,)
    (tmp_path / "go").touch()
    wait_until(lambda: state(orphan) == "Z", because="it should have ended")

    assert task.descendants() == ()


def test_what_the_worker_runs_besides_is_not_the_tasks(tmp_path: Path) -> None:
    inside = subprocess.Popen(["sleep", "60"], process_group=0)
    apart = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        task = start(
            ["sleep", "60"],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            log=tmp_path / "log",
        )
        with task:
            assert task.descendants() == (task.pid,)
        assert finish(task) == Exit(signal=signal.SIGKILL)
        assert inside.poll() is None
        assert apart.poll() is None
    finally:
        for other in (inside, apart):
            other.kill()
            other.wait()


# --- stopping --------------------------------------------------------------------------------


def test_a_task_that_heeds_term_is_not_killed(run: Start, tmp_path: Path) -> None:
    task = run(["sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.02; done"])
    wait_until(lambda: (tmp_path / "log").read_text(), because="it should have begun")

    done = task.stop(grace_s=20)

    assert task.poll() == Exit(exit_code=3)
    assert (done.killed, done.left) == (0, ())
    assert done.asked >= 1


IGNORES_TERM = ["sh", "-c", "trap '' TERM; echo ready; sleep 60 & wait; wait"]


def test_a_task_that_ignores_term_is_killed(run: Start, tmp_path: Path) -> None:
    task = run(IGNORES_TERM)
    wait_until(lambda: len(task.descendants()) == 2, because="it should have begun")

    done = task.stop(grace_s=0.1)

    assert task.poll() == Exit(signal=signal.SIGKILL)
    assert (done.asked, done.killed, done.left) == (2, 2, ())


def test_a_hurry_ends_the_grace(run: Start) -> None:
    task = run(IGNORES_TERM)
    wait_until(lambda: len(task.descendants()) == 2, because="it should have begun")
    waits: list[float] = []

    def hurry(timeout_s: float) -> bool:
        waits.append(timeout_s)
        select.select([], [], [], 0.01)
        return len(waits) == 3

    assert task.stop(grace_s=3600, hurry=hurry).left == ()
    assert waits[:3] == [1.0, 1.0, 1.0]


def test_a_frozen_task_is_thawed_to_heed_term(run: Start, tmp_path: Path) -> None:
    task = run(["sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.02; done"])
    wait_until(lambda: (tmp_path / "log").read_text(), because="it should have begun")
    task.freeze()

    task.stop(grace_s=20)

    assert task.poll() == Exit(exit_code=3)


def test_a_task_that_forks_when_told_to_end_leaves_nothing(
    run_python: Start, tmp_path: Path
) -> None:
    task = run_python("""
        import os, signal, time
        def multiply(*_):
            for _ in range(3):
                if os.fork() == 0:
                    os.setsid()
        signal.signal(signal.SIGTERM, multiply)
        print("ready", flush=True)
        while True:
            time.sleep(60)
    """)
    wait_until(lambda: (tmp_path / "log").read_text(), because="it should have begun")

    done = task.stop(grace_s=0.2)

    assert done.killed >= 8
    assert done.left == task.descendants() == ()


@pytest.mark.parametrize(
    ("run", "kernel_lists_children"),
    [("cold", True), ("warm", True), ("cold", False)],
    indirect=["run"],
)
def test_a_task_that_flees_from_process_to_process_is_caught(
    run_python: Start, monkeypatch: pytest.MonkeyPatch, kernel_lists_children: bool
) -> None:
    task = run_python("""
        import os, time
        while True:
            if os.fork() > 0:
                os._exit(0)
            os.setsid()
            time.sleep(0.002)
    """)
    finish(task)
    if not kernel_lists_children:
        monkeypatch.setattr(os, "access", lambda *given: False)
        monkeypatch.setattr(running_task_module, "_children_of", lambda pid: [])
    assert all(task.descendants() for _ in range(50))

    assert task.stop(grace_s=0).left == ()
    assert task.descendants() == ()


def test_stopping_works_without_descriptors_of_processes(
    run: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.delattr(signal, "pidfd_send_signal")
    task = run(IGNORES_TERM)
    wait_until(lambda: len(task.descendants()) == 2, because="it should have begun")

    assert task.fileno() == -1
    assert task.stop(grace_s=0.1).left == ()
    assert task.poll() == Exit(signal=signal.SIGKILL)


def test_what_cannot_be_killed_is_reported(run: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    task = run(["sleep", "60"])
    with monkeypatch.context() as patch:
        patch.setattr(running_task_module, "send", lambda process, signum: True)
        patch.setattr(running_task_module, "freeze_all", lambda find: find())
        done = task.stop(grace_s=0, kill_wait_s=0)

    assert done.left == (task.pid,)


def test_frozen_processes_stand_still_until_they_are_thawed(run: Start) -> None:
    task = run(["sh", "-c", "sh -c 'while :; do :; done' & while :; do :; done"])
    wait_until(lambda: len(task.descendants()) == 2, because="it should have begun")

    assert task.freeze() == 2
    wait_until(
        lambda: [state(pid) for pid in task.descendants()] == ["T", "T"], because="both stop"
    )

    assert task.thaw() == 2
    wait_until(
        lambda: [state(pid) for pid in task.descendants()] == ["R", "R"], because="both go on"
    )


def test_leaving_the_block_kills_the_task(run: Start) -> None:
    with run(["sleep", "60"]) as task:
        assert task.poll() is None
    assert task.poll() == Exit(signal=signal.SIGKILL)


def test_leaving_the_block_kills_what_the_task_left(run_python: Start, tmp_path: Path) -> None:
    task = run_python(DAEMON)
    daemon = read_pid(tmp_path / "daemon")
    finish(task)

    def fail() -> None:
        with task:
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert gone(daemon)
    assert gone(task.pid)


WORKER = """
import os, sys
from pathlib import Path
from gpuledger.process import become_subreaper, start
become_subreaper()
task = start(sys.argv[1:], cwd=Path.cwd(), env=os.environ, log=Path("log"))
print(task.pid, flush=True)
sys.stdin.read()
"""


def test_a_task_dies_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, "sleep", "60"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as worker:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        assert not gone(pid)
        worker.kill()

    wait_until(lambda: gone(pid), because="the kernel should have killed the task")
    os.waitpid(pid, 0)


# --- marks -----------------------------------------------------------------------------------


def test_marked_processes_are_killed_and_no_others(run: Start) -> None:
    tasks = {
        mark: run(["sleep", "60"], **{MARK: mark})
        for mark in (f"{NONCE}.a_0_1.1", f"{NONCE}2.a_0_1.1")
    }
    unmarked = run(["sleep", "60"], NOT_THE_GPULEDGER_MARK=f"{NONCE}.a_0_1.1", OTHER=NONCE)

    assert kill_marked(NONCE) == 1

    assert finish(tasks[f"{NONCE}.a_0_1.1"]) == Exit(signal=signal.SIGKILL)
    assert tasks[f"{NONCE}2.a_0_1.1"].poll() is None
    assert unmarked.poll() is None
    assert kill_marked(f"{NONCE}2.a_0_1.1") == 1
    assert kill_marked(f"{NONCE}2.a_0_1.1") == 0


def test_a_marked_daemon_of_a_dead_worker_is_found(run_python: Start, tmp_path: Path) -> None:
    task = run_python(DAEMON, **{MARK: f"{NONCE}.t_0_1.1"})
    finish(task)
    daemon = read_pid(tmp_path / "daemon")

    assert kill_marked(f"{NONCE}.t_0_1") == 1
    assert gone(daemon)
    task.descendants()


def test_an_empty_mark_is_refused() -> None:
    with pytest.raises(ValueError, match="every task of every worker"):
        kill_marked("")


# --- who is who ------------------------------------------------------------------------------


def test_a_process_is_alive_while_it_runs(run: Start) -> None:
    task = run(["sleep", "60"])
    begun = pid_start(task.pid)
    assert begun is not None
    here = this_machine()

    assert is_alive(here, task.pid, begun) is True
    assert is_alive(here, task.pid, begun + 1) is False
    assert is_alive(here + "x", task.pid, begun) is None
    os.kill(task.pid, signal.SIGKILL)
    wait_until(lambda: state(task.pid) == "Z", because="it should be a zombie")
    assert is_alive(here, task.pid, begun) is False
    task.poll()
    assert is_alive(here, task.pid, begun) is False
    assert pid_start(task.pid) is None


def test_a_name_full_of_brackets_does_not_confuse(run: Start, tmp_path: Path) -> None:
    program = tmp_path / ") Z 1 (x"
    program.symlink_to("/bin/sleep")
    task = run([str(program), "60"])

    wait_until(lambda: state(task.pid) == "S", because="it should sleep")
    process = read_process(task.pid)
    assert process is not None
    assert (process.parent, process.session) == (os.getpid(), task.pid)


# --- other children --------------------------------------------------------------------------


def test_a_worker_is_in_our_session_but_not_in_our_group() -> None:
    worker = spawn_worker(["sleep", "60"])
    try:
        assert os.getsid(worker.pid) == os.getsid(0)
        assert os.getpgid(worker.pid) == worker.pid
        assert worker.poll() is None
        worker.send(signal.SIGTERM)
        assert select.select([worker.fileno()], [], [], 20)[0]
    finally:
        worker.send(signal.SIGKILL)
        assert worker.exit_code() == -signal.SIGTERM
    assert worker.poll() == Exit(signal=signal.SIGTERM)
    assert worker.fileno() == -1
    worker.send(signal.SIGTERM)


FLEET = """
import sys
from gpuledger.process import spawn_worker
script = "trap 'touch told; exit' TERM; echo $$; while :; do sleep 0.02; done"
worker = spawn_worker(["sh", "-c", script])
sys.stdin.read()
"""


def test_workers_are_told_to_leave_when_their_parent_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FLEET],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()

    wait_until((tmp_path / "told").exists, because="the worker should have got TERM")
    os.waitpid(pid, 0)


def test_a_worker_that_cannot_start_says_so() -> None:
    with pytest.raises(CannotStart, match="command not found"):
        spawn_worker(["no-such-program"])


def test_a_hook_reads_the_message(tmp_path: Path) -> None:
    said = tmp_path / "said"

    assert run_hook(f"cat > {said}", '{"task": "é"}', timeout_s=20) is None

    assert said.read_text(encoding="utf-8") == '{"task": "é"}'


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("exit 3", "the hook ended with exit code 3"),
        ("no-such-program", "the hook ended with exit code 127"),
        ("kill -9 $$", "the hook was killed by SIGKILL (9)"),
        ("true", None),
        ("exec < /dev/null; sleep 0.05", None),
    ],
)
def test_what_went_wrong_with_a_hook_is_told(command: str, problem: str | None) -> None:
    assert run_hook(command, "x" * 1_000_000, timeout_s=20) == problem


def test_a_hook_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    command = f"sleep 60 & echo $! > {tmp_path}/pid; wait"

    assert run_hook(command, "", timeout_s=0.2) == "the hook was killed: it took more than 0.2 s"

    pid = read_pid(tmp_path / "pid")
    wait_until(lambda: gone(pid), because="its child should be killed")
    if pid in children():
        os.waitpid(pid, 0)


def test_what_a_hook_left_running_is_not_the_next_tasks(run: Start, tmp_path: Path) -> None:
    daemon, job = tmp_path / "daemon", tmp_path / "job"
    hook = f"setsid sh -c 'echo $$ > {daemon}; exec sleep 60' & sleep 0 & echo $! > {job}"
    assert run_hook(hook, "", timeout_s=20) is None
    pid, ended = read_pid(daemon), read_pid(job)
    wait_until(lambda: state(ended) in ("Z", None), because="it was short")

    with run(["sleep", "60"]) as task:
        assert task.descendants() == (task.pid,)
    assert state(ended) is None, "somebody must reap it"
    assert state(pid) == "S"
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: state(pid) == "Z", because="it was killed")
    run(["true"])
    assert state(pid) is None


def test_a_ctrl_c_while_a_task_is_started_is_not_for_the_task(
    run: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the group of its worker until it has a session of its own."""
    prepare_as_always = process_module._prepare

    def prepare(*given: Any) -> Callable[[], None]:
        as_always = prepare_as_always(*given)

        def interrupted() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            as_always()

        return interrupted

    monkeypatch.setattr(process_module, "_prepare", prepare)
    assert finish(run(["true"])) == Exit(exit_code=0)


def test_a_hook_does_not_keep_a_worker_that_must_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "HOOK_HURRY_S", 0.0)
    told = run_hook(
        "cat > /dev/null; exec sleep 60", "x" * 1_000_000, timeout_s=50, hurry=lambda: True
    )
    assert told == "the hook was killed: its worker must leave"


def test_a_hook_may_take_longer_than_a_look_at_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(process_module, "HOOK_LOOK_S", 0.01)
    command = f"sleep 0.3; cat > {tmp_path}/said"
    assert run_hook(command, "x" * 1_000_000, timeout_s=50) is None
    assert (tmp_path / "said").stat().st_size == 1_000_000


def test_a_hook_writes_to_the_errors_of_its_parent(capfd: pytest.CaptureFixture[str]) -> None:
    run_hook("echo hello", "", timeout_s=20)

    assert capfd.readouterr() == ("", "hello\n")


def test_sockets_of_this_process_are_not_leaked_by_starting(run: Start) -> None:
    ours, its = socket.socketpair()
    with ours, its:
        task = run(["sleep", "60"])
        its.close()

        assert ours.recv(1) == b""  # the task holds no copy of the other end
        assert task.poll() is None
