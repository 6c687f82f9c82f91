"""The only module that starts processes, and those that they left are killed from here.

What the worker itself starts besides tasks (guard, hooks, questions) stays in its session, in a
process group of its own, where Ctrl-C does not reach it; see `running_task` for the tasks.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gpuledger import guard as guard_program
from gpuledger.clock import SystemClock
from gpuledger.guard import FROZEN, MARK, RENEWED, RESTS, TASK, kill_all, marked, read_process
from gpuledger.modes import open_file
from gpuledger.running_task import KILL_WAIT_S, Child, Exit, Forked, RunningTask, strangers

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

ALL_SIGNALS = frozenset(signal.valid_signals())
CATCHABLE = ALL_SIGNALS - {signal.SIGKILL, signal.SIGSTOP}
FROM_THE_TERMINAL = {signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP}

HOOK_LOOK_S = 0.5
HOOK_HURRY_S = 3.0
"""What a hook gets whose worker must leave."""

HELPER_WAIT_S = 1.0
"""The same for processes that hold nothing of a task."""


class CannotStart(Exception):
    """A command could not be started; nothing runs and nothing was changed.

    Attributes:
        problem: One sentence, lower case, no full stop.
        exit_code: What a shell would report: 127 for not found, else 126.
        machine_at_fault: The machine lacks memory, processes or descriptors just now: the
            command itself may be fine.
    """

    def __init__(self, problem: str, *, exit_code: int, machine_at_fault: bool = False) -> None:
        super().__init__(problem)
        self.problem = problem
        self.exit_code = exit_code
        self.machine_at_fault = machine_at_fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command said.

    Attributes:
        exit_code: Negative for a signal; None when it was killed for what it took or said.
        output: What it printed, as far as it is kept.
        errors: The same of its errors.
        cut: It printed more.
    """

    exit_code: int | None
    output: bytes
    errors: bytes
    cut: bool


def become_subreaper() -> None:
    """Make orphans among this process's descendants its children; the worker calls it once."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot become a subreaper: {os.strerror(number)}")


def kill_marked(mark: str, *, wait_s: float = KILL_WAIT_S) -> int:
    """Kill this user's processes on this machine that carry a mark; return how many.

    Args:
        mark: Whole value of `GPULEDGER_MARK`, or its beginning up to a dot: a worker's nonce
            alone means all of its attempts.
        wait_s: How long to go on while some of them live.
    """
    if not mark:
        raise ValueError("mark must not be empty: it would mean every task of every worker")
    return kill_all(lambda: marked(mark), wait_s=wait_s)


# --- children --------------------------------------------------------------------------------


class WorkerProcess:
    """A worker that this process started, one of several."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.pid = popen.pid
        self._popen = popen
        self._child = Child(popen)

    def fileno(self) -> int:
        """Return a descriptor that is readable once it ended; see `RunningTask.fileno`."""
        return self._child.fileno()

    def poll(self) -> Exit | None:
        """Return how it ended, or None while it runs."""
        return self._child.poll()

    def exit_code(self) -> int:
        """Wait for its end; return its exit code, or the negative number of its signal."""
        code = self._popen.wait()
        self._child.poll()
        return code

    def send(self, signum: int) -> None:
        """Signal it; nothing happens when it ended."""
        self._popen.send_signal(signum)


