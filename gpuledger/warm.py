"""The program of a warm process: it imports modules once, and forks of it become tasks.

`launcher.py` starts it as `PYTHON warm.py LINE FOLDER MODULE... PADDING` with the interpreter, the
folder and the environment of the tasks to come. It imports the modules, says so on LINE (the
number of a socket), and forks a spare while the task before still runs: twice, so that the spare
becomes a child of the worker, the nearest subreaper, which waits for it as for any other task. The
spare waits for an order; then the next one is forked, and it reads from a socket of its own what
it is to run, and becomes that: this program's file returns from `serve` and runs the script as the
interpreter would have, one frame deeper.

Nothing of it may be left in a task but the imported modules: standard library only, no module of
the package (their names must not be in the way of the user's), and no import that costs time.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    sys.path[0] = sys.argv[2]  # before any other import: not this file's folder

import atexit
import ctypes
import gc
import importlib.machinery
import io
import os
import signal
import socket
import time
import types
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

READY = b"ready"
ORDER = b"order"
UNFIT = b"unfit "
STALE = b"stale "
BUSY = b"busy"
HERE = b"here "
GOES = b"goes"
REFUSED = b"refused "
SCRIPT = b"script"
MODULE = b"module"

ROOM = "GPULEDGER_WARM"
"""Name of a variable full of blanks: a task's own variables are written over it."""

LOOK_S = 0.02
"""Time for looking whether files of modules changed, besides those of the user."""

LOOKED_LATELY_S = 5.0
"""For so long such a look counts: not every short task has to wait for one."""

SETTLE_S = 2.0
"""What threads get to end that libraries end before a fork."""

PR_SET_PDEATHSIG = 1


class Stamps:
    """Time and size of the files of all imported modules, as they were when they were read."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[float, int]] = {}
        self._own: list[str] = []
        self._others: list[str] = []
        self._next = 0
        self._ask: Any = None

    def listen(self) -> None:
        """Note from now on what importing finds: a file may change before the last is imported."""
        loader = importlib.machinery.SourceFileLoader
        ask = loader.path_stats

        def path_stats(self_: importlib.machinery.SourceFileLoader, path: str) -> Any:
            found: Any = ask(self_, path)
            self._read[path] = (found["mtime"], found["size"])
            return found

        loader.path_stats = path_stats  # type: ignore[assignment,method-assign]
        self._ask = ask

    def keep(self) -> None:
        """Note the files of all that is imported now, and stop listening."""
        importlib.machinery.SourceFileLoader.path_stats = self._ask  # type: ignore[method-assign]
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None)
            if isinstance(path, str) and path not in self._read:
                facts = _facts(path)
                if facts is not None:
                    self._read[path] = facts
        library = os.path.dirname(os.__file__) + os.sep
        for path in self._read:
            installed = path.startswith(library) or "/site-packages/" in path
            (self._others if installed else self._own).append(path)

    def own_changed(self) -> str | None:
        """Return a file of the user's, outside the installed packages, that changed."""
        for path in self._own:
            if _facts(path) != self._read[path]:
                return path
        return None

    def others_changed(self) -> str | None:
        """Return another file that changed: some are looked at, the next time the next ones."""
        until_s = time.monotonic() + LOOK_S
        for _ in self._others:
            path = self._others[self._next]
            self._next = (self._next + 1) % len(self._others)
            if _facts(path) != self._read[path]:
                return path
            if time.monotonic() > until_s:
                break
        return None


def _facts(path: str) -> tuple[float, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_mtime, found.st_size)


class Order:
    """What a task is to run: a module's name, or the path and the text of a script."""

    __slots__ = ("name", "source")

    def __init__(self, name: str, source: bytes | None) -> None:
        self.name = name
        self.source = source


