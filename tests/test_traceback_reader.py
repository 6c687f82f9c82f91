"""What is read from a log: the traceback, its last line, and the kind of failure."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuledger.model import Outcome
from gpuledger.traceback_reader import TRACEBACK_BYTES, Diagnosis, read_failure

PLAIN = """\
Traceback (most recent call last):
  File "/home/ann/train.py", line 31, in <module>
    main()
  File "/home/ann/train.py", line 27, in main
    images = load(path)
             ^^^^^^^^^^
FileNotFoundError: [Errno 2] No such file or directory: 'data/train.npz'
"""

CHAINED = """\
Traceback (most recent call last):
  File "train.py", line 3, in read
    return config["lr"]
KeyError: 'lr'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "train.py", line 9, in <module>
    read({})
ValueError: no learning rate

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "train.py", line 12, in <module>
    close(None)
AttributeError: 'NoneType' object has no attribute 'close'
"""

DATA_LOADER = """\
Epoch 1:  40%|####      | 40/100 [00:10<00:15,  4.00it/s]Traceback (most recent call last):
  File "train.py", line 20, in <module>
    for batch in loader:
  File "/opt/torch/utils/data/dataloader.py", line 631, in __next__
    data = self._next_data()
  File "/opt/torch/_utils.py", line 722, in reraise
    raise exception
KeyError: Caught KeyError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "/opt/torch/utils/data/_utils/worker.py", line 308, in _worker_loop
    data = fetcher.fetch(index)
  File "train.py", line 8, in __getitem__
    return self.items[index]
KeyError: 'image_007'

"""

REMOTE = '''\
multiprocessing.pool.RemoteTraceback:\x20
"""
Traceback (most recent call last):
  File "/usr/lib/python3.11/multiprocessing/pool.py", line 125, in worker
    result = (True, func(*args, **kwds))
ZeroDivisionError: division by zero
"""

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "train.py", line 9, in <module>
    pool.map(divide, [0])
ZeroDivisionError: division by zero
'''

SPAWNED = """\
Traceback (most recent call last):
  File "train.py", line 9, in <module>
    mp.spawn(run, nprocs=2)
  File "/opt/torch/multiprocessing/spawn.py", line 160, in join
    raise ProcessRaisedException(msg, error_index, failed_process.pid)
torch.multiprocessing.spawn.ProcessRaisedException:\x20

-- Process 0 terminated with the following error:
Traceback (most recent call last):
  File "/opt/torch/multiprocessing/spawn.py", line 68, in _wrap
    fn(i, *args)
  File "train.py", line 4, in run
    raise OSError("no such device")
OSError: no such device

"""

TORCHRUN = """\
[rank0]: Traceback (most recent call last):
[rank1]: Traceback (most recent call last):
[rank0]:   File "train.py", line 5, in <module>
[rank0]:     step()
[rank1]:   File "train.py", line 9, in <module>
[rank0]: ValueError: rank zero has no data
[rank1]:     dist.all_reduce(x)
[rank1]: torch.distributed.DistBackendError: NCCL error: remote process exited

E1124 torch/distributed/elastic/multiprocessing/api.py:874] failed (exitcode: 1)
Traceback (most recent call last):
  File "/opt/bin/torchrun", line 8, in <module>
    sys.exit(main())
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\x20
============================================================
train.py FAILED
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 4242)
============================================================
"""

GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "train.py", line 4, in <module>
  |     raise ExceptionGroup("two went wrong", [a, b])
  | ExceptionGroup: two went wrong (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "train.py", line 2, in first
    |     raise ValueError("first")
    | ValueError: first
    +---------------- 2 ----------------
    | Traceback (most recent call last):
    |   File "train.py", line 3, in second
    |     raise TypeError("second")
    | TypeError: second
    +------------------------------------
"""

RICH = """\
╭───────────────── Traceback (most recent call last) ──────────────────╮
│ /home/ann/train.py:12 in main                                        │
│ ❱ 12 │   print("Traceback (most recent call last):", 1 / 0)          │
╰──────────────────────────────────────────────────────────────────────╯
ZeroDivisionError: division by zero
"""

SYNTAX = """\
  File "/home/ann/train.py", line 3
    lr = = 3
         ^
SyntaxError: invalid syntax
"""