def start(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    log: Path,
) -> RunningTask:
    """Start a task in a session of its own, with default signals and nothing inherited.

    The thread that calls this must live as long as the task: the kernel kills the task when that
    thread ends, however it ends.

    Args:
        argv: The command; `python` means this interpreter when `PATH` has none.
        cwd: Folder to start in.
        env: The whole environment; with a `GPULEDGER_MARK`, so that `kill_marked` finds it.
        log: File that output and errors are appended to.

    Raises:
        CannotStart: The command (or the folder) is wrong, or the machine has no room for it.
        OSError: The log cannot be written; nothing was started.
    """
    output = open_log(log)
    others = strangers()
    try:
        popen = _popen(
            with_python(argv, env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            env=env,
            own_session=True,
            when_parent_dies=signal.SIGKILL,
        )
    finally:
        os.close(output)
    return RunningTask(Child(popen), strangers=others)


def open_log(log: Path) -> int:
    """Return a descriptor that appends to a file, for this process to close."""
    return open_file(log, os.O_WRONLY | os.O_APPEND)


def adopt(pid: int) -> RunningTask:
    """Return a task that was forked from a warm process and is a child of this one by now.

    Raises:
        ProcessLookupError: It is not, or it does not lead a session of its own.
    """
    process = read_process(pid)
    if process is None or process.parent != os.getpid() or process.session != pid:
        raise ProcessLookupError(f"process {pid} is no task of this process")
    return RunningTask(Child(Forked(pid)), strangers=strangers(besides=pid))


class Helper:
    """A process in this one's session, in a group of its own, that dies with this process."""

    def __init__(
        self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], line: int
    ) -> None:
        """Start it; it inherits one descriptor, `line`.

        Raises:
            CannotStart: See there.
        """
        self._popen = _popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=cwd,
            env=env,
            own_session=False,
            when_parent_dies=signal.SIGKILL,
            inherited=(line,),
        )
        self.pid = self._popen.pid

    def kill(self) -> None:
        """End it and all of its group; what hangs in the kernel is left behind."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        deadline_s = SystemClock().boottime() + HELPER_WAIT_S
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(HELPER_WAIT_S)
        with suppress(ChildProcessError):  # a subreaper inherits the others of its group
            while SystemClock().boottime() < deadline_s:
                if not os.waitpid(-self.pid, os.WNOHANG)[0]:
                    select.poll().poll(1)  # killed, but not dead yet


def spawn_worker(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, log: Path | None = None
) -> WorkerProcess:
    """Start a worker of several, which gets TERM when this process ends.

    It is in a process group of its own: Ctrl-C and Ctrl-Z reach it only when this process
    passes them on. The calling thread must outlive it.

    Args:
        argv: The command.
        env: The whole environment; None means this process's.
        log: File that its output and errors are appended to; None means that it shares this
            process's.

    Raises:
        CannotStart: See there.
        OSError: The log cannot be written; nothing was started.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    output = None if log is None else os.open(log, flags, 0o666)
    try:
        popen = _popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=None,
            env=env,
            own_session=False,
            when_parent_dies=signal.SIGTERM,
        )
    finally:
        if output is not None:
            os.close(output)
    return WorkerProcess(popen)


@contextmanager
def print_when_killed(text: str) -> Iterator[None]:
    """See to it that a text is printed to stdout if this process is killed meanwhile.

    A shell in a process group of its own waits for the end of a pipe whose other end is here. Where
    none can be started nothing is printed.
    """
    ignored = "HUP INT QUIT TERM TSTP TTIN TTOU"
    program = f"trap '' {ignored}; read -r ended || printf %s \"$0\""
    try:
        heir = _popen(
            ["/bin/sh", "-c", program, text],
            stdin=subprocess.PIPE,
            stdout=None,
            stderr=subprocess.DEVNULL,
            cwd=Path("/"),
            env=None,
            own_session=False,
            when_parent_dies=None,
        )
    except CannotStart:
        yield
        return
    try:
        yield
    finally:
        with suppress(BrokenPipeError, subprocess.TimeoutExpired):
            heir.communicate(b"\n", HELPER_WAIT_S)


def probe(job: str, path: Path, *, timeout_s: float) -> str | None:
    """Return what `gpuledger.probe` says of a path; None when it did not answer in time.

    What hangs in the kernel cannot be killed; it is left behind and ends when it can.
    """
    popen = _popen(
        [sys.executable, "-m", "gpuledger.probe", job, str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path("/"),
        env=None,
        own_session=False,
        when_parent_dies=signal.SIGKILL,
    )
    try:
        return popen.communicate(timeout=timeout_s)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        popen.kill()
        return None


def ask(
    argv: Sequence[str],
    *,
    timeout_s: float,
    limit_bytes: int,
    cwd: Path | None = Path("/"),
    env: Mapping[str, str] | None = None,
) -> Answer:
    """Run a command that only answers, to its end or until it took too long or said too much.

    Args:
        argv: The command.
        timeout_s: Seconds it may take; its whole process group is killed then.
        limit_bytes: What is kept of its output; one that says more is killed, too.
        cwd: Folder to start in; None: where this process is.
        env: The whole environment; None: that of this process.

    Raises:
        CannotStart: See there.
    """
    popen = _popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=env,
        own_session=False,
        when_parent_dies=signal.SIGKILL,
    )
    deadline_s = SystemClock().boottime() + timeout_s
    with ExitStack() as pipes:
        heard = [pipes.enter_context(pipe) for pipe in (popen.stdout, popen.stderr) if pipe]
        output, errors = _hear([pipe.fileno() for pipe in heard], limit_bytes, deadline_s)
    exit_code = None
    with suppress(subprocess.TimeoutExpired):
        if len(output) <= limit_bytes:
            exit_code = popen.wait(max(deadline_s - SystemClock().boottime(), 0.0))
    if exit_code is None:
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # what hangs in the kernel is left behind
            popen.wait(1.0)
        with suppress(ChildProcessError):  # a subreaper inherits the others of its group
            while os.waitpid(-popen.pid, os.WNOHANG)[0]:
                pass
    return Answer(
        exit_code=exit_code,
        output=bytes(output[:limit_bytes]),
        errors=bytes(errors[:limit_bytes]),
        cut=len(output) > limit_bytes,
    )


