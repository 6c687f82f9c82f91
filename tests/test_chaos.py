"""A short spell of chaos; `python -m tests.chaos` runs a long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import run


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.timeout(240)
def test_nothing_is_lost_or_run_twice_when_workers_are_killed_and_the_disk_is_full(
    tmp_path: Path, warm: bool
) -> None:
    result = run(tmp_path, seed=1, task_count=40, workers=4, limit_s=10.0, disk=True, warm=warm)

    assert result.problems == []
    assert result.killed + result.stopped + result.told > 5, "there was no chaos"
    assert result.runs > 40, "chaos hit no attempt"
