"""Makes the page: one HTML text with its data, its style, its scripts and Plotly inside.

Nothing is fetched when it is opened, and its own policy forbids that: only the scripts that are
written here run, told by their digests, so that no text of a ledger ever can.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from gpuledger.errors import Unavailable

SCRIPTS = ("words.js", "drawing.js", "overview.js", "outcome.js", "table.js", "start.js")
"""In the order in which they need each other; together they are one script."""

# Plotly's WebGL charts compile functions (unsafe-eval) and style themselves; images are its own.
POLICY = (
    "default-src 'none'; script-src {scripts} 'unsafe-eval'; style-src 'unsafe-inline';"
    " img-src data: blob:; base-uri 'none'; form-action 'none'"
)

PLACE = re.compile("@([A-Z]+)@")
"""Where something is put into the template; what is put in is never searched again."""

# Inside a script element only these could end it, or begin a comment.
ESCAPES = str.maketrans({"<": r"\u003c", ">": r"\u003e", "&": r"\u0026"})


def plotly_script() -> str:
    """Return Plotly's JavaScript; raise Unavailable when the Python package is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise Unavailable(
            "the report needs the Python package plotly, which is not installed;"
            " nothing was written",
            hint="pip install plotly",
        ) from error
    return str(get_plotlyjs())


def page(data: Mapping[str, Any], *, plotly: str, version: str) -> str:
    """Return the whole HTML text.

    Args:
        data: See `data.report_data`.
        plotly: See `plotly_script`.
        version: Of gpuledger.
    """
    script = "(() => {\n" + "".join(_part(name) for name in SCRIPTS) + "})();\n"
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in (plotly, script))
    values = {
        "POLICY": POLICY.format(scripts=allowed),
        "VERSION": html.escape(version),
        "TITLE": html.escape(str(data["title"])),
        "STYLE": _part("page.css"),
        "DATA": embedded(data),
        "PLOTLY": plotly,
        "SCRIPT": script,
    }
    return PLACE.sub(lambda match: values[match[1]], _part("page.html"))


def embedded(data: Mapping[str, Any]) -> str:
    """Return the data as JSON that can stand in a script element: ASCII, without `<`, `>`, `&`."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.translate(ESCAPES)


def _part(name: str) -> str:
    return files("gpuledger.report").joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