def packed(
    *, kind: bytes, cwd: str, argv: Sequence[str], skipped: int, env: Mapping[str, str]
) -> bytes:
    """Return an order's text: what it runs, and where, and with which environment.

    Args:
        kind: `SCRIPT` or `MODULE`.
        cwd: Its folder.
        argv: The whole command.
        skipped: How many arguments come before the script, or before the name of the module.
        env: The whole environment.
    """
    fields = [kind, os.fsencode(cwd), b"%d" % len(argv), b"%d" % skipped]
    fields += [os.fsencode(argument) for argument in argv]
    fields += [os.fsencode(f"{name}={value}") for name, value in env.items()]
    text = b"\0".join(fields)  # none of them can contain a NUL
    return b"%20d" % len(text) + text


# --- the warm process ------------------------------------------------------------------------


def serve(finish: Finish) -> Order:
    """Import, then fork for each order; return in the task, never in the warm process itself."""
    line = socket.socket(fileno=int(sys.argv[1]))
    modules = sys.argv[3:-1]
    sys.argv[:] = [""]
    find = ctypes.CDLL(None).getenv
    find.restype = ctypes.c_void_p
    room = (find(ROOM.encode()), len(os.environb.pop(ROOM.encode())))
    given = _as_given()
    umask = os.umask(0o077)  # a module may change it, as it may change the folder
    os.umask(umask)
    before = set(_descriptors())
    stamps = Stamps()
    stamps.listen()
    before_them = set(sys.modules)
    atexit.register(finish)  # the first that is registered is called last
    for name in modules:
        try:
            __import__(name)
        except BaseException as error:
            _end(line, UNFIT + f"{name}: {type(error).__name__}: {error}".encode(errors="replace"))
    finish.let_be(set(sys.modules) - before_them)
    stamps.keep()
    gc.collect()
    gc.freeze()  # what is never looked at again stays shared with the tasks
    _fork_and_forget()  # some libraries (OpenBLAS) end their threads before a fork, for good
    problem = _unfit(before, settle_s=SETTLE_S)
    if problem is not None:
        _end(line, UNFIT + problem.encode(errors="replace"))
    _leave_at_exit()
    if not _flush_streams():
        os._exit(1)
    line.send(READY)
    worker = os.getppid()
    while True:
        problem = _unfit(before)
        if problem is not None:
            _end(line, UNFIT + problem.encode(errors="replace"))
        changed = stamps.others_changed()
        if changed is not None:
            _end(line, STALE + os.fsencode(changed))
        looked_s = time.monotonic()
        taken = _fork_spare(line, worker)
        if taken is not None:
            break
    changes = _changes(given)
    _seed()
    sys.path_importer_cache.clear()  # what folders contained when they were last looked into
    message, descriptors, _, _ = socket.recv_fds(line, 64, 2)
    if not message:
        os._exit(1)
    changed = stamps.own_changed()
    if changed is None and time.monotonic() - looked_s > LOOKED_LATELY_S:
        changed = stamps.others_changed()
    if changed is not None:
        _end(line, STALE + os.fsencode(changed))
    _say_taken(taken)
    os.setsid()
    return _task(line, descriptors, room, changes, umask)


def _fork_spare(line: socket.socket, worker: int) -> int | None:
    """Fork the process of the next task, and wait until it is one.

    Returns:
        In the spare, a descriptor to say on that it becomes a task. None in this process: it
        became one, or there was no room for it, which the worker was told.
    """
    taken, mine = os.pipe()
    try:
        between = os.fork()
    except OSError:
        between = -1
    if between == 0:
        os.close(taken)
        between = os.getpid()
        try:
            spare = os.fork()
        except OSError:
            os._exit(1)
        if spare:
            os._exit(0)
        while os.getppid() == between:  # it takes milliseconds to give its memory back
            time.sleep(0.001)
        _die_with_parent()
        if os.getppid() != worker:  # it died before the kernel knew whom to tell
            os._exit(1)
        return mine
    os.close(mine)
    has_spare = between > 0 and os.waitpid(between, 0)[1] == 0
    is_taken = has_spare and bool(os.read(taken, 1))
    os.close(taken)
    if not has_spare:
        _tell_busy(line)
    elif not is_taken:
        os._exit(0)  # the spare has said why, or nobody is there
    return None


