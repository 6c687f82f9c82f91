"""What a training script may ask and say; everything is harmless outside a worker.

It imports nothing but a little of the standard library, so that `import gpuledger` costs a
script a few milliseconds.
"""

from __future__ import annotations

import _thread
import atexit
import os
import sys
import time

TYPE_CHECKING = False  # `typing`, `json`, `pathlib` and `threading` cost more than all of this
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

LINES_AT_ONCE = 10
LINES_PER_S = 1
"""More reports than this are merged: a fast loop must not fill the disk, however long it runs."""

MOST_METRICS = 100
MOST_CHARS = 1000
MOST_BYTES = 16384

FATAL_NOTE = "[gpuledger.Fatal: not tried again]"
"""The line of a traceback by which `traceback_reader` knows a fatal failure of any class."""


class Fatal(Exception):
    """Raise it when another attempt makes no sense: the task fails at once."""

    def __new__(cls, *args: object, **more: object) -> Fatal:
        """Mark the exception, whatever a subclass is called."""
        error = super().__new__(cls, *args)
        error.add_note(FATAL_NOTE)
        return error


Fatal.__module__ = "gpuledger"


def params(defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the task's parameters over `defaults`; outside a worker the defaults alone."""
    import json

    given = json.loads(os.environ.get("GPULEDGER_PARAMS") or "{}")
    return {**(defaults or {}), **given}


def seed(default: int = 0) -> int:
    """Return the task's seed; outside a worker `default`."""
    return int(os.environ.get("GPULEDGER_SEED") or default)


def attempt() -> int:
    """Return the number of this attempt, from 1; outside a worker 1."""
    return int(os.environ.get("GPULEDGER_ATTEMPT") or 1)


def task_dir() -> Path:
    """Return a folder of the task's own, kept over its attempts; outside a worker the current."""
    from pathlib import Path

    return Path(os.environ.get("GPULEDGER_TASK_DIR") or Path.cwd())


def report(*, step: float | None = None, total: float | None = None, **metrics: Any) -> None:
    """Tell how far the task is and what came out so far; the last values are its result.

    Numbers, texts and truth values are kept, scalars of NumPy and PyTorch as numbers, NaN and
    infinities as the texts "NaN", "Infinity" and "-Infinity", anything else as its text. Texts
    are cut at 1,000 characters; 100 metrics and 16 KiB are the most, the longest values go first.

    Ten calls in a row are written at once, then one a second; what comes in between is merged
    and written with the next report or at the end of Python. Only a process that ends otherwise
    (killed, `os._exit`, a child of multiprocessing) can lose its last second. A failure to write
    is told once on stderr, stops nothing, and is tried again with the next report.

    Args:
        step: How far, a number; counts up.
        total: Where `step` ends.
        metrics: Anything, by name.
    """
    _reporter.report(step, total, metrics)


class _Reporter:
    """Appends reports to the file that the worker reads; one for the whole process."""

    def __init__(self) -> None:
        self._lock = _thread.RLock()
        self._pid = os.getpid()
        self._given: list[dict[str, Any]] = []  # not yet merged
        self._waiting: dict[str, Any] = {}  # merged, not yet written
        self._busy = False
        self._allowed = float(LINES_AT_ONCE)
        self._seen_s = time.monotonic()
        self._torn = False
        self._told: set[str] = set()

    def report(self, step: float | None, total: float | None, metrics: Mapping[str, Any]) -> None:
        if not os.environ.get("GPULEDGER_REPORT"):
            return
        if self._pid != os.getpid():  # a forked loader has nothing of ours to repeat
            self.__init__()  # type: ignore[misc]
        plain: dict[str, Any] = {"step": _plain(step), "total": _plain(total)}
        values = {key: value for key, value in plain.items() if _is_number(value)}
        values["metrics"] = {_plain(name): _plain(value) for name, value in metrics.items()}
        self._take(values)

    def flush(self) -> None:
        """Write what waits; called when the process ends."""
        if self._pid == os.getpid():
            self._allowed = 1.0
            self._take(None)

    def _take(self, values: dict[str, Any] | None) -> None:
        with self._lock:
            if values is not None:
                self._given.append(values)
            if self._busy:  # a signal handler came in between: what it interrupted goes on here
                return
            self._busy = True
            try:
                while self._given:
                    self._merge(self._given.pop(0))
                now_s = time.monotonic()
                earned = (now_s - self._seen_s) * LINES_PER_S
                self._allowed = min(self._allowed + earned, float(LINES_AT_ONCE))
                self._seen_s = now_s
                if self._waiting and self._allowed >= 1:
                    self._allowed -= 1
                    self._write()
            finally:
                self._busy = False

    def _merge(self, values: dict[str, Any]) -> None:
        kept = self._waiting.get("metrics", {})
        for name, value in values.pop("metrics").items():
            if name in kept or len(kept) < MOST_METRICS:
                kept[name] = value
            else:
                self._tell("too many", f"only the first {MOST_METRICS} metrics are reported")
        self._waiting.update(values, metrics=kept)

    def _write(self) -> None:
        line = (b"\n" if self._torn else b"") + self._line() + b"\n"
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            file = os.open(os.environ["GPULEDGER_REPORT"], flags, 0o666)
            try:
                written = os.write(file, line)
            finally:
                os.close(file)
        except (OSError, KeyError) as error:
            self._tell("failed", f"this report could not be written: {error}")
            return
        self._torn = 0 < written < len(line)
        if written < len(line):
            self._tell("failed", "this report could not be written: no space left")
            return
        self._waiting = {}

    def _line(self) -> bytes:
        """Return what waits as one line; when that is too long, without the longest metrics."""
        import json

        metrics = dict(self._waiting["metrics"])
        by_length = sorted(metrics, key=lambda name: len(json.dumps({name: metrics[name]})))
        while True:
            line = json.dumps({**self._waiting, "metrics": metrics}).encode()
            if len(line) <= MOST_BYTES - 2:  # and a newline before and after
                return line
            name = by_length.pop()
            del metrics[name]
            self._tell("too long", f"a report is too long: metric {name[:80]!a} is left out")

    def _tell(self, kind: str, sentence: str) -> None:
        if kind in self._told:
            return
        self._told.add(kind)
        try:
            sys.stderr.write(f"gpuledger: {sentence}\n")
        except (AttributeError, OSError, ValueError):  # closed, full or none: nobody to tell
            return


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Return what JSON can carry; no value of a script, however odd, may stop its training."""
    try:
        return _as_json(value)
    except Exception:  # its own `__str__` or `item` may raise anything
        return f"<{type(value).__name__}>"


def _as_json(value: Any) -> Any:
    if not isinstance(value, int | float | str) and hasattr(value, "item"):
        try:
            value = value.item()
        except (TypeError, ValueError, RuntimeError):  # more than one element
            value = str(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, int | float):
        return _finite(value)
    return str(value)[:MOST_CHARS]


def _finite(value: float) -> float | str:
    """Return a float, or the text that stands for it in JSON."""
    try:
        value = float(value)
    except OverflowError:  # an integer beyond all floats
        return "Infinity" if value > 0 else "-Infinity"
    if value != value:
        return "NaN"
    return value if abs(value) != float("inf") else ("Infinity" if value > 0 else "-Infinity")


_reporter = _Reporter()
atexit.register(_reporter.flush)
