"""The command line: `main` is what the `gpuledger` program runs."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the command of `sys.argv` and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not when it is closed, or replaced by a test
            stream.reconfigure(errors="backslashreplace")
    try:
        # Imported here, since Ctrl-C may come while it loads.
        from gpuledger.cli.app import app

        app(prog_name="gpuledger")
    except KeyboardInterrupt:
        sys.exit(130)
