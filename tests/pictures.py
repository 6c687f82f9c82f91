"""Makes pictures of the status for the README: `python -m tests.pictures OUT.svg LEDGER_FOLDER`."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from rich.console import Console

from gpuledger.display.status import status_view
from gpuledger.ledger import Ledger
from gpuledger.model import Snapshot


def save_svg(snapshot: Snapshot, path: Path, width: int, title: str) -> None:
    """Write the status as it looks on a terminal of `width` columns; `title` names the window."""
    console = Console(
        record=True,
        width=width,
        file=io.StringIO(),
        force_terminal=True,
        color_system="standard",
        legacy_windows=False,
        _environ={},
    )
    console.print(status_view(snapshot, width=width))
    path.write_text(console.export_svg(title=title), encoding="utf-8")


def main() -> None:
    """Draw a real ledger's status."""
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=main.__doc__)
    parser.add_argument("out", type=Path, help="the SVG file to write")
    parser.add_argument("ledger", type=Path, help="a ledger's folder, '.gpuledger'")
    parser.add_argument("--width", type=int, default=110, help="columns of the terminal")
    given = parser.parse_args()
    snapshot = Ledger.open(given.ledger).snapshot()
    save_svg(snapshot, given.out, given.width, title="gpuledger status")


if __name__ == "__main__":
    main()