MESSAGE_OF_LINES = """\
Traceback (most recent call last):
  File "train.py", line 7, in <module>
    model.load_state_dict(state)
RuntimeError: Error(s) in loading state_dict for Net:
\tMissing key(s) in state_dict: "head.weight".
\tsize mismatch for body: [3, 3] from checkpoint, [5, 5] in the current model.
"""

MESSAGE_BELOW = """\
Traceback (most recent call last):
  File "train.py", line 7, in <module>
    start()
RuntimeError:\x20
        An attempt has been made to start a new process too early.

        Use the idiom of the main module.
wandb: done
"""

FAULT = """\
Fatal Python error: Segmentation fault

Current thread 0x00007f21 (most recent call first):
  File "train.py", line 3 in crash
  File "train.py", line 9 in <module>

Extension modules: numpy.core (total: 1)
"""

RANK_OUT_OF_MEMORY = """\
[rank0]: Traceback (most recent call last):
[rank0]:   File "train.py", line 9, in <module>
[rank0]: torch.distributed.DistBackendError: NCCL error: remote process exited
[rank1]: Traceback (most recent call last):
[rank1]:   File "train.py", line 5, in <module>
[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
"""


def traceback_of(error: str) -> str:
    return f'Traceback (most recent call last):\n  File "t.py", line 1, in <module>\n{error}\n'


def diagnose(
    folder: Path,
    log: str | bytes,
    *,
    exit_code: int | None = 1,
    signal: int | None = None,
    oom_killed: bool = False,
) -> Diagnosis:
    path = folder / "attempt.log"
    path.write_bytes(log if isinstance(log, bytes) else log.encode())
    return read_failure(path, exit_code=exit_code, signal=signal, oom_killed=oom_killed)


@dataclass(frozen=True, kw_only=True)
class Case:
    log: str
    error: str
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


