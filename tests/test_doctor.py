"""What is known of mounts, what is tried, and who may work on a ledger together."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gpuledger import checkup, hosts, mounts, peer
from gpuledger.checkup import check_mount, check_up
from gpuledger.cli.app import app
from gpuledger.clock import SystemClock
from gpuledger.errors import NotShared, Unavailable
from gpuledger.findings import Level, exit_code
from gpuledger.ledger import Ledger
from gpuledger.mounts import Judgement, Mount, Reach, find_mount, judge
from gpuledger.peer import PeerResult, meet
from tests.cli_support import run
from tests.helpers import identity
from tests.shell import gpuledger

MOUNTINFO = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /home rw,relatime shared:2 - nfs4 srv:/home rw,vers=4.2,hard,local_lock=none
31 22 0:41 / /home/my\\040data rw - fuse.sshfs me@far:/x rw,user_id=0
32 22 0:42 / /scratch rw - lustre mds@tcp:/fs rw,localflock
33 30 0:43 / /home rw - autofs systemd-1 rw,fd=1
"""


@pytest.mark.parametrize(
    ("folder", "device", "kind", "source"),
    [
        ("/srv", "8:1", "ext4", "/dev/sda1"),
        ("/home/ada/x", "0:40", "nfs4", "srv:/home"),
        ("/home/my data/x", "0:41", "fuse.sshfs", "me@far:/x"),
        ("/scratch", "0:42", "lustre", "mds@tcp:/fs"),
        ("/scratch2", "8:1", "ext4", "/dev/sda1"),
    ],
)
def test_the_mount_of_a_folder_is_found(folder: str, device: str, kind: str, source: str) -> None:
    mount = find_mount(MOUNTINFO, Path(folder), device)
    assert (mount.kind, mount.source) == (kind, source)


def test_odd_mountinfo_is_no_error() -> None:
    for text in ("", "garbage", " - \n", "1 2 3 4\n", "1 1 1:1 / /x rw - \n"):
        assert find_mount(text, Path("/x"), "1:1").kind == "unknown"


def mount(kind: str, options: str = "") -> Mount:
    pairs = (option.partition("=") for option in options.split(",") if option)
    return Mount(kind=kind, options={name: value for name, _, value in pairs})


@pytest.mark.parametrize(
    ("kind", "options", "flock", "fcntl_", "worst"),
    [
        ("ext4", "", Reach.LOCAL, Reach.SHARED, 0),
        ("nfs4", "vers=4.2,local_lock=none", Reach.SHARED, Reach.SHARED, 0),
        ("nfs", "vers=3,local_lock=none", Reach.SHARED, Reach.SHARED, 1),
        ("nfs", "vers=3,nolock,local_lock=all", Reach.LOCAL, Reach.LOCAL, 2),
        ("nfs", "vers=3,local_lock=all", Reach.LOCAL, Reach.LOCAL, 2),
        ("nfs4", "vers=4.1,local_lock=flock", Reach.LOCAL, Reach.SHARED, 1),
        ("nfs4", "vers=4.1,local_lock=posix", Reach.SHARED, Reach.LOCAL, 1),
        ("nfs4", "vers=4.2,nocto", Reach.SHARED, Reach.SHARED, 2),
        ("nfs4", "vers=4.2,soft", Reach.SHARED, Reach.SHARED, 1),
        ("gpfs", "", Reach.LOCAL, Reach.SHARED, 0),
        ("lustre", "flock", Reach.SHARED, Reach.SHARED, 0),
        ("lustre", "localflock", Reach.LOCAL, Reach.LOCAL, 2),
        ("lustre", "", Reach.UNKNOWN, Reach.UNKNOWN, 1),
        ("cifs", "nobrl", Reach.LOCAL, Reach.LOCAL, 2),
        ("cifs", "cache=loose", Reach.UNKNOWN, Reach.UNKNOWN, 2),
        ("cifs", "cache=strict", Reach.UNKNOWN, Reach.UNKNOWN, 1),
        ("ceph", "", Reach.SHARED, Reach.SHARED, 1),
        ("fuse.sshfs", "", Reach.LOCAL, Reach.LOCAL, 2),
        ("9p", "", Reach.LOCAL, Reach.LOCAL, 2),
        ("virtiofs", "", Reach.LOCAL, Reach.LOCAL, 2),
        ("beegfs", "", Reach.UNKNOWN, Reach.UNKNOWN, 1),
        ("fuse.juicefs", "", Reach.UNKNOWN, Reach.UNKNOWN, 1),
    ],
)
def test_what_is_known_of_a_mount(
    kind: str, options: str, flock: Reach, fcntl_: Reach, worst: int
) -> None:
    judgement = judge(mount(kind, options))
    assert (judgement.flock, judgement.fcntl) == (flock, fcntl_)
    findings = check_mount(mount(kind, options))
    assert exit_code(findings) == worst
    assert all(finding.advice for finding in findings if finding.level is not Level.GOOD)


