"""Makes the README's pictures of status, ui and report from a real run: `python -m tests.pictures`.

Three workers of three pretended hosts run the quickstart sweep. Status and ui are taken while all
are busy and something has failed, the report when nothing is left; it needs Chromium and plotly.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from gpuledger.display.status import status_view
from gpuledger.ledger import Ledger
from gpuledger.views import Snapshot
from tests.browser import browser
from tests.helpers import wait_until
from tests.shell import gpuledger, worker
from tests.ui_support import Screen, on_screen

ROOT = Path(__file__).resolve().parent.parent
HOSTS = ("ada", "turing", "hopper")
RUN_S = 600.0
"""The whole sweep takes a minute on two idle cores."""

ROWS = 32
PAGE_PIXELS = 1000
"""Width of the window with the report."""


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


def save_ui(ledger: Ledger, path: Path, width: int) -> None:
    """Write `ui` as it looks when somebody has opened the latest failure."""

    async def look(screen: Screen) -> None:
        await screen.press("f")
        await screen.until_seen("FileNotFoundError")
        await screen.press("enter")
        await screen.until_seen("log of attempt", "classes.txt")
        drawn = screen.app.export_screenshot(title="gpuledger ui", simplify=True)
        # The same names each time, so that only what changed differs.
        path.write_text(re.sub(r"terminal-\d+-", "ui-", drawn), encoding="utf-8")

    on_screen(ledger, look, size=(width, ROWS))


def save_report(folder: Path, path: Path) -> None:
    """Write the report on a ledger as a browser shows it, down to the results."""
    file = folder / "report.html"
    gpuledger("report", "-o", str(file), cwd=folder)
    with browser() as view:
        view.call("Emulation.setScrollbarsHidden", hidden=True)
        view.open(file, width=PAGE_PIXELS, height=2 * PAGE_PIXELS)
        for name in ("progress", "hosts", "causes", "timeline", "metric"):
            view.wait_for(f"document.querySelector('#{name}-chart.drawn .main-svg')")
        end = view.value("document.getElementById('metric-note').getBoundingClientRect().bottom")
        view.look(width=PAGE_PIXELS, height=round(end) + 8)
        view.picture(path)


def make_pictures(folder: Path, out: Path, width: int) -> None:
    """Run the quickstart sweep in a folder, and draw."""
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

    with ExitStack() as workers:
        for host in HOSTS:
            workers.enter_context(worker("--cpu", cwd=folder, host=host))
        snapshot = wait_until(telling, because="there was no telling moment", timeout_s=RUN_S)
        assert snapshot is not None
        save_svg(snapshot, out / "status.svg", width, "gpuledger status")
        save_ui(ledger, out / "ui.svg", width)
        wait_until(
            lambda: not ledger.snapshot().counts.remaining,
            because="the sweep did not end",
            timeout_s=RUN_S,
        )
    save_report(folder, out / "report.png")


def main() -> None:
    """Run, and draw."""
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "examples", help="folder to write to")
    parser.add_argument("--width", type=int, default=100, help="columns of the terminal")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="digits-") as name:
        make_pictures(Path(name), given.out, given.width)


if __name__ == "__main__":
    main()
