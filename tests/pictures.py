"""Makes the README's picture of the status from a real run: `python -m tests.pictures`.

Two workers of two pretended hosts run the quickstart sweep; the picture is taken while both are
busy and something has failed.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from gpuledger.display.status import status_view
from gpuledger.ledger import Ledger
from gpuledger.model import Snapshot
from tests.helpers import wait_until
from tests.shell import gpuledger, worker

ROOT = Path(__file__).resolve().parent.parent
HOSTS = ("ada", "turing", "hopper")


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
    path.write_text(console.export_svg(title=title, unique_id="status"), encoding="utf-8")


def snapshot_of_a_run(folder: Path) -> Snapshot:
    """Run the quickstart sweep and return its status in the middle of it."""
    shutil.copytree(ROOT / "examples" / "quickstart", folder / "digits")
    gpuledger("init", "digits/sweep.toml", "--lease=9s", "--heartbeat=0.2s", cwd=folder)
    # What fails at first would come last.
    gpuledger("set", "quickstart_6_0", "quickstart_6_1", "--priority", "1", cwd=folder)
    ledger = Ledger.open(folder / ".gpuledger")

    def telling() -> Snapshot | None:
        seen = ledger.snapshot()
        busy = [one for one in seen.workers if one.step is not None]
        enough = len(busy) == len(HOSTS) and seen.counts.failed and seen.counts.completed >= 4
        return seen if enough else None

    with (
        worker("--cpu", cwd=folder, host=HOSTS[0]),
        worker("--cpu", cwd=folder, host=HOSTS[1]),
        worker("--cpu", cwd=folder, host=HOSTS[2]),
    ):
        return wait_until(telling, because="there was no telling moment", timeout_s=60)  # type: ignore[return-value]


def main() -> None:
    """Run, and draw."""
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "examples" / "status.svg")
    parser.add_argument("--width", type=int, default=100, help="columns of the terminal")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="digits-") as name:
        save_svg(snapshot_of_a_run(Path(name)), given.out, given.width, "gpuledger status")


if __name__ == "__main__":
    main()
