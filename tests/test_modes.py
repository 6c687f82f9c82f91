"""A group's ledger: what one member made, the others can use, whatever the umask of either."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuledger.backups import existing, take
from gpuledger.clock import SystemClock
from gpuledger.diary import Diary, read_diaries
from gpuledger.heartbeat import Beat, HeartbeatFile, beat_path, read_raw
from gpuledger.ledger import Ledger
from gpuledger.model import Claim
from gpuledger.modes import make_folder, open_file
from gpuledger.selection import Selection
from tests.helpers import identity, spec

GROUP = 60000
ADA, BEN = 60001, 60002


def as_user(user: int, work: Callable[[], None]) -> None:
    """Do it in a process of that member of the group, who lets nobody else see new files."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(user)
            os.setgroups([GROUP])
            os.setuid(user)
            os.umask(0o077)
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
def test_members_of_a_group_use_what_the_others_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path, *tmp_path.parents):
        if path not in (Path("/"), Path("/tmp")):
            path.chmod(0o755)
    home = tmp_path / "project"
    home.mkdir()
    os.chown(home, ADA, GROUP)
    home.chmod(0o2770)
    folder = home / ".gpuledger"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch").chmod(0o1777)

    def work(nonce: str) -> None:
        ledger = Ledger.open(folder)
        me = ledger.register(identity(nonce * 8, name=f"alpha:{nonce}"))
        HeartbeatFile(beat_path(folder, me.name, me.nonce)).write(
            Beat(
                nonce=me.nonce,
                name=me.name,
                host=me.host,
                machine=me.machine,
                pid=1,
                pid_start=1,
                seq=1,
            )
        )
        claim = ledger.claim(me)
        assert isinstance(claim, Claim)
        Diary(folder, me).started(claim, at=1.0)
        for made in (folder / "runs", folder / "runs" / claim.task):
            make_folder(made)
        os.close(open_file(folder / "runs" / claim.task / "attempt.log", os.O_WRONLY))
        ledger.store.nudge()
        take(ledger.store, clock=SystemClock())

    def look_at_the_others() -> None:
        assert len(list(read_diaries(folder))) == 2
        assert len(existing(folder)) >= 2
        assert all(len(read_raw(path) or b"") > 10 for path in (folder / "workers").iterdir())
        for path in (folder / "runs").glob("*/attempt.log"):
            os.close(os.open(path, os.O_RDWR))

    def create() -> None:
        ledger = Ledger.create(folder, shared=True)
        ledger.add_sweep(spec(points=3))
        take(ledger.store, clock=SystemClock())

    def cancel() -> None:
        Ledger.open(folder).cancel(Selection(sweep="exp"))

    as_user(ADA, create)
    as_user(ADA, lambda: work("a"))
    as_user(BEN, lambda: work("b"))
    as_user(ADA, look_at_the_others)
    as_user(BEN, look_at_the_others)
    as_user(BEN, cancel)


def test_a_folder_for_one_lets_nobody_else_in(tmp_path: Path) -> None:
    folder = Ledger.create(tmp_path / ".gpuledger").folder
    os.close(open_file(folder / "file", os.O_WRONLY))
    make_folder(folder / "below")
    assert (folder / "file").stat().st_mode & 0o777 == 0o600
    assert (folder / "below").stat().st_mode & 0o777 == 0o700
