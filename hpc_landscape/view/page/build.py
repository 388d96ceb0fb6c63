"""One HTML file of a stored landscape: markup, style, scripts and numbers together, and nothing from anywhere else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib.resources import files
from typing import Any

from ...errors import UserError
from ...store import layout
from ..output import checked, write_whole
from .content import content

SUFFIXES = (".html",)
_SCRIPTS = ("grid.js", "look.js", "figures_2d.js", "figures_3d.js", "panels.js", "controls.js", "page.js")


def page(
    path: str,
    output: str,
    metric: str | None = None,
    log: bool | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "viridis",
    title: str | None = None,
) -> str:
    """Write a page to turn, zoom and point at the landscape in the file at path; returns output.

    metric, log, vmin, vmax, cmap: what is shown first, as in ``plot``; on a line several metrics, ``loss,accuracy``.
    title: the heading; "" leaves it and the description out. Raises UserError.
    """
    stored = layout.read(path)
    checked(path, output, SUFFIXES)
    bundle = _plotly()
    if not stored.done.any():
        raise UserError(f"{path}: no point is done yet, so there is nothing to plot")
    tree = content(path, stored, metric, log, (vmin, vmax), cmap, title)
    text = _assembled(tree, bundle)
    write_whole(output, lambda name: _write(name, text))
    return output


def _plotly() -> str:
    """The source of plotly.js."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError("the interactive page needs plotly: pip install 'hpc_landscape[plot]'") from None
    return get_plotlyjs()


def _assembled(tree: dict[str, Any], bundle: str) -> str:
    """The page's text. The browser runs scripts with these checksums alone, whatever a file has put into the page."""
    own = "\n".join(_part(name) for name in _SCRIPTS)
    scripts = " ".join(f"'sha256-{_checksum(script)}'" for script in (bundle, own))
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(tree["title"] or tree["file"]),
        "style": _part("page.css"),
        "data": _json(tree),
        "plotly": bundle,
        "script": own,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _part("page.html"))  # in one go: none inside another


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _checksum(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(tree: dict[str, Any]) -> str:
    """JSON that HTML does not take for markup: no text in it can end the element that it is in."""
    text = json.dumps(tree, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _write(name: str, text: str) -> None:
    with open(name, "w", encoding="utf-8", newline="") as file:
        file.write(text)