# --- who may work together --------------------------------------------------------------------

NONE = Judgement(network=True, flock=Reach.LOCAL, fcntl=Reach.LOCAL)
BOTH = Judgement(network=True, flock=Reach.SHARED, fcntl=Reach.SHARED)
ASK = Judgement(network=True, flock=Reach.UNKNOWN, fcntl=Reach.UNKNOWN)


def proof(*, flock: bool, fcntl_: bool) -> dict[str, object]:
    return {"peers": {"b": {"flock": flock, "fcntl": fcntl_}}}


@pytest.mark.parametrize(
    ("judgement", "known", "live", "stranger"),
    [
        (NONE, {}, {}, None),
        (NONE, {}, {"me": "alpha"}, None),
        (NONE, {}, {"b": "beta"}, "beta"),
        (BOTH, {}, {"b": "beta"}, None),
        (ASK, {}, {"b": "beta"}, None),
        (BOTH, {"b": {"flock": "local", "fcntl": "local"}}, {"b": "beta"}, "beta"),
        (BOTH, {"b": {"flock": "local", "fcntl": "shared"}}, {"b": "beta"}, None),
        (BOTH, {"me": proof(flock=False, fcntl_=False)}, {"b": "beta"}, "beta"),
        (NONE, {"me": proof(flock=False, fcntl_=True)}, {"b": "beta"}, None),
        (ASK, {"me": proof(flock=False, fcntl_=False)}, {"c": "gamma"}, None),
        (NONE, {"b": {"peers": {"me": {"flock": True, "fcntl": True}}}}, {"b": "beta"}, None),
    ],
)
def test_who_shares_no_lock_is_a_stranger(
    judgement: Judgement,
    known: dict[str, dict[str, object]],
    live: dict[str, str],
    stranger: str | None,
) -> None:
    assert hosts.stranger_to("me", judgement, known, live) == stranger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / ".gpuledger")


def test_the_second_host_is_refused_where_no_lock_is_shared(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "mount_of", lambda folder: mount("nfs", "vers=3,nolock"))
    hosts.require_shared_locks(ledger, unsafe=False)  # the first one may
    ledger.register(identity("other", host="beta"))

    with pytest.raises(NotShared, match=r"nolock.*nothing was started") as caught:
        hosts.require_shared_locks(ledger, unsafe=False)
    assert "doctor" in (caught.value.hint or "")
    hosts.require_shared_locks(ledger, unsafe=True)


def test_what_a_host_knows_is_kept_in_the_ledger(ledger: Ledger) -> None:
    hosts.require_shared_locks(ledger, unsafe=False)
    counter = ledger.store.change_counter()
    hosts.require_shared_locks(ledger, unsafe=False)
    assert ledger.store.change_counter() == counter, "the same again is not written again"

    result = PeerResult(
        findings=(), host="beta", boot_id="b", flock=False, fcntl=False, leads=True,
        exchange=lambda point, value: None,
    )  # fmt: skip
    hosts.record_peer(ledger.folder, result)
    ledger.register(identity("other", host="beta", machine="b:1:beta"))
    with pytest.raises(NotShared):
        hosts.require_shared_locks(ledger, unsafe=False)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("nfs4", "vers=4.2,nocto", "nocto"),
        ("nfs", "vers=3,nolock", "nolock"),
        ("fuse.juicefs", "", "doctor --peer"),
        ("nfs4", "vers=4.2", None),
        ("ext4", "", None),
    ],
)
def test_a_worker_says_what_is_wrong_with_its_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: str, said: str | None
) -> None:
    monkeypatch.setattr(mounts, "mount_of", lambda folder: mount(kind, options))
    told = hosts.doubts(tmp_path)
    assert len(told) == (said is not None)
    assert all(said in line for line in told if said)


# --- one host ---------------------------------------------------------------------------------


def test_a_good_folder_has_nothing_bad_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    findings = check_up(tmp_path, SystemClock())
    assert exit_code(findings) < 2
    named = {finding.what for finding in findings}
    assert {"flock", "fcntl", "fsync", "names", "transaction", "space", "versions"} <= named
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["flock", "fcntl"])
def test_a_lock_that_excludes_nobody_is_seen(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = "flock" if kind == "flock" else "lockf"
    monkeypatch.setattr(fcntl, function, lambda descriptor, operation: None)
    findings = {finding.what: finding for finding in check_up(tmp_path, SystemClock())}
    assert findings[kind].level is Level.BAD
    assert "two processes" in findings[kind].says


def test_sticky_folders_and_umasks_that_lock_a_group_out_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "TRANSACTIONS", 1)

    def says(mode: int, umask: int) -> tuple[Level, str]:
        tmp_path.chmod(mode)
        before = os.umask(umask)
        findings = {finding.what: finding for finding in check_up(tmp_path, SystemClock())}
        os.umask(before)
        return findings["folder"].level, findings["folder"].says

    assert says(0o700, 0o077)[0] is Level.GOOD
    assert says(0o2770, 0o007)[0] is Level.GOOD
    for mode, umask, about in (
        (0o1777, 0o022, "sticky"), (0o770, 0o007, "group"), (0o2770, 0o022, "umask 022"),
    ):  # fmt: skip
        level, said = says(mode, umask)
        assert level is Level.WARNING
        assert about in said


