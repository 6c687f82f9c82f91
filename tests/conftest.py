"""Fixtures that several test files use."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuledger.ledger import Ledger
from tests.helpers import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    """A clock that the test moves by hand."""
    return ManualClock()


@pytest.fixture
def ledger(tmp_path: Path, clock: ManualClock) -> Ledger:
    """An empty ledger on a disk of its own, with a lease of 60 s."""
    return Ledger.create(tmp_path / ".gpuledger", clock=clock)