def _hear(pipes: Sequence[int], limit_bytes: int, deadline_s: float) -> list[bytearray]:
    """Return what comes out of each pipe until all are closed, or the first one said too much."""
    heard = {pipe: bytearray() for pipe in pipes}
    poll = select.poll()
    for pipe in pipes:
        poll.register(pipe, select.POLLIN)
    silent: set[int] = set()
    while len(silent) < len(pipes) and len(heard[pipes[0]]) <= limit_bytes:
        left_s = deadline_s - SystemClock().boottime()
        if left_s <= 0:
            break
        for pipe, _ in poll.poll(left_s * 1000):
            content = os.read(pipe, 1 << 16)
            if len(heard[pipe]) <= limit_bytes:
                heard[pipe] += content
            if not content:
                poll.unregister(pipe)
                silent.add(pipe)
    return [heard[pipe] for pipe in pipes]


def run_hook(
    command: str,
    message: str,
    *,
    timeout_s: float,
    hurry: Callable[[], bool] = lambda: False,
    env: Mapping[str, str] | None = None,
) -> str | None:
    """Run an operator's shell command to its end; return what went wrong, or None.

    Its output goes to this process's errors. What it left in the background goes on, unless it
    ran out of time: then its whole process group is killed.

    Args:
        command: For `sh -c`.
        message: What it reads from its standard input.
        timeout_s: Seconds it may take.
        hurry: Whether this process must end; the hook gets HOOK_HURRY_S from then on.
        env: The whole environment; None means this process's.
    """
    try:  # no pipe: nobody has to go on writing
        file = os.fdopen(os.memfd_create("message"), "w+b")
    except OSError as error:
        return f"the hook could not be started: {error}"
    file.write(message.encode(errors="replace"))
    file.seek(0)
    try:
        popen = _popen(
            ["/bin/sh", "-c", command],
            stdin=file.fileno(),
            stdout=2,
            stderr=None,
            cwd=None,
            env=env,
            own_session=False,
            when_parent_dies=signal.SIGKILL,
        )
    except CannotStart as problem:
        return f"the hook could not be started: {problem}"
    finally:
        file.close()
    with popen:
        if not _ends_in_time(popen, timeout_s=timeout_s, hurry=hurry):
            os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()
            with suppress(ChildProcessError):  # a subreaper inherits the others of its group
                while os.waitpid(-popen.pid, os.WNOHANG)[0]:
                    pass
            why = "its worker must leave" if hurry() else f"it took more than {timeout_s:g} s"
            return f"the hook was killed: {why}"
    if popen.returncode < 0:
        return f"the hook was killed by {_signal_name(-popen.returncode)}"
    return f"the hook ended with exit code {popen.returncode}" if popen.returncode else None


def _ends_in_time(
    popen: subprocess.Popen[bytes], *, timeout_s: float, hurry: Callable[[], bool]
) -> bool:
    """Wait for the end of a hook; False when it takes too long."""
    clock = SystemClock()
    end_s = clock.boottime() + timeout_s
    hurries = False
    while (left_s := end_s - clock.boottime()) > 0:
        with suppress(subprocess.TimeoutExpired):
            popen.wait(min(left_s, HOOK_LOOK_S))
            return True
        if not hurries and hurry():
            hurries = True
            end_s = min(end_s, clock.boottime() + HOOK_HURRY_S)
    return False


# --- the guard -------------------------------------------------------------------------------


