"""What every screen works with."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpuledger.cli.live import Reader
from gpuledger.clock import Clock, SystemClock
from gpuledger.ledger import Ledger
from gpuledger.ui.errands import Errands


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One look at one ledger.

    Attributes:
        ledger: The ledger; only errands and the reader touch it.
        reader: Has the newest snapshot.
        errands: Whatever may have to wait.
        sweep: Only this one is looked at; None means all.
        clock: This machine's.
    """

    ledger: Ledger
    reader: Reader
    errands: Errands
    sweep: str | None = None
    clock: Clock = field(default_factory=SystemClock)
