"""Who may work on a ledger together: hosts that share at least one kind of lock.

Each host that works leaves in the ledger what it knows of its mount, and `doctor --peer` what two
hosts proved. A worker asks before it starts, and looks again while it works.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuledger import mounts
from gpuledger.clock import iso
from gpuledger.errors import NotShared
from gpuledger.ledger import Ledger
from gpuledger.machine import host_name, this_machine
from gpuledger.mounts import Judgement, Mount, Reach

if TYPE_CHECKING:
    from gpuledger.peer import PeerResult

HostFacts = Mapping[str, Any]
"""What the ledger keeps of a host: `mount`, `flock`, `fcntl`, and `peers` by boot id."""


def require_shared_locks(ledger: Ledger, *, unsafe: bool) -> None:
    """Record this host's mount, and refuse to be the second host where no lock is shared.

    Raises:
        NotShared: Workers of another host are there, and no lock excludes them; nothing was
            changed.
    """
    mount = mounts.mount_of(ledger.folder)
    judgement = mounts.judge(mount)
    known, live = ledger.store.read(lambda db: (_facts(db), _live_boots(db)))
    mine = boot_of(this_machine())
    strangers = stranger_to(mine, judgement, known, live)
    if strangers is not None and not unsafe:
        raise NotShared(
            f"{host_name()} would work on ledger {ledger.folder} beside {strangers}, but they "
            f"share no lock ({_told(mount)}) and would destroy it; nothing was started",
            hint="mount it with locks (NFS: without nolock) and prove it with 'gpuledger doctor "
            "--peer' on both; --unsafe starts all the same",
        )
    if known.get(mine, {}).get("mount") != _told(mount):
        facts = {**known.get(mine, {}), **_mount_facts(mount, judgement)}
        ledger.store.write(lambda db: _record(db, mine, facts, ledger.now()), operation="host")


def doubts(folder: Path) -> tuple[str, ...]:
    """Return a sentence for each thing known of this host's mount that endangers the ledger."""
    judgement = mounts.judge(mounts.mount_of(folder))
    known = judgement.problems
    if Reach.UNKNOWN in (judgement.flock, judgement.fcntl):
        known += judgement.warnings
    return tuple(f"{problem} ({advice})" for problem, advice in known)


def stranger_to(
    mine: str,
    judgement: Judgement,
    known: Mapping[str, HostFacts],
    live: Mapping[str, str],
) -> str | None:
    """Return the name of a live worker's host with which `mine` shares no lock, or None.

    Args:
        mine: This host's boot id.
        judgement: What is known of its mount.
        known: Facts of hosts, by boot id.
        live: Host names of live workers, by boot id.
    """
    for boot, name in sorted(live.items()):
        if boot != mine and not _share(mine, boot, judgement, known):
            return name
    return None


def boot_of(machine: str) -> str:
    """Return the part of `this_machine()` that is one running kernel: its locks are its own."""
    return machine.partition(":")[0]


def record_peer(folder: Path, result: PeerResult) -> None:
    """Keep in the ledger what this host and another one proved together."""
    ledger = Ledger.open(folder)
    mount = mounts.mount_of(folder)
    mine = boot_of(this_machine())

    def change(db: sqlite3.Connection) -> None:
        facts = {**_facts(db).get(mine, {}), **_mount_facts(mount, mounts.judge(mount))}
        proof = {"host": result.host, "flock": result.flock, "fcntl": result.fcntl}
        proof["at"] = iso(ledger.now())
        facts["peers"] = {**facts.get("peers", {}), result.boot_id: proof}
        _record(db, mine, facts, ledger.now())

    ledger.store.write(change, operation="doctor")


def _share(mine: str, other: str, judgement: Judgement, known: Mapping[str, HostFacts]) -> bool:
    for one, two in ((mine, other), (other, mine)):
        proof = known.get(one, {}).get("peers", {}).get(two)
        if proof is not None:
            return bool(proof["flock"] or proof["fcntl"])
    theirs = known.get(other, {})
    local = theirs.get("flock") == Reach.LOCAL and theirs.get("fcntl") == Reach.LOCAL
    return not (mounts.shares_no_lock(judgement) or local)


def _facts(db: sqlite3.Connection) -> dict[str, HostFacts]:
    return {row["machine"]: json.loads(row["data"]) for row in db.execute("SELECT * FROM host")}


def _live_boots(db: sqlite3.Connection) -> dict[str, str]:
    rows = db.execute("SELECT machine, host FROM worker WHERE ended_at IS NULL")
    return {boot_of(row["machine"]): row["host"] for row in rows}


def _record(db: sqlite3.Connection, boot: str, facts: HostFacts, now: float) -> None:
    db.execute(
        "INSERT OR REPLACE INTO host (machine, name, checked_at, data) VALUES (?, ?, ?, ?)",
        (boot, host_name(), now, json.dumps(dict(facts))),
    )


def _mount_facts(mount: Mount, judgement: Judgement) -> dict[str, str]:
    return {"mount": _told(mount), "flock": judgement.flock, "fcntl": judgement.fcntl}


def _told(mount: Mount) -> str:
    names = ("vers", "nolock", "local_lock", "nocto", "soft", "localflock", "nobrl", "cache")
    told = [
        f"{name}={mount.options[name]}" if mount.options[name] else name
        for name in names
        if name in mount.options
    ]
    return " ".join([mount.kind, mount.source, *told]).strip()
