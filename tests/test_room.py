"""Whether a disk is full, found by writing; and a task's attempt on a disk that really is."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuledger.room import NEEDED_BYTES, has_room
from tests.chaos import fill, small_disk
from tests.helpers import wait_until
from tests.shell import gpuledger, tasks, worker, write_sweep

TALKER = """
import os
with open(1, "wb", buffering=0, closefd=False) as out:
    assert out.write(b"x" * 65536) == 65536, "it had no room"
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB, where the tests may mount one."""
    folder = tmp_path / ".gpuledger" / "runs"
    folder.mkdir(parents=True)
    with small_disk(folder, mib=4) as mounted:
        if not mounted:
            pytest.skip("only root can mount a small disk")
        folder.chmod(0o755)  # a tmpfs lets everybody write
        yield folder


def test_a_full_disk_has_no_room_and_keeps_nothing(disk: Path) -> None:
    assert has_room(disk)
    fill(disk / "ballast")
    assert not has_room(disk)
    os.truncate(disk / "ballast", 4 * NEEDED_BYTES - NEEDED_BYTES // 2)
    assert not has_room(disk), "half of what is needed"
    assert [path.name for path in disk.iterdir()] == ["ballast"]
    (disk / "ballast").unlink()
    assert has_room(disk)
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("call", ["open", "write", "fsync"])
@pytest.mark.parametrize(
    ("number", "room"), [(errno.ENOSPC, False), (errno.EDQUOT, False), (errno.EIO, True)]
)
def test_what_says_that_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, room: bool
) -> None:
    def refuse(*given: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    found = has_room(tmp_path)
    monkeypatch.undo()
    assert found is room
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_not_full(tmp_path: Path) -> None:
    assert has_room(tmp_path / "gone")


def test_tasks_wait_for_a_full_disk_and_are_not_charged(tmp_path: Path, disk: Path) -> None:
    sweep = write_sweep(tmp_path, script=TALKER, text='command = "python -I -S train.py"\nseeds=2')
    gpuledger("init", str(sweep), cwd=tmp_path)
    fill(disk / "ballast")
    os.truncate(disk / "ballast", 4 * NEEDED_BYTES - 32768)  # the folders and half of the output
    with worker("--cpu", cwd=tmp_path) as only:
        only.wait_for("claiming nothing")
        wait_until(
            lambda: "the disk is full" in gpuledger("status", "--once", cwd=tmp_path).stdout,
            because="the status says it as well",
        )
        (disk / "ballast").unlink()
        only.wait_for("ready for the next task")
        assert only.wait() == 0
    found = tasks(tmp_path)
    assert {task["state"] for task in found.values()} == {"completed"}
    assert [task["failures"] for task in found.values()] == [0, 0]
    first = found["exp_0_0"]["attempts"]
    assert [attempt["outcome"] for attempt in first] == ["interrupted", "completed"]
    assert first[0]["error"].startswith("the disk of its log is full: ")
