"""Outcomes on their way to a ledger that is away."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from gpuledger import outbox
from gpuledger.model import Ending, Finished, Outcome, Token
from tests.helpers import identity

TOKEN = Token(task="exp_0_0", number=2, nonce="abc")
ENDING = Ending(outcome=Outcome.COMPLETED, exit_code=0, metrics={"acc": 0.5}, duration_s=3.0)
FINISHED = Finished(
    token=TOKEN, ending=ENDING, started_at=1.0, ended_at=4.0, params={"lr": 0.1, "tags": ["a"]}
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = outbox.outbox_folder("uuid")
    assert found is not None
    return found


def test_a_letter_is_read_as_it_was_written_and_gone_when_forgotten(folder: Path) -> None:
    letter = outbox.post(folder, identity("abc", pid=7), FINISHED)

    assert list(outbox.letters(folder)) == [letter]
    assert (letter.token, letter.finished.ending, letter.pid) == (TOKEN, ENDING, 7)

    outbox.forget(letter)
    assert list(outbox.letters(folder)) == []
    outbox.forget(letter)


def test_who_leaves_removes_the_folder_but_no_letter(folder: Path, tmp_path: Path) -> None:
    letter = outbox.post(folder, identity(), FINISHED)
    outbox.tidy("uuid")
    assert list(outbox.letters(folder)) == [letter]

    outbox.forget(letter)
    for _ in range(2):
        outbox.tidy("uuid")
        assert list(tmp_path.iterdir()) == []
    assert outbox.outbox_folder("uuid") == folder, "and there again for the next"


def test_drafts_and_garbage_are_left_alone(folder: Path) -> None:
    letter = outbox.post(folder, identity(), FINISHED)
    (folder / "half.draft").write_text("{")
    (folder / "garbage.json").write_bytes(b"\xff\x00")
    (folder / "other.json").write_text('{"finished": {"token": {}}}')

    assert list(outbox.letters(folder)) == [letter]


def test_a_place_that_others_prepared_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours = tmp_path / f"gpuledger-{os.getuid()}"
    ours.mkdir()
    ours.chmod(0o777)
    assert outbox.outbox_folder("uuid") is None

    ours.rmdir()
    ours.symlink_to(tmp_path)
    assert outbox.outbox_folder("uuid") is None


def test_a_full_disk_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not" / "there"))
    assert outbox.outbox_folder("uuid") is None