def _say_taken(descriptor: int) -> None:
    try:
        os.write(descriptor, b"!")
    except OSError:
        return  # the warm process is dead: this is its last task
    finally:
        os.close(descriptor)


def _tell_busy(line: socket.socket) -> None:
    """Answer the next order: a task cannot be forked now."""
    message, descriptors, _, _ = socket.recv_fds(line, 64, 2)
    for descriptor in descriptors:
        os.close(descriptor)
    if not message:
        os._exit(0)
    line.send(BUSY)


def _as_given() -> dict[bytes, bytes]:
    """Return the environment as it was before the interpreter and `site` had a say in it."""
    with open("/proc/self/environ", "rb") as file:
        return dict(text.split(b"=", 1) for text in file.read().split(b"\0") if b"=" in text)


def _changes(given: dict[bytes, bytes]) -> dict[bytes, bytes | None]:
    """Return what the interpreter and the imports changed: it holds for tasks as well."""
    return {
        name: os.environb.get(name)
        for name in {*given, *os.environb}
        if name != ROOM.encode() and os.environb.get(name) != given.get(name)
    }


def _end(line: socket.socket, last_words: bytes) -> None:
    line.send(last_words[:1000])
    os._exit(1)


def _descriptors() -> dict[int, str]:
    """Return what is open."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[int(number)] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # the one that the list itself was read from
    return found


def _unfit(known: set[int], *, settle_s: float = 0.0) -> str | None:
    """Return why tasks must not be forked from this process, or None."""
    for number, name in _descriptors().items():
        if number not in known:  # all tasks would share it; and CUDA's are among these
            return f"importing left {name} open"
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        return "importing started CUDA"
    if _has_children():
        return "importing started processes"
    until_s = time.monotonic() + settle_s
    while (threads := len(os.listdir("/proc/self/task"))) > 1:
        if time.monotonic() > until_s:
            return f"importing started threads ({threads - 1})"
        time.sleep(0.01)
    return None


def _has_children() -> bool:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            return bool(file.read())
    except OSError:
        return False  # this kernel lists none


def _fork_and_forget() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _leave_at_exit() -> None:
    """Let the C library's exit end here: what was registered before is not run in tasks.

    Destructors of a preloaded library's global objects take longer than many a task (a second
    with torch), to free memory that the kernel frees anyway. Those of libraries that the task
    itself loads are registered later, and so run before this.
    """
    libc = ctypes.CDLL(None)
    on_exit = getattr(libc, "on_exit", None)  # glibc has it: the exit code is passed on
    if on_exit is not None:
        on_exit(libc._exit, None)
        on_exit(libc.fcloseall, None)  # the last one is called first


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


class Finish:
    """How a task's interpreter ends: called after all functions that were registered for that.

    Taking the preloaded modules apart would copy their memory, which all tasks share. They are let
    be; what the task made itself is ended as ever.

    Attributes:
        is_well: The script came to its end.
    """

    __slots__ = ("_last", "_names", "is_well")

    def __init__(self) -> None:
        self.is_well = False
        self._names: frozenset[str] = frozenset()
        self._last: list[str] = []

    def let_be(self, names: set[str]) -> None:
        """Keep these modules as they are; nothing of theirs is left to a task to be finished."""
        self._names = frozenset(names)
        self._last = list(sys.modules)[-2:]  # two: a task may import one of them anew
        kept = [sys.modules[name] for name in names if sys.modules.get(name) is not None]
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
        for each in list(getattr(weakref.finalize, "_registry", ())):
            each.atexit = False  # such as removing a folder that all tasks use

    def __call__(self) -> None:
        """End the process at once after a success; leave what is not one to the interpreter."""
        if self.is_well:
            _take_apart(["__main__", *self._imported_since()])
        _flush_files()
        if self.is_well and _flush_streams():
            ctypes.PyDLL(None).exit(0)
        for name in self._names:
            sys.modules[name] = None  # type: ignore[assignment]

    def _imported_since(self) -> list[str]:
        """Return the names of the task's own modules, without a look at the others' names.

        To look at an object is to copy its page.
        """
        found: list[str] = []
        for name in reversed(sys.modules):
            found.append(name)
            if found[-2:] == self._last[::-1]:
                break
        return [name for name in reversed(found[:-2]) if name not in self._names]


def _take_apart(names: list[str]) -> None:
    """Drop modules as the interpreter does at its end, so that what they hold is ended."""
    for stream in ("stdin", "stdout", "stderr"):
        setattr(sys, stream, getattr(sys, f"__{stream}__"))
    left = []
    for name in names:
        if isinstance(sys.modules.get(name), types.ModuleType):
            left.append(weakref.ref(sys.modules[name]))
            sys.modules[name] = None  # type: ignore[assignment]
    gc.collect()
    for reference in reversed(left):
        found = reference()
        if found is None:
            continue
        values = found.__dict__
        for first in (True, False):  # names with one underscore come first
            for name in list(values):
                if name != "__builtins__" and (not first or (name[:1] == "_" != name[1:2])):
                    values[name] = None


def _flush_files() -> None:
    """Flush files that only a preloaded module knows, or that the task forgot to close."""
    for found in gc.get_objects():  # without those that the tasks share: they are frozen
        if isinstance(found, (io.TextIOWrapper, io.BufferedWriter)):
            try:
                found.flush()
            except (OSError, ValueError):
                continue  # it is closed, or its disk is full: its own end will say so


def _flush_streams() -> bool:
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return False  # which the interpreter has an exit code for
    return True


# --- the task --------------------------------------------------------------------------------


def _task(
    line: socket.socket,
    descriptors: list[int],
    room: tuple[int, int],
    changes: dict[bytes, bytes | None],
    umask: int,
) -> Order:
    """Become the process of a task: descriptors, environment, arguments."""
    channel = socket.socket(fileno=descriptors[0])
    channel.sendall(HERE + b"%d" % os.getpid())
    line.close()  # not before: its end would be read as that of a warm process without a word
    size_of_text = int(_read(channel, 20))
    fields = _read(channel, size_of_text).split(b"\0")
    kind, cwd = fields[:2]
    count, skipped = int(fields[2]), int(fields[3])
    argv = [os.fsdecode(field) for field in fields[4 : 4 + count]]
    env = dict(field.split(b"=", 1) for field in fields[4 + count :])
    try:
        os.chdir(cwd)
        order = _order_of(kind, argv[skipped])
        _write_over(*room, env)
    except (OSError, ValueError) as error:
        channel.sendall(REFUSED + str(error).encode(errors="replace"))
        os._exit(1)
    os.umask(umask)
    os.dup2(descriptors[1], 1)
    os.dup2(descriptors[1], 2)
    os.close(descriptors[1])
    _set_environment(env, changes)
    _show_command(argv)
    sys.argv[:] = argv[skipped:]
    if kind == MODULE:
        sys.argv[0] = "-m"  # until it is found
    orig_argv = getattr(sys, "orig_argv", None)
    if orig_argv is not None:
        orig_argv[:] = argv
    channel.sendall(GOES)
    channel.close()
    return order


def _order_of(kind: bytes, name: str) -> Order:
    if kind == MODULE:
        if name in sys.modules and not hasattr(sys.modules[name], "__path__"):
            raise ValueError(f"{name} itself is imported already")
        return Order(name, None)
    path = name if os.path.isabs(name) else f"{os.getcwd()}/{name}"
    with open(path, "rb") as file:
        source = file.read()
    if b"\0" in source:
        raise ValueError(f"{name} contains a NUL character")  # another error than the interpreter's
    return Order(path, source)


def _read(channel: socket.socket, size: int) -> bytes:
    """Return so many bytes; end when the worker does not want the task any more."""
    parts = b""
    while len(parts) < size:
        part = channel.recv(size - len(parts))
        if not part:
            os._exit(1)
        parts += part
    return parts


def _write_over(address: int, size: int, env: dict[bytes, bytes]) -> None:
    """Write the task's variables where the kernel shows them to all, its mark first.

    What `/proc/PID/environ` shows is the memory in which this program found its environment, and
    there is room in it. The variables themselves are elsewhere by now.
    """
    mark = b"GPULEDGER_MARK"
    names = sorted((name for name in env if name.startswith(b"GPULEDGER_")), key=mark.__ne__)
    text = b"\0".join(b"%b=%b" % (name, env[name]) for name in names)
    room = len(ROOM) + 1 + size
    if len(text) > room:
        text = text[: text.rfind(b"\0", 0, room)]
    if mark + b"=" + env.get(mark, b"") not in text.split(b"\0"):
        raise ValueError("there is no room for its mark")
    start = address - len(ROOM) - 1
    rest = b"\0" + ROOM.encode() + b"="  # an empty variable ends the list for some readers
    filled = (text + rest).ljust(room) if len(text + rest) <= room else text.ljust(room, b"\0")
    ctypes.memmove(start, filled, room)
    with open("/proc/self/environ", "rb") as file:
        if text not in file.read():
            raise ValueError("the kernel does not show its mark")


def _set_environment(env: dict[bytes, bytes], changes: dict[bytes, bytes | None]) -> None:
    wanted = env | {name: value for name, value in changes.items() if value is not None}
    for name in [name for name in os.environb if name not in wanted]:
        del os.environb[name]
    for name, value in wanted.items():
        if name in changes and changes[name] is None:
            os.environb.pop(name, None)
        elif os.environb.get(name) != value:
            os.environb[name] = value


def _show_command(argv: list[str]) -> None:
    """Let `ps` show the task's command, cut to the length of this program's."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    if 0 < start < end:
        text = b"\0".join(map(os.fsencode, argv))[: end - start - 1]
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def _seed() -> None:
    """Let random numbers begin anew, as in a new process (`random` itself does on a fork)."""
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.seed()


