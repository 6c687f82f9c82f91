"""The commands for bad days: backup and recover."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gpuledger.cli.find import find_ledger
from gpuledger.cli.options import AsJson, LedgerDir
from gpuledger.cli.output import echo, echo_json, note
from gpuledger.display.text import several

app = typer.Typer()


@app.command()
def backup(
    list_only: Annotated[
        bool, typer.Option("--list", help="List the backups there are, and make none.")
    ] = False,
    ledger: LedgerDir = None,
    as_json: AsJson = False,
) -> None:
    """Copy the ledger, check the copy, and keep it beside the ledger.

    Workers do it by themselves, every ten minutes in which something changed; 'gpuledger init'
    does it, too. The last ten are kept, and one an hour of the last 24.

    \b
    Examples:
      gpuledger backup
      gpuledger backup --list
    """
    from gpuledger.backups import Backup, existing, take
    from gpuledger.clock import SystemClock
    from gpuledger.errors import NotAllowed
    from gpuledger.store import Store

    folder = find_ledger(ledger)

    def shape(found: Backup) -> dict[str, Any]:
        return {
            "path": str(found.path),
            "made": found.stamp,
            "epoch": found.epoch,
            "change": found.change,
            "size_bytes": found.size_bytes,
        }

    if list_only:
        try:
            backups = existing(folder)
        except PermissionError as error:
            raise NotAllowed(f"ledger {folder} is not open to you", hint="ask its owner") from error
        if as_json:
            echo_json([shape(found) for found in backups])
            return
        for found in backups:
            echo(f"{found.stamp}  {found.size_bytes / 1024:10,.0f} KiB  {found.path}")
        if not backups:
            note("There is no backup yet; 'gpuledger backup' makes one.")
        return
    made = take(Store(folder), clock=SystemClock())
    if as_json:
        echo_json(shape(made))
    else:
        echo(f"Backup: {made.path} ({made.size_bytes / 1024:,.0f} KiB, checked)")


@app.command()
def recover(
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Restore this file, not the newest backup."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Restore even though the ledger seems to be whole.")
    ] = False,
    ledger: LedgerDir = None,
    as_json: AsJson = False,
) -> None:
    """Replace a damaged ledger by a backup and what workers noted since.

    The damaged files are kept, together, in a folder of their own. Changes that people made since
    the backup (retry, cancel, pause, set) are not in it; new sweeps are backed up when made.
    Nothing happens to a ledger that is whole, unless --force is given.

    \b
    Examples:
      gpuledger recover
      gpuledger recover --from .gpuledger/backups/20261124T101500Z-1-4711.db --force
    """
    from gpuledger.backups import take
    from gpuledger.clock import SystemClock
    from gpuledger.errors import LedgerError
    from gpuledger.recovery import recover as do_recover
    from gpuledger.store import Store

    folder = find_ledger(ledger)
    done = do_recover(folder, clock=SystemClock(), source=source, force=force)
    if done.backup is not None:
        store = Store(folder)
        try:
            store.nudge()  # busy workers look at once whether their attempts are still theirs
            take(store, clock=SystemClock())
        except LedgerError as error:
            note(f"The ledger is restored, but: {error.problem}")
    if as_json:
        echo_json(
            {
                "problem": done.problem,
                "restored": str(done.backup.path) if done.backup else None,
                "attempts_started": done.replayed.started,
                "attempts_ended": done.replayed.ended,
                "unknown_tasks": list(done.replayed.unknown),
                "quarantine": str(done.quarantine) if done.quarantine else None,
                "epoch": done.epoch or None,
            }
        )
        return
    if done.backup is None:
        echo("The ledger is whole, so nothing was done (--force restores a backup all the same).")
        return
    echo(f"Damage: {done.problem}")
    echo(f"Restored: {done.backup.path}")
    echo(
        f"Replayed from the workers' diaries: {several(done.replayed.started, 'new attempt')}, "
        f"{several(done.replayed.ended, 'ending')}"
    )
    if done.replayed.unknown:
        some = ", ".join(done.replayed.unknown[:3])
        echo(
            f"Not in that backup: {several(len(done.replayed.unknown), 'task')} ({some}). "
            "Run 'gpuledger init' of their sweep again; they run anew."
        )
    echo(f"The damaged files are kept in {done.quarantine}")
    note("Next: gpuledger status; then repeat what you changed by hand since that backup")
