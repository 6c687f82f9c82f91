"""Tasks from a warm process: nothing in them differs from those that are started normally."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpuledger import launcher as launcher_module
from gpuledger.clock import SystemClock
from gpuledger.guard import MARK, is_running, read_process
from gpuledger.launcher import Launcher, Order
from gpuledger.process import PR_SET_CHILD_SUBREAPER, become_subreaper
from gpuledger.running_task import Exit, RunningTask
from tests.helpers import wait_until
from tests.shell import processes_with

NONCE = f"w{os.getpid()}"

Run = Callable[..., tuple[Exit, str]]


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = children()  # of other tests: multiprocessing keeps one, for as long as Python runs
    become_subreaper()
    yield
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    assert children() <= before


def children() -> set[str]:
    """Return the numbers of this process's children, the dead ones among them."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def launcher(said: list[str]) -> Iterator[Launcher]:
    launcher = Launcher(say=said.append, clock=SystemClock())
    yield launcher
    launcher.close()


@pytest.fixture
def order(tmp_path: Path) -> Order:
    """A task that runs `task.py` below a folder, with a module of the user's to import first."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "heavy.py").write_text("import os\nPID = os.getpid()\n")
    return Order(
        argv=[sys.executable, "task.py"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], MARK: f"{NONCE}.t_0_1.1", "GPULEDGER_TASK": "t_0_1"},
        log=tmp_path / "log",
        preload=("heavy",),
    )


def script(order: Order, text: str) -> None:
    (order.cwd / "task.py").write_text(textwrap.dedent(text))


def started(launcher: Launcher, order: Order) -> RunningTask:
    while (task := launcher.start(order)) is None:
        assert select.select([launcher.fileno()], [], [], 20)[0]
    return task


def ran(launcher: Launcher, order: Order) -> tuple[Exit, str]:
    """Run a task to its end; return how it ended, and its log."""
    order.log.unlink(missing_ok=True)
    with started(launcher, order) as task:
        ended = wait_until(task.poll, because=f"it does not end: {order.log.read_text()}")
        assert ended is not None
        return ended, re.sub(r"0x[0-9a-f]{9,}", "0x...", order.log.read_text())


# --- what a task sees ------------------------------------------------------------------------

FACTS = """
import gc, json, os, resource, signal, sys, threading, multiprocessing.process
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
own = globals()
mask = os.umask(0)
facts = {
    "names": sorted(name for name in own if name.startswith("__")),
    "main": [own["__file__"], own["__name__"], own["__package__"], own["__cached__"],
             type(own["__loader__"]).__name__, str(own["__spec__"]), type(__builtins__).__name__],
    "is main": sys.modules["__main__"].__dict__ is own,
    "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path,
    "executable": sys.executable, "flags": str(sys.flags),
    "hook": sys.excepthook is sys.__excepthook__,
    "cwd": os.getcwd(), "orig_dir": multiprocessing.process.ORIGINAL_DIR, "umask": mask,
    "environ": dict(os.environ),
    "shown command": str(open("/proc/self/cmdline", "rb").read().rstrip(bytes(1))),
    "shown mark": [x for x in open("/proc/self/environ").read().split(chr(0)) if "MARK" in x],
    "open": sorted(os.listdir("/proc/self/fd")), "input": sys.stdin.read(),
    "stdio": [[s.name, s.mode, s.encoding, s.errors, s.line_buffering, s.write_through, s.isatty()]
              for s in (sys.stdin, sys.stdout, sys.stderr)],
    "signals": [str(signal.getsignal(n)) for n in sorted(signal.valid_signals())],
    "masks": [status[k] for k in ("SigBlk", "SigIgn", "SigCgt")],
    "leader": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid(), os.getppid()],
    "threads": [threading.active_count(), threading.current_thread() is threading.main_thread(),
                threading.main_thread().native_id == os.getpid()],
    "limits": [resource.getrlimit(n) for n in range(16)], "nice": os.nice(0), "gc": gc.isenabled(),
    "affinity": sorted(os.sched_getaffinity(0)),
}
print(json.dumps(facts, sort_keys=True, indent=1))
"""


@pytest.mark.parametrize(
    "words",
    [
        ["task.py"],
        ["-u", "./task.py", "--lr=1", "a b", ""],
        ["../work/task.py"],
        ["{folder}/task.py", "\udcff"],
        ["link.py"],
        ["-m", "task", "x"],
        ["-m", "package.inner"],
        ["-m", "package"],
    ],
    ids=str,
)
@pytest.mark.parametrize("more", [{}, {"PYTHONUNBUFFERED": "1", "LC_ALL": "C"}], ids=str)
def test_a_task_sees_what_it_would_have_seen(
    launcher: Launcher, said: list[str], order: Order, words: list[str], more: dict[str, str]
) -> None:
    script(order, FACTS)
    elsewhere = order.cwd.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "real.py").write_text(FACTS)
    (elsewhere / "heavy.py").write_text("")
    (order.cwd / "link.py").symlink_to(elsewhere / "real.py")
    package = order.cwd / "package"
    package.mkdir()
    for name in ("__main__.py", "inner.py"):
        (package / name).write_text(FACTS)
    (package / "__init__.py").write_text("")
    argv = [sys.executable, *(word.replace("{folder}", str(order.cwd)) for word in words)]
    order = replace(order, argv=argv, env={**order.env, "PYTHONDONTWRITEBYTECODE": "1", **more})

    cold = ran(launcher, replace(order, preload=()))
    warm = ran(launcher, order)

    assert json.loads(warm[1]) == json.loads(cold[1])
    assert warm[0] == cold[0] == Exit(exit_code=0)
    assert json.loads(cold[1])["shown mark"] == [f"{MARK}={NONCE}.t_0_1.1"]
    assert said == []
    assert launcher.fileno() >= 0


def test_a_task_comes_from_the_warm_process(launcher: Launcher, order: Order) -> None:
    script(order, "import heavy, os; print(heavy.PID, heavy.PID != os.getpid())")

    first, second = ran(launcher, order), ran(launcher, order)

    assert first == second
    assert first[1].split()[1] == "True"


def test_each_task_has_its_own_environment_and_command(launcher: Launcher, order: Order) -> None:
    script(
        order, "import heavy, os, sys; print(heavy.PID, os.environ.get('GPULEDGER_X'), sys.argv)"
    )

    one = ran(launcher, replace(order, env={**order.env, "GPULEDGER_X": "1" * 5000}))[1].split()
    two = ran(launcher, replace(order, argv=[*order.argv, "more"]))[1].split()

    assert one[0] == two[0]
    assert (one[1:], two[1:]) == (["1" * 5000, "['task.py']"], ["None", "['task.py',", "'more']"])


@pytest.mark.parametrize("change", [{"OMP_NUM_THREADS": "1"}, {"PYTHONHASHSEED": "3"}], ids=str)
def test_another_environment_has_its_own_warm_process(
    launcher: Launcher, order: Order, change: dict[str, str]
) -> None:
    script(order, "import heavy; print(heavy.PID, hash('x'))")

    one = ran(launcher, order)[1].split()
    two = ran(launcher, replace(order, env={**order.env, **change}))[1].split()

    assert one[0] != two[0]
    assert one[1] != two[1] or "PYTHONHASHSEED" not in change


def test_what_importing_set_in_the_environment_stays(launcher: Launcher, order: Order) -> None:
    (order.cwd / "heavy.py").write_text(
        "import os; os.environ['SET'] = 'x'; del os.environ['GONE']"
    )
    script(order, "import heavy, os; print(os.environ.get('SET'), os.environ.get('GONE'))")

    assert ran(launcher, replace(order, env={**order.env, "GONE": "no"}))[1] == "x None\n"


def test_random_numbers_begin_anew(launcher: Launcher, order: Order) -> None:
    script(order, "import random, uuid; print(random.random(), uuid.uuid4())")
    order = replace(order, preload=("random", "uuid"))

    numbers = [number for _ in range(3) for number in ran(launcher, order)[1].split()]

    assert len(set(numbers)) == 6


# --- how a task ends -------------------------------------------------------------------------

ENDINGS = {
    "nothing": "",
    "a number": "import sys; sys.exit(3)",
    "a text": "import sys; print('before'); sys.exit('the end')",
    "none": "import sys; sys.exit(None)",
    "what only equals 0": "import sys; sys.exit(0.0)",
    "false": "import sys; sys.exit(False)",
    "large": "raise SystemExit(1 << 70)",
    "at once": "import os; print('lost?', end=''); os._exit(5)",
    "signal": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "interrupt": "raise KeyboardInterrupt",
    "sigint": "import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(9)",
    "error": "def f():\n    return {}['x']\nf()",
    "chain": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('y') from e",
    "group": "raise ExceptionGroup('g', [ValueError(1), KeyError(2)])",
    "syntax": "if True:\n  x = = 3",
    "encoding": "# coding: latin-1\nprint(ascii('\xe9'))",
    "hook": "import sys\n"
    "sys.excepthook = lambda k, e, t: print(k, e, t.tb_lineno, t.tb_next)\n1 / 0",
    "atexit": "import atexit; atexit.register(print, 'bye'); print('hello')",
    "atexit error": "import atexit; atexit.register(lambda: 1 / 0)",
    "not flushed": "print('x' * 10, end=''); import sys; sys.stderr.write('y')",
    "open file": "f = open('kept', 'w'); f.write('z' * 10)",
    "file kept elsewhere": "import heavy; heavy.f = open('kept', 'w'); heavy.f.write('z' * 10)",
    "finalizer": "class A:\n    def __del__(self):\n        print('gone')\na = A()",
    "finalizer that needs names": "import sys\nname = 'x'\nclass A:\n    def __del__(self):\n"
    "        print(name, len)\na = A()\na.itself = a\nb = A()",
    "finalizer of a module": "import sys, types\nm = sys.modules['m'] = types.ModuleType('m')\n"
    "exec('class A:\\n def __del__(self): print(__name__, A)\\na = A(); b = [a]', m.__dict__)",
    "weak finalizer": "import weakref\nclass A: pass\na = A()\nweakref.finalize(a, print, 'over')",
    "callback": "import weakref\nclass A: pass\na = A()\nr = weakref.ref(a, lambda r: print('r'))",
    "well, by exit": "import sys\nclass A:\n    def __del__(self):\n        print('gone')\n"
    "a = A()\nsys.exit(0)",
    "another output": "import sys\nclass A:\n    def __del__(self): print('gone')\n"
    "a = A(); sys.stdout = open('kept', 'w'); print('into it')",
    "no output": "import sys; sys.stdout.close()",
    "no modules": "import sys; print('there'); sys.modules.clear()",
    "none to call": "import atexit; atexit.register(print, 'no'); atexit._clear(); print('yes')",
    "exit at exit": "import atexit, os; atexit.register(os._exit, 4); print('yes', flush=True)",
    "left by a fork": "import os\npid = os.fork()\nif pid: print(os.waitpid(pid, 0)[1])\n"
    "else: print('child')",
    "c": "import ctypes; ctypes.CDLL(None).printf(b'from C')",
    "thread": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
    "daemon thread": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "closed output": "import sys; sys.stdout.close(); 1 / 0",
    "warning": "import warnings; warnings.warn('careful')\n'\\d'",
    "exec": "import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'print(2)'])",
    "spawn": "import multiprocessing as m\nfrom heavy import PID\ndef f(x): return x + 1\n"
    "if __name__ == '__main__':\n    with m.get_context('spawn').Pool(1) as p:\n"
    "        print(p.map(f, [1]))",
    "fork": "import multiprocessing as m\ndef f(x): return x + 1\n"
    "if __name__ == '__main__':\n    with m.get_context('fork').Pool(2) as p:\n"
    "        print(p.map(f, [1, 2]))",
    "pickle": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A)",
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_task_ends_as_it_would_have_ended(
    launcher: Launcher, said: list[str], order: Order, name: str
) -> None:
    (order.cwd / "task.py").write_text(ENDINGS[name], encoding="latin-1")
    kept = order.cwd / "kept"

    cold = ran(launcher, replace(order, preload=())), kept.exists() and kept.read_text()
    kept.unlink(missing_ok=True)
    warm = ran(launcher, order), kept.exists() and kept.read_text()

    assert warm == cold
    assert said == []
    assert launcher.fileno() >= 0


@pytest.mark.parametrize(
    "words", [["-m", "nothing"], ["-m", "task"], ["none.py"], ["task.py"]], ids=str
)
def test_errors_before_the_first_line_are_the_interpreters(
    launcher: Launcher, order: Order, words: list[str]
) -> None:
    script(order, "x = 'a\0b'")
    order = replace(order, argv=[sys.executable, *words])

    cold, warm = ran(launcher, replace(order, preload=())), ran(launcher, order)

    assert warm == cold
    assert cold[0] != Exit(exit_code=0)


def test_a_full_disk_is_the_tasks_problem(launcher: Launcher, order: Order) -> None:
    script(order, "print('x' * 100000)")
    order = replace(order, log=Path("/dev/full"))
    ends = []
    for each in (replace(order, preload=()), order):
        with started(launcher, each) as task:
            ends.append(wait_until(task.poll, because="it should end"))

    assert ends[0] == ends[1] != Exit(exit_code=0)


def test_what_a_preloaded_module_would_end_is_not_ended_by_a_task(
    launcher: Launcher, order: Order
) -> None:
    (order.cwd / "heavy.py").write_text("import tempfile\nfolder = tempfile.TemporaryDirectory()")
    script(order, "import heavy, os; print(os.listdir(heavy.folder.name))")
    order = replace(order, env={**order.env, "TMPDIR": str(order.cwd)})

    assert [ran(launcher, order)[1] for _ in range(3)] == ["[]\n"] * 3


# --- the warm process ------------------------------------------------------------------------


def test_it_is_renewed_when_a_file_of_its_modules_changes(launcher: Launcher, order: Order) -> None:
    script(order, "import heavy; print(heavy.PID)")
    first = ran(launcher, order)[1]
    (order.cwd / "heavy.py").write_text("PID = 'changed'\n")

    assert ran(launcher, order)[1] == "changed\n" != first


def test_a_file_that_changes_while_others_are_imported_is_noticed(
    launcher: Launcher, order: Order
) -> None:
    (order.cwd / "second.py").write_text("open('heavy.py', 'a').write('PID = 2\\n')")
    script(order, "import heavy; print(heavy.PID)")
    order = replace(order, preload=("heavy", "second"))
    task = launcher.start(order)
    assert task is None
    (ready,) = select.select([launcher.fileno()], [], [], 20)[0]
    assert ready == launcher.fileno()
    (order.cwd / "second.py").write_text("")

    assert ran(launcher, order)[1] == "2\n"


GENERATES = """
import importlib.util, os, tempfile
path = os.path.join(tempfile.mkdtemp(), "made.py")
open(path, "w").write("X = 1")
spec = importlib.util.spec_from_file_location("made", path)
spec.loader.exec_module(importlib.util.module_from_spec(spec))
os.unlink(path)
"""


def test_one_whose_files_change_at_each_import_is_given_up(
    launcher: Launcher, order: Order, said: list[str]
) -> None:
    (order.cwd / "heavy.py").write_text(GENERATES)
    script(order, "print('ran')")
    order = replace(order, env={**order.env, "TMPDIR": str(order.cwd)})

    assert ran(launcher, order) == (Exit(exit_code=0), "ran\n")
    (line,) = said
    assert line.startswith("preload ['heavy'] is of no use, tasks start normally: ")
    assert line.endswith("made.py changes all the time")


def test_it_is_renewed_after_many_tasks(
    launcher: Launcher, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher_module, "RENEW_AFTER", 2)
    script(order, "import heavy; print(heavy.PID)")

    pids = [ran(launcher, order)[1] for _ in range(4)]

    assert pids[0] == pids[1] != pids[2] == pids[3]


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_another_takes_the_place_of_one_that_died(
    launcher: Launcher, said: list[str], order: Order, signum: int
) -> None:
    script(order, "import heavy; print(heavy.PID)")
    first = ran(launcher, order)[1]
    wait_until_there_is_a_spare()
    os.kill(int(first), signum)

    assert ran(launcher, order)[1] == first, "its last fork was there already"
    assert ran(launcher, order)[1] != first
    assert said == []


def wait_until_there_is_a_spare() -> None:
    """Wait until a warm process has forked the next task, which waits for its order."""

    def is_there() -> bool:
        groups: list[int] = []
        for child in children():
            with contextlib.suppress(ProcessLookupError):
                groups.append(os.getpgid(int(child)))
        return any(groups.count(group) == 2 for group in groups)

    wait_until(is_there, because="there should be a spare")


def test_one_that_hangs_is_left_and_the_task_started_normally(
    launcher: Launcher, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(order, "import heavy, os; print(heavy.PID, os.getpid())")
    first = int(ran(launcher, order)[1].split()[0])
    wait_until_there_is_a_spare()
    os.kill(first, signal.SIGSTOP)
    assert int(ran(launcher, order)[1].split()[0]) == first
    monkeypatch.setattr(launcher_module, "ANSWER_WAIT_S", 0.05)

    heavy, own = ran(launcher, order)[1].split()

    assert heavy == own
    assert read_process(first) is None


UNFIT = {
    "import nothing_of_that_name": "No module named 'nothing_of_that_name'",
    "raise SystemExit(3)": "SystemExit: 3",
    "import os; os._exit(3)": "it ended unasked",
    "import threading as t, time; t.Thread(target=time.sleep, args=(60,), daemon=True).start()": (
        "importing started threads (1)"
    ),
    "kept = open('kept', 'w')": "kept open",
    "import socket; pair = socket.socketpair()": "left socket:",
    "import subprocess; process = subprocess.Popen(['sleep', '60'])": "importing started processes",
}


@pytest.mark.parametrize("source", UNFIT, ids=UNFIT.__getitem__)
def test_modules_that_do_not_bear_it_are_named_once(
    launcher: Launcher,
    said: list[str],
    order: Order,
    source: str,
) -> None:
    (order.cwd / "heavy.py").write_text(source)
    script(order, "print('ran')")

    assert [ran(launcher, order) for _ in range(2)] == [(Exit(exit_code=0), "ran\n")] * 2

    assert len(said) == 1
    assert said[0].startswith("preload ['heavy'] is of no use, tasks start normally: ")
    assert UNFIT[source] in said[0]
    assert launcher.fileno() == -1


def test_importing_that_takes_too_long_is_given_up(
    launcher: Launcher, said: list[str], order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    (order.cwd / "heavy.py").write_text("import time; time.sleep(60)")
    script(order, "print('ran')")
    assert launcher.start(order) is None
    assert launcher.start(order) is None
    monkeypatch.setattr(launcher_module, "IMPORT_WAIT_S", -1.0)

    assert ran(launcher, order)[1] == "ran\n"
    assert len(said) == 1
    assert "importing took more than" in said[0]


@pytest.mark.parametrize(
    "argv",
    [["sh", "-c", "echo ran"], ["PYTHON", "-c", "print('ran')"], ["PYTHON", "-S", "task.py"]],
    ids=str,
)
def test_other_commands_start_normally(
    launcher: Launcher, said: list[str], order: Order, argv: list[str]
) -> None:
    script(order, "print('ran')")
    order = replace(order, argv=[sys.executable if word == "PYTHON" else word for word in argv])

    assert [ran(launcher, order)[1] for _ in range(2)] == ["ran\n"] * 2
    assert len(said) == 1
    assert "only 'python script.py' and 'python -m module' are" in said[0]


def test_the_interpreter_of_the_command_is_asked(
    launcher: Launcher, order: Order, tmp_path: Path
) -> None:
    """Here it is found in the task's PATH, and is another path than this process's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").symlink_to(Path(sys.executable).resolve())
    script(order, "import sys; print(sys.executable, 'heavy' in sys.modules)")
    path = f"{folder}:{os.environ['PATH']}"
    order = replace(order, argv=["python", "task.py"], env={**order.env, "PATH": path})

    assert ran(launcher, order)[1] == f"{folder}/python True\n"


