"""Turns the bytes of a task's log into text that a terminal can be given."""

from __future__ import annotations

import codecs
import re

from gpuledger.display.text import clean

ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # colours, cursor movements
    r"|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)"  # titles, links, device control
    r"|[ -/]*[0-OQ-WYZ\\`-~])"
)
BEGUN = re.compile(r"(?:\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b\n]{0,1024}\x1b?|[ -/]*)|\r+)\Z")
"""What the next piece may complete: an escape sequence, or CR LF."""


class TerminalText:
    r"""Takes a log piece by piece, and leaves out what would steer the terminal.

    Colours and cursor movements vanish, other control characters are shown. A progress bar
    (`\r` without `\n`) is drawn over its former state; of several states in one piece only the
    last is shown.
    """

    def __init__(self, *, can_erase: bool) -> None:
        """Begin a log.

        Args:
            can_erase: The terminal is not a dumb one: it can clear a line.
        """
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._over = "\r\x1b[K" if can_erase else "\r"

    def feed(self, piece: bytes, *, last: bool = False) -> str:
        """Return what can be shown now; `last` gives out what was held back."""
        text = self._held + self._decoder.decode(piece, final=last)
        begun = None if last else BEGUN.search(text)
        text, self._held = (text[: begun.start()], begun[0]) if begun else (text, "")
        text = ESCAPE.sub("", text).replace("\b", "")
        text = re.sub(r"\r+(?=\n|\Z)", "", text)
        text = re.sub(r"[^\n]*\r", "\r", text)
        return self._over.join(clean(part) for part in text.split("\r"))