# --- what the interpreter does with a script -------------------------------------------------


def fresh_main(names: dict[str, object]) -> types.ModuleType:
    """Return a module as the interpreter makes it for a script, from our own at its beginning."""
    main = types.ModuleType("__main__")
    main.__dict__.update(names)
    main.__doc__ = None
    if "__annotations__" in names:
        main.__annotations__ = {}
    return main


def thaw_main(main: types.ModuleType) -> None:
    """Let the collector of cycles end what the script will define; the rest stays frozen."""
    for each in (main, main.__dict__):
        ctypes.pythonapi.PyObject_GC_UnTrack(ctypes.py_object(each))
        ctypes.pythonapi.PyObject_GC_Track(ctypes.py_object(each))


def code_of(order: Order, main: types.ModuleType) -> types.CodeType:
    """Return the compiled script, its module prepared."""
    main.__file__ = order.name
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", order.name)
    return compile(order.source or b"", order.name, "exec", dont_inherit=True)


def hide_this_file(names: dict[str, object]) -> None:
    """Leave this file's frames out of the traceback of an error that nobody caught."""
    hook = sys.excepthook

    def excepthook(
        kind: type[BaseException],
        error: BaseException,
        traceback: types.TracebackType | None,
    ) -> None:
        sys.excepthook = hook
        while traceback is not None and traceback.tb_frame.f_globals is names:
            traceback = traceback.tb_next
        error.__traceback__ = traceback
        hook(kind, error, traceback)

    sys.excepthook = excepthook


if __name__ == "__main__":
    _finish = Finish()
    sys.modules["__main__"] = fresh_main(
        {name: globals()[name] for name in list(globals()) if name[:2] == "__"}
    )
    _order = serve(_finish)
    thaw_main(sys.modules["__main__"])
    try:
        if _order.source is None:
            import runpy

            runpy._run_module_as_main(_order.name)  # type: ignore[attr-defined]
        else:
            _code = code_of(_order, sys.modules["__main__"])
            exec(_code, sys.modules["__main__"].__dict__)  # held by no name of ours
        _finish.is_well = True
    except SystemExit as error:
        # As the interpreter takes it: an object that equals 0, as 0.0 does, is a message.
        _finish.is_well = error.code is None or (isinstance(error.code, int) and not error.code)
        raise
    except BaseException:
        hide_this_file(globals())
        raise
