"""Lets a ledger's files and folders be open to whom its folder is open to, whatever the umask.

A group's ledger (`init --shared`) is used by people with a umask of their own: what one of them
made, the others must be able to read and to rewrite.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def open_file(path: Path, flags: int) -> int:
    """Open a file of the ledger, made when it is missing; return the descriptor."""
    descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size == 0:  # as far as can be told: just made
            with contextlib.suppress(PermissionError):  # another member's
                os.fchmod(descriptor, path.parent.stat().st_mode & 0o666)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def make_folder(folder: Path) -> None:
    """Make a folder within the ledger's; harmless when it exists."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(folder.parent.stat().st_mode & 0o7777)
