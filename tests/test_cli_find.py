"""Finding the ledger, and deciding whether to trust it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuledger.cli.find import find_ledger, folder_to_use, has_database
from gpuledger.cli.trust import require_trusted
from gpuledger.errors import LedgerError, NoLedger, NotAllowed
from gpuledger.ledger import Ledger
from tests.cli_support import run


def make(folder: Path, *, shared: bool = False) -> Path:
    Ledger.create(folder, shared=shared)
    return folder


def test_the_nearest_ledger_above_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / ".gpuledger")
    nearest = make(tmp_path / "a" / ".gpuledger")
    below = tmp_path / "a" / "b" / "c"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert find_ledger(None) == nearest


def test_a_ledger_whose_file_is_missing_is_found_to_be_recovered(tmp_path: Path) -> None:
    shared = make(tmp_path / "shared")
    run("backup", "--ledger", str(shared))
    (shared / "ledger.db").unlink()
    assert find_ledger(shared) == shared
    assert folder_to_use(shared) == shared, "no second one beside it"
    assert "its file is missing" in run("status", "--ledger", str(shared), exit_code=74).stderr
    run("recover", "--ledger", str(shared))
    assert has_database(shared)


def test_without_a_ledger_the_error_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPULEDGER_DIR", raising=False)
    for command in (["status"], ["tasks"], ["retry", "--failed"], ["pause"], ["events"]):
        told = run(*command, exit_code=66).stderr
        assert told.startswith("error: no .gpuledger here")
        assert "gpuledger init" in told


def test_a_removed_current_folder_is_an_error_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(NoLedger, match="current folder"):
        find_ledger(None)


def test_a_given_folder_is_not_searched_upwards(tmp_path: Path) -> None:
    make(tmp_path / ".gpuledger")
    (tmp_path / "below").mkdir()
    with pytest.raises(NoLedger, match="below"):
        find_ledger(tmp_path / "below")


def test_a_half_made_ledger_is_used_again_by_init(tmp_path: Path) -> None:
    half = tmp_path / ".gpuledger"
    half.mkdir()
    (half / "ledger.lock").touch()
    assert folder_to_use(half) == half
    assert folder_to_use(tmp_path) == half


def test_a_ledger_of_ones_own_is_trusted(tmp_path: Path) -> None:
    require_trusted(make(tmp_path / ".gpuledger"), trust=False)
    require_trusted(make(tmp_path / "shared" / ".gpuledger", shared=True), trust=False)


@pytest.mark.parametrize("name", [".", "ledger.db", "runs", "workers"])
@pytest.mark.parametrize(("bits", "who"), [(0o002, "every user"), (0o020, "members of its group")])
def test_what_others_can_write_is_refused_unless_told(
    tmp_path: Path, name: str, bits: int, who: str
) -> None:
    folder = make(tmp_path / ".gpuledger")
    path = folder / name
    path.chmod(path.stat().st_mode | bits)
    with pytest.raises(NotAllowed, match=who) as refused:
        require_trusted(folder, trust=False)
    assert "--trust" in (refused.value.hint or "")
    assert refused.value.exit_code == 77
    require_trusted(folder, trust=True)


def test_a_shared_ledger_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / ".gpuledger", shared=True)
    folder.chmod(0o2777)
    with pytest.raises(NotAllowed, match="every user"):
        require_trusted(folder, trust=False)


def test_another_users_ledger_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / ".gpuledger")
    monkeypatch.setattr("gpuledger.cli.trust.os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(NotAllowed, match="belongs to another user"):
        require_trusted(folder, trust=False)
    require_trusted(folder, trust=True)


def test_another_users_shared_ledger_is_for_the_members_of_its_group_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / ".gpuledger", shared=True)
    monkeypatch.setattr("gpuledger.cli.trust.os.geteuid", lambda: os.getuid() + 1)
    require_trusted(folder, trust=False)

    monkeypatch.setattr("gpuledger.cli.trust.os.getgroups", list)
    monkeypatch.setattr("gpuledger.cli.trust.os.getegid", lambda: folder.stat().st_gid + 1)
    with pytest.raises(NotAllowed, match="belongs to another user"):
        require_trusted(folder, trust=False)


def test_a_ledger_that_vanishes_is_an_error_a_user_can_act_on(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="nothing was run"):
        require_trusted(tmp_path / "gone", trust=False)


def test_a_folder_that_is_not_ours_to_see_counts_as_a_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exists(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    assert not has_database(tmp_path)
    monkeypatch.setattr(Path, "exists", exists)
    assert has_database(tmp_path)
