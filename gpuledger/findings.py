"""What an examination found, one line each: the values that `doctor` collects and draws."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How good a finding is."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of an examination.

    Attributes:
        what: Was examined, in a few words.
        level: See `Level`.
        says: What was found, one sentence.
        advice: What to do, or None.
    """

    what: str
    level: Level
    says: str
    advice: str | None = None


EXIT_CODES = {Level.GOOD: 0, Level.WARNING: 1, Level.BAD: 2}


def good(what: str, says: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding(what=what, level=Level.GOOD, says=says)


def warning(what: str, says: str, advice: str | None = None) -> Finding:
    """Return a finding that one should know of."""
    return Finding(what=what, level=Level.WARNING, says=says, advice=advice)


def bad(what: str, says: str, advice: str | None = None) -> Finding:
    """Return a finding with which the ledger is not safe, or does not work."""
    return Finding(what=what, level=Level.BAD, says=says, advice=advice)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 0 when all is good, 1 with warnings, 2 when something is bad."""
    return max((EXIT_CODES[finding.level] for finding in findings), default=0)