def test_without_preload_no_process_is_kept(launcher: Launcher, order: Order) -> None:
    script(order, "print('ran')")

    assert ran(launcher, replace(order, preload=()))[1] == "ran\n"
    assert launcher.fileno() == -1


# --- whatever happens ------------------------------------------------------------------------

WORKER = """
import os, select, sys
from pathlib import Path
from gpuledger.clock import SystemClock
from gpuledger.launcher import Launcher, Order
from gpuledger.process import become_subreaper
become_subreaper()
launcher = Launcher(say=print, clock=SystemClock())
order = Order(argv=[sys.executable, "task.py"], cwd=Path.cwd(), env=dict(os.environ),
              log=Path("log"), preload=("heavy",))
while (task := launcher.start(order)) is None:
    select.select([launcher.fileno()], [], [])
print(task.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_nothing_is_left_of_a_worker_that_is_killed(order: Order, when: str) -> None:
    """Killed while its warm process forks, before, between and after; then while the task runs."""
    hook = {
        "before": "os.register_at_fork(before=hang)",
        "between": "os.register_at_fork(after_in_child=hang)",
        "after": "",
    }[when]
    (order.cwd / "heavy.py").write_text(
        "import os, time\nforks = 0\n"
        "def hang():\n    global forks\n    forks += 1\n"
        f"    if forks == {2 if when == 'before' else 1} and os.environ.get('ARMED'):\n"
        "        open('hangs', 'w').close()\n        time.sleep(60)\n"
        f"{hook}\n"
    )
    script(order, "import time; open('runs', 'w').close(); time.sleep(60)")
    canary = f"CANARY_{NONCE}_{when}"
    env = {**order.env, "PYTHONPATH": str(Path.cwd()), canary: "x", "ARMED": "1"}
    if when == "between":  # the first fork is the trial after the imports
        (order.cwd / "heavy.py").write_text(
            "import os, time\nmain = os.getpid()\n"
            "def hang():\n    if os.getppid() != main and os.path.exists('armed'):\n"
            "        open('hangs', 'w').close()\n        time.sleep(60)\n"
            "os.register_at_fork(after_in_child=hang)\n"
        )
        (order.cwd / "armed").touch()
    with subprocess.Popen(
        [sys.executable, "-c", WORKER],
        cwd=order.cwd,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as worker:
        sign = order.cwd / ("runs" if when == "after" else "hangs")
        wait_until(sign.exists, because=f"no {sign.name}")
        worker.kill()

    def left() -> list[int]:
        with_canary = processes_with(canary)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for pid in map(int, children):
            process = read_process(pid)
            if process is not None and not is_running(process):
                os.waitpid(pid, 0)
        return with_canary

    if when == "between":  # it sleeps in the hook, and ends once it looks whose child it is
        for pid in left():
            with contextlib.suppress(ProcessLookupError):  # the others end by themselves
                os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not left(), because="all of it should be gone")
    assert (order.cwd / "runs").exists() == (when == "after")


@pytest.mark.torch
def test_torch_bears_it(launcher: Launcher, said: list[str], order: Order) -> None:
    pytest.importorskip("torch")
    script(
        order,
        """
        import numpy, torch
        x = torch.ones(300, 300, requires_grad=True)
        (x @ x).sum().backward()
        numpy.ones((300, 300)) @ numpy.ones((300, 300))
        print(torch.get_num_threads(), torch.cuda.is_initialized(), x.grad.sum().item())
        print(torch.initial_seed(), torch.rand(1).item(), numpy.random.rand())
        """,
    )
    order = replace(order, preload=("torch",), env={**order.env, "OMP_NUM_THREADS": "2"})
    logs = [ran(launcher, replace(order, preload=()))] + [ran(launcher, order) for _ in range(2)]

    assert said == []
    assert {ended for ended, _ in logs} == {Exit(exit_code=0)}
    printed = [log.split() for _, log in logs]
    assert len({tuple(each[:3]) for each in printed}) == 1
    assert all(
        len(set(column)) == 3 for column in zip(*(each[3:] for each in printed), strict=True)
    )