CASES = {
    "plain": Case(
        log="epoch 1\n" + PLAIN,
        error="FileNotFoundError: [Errno 2] No such file or directory: 'data/train.npz'",
        has=("line 31", "line 27", "FileNotFoundError"),
        lacks=("epoch 1",),
    ),
    "chained": Case(
        log=PLAIN + "\nepoch 2\n" + CHAINED,
        error="AttributeError: 'NoneType' object has no attribute 'close'",
        has=("KeyError: 'lr'", "direct cause", "no learning rate", "During handling", "line 12"),
        lacks=("FileNotFoundError",),
    ),
    "data loader": Case(
        log=DATA_LOADER,
        error="KeyError: 'image_007'",
        has=('train.py", line 20', "Caught KeyError", "Original Traceback", "__getitem__"),
        lacks=("Epoch 1",),
    ),
    "process pool": Case(
        log="hello\n" + REMOTE,
        error="ZeroDivisionError: division by zero",
        has=("RemoteTraceback", "in worker", "direct cause", "pool.map"),
        lacks=("hello",),
    ),
    "spawned process": Case(
        log=SPAWNED,
        error="OSError: no such device",
        has=("ProcessRaisedException", "mp.spawn", "in run"),
    ),
    "torchrun": Case(
        log=TORCHRUN,
        error="ValueError: rank zero has no data",
        has=('  File "train.py", line 5', "    step()"),
        lacks=("rank1", "[rank0]", "DistBackendError", "torchrun"),
    ),
    "a rank that failed twice": Case(
        log=textwrap.indent(traceback_of("ValueError: tried again"), "[rank0]: ")
        + textwrap.indent(traceback_of("ValueError: first to give up"), "[rank1]: ")
        + textwrap.indent(traceback_of("ValueError: misses rank 1"), "[rank0]: "),
        error="ValueError: first to give up",
    ),
    "launcher alone": Case(
        log="[rank" + TORCHRUN.partition("Traceback")[2].partition("E1124")[2],
        error="torch.distributed.elastic.multiprocessing.errors.ChildFailedError: " + "=" * 60,
        has=("Root Cause", "exitcode"),
    ),
    "exception group": Case(
        log="epoch 1\n" + GROUP + "bye\n",
        error="TypeError: second",
        has=("two went wrong (2", "ValueError: first", "+-----", "+ Exception Group Traceback"),
        lacks=("epoch 1", "bye"),
    ),
    "rich": Case(
        log="hello\n" + RICH,
        error="ZeroDivisionError: division by zero",
        has=("╭──", "❱ 12", "╰──"),
        lacks=("hello",),
    ),
    "syntax error": Case(
        log="hello\n" + SYNTAX, error="SyntaxError: invalid syntax", has=("= = 3",)
    ),
    "message of several lines": Case(
        log=MESSAGE_OF_LINES,
        error="RuntimeError: Error(s) in loading state_dict for Net: Missing key(s) in state_dict: "
        '"head.weight".',
        has=("Missing key", "size mismatch"),
    ),
    "message below": Case(
        log=MESSAGE_BELOW,
        error="RuntimeError: An attempt has been made to start a new process too early.",
        has=("An attempt", "Use the idiom"),
    ),
    "faulthandler": Case(
        log=FAULT, error="Fatal Python error: Segmentation fault", has=("in crash", "numpy.core")
    ),
    "ctrl-c": Case(log=traceback_of("KeyboardInterrupt"), error="KeyboardInterrupt"),
    "notes": Case(
        log=traceback_of("ValueError: x\na note"), error="ValueError: x", has=("a note",)
    ),
    "indented": Case(
        log=textwrap.indent(PLAIN, "    ") + "\n",
        error="FileNotFoundError: [Errno 2] No such file or directory: 'data/train.npz'",
    ),
    "prefix of another launcher": Case(
        log=textwrap.indent(PLAIN, "(train pid=77) ") + "(train pid=78) bye\n",
        error="FileNotFoundError: [Errno 2] No such file or directory: 'data/train.npz'",
        lacks=("pid=77", "bye"),
    ),
    "header as text": Case(
        log=PLAIN + '\n{"text": "Traceback (most recent call last):"}\n',
        error="FileNotFoundError: [Errno 2] No such file or directory: 'data/train.npz'",
        has=("line 31",),
    ),
    "header in source": Case(
        log='Traceback (most recent call last):\n  File "t.py", line 1, in <module>\n'
        '    show("Traceback (most recent call last)", 1/0)\n  File "t.py", line 9, in show\n'
        "ZeroDivisionError: x\n",
        error="ZeroDivisionError: x",
        has=("line 1",),
    ),
    "noise between": Case(
        log='Traceback (most recent call last):\n  File "t.py", line 1, in <module>\n'
        "[W socket.cpp:428] warning of another thread\nValueError: x\n",
        error="ValueError: x",
    ),
    "carriage returns": Case(
        log="\r  0%|          | 0/10 [00:00<?, ?it/s]" + PLAIN.replace("\n", "\r\n"),
        error="FileNotFoundError: [Errno 2] No such file or directory: 'data/train.npz'",
        has=("in <module>\n    main()",),
        lacks=("0%",),
    ),
    "escapes": Case(
        log=traceback_of("\x1b[31mValueError\x1b[0m: \x1b]0;title\x07re\x07d\u202e \x9b2J")
        + "\x1b[K",
        error="ValueError: red 2J",
    ),
    "bars in a message": Case(log=traceback_of("ValueError: a | b"), error="ValueError: a | b"),
    "twice": Case(
        log=traceback_of("ValueError: one") * 3 + traceback_of("ValueError: two"),
        error="ValueError: two",
        lacks=("one",),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_last_traceback_is_found_whole(tmp_path: Path, case: Case) -> None:
    found = diagnose(tmp_path, case.log)

    assert found.error == case.error
    assert found.traceback is not None
    for text in case.has:
        assert text in found.traceback
    for text in case.lacks:
        assert text not in found.traceback
    assert found.outcome is Outcome.FAILED


SCRIPTS = {
    "chain": (
        """
        try:
            try:
                {}["a"]
            except KeyError as error:
                raise ValueError("b") from error
        except ValueError:
            [].pop()
        """,
        "IndexError: pop from empty list",
        ("KeyError: 'a'", "ValueError: b"),
    ),
    "group": (
        "raise ExceptionGroup('g', [ValueError(1), ExceptionGroup('h', [OSError('deep')])])",
        "OSError: deep",
        ("ExceptionGroup: g", "ValueError: 1"),
    ),
    "pool": (
        """
        from concurrent.futures import ProcessPoolExecutor
        if __name__ == "__main__":
            with ProcessPoolExecutor(1) as pool:
                pool.submit(int, "seven").result()
        """,
        "ValueError: invalid literal for int() with base 10: 'seven'",
        ("_RemoteTraceback", "direct cause", "pool.submit"),
    ),
    "broken script": ("def f(:\n  pass", "SyntaxError: invalid syntax", ("def f(:",)),
    "recursion": (
        "def f():\n  f()\nf()",
        "RecursionError: maximum recursion depth exceeded",
        ("Previous line repeated",),
    ),
}


@pytest.mark.parametrize(("script", "error", "has"), SCRIPTS.values(), ids=SCRIPTS.keys())
def test_what_this_python_prints_is_understood(
    tmp_path: Path, script: str, error: str, has: tuple[str, ...]
) -> None:
    program = tmp_path / "script.py"
    program.write_text(textwrap.dedent(script), encoding="utf-8")
    ran = subprocess.run([sys.executable, program], capture_output=True, check=False)

    found = diagnose(tmp_path, ran.stdout + ran.stderr, exit_code=ran.returncode)

    assert found.error == error
    assert found.traceback is not None
    for text in has:
        assert text in found.traceback


@pytest.mark.parametrize(
    "error",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 10.76 GiB total",
        "RuntimeError: CUDA error: out of memory",
        "torch.AcceleratorError: CUDA error: out of memory",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to",
        "cupy.cuda.memory.OutOfMemoryError: Out of memory allocating 8,000 bytes",
        "tensorflow.python.framework.errors_impl.ResourceExhaustedError: OOM when allocating",
        "ray.exceptions.RayTaskError(OutOfMemoryError): ray::train() (pid=1)",
        "MemoryError",
        "MemoryError: Unable to allocate 7.28 TiB",
        "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.28 TiB for an array",
        "numpy.core._exceptions.MemoryError: Unable to allocate 7.28 TiB for an array",
        "RuntimeError: std::bad_alloc",
        "OSError: [Errno 12] Cannot allocate memory",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't "
        "allocate memory: you tried to allocate 9 bytes.",
    ],
)
def test_running_out_of_memory_is_recognised(tmp_path: Path, error: str) -> None:
    assert diagnose(tmp_path, traceback_of(error)).outcome is Outcome.OOM


@pytest.mark.parametrize(
    "error",
    [
        "ValueError: no memory of that",
        "RuntimeError: DataLoader worker is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory.",
        "triton.runtime.errors.OutOfResources: out of resource: shared memory",
        "OSError: [Errno 28] No space left on device",
    ],
)
def test_other_failures_are_not_taken_for_it(tmp_path: Path, error: str) -> None:
    assert diagnose(tmp_path, traceback_of(error)).outcome is Outcome.FAILED


OOM = traceback_of("torch.OutOfMemoryError: CUDA out of memory.")
CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"


@pytest.mark.parametrize(
    ("log", "outcome"),
    [
        pytest.param(OOM + "wandb: bye\n", Outcome.OOM, id="followed by little"),
        pytest.param(OOM + "step\n" * 100_000, Outcome.FAILED, id="caught long before"),
        pytest.param(
            OOM + "smaller batch\n" + traceback_of("ValueError: x"), Outcome.FAILED, id="earlier"
        ),
        pytest.param(
            OOM + CAUSE + traceback_of("RuntimeError: training failed"), Outcome.OOM, id="cause"
        ),
        pytest.param(OOM + CONTEXT + traceback_of("NameError: x"), Outcome.FAILED, id="handled"),
        pytest.param(
            OOM + CONTEXT + traceback_of("E: x") + CAUSE + traceback_of("F: x"),
            Outcome.FAILED,
            id="cause of what failed while it was handled",
        ),
        pytest.param(RANK_OUT_OF_MEMORY, Outcome.OOM, id="one rank of several"),
        pytest.param(
            GROUP.replace("ValueError: first", "MemoryError"), Outcome.OOM, id="one of a group"
        ),
        pytest.param("terminate: std::bad_alloc\n", Outcome.OOM, id="said by another language"),
        pytest.param(
            "terminate: std::bad_alloc\n" + "step\n" * 60, Outcome.FAILED, id="said long ago"
        ),
        pytest.param("bash: fork: Cannot allocate memory\n", Outcome.OOM, id="said by a shell"),
        pytest.param(
            "warning: CUDA out of memory\n" + PLAIN, Outcome.FAILED, id="said before a traceback"
        ),
    ],
)
def test_only_what_ended_the_task_decides(tmp_path: Path, log: str, outcome: Outcome) -> None:
    assert diagnose(tmp_path, log).outcome is outcome


def test_a_task_that_ended_well_has_not_failed(tmp_path: Path) -> None:
    found = diagnose(tmp_path, OOM, exit_code=0, oom_killed=True)

    assert found == Diagnosis(outcome=Outcome.COMPLETED, error=None)


@pytest.mark.parametrize(
    ("log", "exit_code", "signal", "oom_killed", "outcome"),
    [
        ("", None, 9, True, Outcome.OOM),
        ("", None, 9, False, Outcome.FAILED),
        ("", 137, None, True, Outcome.OOM),
        ("", None, 11, True, Outcome.FAILED),
        ("train.sh: line 3: 4242 Killed python train.py\n", 1, None, True, Outcome.OOM),
        (traceback_of("RuntimeError: worker is killed by signal: Killed."), 1, None, True, "oom"),
        (traceback_of("ValueError: x"), 1, None, True, Outcome.FAILED),
    ],
)
def test_what_the_kernel_killed_for_memory_ran_out_of_it(
    tmp_path: Path,
    log: str,
    exit_code: int | None,
    signal: int | None,
    oom_killed: bool,
    outcome: Outcome,
) -> None:
    found = diagnose(tmp_path, log, exit_code=exit_code, signal=signal, oom_killed=oom_killed)

    assert found.outcome == outcome
    assert ("ran out of memory" in (found.error or "")) is (outcome == Outcome.OOM)


@pytest.mark.parametrize(
    ("log", "exit_code", "signal", "error"),
    [
        ("epoch 1\n", None, 11, "killed by SIGSEGV (11)"),
        ("", None, 40, "killed by signal 40"),
        (
            "terminate called after throwing 'c10::Error'\n  what():  bad shape\n",
            None,
            6,
            "killed by SIGABRT (6): what(): bad shape",
        ),
        (OOM, None, 6, "killed by SIGABRT (6): torch.OutOfMemoryError: CUDA out of memory."),
        ("usage: t [-h]\nt: error: no --lr\n\n", 2, None, "exit code 2: t: error: no --lr"),
        ("no data here\n  \n", 1, None, "exit code 1: no data here"),
        ("", 3, None, "exit code 3, no output"),
        ("\n\x1b[0m\n", 3, None, "exit code 3, no output"),
        ("run\n", 139, None, "exit code 139, as after SIGSEGV (11): run"),
        ("run\n", None, None, "ended in an unknown way: run"),
        (PLAIN + "gave up\n" * 9000, 3, None, "exit code 3: gave up"),
        ("x" * 5000, 1, None, "exit code 1: " + "x" * 486 + "…"),
    ],
)
def test_the_error_is_one_line_for_people(
    tmp_path: Path, log: str, exit_code: int | None, signal: int | None, error: str
) -> None:
    assert diagnose(tmp_path, log, exit_code=exit_code, signal=signal).error == error


def test_a_traceback_is_found_with_megabytes_after_it(tmp_path: Path) -> None:
    found = diagnose(tmp_path, CHAINED.encode() + b"late thread says nothing\n" * 300_000)

    assert found.error == "AttributeError: 'NoneType' object has no attribute 'close'"
    assert found.traceback is not None
    assert found.traceback.startswith("Traceback")
    assert "KeyError: 'lr'" in found.traceback
    assert found.traceback.count("late thread") <= 20


@pytest.mark.parametrize("after", range((1 << 20) - 40, (1 << 20) + 8, 3))
def test_a_header_across_the_border_of_two_windows_is_found(tmp_path: Path, after: int) -> None:
    log = traceback_of("ValueError: x").encode()
    header_ends = len(b"Traceback (most recent call last):\n")

    found = diagnose(tmp_path, log + b"\n" + b"." * (after - len(log) + header_ends))

    assert found.error == "ValueError: x"


def test_a_huge_traceback_keeps_its_head_and_its_tail(tmp_path: Path) -> None:
    frames = "".join(f'  File "t.py", line {n}, in f\n    f()\n' for n in range(6000))
    found = diagnose(tmp_path, f"Traceback (most recent call last):\n{frames}ValueError: deep\n")

    assert found.traceback is not None
    assert len(found.traceback.encode()) <= TRACEBACK_BYTES
    assert found.traceback.startswith('Traceback (most recent call last):\n  File "t.py", line 0,')
    assert "bytes left out" in found.traceback
    assert found.traceback.endswith("ValueError: deep")


@pytest.mark.parametrize(
    ("error", "fatal"),
    [
        ("gpuledger.Fatal: bad parameters", True),
        ("gpuledger.task.Fatal: bad parameters", True),
        ("gpuledger.task.Fatal", True),
        ("__main__.BadData: no file\n[gpuledger.Fatal: not tried again]", True),
        ("ValueError: gpuledger.Fatal", False),
        ("gpuledger.Fatality: x", False),
    ],
)
def test_a_fatal_error_is_known_by_its_name_or_note(
    tmp_path: Path, error: str, fatal: bool
) -> None:
    assert diagnose(tmp_path, traceback_of(error)).fatal is fatal


def test_a_fatal_error_that_was_caught_long_before_is_none(tmp_path: Path) -> None:
    log = traceback_of("gpuledger.Fatal: x") + "step\n" * 10_000

    assert diagnose(tmp_path, log, exit_code=3).fatal is False


def test_a_log_that_cannot_be_read_is_said_in_the_error(tmp_path: Path) -> None:
    missing = read_failure(tmp_path / "none.log", exit_code=1, signal=None, oom_killed=False)
    os.mkfifo(tmp_path / "pipe")
    pipe = read_failure(tmp_path / "pipe", exit_code=1, signal=None, oom_killed=False)

    assert missing.error == "exit code 1: its log cannot be read: No such file or directory"
    assert pipe.error == "exit code 1: its log is not a file"
    assert missing.traceback is None


@settings(max_examples=150, deadline=None)
@given(
    log=st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from(
                [part.encode() for case in CASES.values() for part in case.log.splitlines(True)]
            ),
        ),
        max_size=40,
    ).map(b"".join),
    exit_code=st.one_of(st.none(), st.integers(-300, 300)),
    signal=st.one_of(st.none(), st.integers(1, 64)),
    oom_killed=st.booleans(),
)
def test_any_bytes_give_a_bounded_printable_answer(
    tmp_path_factory: pytest.TempPathFactory,
    log: bytes,
    exit_code: int | None,
    signal: int | None,
    oom_killed: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.log"
    path.write_bytes(log)

    found = read_failure(path, exit_code=exit_code, signal=signal, oom_killed=oom_killed)

    if exit_code == 0:
        assert found.outcome is Outcome.COMPLETED
        return
    assert found.error
    assert len(found.error) <= 500
    assert "\n" not in found.error
    text = found.error + (found.traceback or "").replace("\n", "").replace("\t", "")
    assert all(ord(letter) >= 32 and ord(letter) not in range(127, 160) for letter in text)
    assert len((found.traceback or "").encode()) <= TRACEBACK_BYTES


MEASURE = """
import resource, sys
from pathlib import Path
from gpuledger.traceback_reader import read_failure
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = read_failure(Path(sys.argv[1]), exit_code=1, signal=None, oom_killed=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, found.error)
"""


@pytest.mark.parametrize("end", [b"", traceback_of("ValueError: x").encode()])
def test_a_log_of_a_gibibyte_without_a_line_costs_no_memory(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "sparse.log"
    with path.open("wb") as log:
        log.truncate(1 << 30)
        log.seek(0, os.SEEK_END)
        log.write(end)
    assert path.stat().st_size > resource.getpagesize()

    said = subprocess.run(
        [sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True
    ).stdout

    grown_kib, _, error = said.partition(" ")
    assert int(grown_kib) < 64 * 1024
    assert error.strip() == ("ValueError: x" if end else "exit code 1, no output")
