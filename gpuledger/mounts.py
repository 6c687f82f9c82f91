"""What is known about a file system before it is tried: is a lock on it shared between hosts?

Pure but for `mount_of`, which reads `/proc/self/mountinfo`. The rules are from the kernel's and
the file systems' own documentation and from measurements; README has the table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Reach(StrEnum):
    """How far a lock of one kind reaches."""

    SHARED = "shared"  # it excludes processes of other hosts
    LOCAL = "local"  # every host gets it
    UNKNOWN = "unknown"  # only `doctor --peer` can tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """Where a folder is mounted from.

    Attributes:
        kind: File system type, as in `nfs4`, `ext4`, `fuse.sshfs`.
        source: As in `server:/export`.
        point: Mount point.
        options: By name; value "" for flags.
    """

    kind: str
    source: str = ""
    point: str = "/"
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What follows from a mount.

    Attributes:
        network: Other hosts may have the same folder.
        flock: How far `flock` reaches.
        fcntl: How far `fcntl` locks reach.
        problems: Each a sentence, and what to do, for what makes a shared ledger unsafe.
        warnings: The same, for what makes it slower or less certain.
    """

    network: bool
    flock: Reach
    fcntl: Reach
    problems: tuple[tuple[str, str], ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()


LOCAL_KINDS = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "ramfs", "overlay", "f2fs", "jfs"}
    | {"reiserfs", "vfat", "exfat", "ntfs3", "bcachefs", "rootfs", "hostfs"}
)
CLUSTER_KINDS = frozenset({"ocfs2", "gfs2"})
BLIND_KINDS = {
    "fuse.sshfs": "sshfs keeps locks on each machine and caches without asking the server",
    "9p": "9p passes no locks on",
    "virtiofs": "virtiofs keeps locks in each guest unless its daemon passes them on",
    "fuse.rclone": "rclone keeps locks on each machine",
    "fuse.s3fs": "s3fs has no locks between machines",
    "fuse.gcsfuse": "gcsfuse has no locks between machines",
    "fuse.goofys": "goofys has no locks between machines",
    "davfs": "davfs has no locks between machines that a database could use",
    "afs": "AFS locks whole files, for advice only",
}
ASK_A_PEER = "run 'gpuledger doctor --peer' on two hosts at once: it proves what they share"


def mount_of(folder: Path) -> Mount:
    """Return the mount that a folder is on; an unknown kind when /proc does not say."""
    try:
        device = folder.stat().st_dev
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Mount(kind="unknown")
    return find_mount(lines, folder.resolve(), f"{os.major(device)}:{os.minor(device)}")


def find_mount(mountinfo: str, folder: Path, device: str) -> Mount:
    """Return the mount of `folder`: the last deepest one, of that device where one is.

    Args:
        mountinfo: Text of /proc/self/mountinfo (proc_pid_mountinfo(5)).
        folder: Absolute, without symbolic links.
        device: `major:minor` of the folder.
    """
    best: tuple[bool, int, Mount] | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, types = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(types) < 3:
            continue
        point = Path(_unescape(fields[4]))
        if folder != point and point not in folder.parents:
            continue
        mount = Mount(
            kind=types[0],
            source=_unescape(types[1]),
            point=str(point),
            options=_options(fields[5]) | _options(types[2]),
        )
        rank = (fields[2] == device, len(point.parts))
        if best is None or rank >= best[:2]:
            best = (*rank, mount)
    return best[2] if best else Mount(kind="unknown")


