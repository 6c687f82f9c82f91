"""What every screen works with."""

from __future__ import annotations

from dataclasses import dataclass

from gpuledger.cli.live import Reader
from gpuledger.ledger import Ledger
from gpuledger.ui.errands import Errands


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One look at one ledger.

    Attributes:
        ledger: The ledger; only errands and the reader touch it.
        reader: Has the newest snapshot.
        errands: Whatever may have to wait.
    """

    ledger: Ledger
    reader: Reader
    errands: Errands
