"""The same things that go wrong in the night, with tasks that are forked from a warm process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import shell, test_scenarios
from tests.test_scenarios import *  # noqa: F403  # each of them runs here as well

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(240)]


def warm_sweep(folder: Path, *, script: str, text: str, name: str = "exp") -> Path:
    """Write the sweep so that its tasks are forked, where its command is one that can be."""
    text = text.replace("python -I -S train.py", "python train.py")
    run = "[run]\n" if "[run]" in text else "\n[run]\n"
    before, _, after = text.partition("[run]\n")
    return shell.write_sweep(
        folder, script=script, text=f'{before}{run}preload = ["json", "random"]\n{after}', name=name
    )


@pytest.fixture(autouse=True)
def forked_from_a_warm_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(test_scenarios, "write_sweep", warm_sweep)
    yield
    for path in tmp_path.rglob("worker-*.out"):
        said = path.read_text(errors="replace")
        assert "is of no use" not in said
        assert "not started from a warm process" not in said, said
