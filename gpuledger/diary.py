"""Each worker's own append-only file of what it started and how it ended, for `recover`.

A damaged ledger is replaced by a backup; what happened since that backup is in these files. Each
has one writer. A line is written by opening, appending and closing, so that an NFS server has it
when the next thing happens; there is no fsync of its own, since the ledger's COMMIT follows.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpuledger.heartbeat import beat_path
from gpuledger.model import Claim, Ending, Token, WorkerIdentity, ending_from
from gpuledger.modes import make_folder, open_file
from gpuledger.spec import Params

FOLDER = "diaries"
LONGEST_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a diary.

    Attributes:
        kind: `started`, `ended`, or `refused` (the ledger did not take the ending).
        at: Seconds since the epoch, on the clock of the worker's machine.
        token: Of the attempt.
        worker: Whose diary it is; None in lines that do not start an attempt.
        params: What the attempt ran with; None in lines that do not say.
        ending: How it ended; None in other lines.
    """

    kind: str
    at: float
    token: Token
    worker: WorkerIdentity | None = None
    params: Params | None = None
    ending: Ending | None = None


class Diary:
    """The file of one worker; a line that cannot be written is left out, silently."""

    def __init__(self, folder: Path, worker: WorkerIdentity) -> None:
        name = beat_path(folder, worker.name, worker.nonce).name
        self.path = folder / FOLDER / f"{name}.jsonl"
        self._worker = worker
        self._environments: set[str | None] = set()

    def started(self, claim: Claim, *, at: float) -> None:
        """Note that the attempt is ours and about to run."""
        line = {"kind": "started", "at": at, **_token(claim.token), "params": dict(claim.params)}
        self._append(line, self._worker)

    def ended(self, token: Token, ending: Ending, *, at: float) -> None:
        """Note how an attempt ended, before the ledger is told."""
        ending = self._with_news(ending)
        self._append({"kind": "ended", "at": at, **_token(token), "ending": asdict(ending)})

    def _with_news(self, ending: Ending) -> Ending:
        """Leave out packages that this diary has already: hundreds of them for each task."""
        origin = ending.origin
        if origin is None or origin.environment not in self._environments:
            if origin is not None:
                self._environments.add(origin.environment)
            return ending
        return replace(ending, origin=replace(origin, packages=None))

    def refused(self, token: Token, *, at: float) -> None:
        """Note that the ledger did not take the ending: others have the task."""
        self._append({"kind": "refused", "at": at, **_token(token)})

    def _append(self, line: Mapping[str, Any], worker: WorkerIdentity | None = None) -> None:
        values = {**line, "worker": asdict(worker)} if worker is not None else line
        text = json.dumps(values, default=str).encode() + b"\n"
        with contextlib.suppress(OSError):
            make_folder(self.path.parent)
            descriptor = open_file(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(descriptor, text)
            finally:
                os.close(descriptor)


def read_diaries(folder: Path) -> Iterator[Entry]:
    """Yield every entry of every diary, each diary in its order; torn lines are left out."""
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        with contextlib.suppress(OSError), path.open("rb") as file:
            while line := file.readline(LONGEST_LINE_BYTES):
                entry = _parse(line)
                if entry is not None:
                    yield entry


def _token(token: Token) -> Mapping[str, Any]:
    return {"task": token.task, "number": token.number, "nonce": token.nonce}


def _parse(line: bytes) -> Entry | None:
    try:
        values = json.loads(line)
        worker, params, ending = values.get("worker"), values.get("params"), values.get("ending")
        return Entry(
            kind=str(values["kind"]),
            at=float(values["at"]),
            token=Token(
                task=str(values["task"]),
                number=int(values["number"]),
                nonce=str(values["nonce"]),
            ),
            worker=_worker(worker) if worker else None,
            params=dict(params) if params is not None else None,
            ending=ending_from(ending) if ending else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _worker(values: Mapping[str, Any]) -> WorkerIdentity:
    return WorkerIdentity(**{**values, "gpus": tuple(values["gpus"])})