def judge(mount: Mount) -> Judgement:
    """Return what is known about locks and caches on a mount."""
    kind = mount.kind
    if kind in ("nfs", "nfs4"):
        return _judge_nfs(mount)
    if kind in ("cifs", "smb3"):
        return _judge_smb(mount)
    if kind == "lustre":
        return _judge_lustre(mount)
    if kind == "gpfs":
        return Judgement(network=True, flock=Reach.LOCAL, fcntl=Reach.SHARED)
    if kind in ("ceph", "fuse.ceph", "fuse.ceph-fuse"):
        slow = ("CephFS asks a server for every lock: operations are slow", "keep tasks long")
        return Judgement(network=True, flock=Reach.SHARED, fcntl=Reach.SHARED, warnings=(slow,))
    if kind in CLUSTER_KINDS:
        return Judgement(network=True, flock=Reach.SHARED, fcntl=Reach.SHARED)
    if kind in BLIND_KINDS:
        problem = (BLIND_KINDS[kind], "use it from one host only, or keep the ledger elsewhere")
        return Judgement(network=True, flock=Reach.LOCAL, fcntl=Reach.LOCAL, problems=(problem,))
    if kind in LOCAL_KINDS:
        # An exported local disk: kernel nfsd turns clients' locks into fcntl locks on it.
        return Judgement(network=False, flock=Reach.LOCAL, fcntl=Reach.SHARED)
    what = f"nothing is known about locks of {kind} between hosts"
    return Judgement(
        network=True,
        flock=Reach.UNKNOWN,
        fcntl=Reach.UNKNOWN,
        warnings=((what, ASK_A_PEER),),
    )


def shares_no_lock(judgement: Judgement) -> bool:
    """Tell whether neither kind of lock reaches other hosts."""
    return judgement.flock is Reach.LOCAL and judgement.fcntl is Reach.LOCAL


def _judge_nfs(mount: Mount) -> Judgement:
    options = mount.options
    local = options.get("local_lock", "none")
    nolock = "nolock" in options or local == "all"
    flock = Reach.LOCAL if nolock or local == "flock" else Reach.SHARED
    fcntl = Reach.LOCAL if nolock or local == "posix" else Reach.SHARED
    problems, warnings = [], []
    if nolock:
        name = "nolock" if "nolock" in options else "local_lock=all"
        problems.append(
            (f"mounted with {name}: every host gets every lock", f"mount it without {name}")
        )
    if "nocto" in options:
        problems.append(
            ("mounted with nocto: opens may show old contents", "mount it without nocto")
        )
    if "soft" in options or "softerr" in options:
        warnings.append(
            (
                "a soft mount: a slow server becomes an I/O error",
                "mount it hard (the default); gpuledger looks up what became of a change",
            )
        )
    if local in ("flock", "posix"):
        warnings.append((f"local_lock={local}: one of the two locks is not shared", "remove it"))
    if options.get("vers", "4").startswith("3") or options.get("nfsvers", "4").startswith("3"):
        warnings.append(
            (
                "NFSv3: a machine that dies while it holds the lock blocks all others until it "
                "is back",
                "use NFSv4.1 or newer where you can",
            )
        )
    return Judgement(
        network=True,
        flock=flock,
        fcntl=fcntl,
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def _judge_smb(mount: Mount) -> Judgement:
    if "nobrl" in mount.options:
        problem = ("mounted with nobrl: locks stay on each machine", "mount it without nobrl")
        return Judgement(network=True, flock=Reach.LOCAL, fcntl=Reach.LOCAL, problems=(problem,))
    problems = []
    if mount.options.get("cache") == "loose":
        problems.append(("cache=loose shows old contents", "mount it with cache=strict"))
    return Judgement(
        network=True,
        flock=Reach.UNKNOWN,
        fcntl=Reach.UNKNOWN,
        problems=tuple(problems),
        warnings=(("SMB servers differ in their locks", ASK_A_PEER),),
    )


def _judge_lustre(mount: Mount) -> Judgement:
    if "localflock" in mount.options:
        problem = ("mounted with localflock: locks stay on each machine", "mount it with flock")
        return Judgement(network=True, flock=Reach.LOCAL, fcntl=Reach.LOCAL, problems=(problem,))
    if "flock" in mount.options:
        return Judgement(network=True, flock=Reach.SHARED, fcntl=Reach.SHARED)
    warning = ("neither flock nor localflock among its options: locks may be missing", ASK_A_PEER)
    return Judgement(network=True, flock=Reach.UNKNOWN, fcntl=Reach.UNKNOWN, warnings=(warning,))


def _options(text: str) -> dict[str, str]:
    pairs = (option.partition("=") for option in text.split(",") if option)
    return {name: value for name, _, value in pairs}


def _unescape(text: str) -> str:
    """Undo mountinfo's octal escapes of blanks, tabs, newlines and backslashes."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text
