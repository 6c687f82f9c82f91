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

LINES_PER_S = 10
"""More reports than this are merged: a fast loop must not fill the disk."""

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


def task() -> str | None:
    """Return the task's name, `<sweep>_<point>_<seed>`; outside a worker None."""
    return os.environ.get("GPULEDGER_TASK")


def task_dir() -> Path:
    """Return a folder of the task's own, kept over its attempts; outside a worker the current."""
    from pathlib import Path

    return Path(os.environ.get("GPULEDGER_TASK_DIR") or Path.cwd())


def report(*, step: float | None = None, total: float | None = None, **metrics: Any) -> None:
    """Tell how far the task is and what came out so far; the last values are its result.

    Numbers, texts and truth values are kept, scalars of NumPy and PyTorch as numbers, NaN and
    infinities as texts, anything else as its text. At most ten lines a second are written; what
    is merged in between is never lost, and a failure to write is told once and stops nothing.

    Args:
        step: How far; counts up.
        total: Where `step` ends.
        metrics: Anything, by name.
    """
    _reporter.report(step, total, metrics)


class _Reporter:
    """Appends reports to the file that the worker reads; one for the whole process."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._pid = os.getpid()
        self._waiting: dict[str, Any] = {}
        self._written_s = float("-inf")
        self._told = False

    def report(self, step: float | None, total: float | None, metrics: Mapping[str, Any]) -> None:
        if not os.environ.get("GPULEDGER_REPORT"):
            return
        if self._pid != os.getpid():  # a forked loader has nothing of ours to repeat
            self.__init__()  # type: ignore[misc]
        with self._lock:
            for key, value in (("step", step), ("total", total)):
                if value is not None:
                    self._waiting[key] = _plain(value)
            kept = self._waiting.setdefault("metrics", {})
            for name, value in metrics.items():
                if name in kept or len(kept) < MOST_METRICS:
                    kept[name] = _plain(value)
            if time.monotonic() - self._written_s >= 1 / LINES_PER_S:
                self._write()

    def flush(self) -> None:
        """Write what waits; called when the process ends."""
        if self._pid == os.getpid():
            with self._lock:
                if self._waiting:
                    self._write()

    def _write(self) -> None:
        import json

        line = json.dumps(self._waiting).encode() + b"\n"
        if len(line) > MOST_BYTES:
            line = json.dumps({**self._waiting, "metrics": {}}).encode() + b"\n"
        self._waiting = {}
        self._written_s = time.monotonic()
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            file = os.open(os.environ["GPULEDGER_REPORT"], flags, 0o666)
            try:
                os.write(file, line)
            finally:
                os.close(file)
        except (OSError, KeyError) as error:
            if not self._told:
                self._told = True
                sys.stderr.write(f"gpuledger: this report could not be written: {error}\n")


def _plain(value: Any) -> Any:
    """Return what JSON can carry."""
    if hasattr(value, "item") and not isinstance(value, int | float | str):
        try:
            value = value.item()
        except (TypeError, ValueError, RuntimeError):
            value = str(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else float(value)
    if isinstance(value, float):
        if value != value:
            return "NaN"
        return value if abs(value) != float("inf") else ("Infinity" if value > 0 else "-Infinity")
    return str(value)[:MOST_CHARS]


_reporter = _Reporter()
atexit.register(_reporter.flush)
