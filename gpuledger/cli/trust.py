"""Decides whether the commands in a ledger may be run: whoever can write it chooses them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from gpuledger.errors import LedgerUnreachable, NotAllowed

CHECKED = (".", "ledger.db", "runs", "workers")


def require_trusted(folder: Path, *, trust: bool) -> None:
    """Refuse a ledger that others can write to, or that another user owns, unless `trust`.

    A ledger made with `init --shared` (its folder has the setgid bit) is meant for its group:
    it is fine for the members, whoever owns it.

    Raises:
        NotAllowed: The sentence says who else could choose what is run.
    """
    if trust:
        return
    try:
        found = {name: (folder / name).stat() for name in CHECKED if (folder / name).exists()}
        whole = folder.stat()
    except PermissionError as error:
        raise NotAllowed(
            f"ledger {folder} is not open to you; nothing was run", hint="ask its owner"
        ) from error
    except OSError as error:
        raise LedgerUnreachable(
            f"ledger {folder} cannot be looked at ({error.strerror}); nothing was run",
            hint="look at the mount (df, mount), then try again",
        ) from error
    shared_with = whole.st_gid if whole.st_mode & stat.S_ISGID else None
    is_member = shared_with is not None and shared_with in {os.getegid(), *os.getgroups()}
    for name, status in found.items():
        path = folder if name == "." else folder / name
        _require_ours(path, status, shared=is_member)
        _require_closed(path, status, shared_with=shared_with if is_member else None)


def _require_ours(path: Path, status: os.stat_result, *, shared: bool) -> None:
    if status.st_uid == os.geteuid() or shared:
        return
    raise NotAllowed(
        f"{path} belongs to another user ({_owner(path)}), who chooses the commands in it; "
        "nothing was run",
        hint="add --trust if that is what you want",
    )


def _require_closed(path: Path, status: os.stat_result, *, shared_with: int | None) -> None:
    if status.st_mode & stat.S_IWOTH:
        who, mend = "every user of this machine", "o-w"
    elif status.st_mode & stat.S_IWGRP and status.st_gid != shared_with:
        who, mend = "the members of its group", "g-w"
    else:
        return
    raise NotAllowed(
        f"{path} can be written by {who}, who could choose the commands that run as you; "
        "nothing was run",
        hint=f"chmod -R {mend} it, or add --trust if that is what you want",
    )


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (KeyError, OSError):
        return "unknown"
