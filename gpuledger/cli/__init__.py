"""The command line: `main` is what the `gpuledger` program runs."""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    """Run the command of `sys.argv` and end the process with its exit code."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # Imported here, since Ctrl-C may come while it loads.
        from gpuledger.cli.app import app

        app(prog_name="gpuledger")
    except KeyboardInterrupt:
        sys.exit(130)


def _open_closed_streams() -> None:
    """Put /dev/null where a standard stream is closed (`>&-`).

    Else the next file that is opened, maybe the ledger, gets its number and is written to.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8")