class Guard:
    """A worker's line to its guard, the process that ends its tasks when it cannot."""

    def __init__(self, popen: subprocess.Popen[bytes], line: socket.socket) -> None:
        self.pid = popen.pid
        self._popen = popen
        self._line = line

    @classmethod
    def start(cls, nonce: str, *, fence_s: float) -> Self:
        """Start the guard of this worker.

        Args:
            nonce: The worker's; what its tasks' `GPULEDGER_MARK` begins with, up to the first dot.
            fence_s: Seconds without `renewed` after which it freezes the tasks.

        Raises:
            CannotStart: See there.
        """
        if not nonce:
            raise ValueError("nonce must not be empty: it would mean every task")
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        program = str(Path(guard_program.__file__).resolve())
        try:
            popen = _popen(
                [sys.executable, "-I", "-S", program, nonce, repr(fence_s)],
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=None,
                cwd=Path("/"),  # keeps no file system busy
                env={name: value for name, value in os.environ.items() if name != MARK},
                own_session=False,
                when_parent_dies=None,
            )
        except CannotStart:
            ours.close()
            raise
        finally:
            its.close()
        return cls(popen, ours)

    def fileno(self) -> int:
        """Return the descriptor that is readable when `froze` has something to say."""
        return self._line.fileno()

    def renewed(self, at_s: float) -> bool:
        """Say when the lease was renewed; False when the guard is gone: start another.

        Args:
            at_s: Seconds since this machine started, as `Clock.boottime` returns them.
        """
        return self._say(RENEWED + b" %.6f" % at_s)

    def rests(self) -> bool:
        """Say that nothing runs, nor will before the next `renewed`; it sleeps until then."""
        return self._say(RESTS)

    def covers(self, task: RunningTask | None) -> bool:
        """Say which task runs now; its whole session is killed or frozen, marked or not."""
        return self._say(TASK + b" %d" % (task.pid if task else 0))

    def froze(self) -> bool:
        """Tell whether the guard froze the task since this was last asked.

        The worker then looks at its lease, calls `renewed`, and thaws the task, in this order.
        """
        frozen = False
        with suppress(OSError):
            while message := self._line.recv(64):
                frozen = frozen or message == FROZEN
        return frozen

    def close(self, *, timeout_s: float = 10.0) -> None:
        """Let the guard end; what is left of the worker's tasks is killed by it."""
        self._line.close()
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def _say(self, message: bytes) -> bool:
        try:
            self._line.send(message)
        except BlockingIOError:
            return True  # it is there, but was stopped for long
        except OSError:
            return False
        return True


# --- starting --------------------------------------------------------------------------------


def _popen(
    argv: Sequence[str],
    *,
    stdin: int,
    stdout: int | None,
    stderr: int | None,
    cwd: Path | None,
    env: Mapping[str, str] | None,
    own_session: bool,
    when_parent_dies: signal.Signals | None,
    inherited: Collection[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process, in a session or at least a process group of its own."""
    if not argv:
        raise CannotStart("the command is empty", exit_code=127)
    prepare = _prepare(os.getpid(), when_parent_dies)
    # Blocked until the child has default dispositions: our handlers must not run in the child.
    before = signal.pthread_sigmask(signal.SIG_SETMASK, ALL_SIGNALS)
    try:
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=env,
            start_new_session=own_session,
            process_group=None if own_session else 0,
            preexec_fn=prepare,
            pass_fds=inherited,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise _cannot_start(argv, cwd, error) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare(parent: int, when_parent_dies: signal.Signals | None) -> Callable[[], None]:
    """Return what the child does between fork and exec."""
    # Looked up before the fork, and PyDLL keeps the interpreter's lock: nothing is waited for.
    prctl = ctypes.PyDLL(None).prctl
    # The others have their default action already, and every call here is time without a task.
    changed = [signum for signum in CATCHABLE if signal.getsignal(signum) is not signal.SIG_DFL]

    def prepare() -> None:
        if when_parent_dies is not None:
            prctl(PR_SET_PDEATHSIG, int(when_parent_dies), 0, 0, 0)
            if os.getppid() != parent:  # it died before the kernel knew whom to tell
                os.kill(os.getpid(), signal.SIGKILL)
        for signum in changed:
            if signum in FROM_THE_TERMINAL:  # it was in our group until now: what came meant us
                signal.signal(signum, signal.SIG_IGN)
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    return prepare


def with_python(argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Return the command, `python` replaced by this interpreter where there is none."""
    command = list(argv)
    if command and command[0] in ("python", "python3"):
        path = env.get("PATH", os.defpath)
        if shutil.which(command[0], path=path) is None and sys.executable:
            command[0] = sys.executable
    return command


def _cannot_start(argv: Sequence[str], cwd: Path | None, error: Exception) -> CannotStart:
    """Say in one line why a command could not be started."""
    name = repr(argv[0])
    if not isinstance(error, OSError):
        return CannotStart(f"cannot start {name}: {error}", exit_code=126)
    if cwd is not None and str(error.filename) == str(cwd) != str(argv[0]):
        reason = os.strerror(error.errno or 0).lower()
        return CannotStart(f"cannot start {name} in {str(cwd)!r}: {reason}", exit_code=126)
    if error.errno == errno.ENOENT:
        if "/" in argv[0] and Path(cwd or ".", argv[0]).exists():
            reason = f"cannot start {name}: the interpreter in its first line does not exist"
        else:
            reason = f"command not found: {name}"
        return CannotStart(reason, exit_code=127)
    reasons = {
        errno.EACCES: "not an executable file, or not allowed",
        errno.ENOEXEC: "neither a program for this machine nor a script with a #! line",
        errno.E2BIG: "its arguments and environment are too long for this system",
    }
    reason = reasons.get(error.errno or 0, os.strerror(error.errno or 0).lower())
    scarce = error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
    return CannotStart(f"cannot start {name}: {reason}", exit_code=126, machine_at_fault=scarce)


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} ({number})"
    except ValueError:
        return f"signal {number}"
