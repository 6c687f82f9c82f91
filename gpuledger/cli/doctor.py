"""The command that examines a host and its file system, alone or together with another host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuledger.cli.find import FOLDER_NAME, current_folder, find_ledger, has_database
from gpuledger.cli.options import AsJson
from gpuledger.cli.output import echo, echo_json, echo_table, note
from gpuledger.errors import BadUsage, LedgerError, NoLedger, Unavailable

if TYPE_CHECKING:
    from gpuledger.clock import Clock
    from gpuledger.findings import Finding
    from gpuledger.peer import PeerResult

app = typer.Typer()

PEER_WAIT_S = 120.0


@app.command()
def doctor(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            help="The folder to examine; else that of the ledger found here, else this one.",
            show_default=False,
        ),
    ] = None,
    peer: Annotated[
        bool,
        typer.Option("--peer", help="Examine together with another host that runs the same."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Examine mount, locks, disk and GPUs of this host, or what two hosts share.

    One host alone cannot see whether its locks reach the others. Start 'gpuledger doctor --peer'
    on two hosts at once, on the same folder: they take each lock by turns, read each other's
    files, and roll back each other's half-done changes. What they find is kept in the ledger, if
    there is one, for 'gpuledger work'. The exit code is 0, 1 (look at something) or 2 (bad).

    \b
    Examples:
      gpuledger doctor
      gpuledger doctor /shared/project
      gpuledger doctor --peer /shared/project
    """
    from gpuledger.checkup import check_up
    from gpuledger.clock import SystemClock
    from gpuledger.findings import exit_code

    chosen, ledger = _chosen(folder)
    clock = SystemClock()
    findings = check_up(chosen, clock)
    if peer and not any(
        finding.what == "folder" and finding.level == "bad" for finding in findings
    ):
        findings += _with_peer(chosen, ledger, clock)
    elif peer is False:
        findings.append(_not_examined())
    code = exit_code(findings)
    if as_json:
        echo_json(
            {
                "folder": str(chosen),
                "exit_code": code,
                "findings": [_shape(finding) for finding in findings],
            }
        )
    else:
        from gpuledger.display.doctor import doctor_table

        echo(f"Folder: {chosen}")
        echo_table(doctor_table(findings))
    raise typer.Exit(code)


def _with_peer(folder: Path, ledger: Path | None, clock: Clock) -> Sequence[Finding]:
    """Return what this host and another one share; that nobody came is a finding as well."""
    from gpuledger.findings import bad
    from gpuledger.peer import meet

    try:
        with meet(folder, clock, wait_s=PEER_WAIT_S, say=note) as result:
            if ledger is not None:
                _record(ledger, result)
            return result.findings
    except Unavailable as error:
        return [bad("other hosts", error.problem, error.hint)]


def _chosen(given: Path | None) -> tuple[Path, Path | None]:
    """Return the folder to examine, and the ledger's when it is one."""
    if given is None:
        try:
            ledger = find_ledger(None)
        except NoLedger:
            return current_folder(), None
        return ledger, ledger
    if not given.is_dir():
        raise BadUsage(f"{given} is no folder; nothing was examined", hint="give an existing one")
    folder = given.absolute()
    if (folder / FOLDER_NAME).is_dir():
        folder = folder / FOLDER_NAME
    return folder, folder if has_database(folder) else None


def _record(ledger: Path, result: PeerResult) -> None:
    """Keep what was found in the ledger: one host after the other, since locks may not work."""
    from gpuledger.hosts import record_peer

    for turn in (True, False):
        if result.leads is turn:
            try:
                record_peer(ledger, result)
            except LedgerError as error:
                note(error.problem)
        result.exchange(f"recorded-{turn}", None)


def _not_examined() -> Finding:
    from gpuledger.findings import good

    return good("other hosts", "not examined: 'gpuledger doctor --peer' on two hosts at once does")


def _shape(finding: Finding) -> dict[str, str | None]:
    return {
        "what": finding.what,
        "level": finding.level.value,
        "says": finding.says,
        "advice": finding.advice,
    }
