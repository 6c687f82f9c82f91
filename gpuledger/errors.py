"""Errors a user can act on: one sentence, a hint with the next step, an exit code.

* LedgerError                                                      exit 1
  - BadUsage         options that do not go together               exit 2
  - BadSweepFile     the sweep file says something impossible      exit 65
  - UnknownTask      no task, sweep or worker has that name        exit 65
  - NoLedger         no ledger folder here or above                exit 66
  - Unavailable      a needed thing (GPU, program) is missing      exit 69
  - NotShared        two hosts on one ledger without a shared lock exit 69
  - LedgerTooNew     written by a newer gpuledger                  exit 69
  - LedgerDamaged    SQLite says the file is malformed             exit 74
  - LedgerBusy       another process held the lock all the time    exit 75
  - LedgerUnreachable  the file system refused or failed           exit 75
  - LedgerReplaced   recovered from a backup meanwhile              exit 75
  - NotAllowed       permissions, or a ledger one should not trust exit 77
  - LeaseLost        the attempt is not ours to end (any more)     exit 1

Exit codes follow sysexits.h. Anything that is not a `LedgerError` is a bug and keeps
its Python traceback.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class LedgerError(Exception):
    """Base of all errors that a user can act on.

    Attributes:
        problem: One sentence, lower case, no full stop: the thing, and what was (not) changed.
        hint: The next step, or None.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, *, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem} ({self.hint})" if self.hint else self.problem


class BadUsage(LedgerError):
    """Options or arguments that make no sense together."""

    exit_code: ClassVar[int] = 2


class BadSweepFile(LedgerError):
    """A sweep file (or a parameter given by hand) that cannot be used; nothing was changed."""

    exit_code: ClassVar[int] = 65


class UnknownTask(LedgerError):
    """No task, sweep or worker of the ledger has the given name."""

    exit_code: ClassVar[int] = 65


class NoLedger(LedgerError):
    """No ledger folder was found."""

    exit_code: ClassVar[int] = 66


class Unavailable(LedgerError):
    """Something that is needed is missing: a GPU, a program, a library."""

    exit_code: ClassVar[int] = 69


class NotShared(LedgerError):
    """Hosts that share no lock must not work on one ledger at the same time."""

    exit_code: ClassVar[int] = 69


class LedgerTooNew(LedgerError):
    """The ledger was written by a newer gpuledger than this one."""

    exit_code: ClassVar[int] = 69

    def __init__(self, path: Path, *, found: int, known: int) -> None:
        super().__init__(
            f"ledger {path} has version {found}, this gpuledger knows versions up to {known}; "
            "nothing was changed",
            hint="upgrade gpuledger on this machine (pip install -U gpuledger)",
        )
        self.found = found
        self.known = known


class LedgerDamaged(LedgerError):
    """SQLite cannot read the ledger's file."""

    exit_code: ClassVar[int] = 74

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(
            f"ledger {path} is damaged: {' '.join(detail.split())}; nothing was changed",
            hint="run 'gpuledger recover': it restores the newest good backup and what the workers "
            "recorded since, and keeps the damaged files",
        )


class LedgerBusy(LedgerError):
    """Another process held the ledger's lock for the whole wait; nothing was changed."""

    exit_code: ClassVar[int] = 75

    def __init__(self, path: Path, *, waited_s: float, holder: str | None) -> None:
        by = f" by {holder}" if holder else ""
        super().__init__(
            f"ledger {path} stayed locked{by} for {waited_s:.0f} s; nothing was changed",
            hint="try again; if that process hangs, stop it (its lock ends with it)",
        )
        self.waited_s = waited_s
        self.holder = holder


class LedgerUnreachable(LedgerError):
    """The file system refused or failed: full, read-only, moved away, input/output error."""

    exit_code: ClassVar[int] = 75


class LedgerReplaced(LedgerError):
    """The ledger was recovered from a backup since it was opened; nothing was changed."""

    exit_code: ClassVar[int] = 75

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"ledger {folder} was recovered from a backup meanwhile; nothing was changed",
            hint="try again: what is asked for may look different now",
        )


class NotAllowed(LedgerError):
    """Permissions are missing, or the ledger belongs to somebody one should not trust."""

    exit_code: ClassVar[int] = 77


class LeaseLost(LedgerError):
    """The attempt was ended by somebody else: its worker must not record anything for it."""

    def __init__(self, task: str, number: int, *, why: str) -> None:
        super().__init__(
            f"{task} attempt {number}: lease lost, {why}; nothing was recorded",
            hint="another worker has the task now, or an operator ended it",
        )
        self.task = task
        self.number = number
