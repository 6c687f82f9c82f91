"""The only module that finds the traceback and the kind of failure in a log.

A log may be huge, binary, or one endless line: it is read in windows of fixed size, from its end.
"""

from __future__ import annotations

import os
import re
import signal as signals
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuledger.model import Outcome

WINDOW_BYTES = 1 << 20
SEARCH_BYTES = 64 << 20
"""How far before the log's end a traceback is looked for."""

CHAIN_BYTES = 256 << 10
"""How far before its last header a chain of tracebacks may begin, and how far after it end."""

NEAR_CHARS = 16 << 10
"""A traceback with less than this after it is taken for what ended the process."""

NEAR_CHARS_OF_RANKS = 256 << 10
"""The same where many processes fail together, each with a traceback of its own."""

NOISE_LINES = 20
"""How many lines of others may lie between a traceback's frames and its exception."""

TRIES = 8
HEADERS = 100
"""How many headers are looked at in one place: a log may consist of nothing else."""

TAIL_LINES = 50
LINE_CHARS = 4096
ERROR_CHARS = 500
TRACEBACK_BYTES = 64 << 10
MESSAGE_LINES = 200
FREE_LINES = 20
"""How many lines of a message need no indentation; beyond that they are somebody else's."""

HEADER = "Traceback (most recent call last)"
CAUSE = "The above exception was the direct cause of the following exception:"
CONTEXT = "During handling of the above exception, another exception occurred:"

FATAL = re.compile(r"gpuledger\.(task\.)?Fatal\b")
FATAL_NOTE = "[gpuledger.Fatal: not tried again]"
"""An exception note: what a subclass of `gpuledger.Fatal`, whatever its name, is known by."""

LAUNCHER = re.compile(
    r"(torch\.distributed\.elastic\.\S*(ChildFailedError|SignalException)"
    r"|(subprocess\.)?CalledProcessError)\b"
)
"""Errors of programs that only started the one that failed: an earlier traceback says more."""

GPU_OOM = re.compile(
    r"""
    ^([\w.]+\.)? (OutOfMemoryError | ResourceExhaustedError) \b
    | \( OutOfMemoryError \)
    | \b (CUDA | HIP | XPU | MPS\ backend)\ (error:\ )? out\ of\ memory
    | \b CU(BLAS | DNN | SOLVER | SPARSE | FFT)_(STATUS_)?ALLOC_FAILED
    | CUDA_ERROR_OUT_OF_MEMORY | cudaErrorMemoryAllocation | hipErrorOutOfMemory
    | Cuda\ failure\ (\d+\ )?'out\ of\ memory'
    | \b RESOURCE_EXHAUSTED \b
    """,
    re.VERBOSE,
)
HOST_OOM = re.compile(
    r"""
    ^([\w.]+\.)? _?(Array)?MemoryError (:|$)
    | \b std::bad_alloc \b
    | Cannot\ allocate\ memory
    | DefaultCPUAllocator:\ (can't|not\ enough)
    """,
    re.VERBOSE,
)
KILLED = re.compile(r"\bKilled\b|\bSIGKILL\b|\bsignal 9\b|exit ?code *: *-9\b")
"""How a program says that one of its own was killed."""

