"""Finds the ledger as git finds its repository: from the current folder upwards."""

from __future__ import annotations

import contextlib
from pathlib import Path

from gpuledger.errors import NoLedger
from gpuledger.ledger import Ledger

FOLDER_NAME = ".gpuledger"
DATABASE_NAME = "ledger.db"
BACKUPS_NAME = "backups"


def open_ledger(given: Path | None, *, lock_timeout_s: float = 60.0) -> Ledger:
    """Open the ledger that the user means; see `find_ledger`."""
    return Ledger.open(find_ledger(given), lock_timeout_s=lock_timeout_s)


def find_ledger(given: Path | None) -> Path:
    """Return the absolute path of the ledger's folder.

    Args:
        given: What the user said with `--ledger`: the folder itself, or the one that has it as
            its `.gpuledger`; None means to look here and in every folder above.

    Raises:
        NoLedger: There is none.
    """
    if given is not None:
        return _named(given)
    here = current_folder()
    for folder in (here, *here.parents):
        if _is_folder(folder / FOLDER_NAME):
            return folder / FOLDER_NAME
    raise NoLedger(
        f"no {FOLDER_NAME} here ({here}) or in a folder above",
        hint="make one with 'gpuledger init SWEEP.toml', or say where it is with --ledger",
    )


def folder_to_use(given: Path | None) -> Path:
    """Return the folder of the ledger that `init` adds to; it may not exist yet.

    What is not found is made: where `--ledger` says, else in the current folder.
    """
    try:
        return find_ledger(given)
    except NoLedger:
        if given is None:
            return current_folder() / FOLDER_NAME
    folder = given.absolute()
    # A folder with other things in it is where somebody works, and not a ledger.
    if folder.name != FOLDER_NAME and _has_entries(folder):
        return folder / FOLDER_NAME
    return folder


def current_folder() -> Path:
    """Return the current folder; raise NoLedger when it was removed."""
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise NoLedger(
            "the current folder does not exist any more", hint="cd to one that does"
        ) from error


def _named(given: Path) -> Path:
    folder = given.absolute()
    if _is_ledger(folder):
        return folder
    if _is_folder(folder / FOLDER_NAME):
        return folder / FOLDER_NAME
    raise NoLedger(
        f"there is no ledger at {folder}",
        hint="make one with 'gpuledger init SWEEP.toml', or give another --ledger",
    )


def _is_ledger(folder: Path) -> bool:
    if folder.name == FOLDER_NAME:
        return _is_folder(folder)
    return has_database(folder) or _has_backups(folder)


def _has_backups(folder: Path) -> bool:
    """Tell whether there was a ledger: its file may be what has to be recovered."""
    with contextlib.suppress(OSError):
        return any((folder / BACKUPS_NAME).glob("*.db"))
    return False


def has_database(folder: Path) -> bool:
    """Tell whether there is a ledger in a folder; one that is not ours to see counts."""
    try:
        return (folder / DATABASE_NAME).exists()
    except OSError:  # opening it will say so
        return True


def _is_folder(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.is_dir()
    return False


def _has_entries(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(folder.iterdir())
    return False
