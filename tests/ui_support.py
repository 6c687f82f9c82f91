"""The application without a terminal: keys go in, the text of the screen comes out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from textual.pilot import Pilot

from gpuledger.cli.live import Reader
from gpuledger.ledger import Ledger
from gpuledger.ui.app import LedgerApp

Test = Callable[["Screen"], Awaitable[None]]


class Screen:
    """What a user has in front of them."""

    def __init__(self, app: LedgerApp, pilot: Pilot[Any], reader: Reader) -> None:
        self.app = app
        self.pilot = pilot
        self.reader = reader

    def text(self) -> str:
        """Return what is on the screen, a line a row."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in strips)

    def said(self) -> list[str]:
        """Return the sentences that were said and are still to be seen."""
        return [notification.message for notification in self.app._notifications]

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def type(self, text: str) -> None:
        names = {
            " ": "space",
            "<": "less_than_sign",
            "=": "equals_sign",
            ":": "colon",
            "/": "slash",
            ".": "full_stop",
        }
        await self.pilot.press(*(names.get(letter, letter) for letter in text))

    async def until(self, condition: Callable[[], Any], *, timeout_s: float = 20.0) -> None:
        """Wait until something is so; fail with what is on the screen."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not condition():
                    await self.pilot.pause(0.02)
        assert condition(), self.text()

    async def until_seen(self, *texts: str) -> None:
        """Wait until all these texts are on the screen."""
        await self.until(lambda: all(text in self.text() for text in texts))

    async def until_gone(self, text: str) -> None:
        await self.until(lambda: text not in self.text())


@contextlib.asynccontextmanager
async def shown(
    ledger: Ledger, *, size: tuple[int, int], sweep: str | None
) -> AsyncIterator[Screen]:
    """Run the application on a ledger, on a pretended terminal."""
    with Reader(ledger, sweep=sweep, every_s=0.0) as reader:
        app = LedgerApp(ledger, reader, sweep=sweep)
        async with app.run_test(size=size, notifications=True) as pilot:
            yield Screen(app, pilot, reader)


def on_screen(
    ledger: Ledger, test: Test, *, size: tuple[int, int] = (100, 30), sweep: str | None = None
) -> None:
    """Run a test of what a user sees."""

    async def run() -> None:
        async with shown(ledger, size=size, sweep=sweep) as screen:
            await test(screen)

    asyncio.run(run())
