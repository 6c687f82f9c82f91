"""The command that shows what tasks printed: logs."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from gpuledger.cli.changes import Changes
from gpuledger.cli.find import open_ledger
from gpuledger.cli.logtext import TerminalText
from gpuledger.cli.options import LedgerDir, TaskName
from gpuledger.cli.output import is_dumb, is_terminal, note
from gpuledger.errors import LedgerBusy, LedgerUnreachable, UnknownTask
from gpuledger.ledger import Ledger
from gpuledger.model import TaskState
from gpuledger.revalidation import revalidate
from gpuledger.views import AttemptRecord, TaskRecord

app = typer.Typer()

PIECE_BYTES = 1 << 18
ENDED = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED})


@app.command()
def logs(
    task: TaskName,
    attempt: Annotated[
        int | None,
        typer.Option("--attempt", "-a", metavar="N", min=1, help="Which attempt; else the newest."),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on, also into later attempts, until it ends."),
    ] = False,
    lines: Annotated[
        int | None,
        typer.Option(
            "--lines", "-n", metavar="N", min=0, help="Only the last so many lines, else all."
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="The very bytes, control characters included.")
    ] = False,
    ledger: LedgerDir = None,
) -> None:
    """Print what a task wrote to its standard output and error.

    A terminal gets it without colours and control characters, a pipe or a
    file gets the very bytes.

    \b
    Examples:
      gpuledger logs exp1_0_42 -n 50
      gpuledger logs exp1_0_42 -f
      gpuledger logs exp1_0_42 --attempt 1 > first.log
    """
    opened = open_ledger(ledger)
    record = opened.task(task)
    chosen = _choose(record, attempt)
    if follow:
        _follow(opened, record, chosen, only=attempt is not None, lines=lines, raw=raw)
        return
    if chosen is None:
        note(f"{task} has not been started yet ({record.state}).")
        return
    log = _Log(chosen, lines=lines, raw=raw)
    log.copy(last=True)
    if not log.was_there:
        note(f"Attempt {chosen.number} left no log at {chosen.log}.")


def _choose(record: TaskRecord, number: int | None) -> AttemptRecord | None:
    """Return the attempt of that number, or the newest; None when there was none yet."""
    if number is None:
        return record.attempts[-1] if record.attempts else None
    for attempt in record.attempts:
        if attempt.number == number:
            return attempt
    known = f"it has 1 to {len(record.attempts)}" if record.attempts else "it has none yet"
    raise UnknownTask(f"{record.task} has no attempt {number}", hint=known)


def _follow(
    ledger: Ledger,
    record: TaskRecord,
    attempt: AttemptRecord | None,
    *,
    only: bool,
    lines: int | None,
    raw: bool,
) -> None:
    """Copy the attempt's log as it grows, then those of later attempts, until the task ends."""
    changes = Changes(ledger.store)
    log = None
    if attempt is None:
        note(f"{record.task} waits for its first attempt.")
    while True:
        record = _newest(ledger, record, changes)
        if log is None:
            attempt = attempt or _choose(record, None)
            if attempt is not None:
                log = _Log(attempt, lines=lines, raw=raw)
        now = next((one for one in record.attempts if log and one.number == log.number), None)
        has_ended = now is not None and now.outcome is not None
        if log is not None:
            log.copy(last=has_ended)
        if now is not None and has_ended:
            later = [one for one in record.attempts if one.number > now.number]
            if only or (not later and record.state in ENDED):
                return
            if later:
                if log is not None:
                    log.end_line()
                note(f"==> {record.task}, attempt {later[0].number} on {later[0].worker} <==")
                log = _Log(later[0], lines=None, raw=raw)
                continue
        elif not record.attempts and record.state in ENDED:
            return
        changes.pause()


def _newest(ledger: Ledger, record: TaskRecord, changes: Changes) -> TaskRecord:
    """Return the task as it is now; as it was, while the ledger cannot be read."""
    if not changes.came():
        return record
    try:
        return ledger.task(record.task)
    except (LedgerBusy, LedgerUnreachable):
        changes.forget()
        return record


class _Log:
    """Copies one attempt's log to stdout, each byte once."""

    def __init__(self, attempt: AttemptRecord, *, lines: int | None, raw: bool) -> None:
        self.number = attempt.number
        self.was_there = False
        self._path = Path(attempt.log)
        self._lines = lines
        self._at: int | None = None
        self._torn = False
        self._write = _raw_writer() if raw or not is_terminal() else _terminal_writer()

    def copy(self, *, last: bool) -> None:
        """Print what is new; `last` says that nothing more comes."""
        for piece in self._pieces():
            self._write(piece, False)
            self._torn = not piece.endswith(b"\n")
        if last:
            self._write(b"", True)

    def end_line(self) -> None:
        """On a terminal, begin a new line after one that the log left open."""
        if self._torn and is_terminal():
            sys.stdout.write("\n")
            sys.stdout.flush()

    def _pieces(self) -> Iterator[bytes]:
        """Yield what is new; the file is opened each time, since that is when NFS looks anew."""
        try:
            descriptor = _open_fresh(self._path)
        except OSError:
            return
        with os.fdopen(descriptor, "rb") as file:
            self.was_there = True
            if self._at is None:
                self._at = 0 if self._lines is None else _start_of_last(descriptor, self._lines)
            file.seek(self._at)
            while piece := file.read(PIECE_BYTES):
                self._at += len(piece)
                yield piece


def _open_fresh(path: Path) -> int:
    """Open a log that another host may have made a moment ago.

    Where a file was missed once, NFS goes on missing it for a minute, unless its folders are
    opened, which makes it look again; a name that now means another file is cured the same way.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
    for folder in (path.parent.parent, path.parent):
        with contextlib.suppress(OSError):
            revalidate(folder)
    return os.open(path, flags)


def _start_of_last(descriptor: int, lines: int) -> int:
    """Return where the last so many lines of a file begin."""
    at = end = os.fstat(descriptor).st_size
    if lines == 0:
        return end
    # The line break at the very end ends the last line, it begins no other.
    wanted = lines + (1 if end and os.pread(descriptor, 1, end - 1) == b"\n" else 0)
    while at > 0:
        size = min(PIECE_BYTES, at)
        piece = os.pread(descriptor, size, at - size)
        while wanted and (found := piece.rfind(b"\n")) >= 0:
            wanted -= 1
            if not wanted:
                return at - size + found + 1
            piece = piece[:found]
        at -= size
    return 0


def _raw_writer() -> Callable[[bytes, bool], None]:
    def write(piece: bytes, last: bool) -> None:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()

    return write


def _terminal_writer() -> Callable[[bytes, bool], None]:
    text = TerminalText(can_erase=not is_dumb())

    def write(piece: bytes, last: bool) -> None:
        sys.stdout.write(text.feed(piece, last=last))
        sys.stdout.flush()

    return write