SYNTAX_ERROR = re.compile(r"(Syntax|Indentation|Tab)Error: ")
EXCEPTION = re.compile(r"[^\W\d][\w.<>]*(\([\w.]+\))?(: |:?$)")
FATAL_PYTHON = re.compile(r"Fatal Python error: ")
FRAME = re.compile(r"  |[│╭╰┃┏┗]")
GROUP_LINE = re.compile(r"\s+[|+]")
GROUP_MARGIN = re.compile(r"^\s+\| ?")
NOT_A_PREFIX = re.compile(r"(\s*\| |\s*\+ Exception Group |Original )$")
NESTED = re.compile(r"-- Process \d+ terminated with the following (error|exception):")
REMOTE = re.compile(r"[\w.]*RemoteTraceback:$")
THREAD = re.compile(r"\s|(Current t|T)hread 0x|Extension modules:")

ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)"
)
DROPPED = dict.fromkeys(
    [
        *range(0x00, 0x09),
        *range(0x0B, 0x20),
        *range(0x7F, 0xA0),
        *(0x061C, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF),
        *range(0x202A, 0x202F),  # these and the next change the direction of the text after them
        *range(0x2066, 0x206A),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Why an attempt failed, as far as its exit and its log say.

    Attributes:
        outcome: `OOM`, `FAILED`, or `COMPLETED` for exit code 0.
        error: One printable line of at most 500 characters; None when completed.
        traceback: The last traceback, chained ones whole, printable, at most 64 KiB; or None.
        fatal: It raised `gpuledger.Fatal`: another attempt makes no sense.
    """

    outcome: Outcome
    error: str | None
    traceback: str | None = None
    fatal: bool = False


def read_failure(
    path: Path, *, exit_code: int | None, signal: int | None, oom_killed: bool
) -> Diagnosis:
    """Tell why an attempt failed; an unreadable log is no error.

    Args:
        path: The attempt's log.
        exit_code: Of its first process, or None.
        signal: That ended its first process, or None.
        oom_killed: The kernel killed something for want of memory while it ran.
    """
    if exit_code == 0:
        return Diagnosis(outcome=Outcome.COMPLETED, error=None)
    found, tail = _read(path)
    near = found if found is not None and found.is_last else None
    # An uncaught exception makes Python's exit code 1, however much others wrote after it.
    blamed = found if found is not None and exit_code == 1 else near
    error = _error(exit_code, signal, blamed.final if blamed else None, tail)
    evidence = near.errors if near is not None else tail
    ran_out = any(GPU_OOM.search(line) or HOST_OOM.search(line) for line in evidence)
    if oom_killed and _was_killed(exit_code, signal, (*evidence, *tail)):
        ran_out = True
        error = f"{_shortened(error, ERROR_CHARS - 40)} (the machine ran out of memory)"
    return Diagnosis(
        outcome=Outcome.OOM if ran_out else Outcome.FAILED,
        error=_shortened(error, ERROR_CHARS),
        traceback=limited("\n".join(found.lines)) if found is not None else None,
        fatal=blamed is not None and blamed.is_fatal,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A traceback in a log.

    Attributes:
        lines: All of it; what other programs put before each line is removed.
        final: The last exception line.
        errors: The exception lines that count for the kind of failure, `final` among them.
        is_last: Hardly anything follows it in the log.
    """

    lines: Sequence[str]
    final: str
    errors: Sequence[str]
    is_last: bool

    @property
    def is_fatal(self) -> bool:
        return is_fatal(self.final, self.lines)


def is_fatal(error: str, lines: Sequence[str]) -> bool:
    """Tell whether a failure is `gpuledger.Fatal`, by its last line and those of its traceback."""
    return FATAL.match(error) is not None or FATAL_NOTE in lines[-MESSAGE_LINES:]


# --- words for people ------------------------------------------------------------------------


def _error(
    exit_code: int | None, signal: int | None, final: str | None, tail: Sequence[str]
) -> str:
    """Return the line that says what happened, `final` being the exception to blame."""
    if signal is not None:
        said = final or next((line for line in reversed(tail) if "what():" in line), None)
        return f"killed by {_signal_name(signal)}" + (f": {said.strip()}" if said else "")
    if final is not None:
        return final
    how = "ended in an unknown way" if exit_code is None else f"exit code {exit_code}"
    if exit_code is not None and exit_code > 128 and exit_code - 128 in signals.valid_signals():
        how += f", as after {_signal_name(exit_code - 128)}"  # a shell's way to say so
    return f"{how}: {tail[-1].strip()}" if tail else f"{how}, no output"


def _was_killed(exit_code: int | None, signal: int | None, said: Sequence[str]) -> bool:
    if signal == signals.SIGKILL or exit_code == 128 + signals.SIGKILL:
        return True
    return any(KILLED.search(line) for line in said)


def _signal_name(number: int) -> str:
    try:
        return f"{signals.Signals(number).name} ({number})"
    except ValueError:
        return f"signal {number}"


def _shortened(line: str, limit: int) -> str:
    line = " ".join(line.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def limited(text: str) -> str:
    """Return the text with so much of its middle left out that it is short enough."""
    data = text.encode()
    if len(data) <= TRACEBACK_BYTES:
        return text
    head = data[: TRACEBACK_BYTES // 3].decode(errors="ignore").rpartition("\n")[0]
    tail = data[-TRACEBACK_BYTES // 2 :].decode(errors="ignore").partition("\n")[2]
    left_out = len(data) - len(head.encode()) - len(tail.encode())
    return f"{head}\n  ... {left_out} bytes left out ...\n{tail}"


# --- the file --------------------------------------------------------------------------------


def _read(path: Path) -> tuple[_Found | None, list[str]]:
    """Return the log's last telling traceback, and its last lines that are not empty."""
    try:
        # Not blocked by a pipe that somebody put in the log's place.
        log = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        return None, [f"its log cannot be read: {os.strerror(problem.errno or 0)}"]
    try:
        info = os.fstat(log)
        if not stat.S_ISREG(info.st_mode):
            return None, ["its log is not a file"]
        tail = [line for line in _lines(log, info.st_size - WINDOW_BYTES, info.st_size) if line]
        return _search(log, info.st_size), tail[-TAIL_LINES:]
    except OSError as problem:
        return None, [f"its log cannot be read: {os.strerror(problem.errno or 0)}"]
    finally:
        os.close(log)


def _search(log: int, size: int) -> _Found | None:
    """Return the last traceback that is not a launcher's; the launcher's when it is alone."""
    launcher = None
    before = size
    for _ in range(TRIES):
        at = _last_header(log, before, size=size)
        if at is None:
            break
        begin, end = max(at - CHAIN_BYTES, 0), min(at + CHAIN_BYTES, before)
        lines = _lines(log, begin, end)
        found = _choose(lines, rest=size - end)
        if found is not None and not LAUNCHER.match(found.final):
            return found
        launcher = launcher or found
        before = begin
    return launcher


def _last_header(log: int, before: int, *, size: int) -> int | None:
    """Return where the last header of a traceback before that position is, or None."""
    names = [HEADER.encode()]
    if before == size:  # without a header they count only near the end
        names += [b"SyntaxError: ", b"IndentationError: ", b"TabError: ", b"Fatal Python error: "]
    end = before
    while end > max(size - SEARCH_BYTES, 0):
        begin = max(end - WINDOW_BYTES, 0)
        window = _bytes(log, begin, end)
        at = max(window.rfind(name) for name in names)
        if at >= 0:
            return begin + at
        if begin == 0:
            return None
        end = begin + len(HEADER)  # one may lie across the border
        names = names[:1]
    return None


def _bytes(log: int, begin: int, end: int) -> bytes:
    parts: list[bytes] = []
    begin = max(begin, 0)
    while begin < end and (part := os.pread(log, end - begin, begin)):
        parts.append(part)
        begin += len(part)
    return b"".join(parts)


def _lines(log: int, begin: int, end: int) -> list[str]:
    """Return part of the log as printable lines; a progress bar's steps are lines, too."""
    text = _bytes(log, begin, end).decode(errors="replace")
    text = ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n").translate(DROPPED)
    return [_bounded(line.rstrip()) for line in text.split("\n")]


def _bounded(line: str) -> str:
    if len(line) <= LINE_CHARS:
        return line
    return line[: 3 * LINE_CHARS // 4] + " … " + line[-LINE_CHARS // 4 :]


# --- the traceback ---------------------------------------------------------------------------


def _choose(lines: Sequence[str], *, rest: int) -> _Found | None:
    """Return the traceback that says most about the end, `rest` bytes following the lines.

    It is the last one that is not a launcher's. Where a launcher put a rank before each line,
    every rank has one, and it is the first of these, since the others fail when they miss that
    rank; or rather one that is out of memory.
    """
    headers = [at for at in range(len(lines)) if _may_be_header(lines, at)][-HEADERS:]
    launcher = None
    for at in reversed(headers):
        found = _parse(lines, at, rest=rest)
        if found is None:
            continue
        if not LAUNCHER.match(found.final):
            return _of_all_ranks(lines, headers, rest=rest) if _prefix(lines, at) else found
        launcher = launcher or found
    return launcher


def _of_all_ranks(lines: Sequence[str], headers: Sequence[int], *, rest: int) -> _Found | None:
    ranks: dict[str, _Found] = {}
    for at in headers:
        prefix = _prefix(lines, at)
        found = _parse(lines, at, rest=rest) if prefix else None
        if found is not None:
            ranks.pop(prefix, None)  # the last of each rank counts, and is put in its place
            ranks[prefix] = found
    out_of_memory = (f for f in ranks.values() if any(map(GPU_OOM.search, f.errors)))
    return next(out_of_memory, None) or next(iter(ranks.values()), None)


def _parse(lines: Sequence[str], at: int, *, rest: int) -> _Found | None:
    """Return the traceback whose last header is in that line, None when it is none after all."""
    prefix = _prefix(lines, at)
    if prefix:
        mine = [n for n, line in enumerate(lines) if line.startswith(prefix.rstrip())]
        view = [lines[n][len(prefix) :] for n in mine]
        header = mine.index(at)
    else:
        mine = list(range(len(lines)))
        indentation = lines[at].partition(HEADER)[0]
        header = at
        if indentation.isspace():
            view = [line.removeprefix(indentation) for line in lines]
        else:
            view = [_without_progress(line) for line in lines]
    exceptions = _exceptions(view, header)
    if not exceptions:
        return None
    begin, counted = _chain(view, header)
    end = _end(view, exceptions[-1])
    following = sum(len(line) + 1 for line in lines[mine[end - 1] + 1 :]) + rest
    errors = [_message(view, n) for header in counted for n in _exceptions(view, header)]
    return _Found(
        lines=view[begin:end],
        final=_message(view, exceptions[-1]),
        errors=errors,
        is_last=following < (NEAR_CHARS_OF_RANKS if prefix else NEAR_CHARS),
    )


def _may_be_header(lines: Sequence[str], at: int) -> bool:
    line = lines[at]
    if HEADER in line:
        return not _is_quoted(line.partition(HEADER)[0])
    if FATAL_PYTHON.match(line):
        return True
    if not line.startswith('  File "') or (at > 0 and FRAME.match(lines[at - 1])):
        return False
    # Python says only where, when the script itself cannot be compiled.
    follows_header = at > 0 and HEADER in lines[at - 1]
    return not follows_header and any(map(SYNTAX_ERROR.match, lines[at + 1 : at + 5]))


def _prefix(lines: Sequence[str], at: int) -> str:
    """Return what a launcher put before each line of this traceback, usually nothing."""
    before, header, _ = lines[at].partition(HEADER)
    prefix = NOT_A_PREFIX.sub("", before) if header else ""
    if not prefix.strip() or FRAME.match(prefix):
        return ""
    bare = prefix.rstrip()
    following = lines[at + 1 : at + 1 + NOISE_LINES]
    frames = (line[len(prefix) :] for line in following if line.startswith(bare))
    return prefix if any(FRAME.match(frame) for frame in frames) else ""


def _without_progress(line: str) -> str:
    """Return a header without the progress bar that was left in its line."""
    before, header, after = line.partition(HEADER)
    if not header or NOT_A_PREFIX.search(before) or before.startswith("╭") or _is_quoted(before):
        return line
    return header + after


def _is_quoted(before: str) -> bool:
    """Tell from what is before a header that it is in a line of source that is shown."""
    shown = before.startswith(("    ", "│", "┃")) and before.strip() != ""
    return shown and NOT_A_PREFIX.search(before) is None


def _exceptions(view: Sequence[str], header: int) -> list[int]:
    """Return the numbers of the lines that name exceptions, several only in a group."""
    if not GROUP_LINE.match(view[header]):
        exception = _exception_at(view, header)
        return [] if exception is None else [exception]
    first = last = header
    while first > 0 and GROUP_LINE.match(view[first - 1]):
        first -= 1
    while last + 1 < len(view) and GROUP_LINE.match(view[last + 1]):
        last += 1
    return [n for n in range(first, last + 1) if EXCEPTION.match(_plain(view[n]))]


def _exception_at(view: Sequence[str], header: int) -> int | None:
    """Return the number of the line that names the exception; None when there are no frames."""
    if FATAL_PYTHON.match(view[header]):
        return header
    at = header + 1 if HEADER in view[header] else header
    first = at
    while at < len(view) and FRAME.match(view[at]):
        at += 1
    if at == first:
        return None
    for candidate in range(at, min(at + NOISE_LINES, len(view))):
        if not view[candidate] or HEADER in view[candidate]:
            break
        if EXCEPTION.match(view[candidate]):
            return candidate
    return at if at < len(view) and view[at] else None


def _chain(view: Sequence[str], header: int) -> tuple[int, list[int]]:
    """Return where the chain that ends with this header begins, and the headers that count.

    Those count whose exceptions the last one was raised from, was given by another process, or
    groups; not those that were merely being handled.
    """
    begin = header
    counted = [header]
    counts = True
    while True:
        while begin > 0 and GROUP_LINE.match(view[begin]) and GROUP_LINE.match(view[begin - 1]):
            begin -= 1
        above = begin - 1
        while above >= 0 and not view[above]:
            above -= 1
        if above < 0:
            return begin, counted
        line = view[above]
        if line == '"""' and above > 0 and REMOTE.match(view[above - 1]):
            begin = above - 1
            continue
        inside = NESTED.match(line) or view[begin].startswith(f"Original {HEADER}")
        if line not in (CAUSE, CONTEXT) and not inside:
            return begin, counted
        counts = counts and line != CONTEXT
        former = next((n for n in range(above, -1, -1) if HEADER in view[n]), None)
        if former is None:
            return begin, counted
        begin = former
        if counts:
            counted.append(former)


def _end(view: Sequence[str], exception: int) -> int:
    """Return the number of the line after the exception's message, notes included."""
    in_group = GROUP_LINE.match(view[exception]) is not None
    continues = THREAD if FATAL_PYTHON.match(view[exception]) else re.compile(r"\s")
    expected = view[exception].endswith(":")  # the message begins in one of the next lines
    at = exception + 1
    while at < min(len(view), exception + MESSAGE_LINES):
        line = view[at]
        if in_group:
            if not GROUP_LINE.match(line):
                break
        elif not line:
            after = next((n for n in range(at, len(view)) if view[n]), None)
            if after is None or not (
                continues.match(view[after]) or (expected and at == exception + 1)
            ):
                break
        elif HEADER in line or (at - exception > FREE_LINES and not line[0].isspace()):
            break
        at += 1
    return at


def _message(view: Sequence[str], exception: int) -> str:
    """Return an exception line, with its first words where they are in a line of their own."""
    line = _plain(view[exception])
    if line.endswith(":"):
        more = (_plain(text) for text in view[exception + 1 : _end(view, exception)])
        line += " " + next((words.strip() for words in more if words), "")
    return line.strip()


def _plain(line: str) -> str:
    """Return a line without the margin of an exception group."""
    return GROUP_MARGIN.sub("", line, count=1)