def test_a_folder_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "probe", lambda job, path, timeout_s: None)
    (finding,) = check_up(tmp_path, SystemClock())
    assert finding.level is Level.BAD


def test_the_command_says_all_of_it(tmp_path: Path) -> None:
    said = gpuledger("doctor", cwd=tmp_path, exit_code=None)
    assert said.returncode in (0, 1), said.stderr
    assert "transaction" in said.stdout
    done = gpuledger("doctor", "--json", cwd=tmp_path, exit_code=None)
    told = json.loads(done.stdout)
    assert told["exit_code"] == done.returncode
    assert {finding["level"] for finding in told["findings"]} <= {"good", "warning", "bad"}
    missing = run("doctor", str(tmp_path / "nowhere"), exit_code=2)
    assert "is no folder" in missing.stderr


# --- two ---------------------------------------------------------------------------------------


def both(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[PeerResult]:
    """Let two meet in this process, as if on two machines."""
    names = iter(["a:1:alpha", "b:1:beta", "a:1:alpha", "b:1:beta"])
    monkeypatch.setattr(peer, "this_machine", lambda: next(names))
    monkeypatch.setattr(peer, "CONTEST_S", 1.0)
    results: list[PeerResult] = []

    def one() -> None:
        with meet(folder, SystemClock(), wait_s=30, say=lambda line: None) as result:
            results.append(result)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 2
    return results


def test_two_that_share_their_locks_find_that_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Threads of one process share fcntl locks; open file description locks are like two hosts'.
    monkeypatch.setattr(peer, "_fcntl", peer._flock)
    for result in both(tmp_path, monkeypatch):
        assert (result.flock, result.fcntl) == (True, True)
        bad = [finding for finding in result.findings if finding.level is Level.BAD]
        assert [finding for finding in bad if finding.what != "hosts"] == []
    assert list(tmp_path.iterdir()) == []


def test_two_that_share_none_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "_flock", lambda descriptor: None)
    monkeypatch.setattr(peer, "_fcntl", lambda descriptor: None)
    for result in both(tmp_path, monkeypatch):
        assert (result.flock, result.fcntl) == (False, False)
        assert exit_code(result.findings) == 2
        assert any("would destroy the ledger" in finding.says for finding in result.findings)


def test_who_waits_alone_is_told_so_and_leaves_nothing(tmp_path: Path) -> None:
    alone = meet(tmp_path, SystemClock(), wait_s=0.2, say=lambda line: None)
    with pytest.raises(Unavailable, match="no other host came"), alone:
        pass
    assert list(tmp_path.iterdir()) == []


def test_that_nobody_came_is_a_finding_beside_those_of_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuledger.cli.doctor.PEER_WAIT_S", 0.2)

    done = CliRunner().invoke(app, ["doctor", "--peer", "--json", str(tmp_path)])

    assert done.exit_code == 2
    found = {each["what"]: each for each in json.loads(done.stdout)["findings"]}
    assert len(found) > 5, "what this host itself has is told as well"
    assert found["other hosts"]["level"] == "bad"
    assert "no other host came" in found["other hosts"]["says"]
    assert "on two hosts at once" in found["other hosts"]["advice"]


def test_somebody_who_left_in_the_middle_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "STALE_S", 1.0)
    room = tmp_path / peer.MEETING_FOLDER
    room.mkdir()
    (room / "open").write_text("gone 000000001")
    for result in both(tmp_path, monkeypatch):
        assert result.flock
    assert list(tmp_path.iterdir()) == []


def test_two_who_clear_the_same_old_sign_away_still_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower one may take the fresh sign of the faster for the old one."""
    join = peer._join
    taken: list[Path] = []

    def slower(room: Path, sign: Path, clock: SystemClock, idle: threading.Event) -> Path | None:
        if not taken:
            taken.append(sign.rename(room / "left.early"))
            return None
        return join(room, sign, clock, idle)

    monkeypatch.setattr(peer, "_join", slower)
    for result in both(tmp_path, monkeypatch):
        assert result.flock
    assert taken


def test_a_sign_that_is_not_written_yet_is_not_taken_for_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "STALE_S", 0.3)
    monkeypatch.setattr(peer, "BEAT_S", 0.05)
    sign = tmp_path / "open"
    seen = iter([b"gone 000000001"])
    monkeypatch.setattr(peer, "_read", lambda path: next(seen, b""))
    sign.touch()
    assert peer._join(tmp_path, sign, SystemClock(), threading.Event()) is None
    assert not (tmp_path / "guest").exists()
