"""What is made from the code in the pages of the reference: a line `<!-- generated: NAME -->` becomes it."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import api
import house
import reference
from sphinx.application import Sphinx
from sphinx.util import logging

log = logging.getLogger(__name__)

PARTS: dict[str, Callable[[], str]] = {
    "api": api.api,
    "options": reference.options,
    "commands": reference.the_commands,
    "exit codes": reference.exit_codes,
    "messages": reference.messages,
    "file": reference.file,
    "floors": house.diagram,
    **{f"files of {room}": partial(house.files, room) for room in house.rooms()},
    **{f"{label} kinds": partial(reference.kinds, label) for label in reference.LABELS},
}
MARK = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Put it in place; `source` is the page's text, in a list for Sphinx to take back."""
    if MARK.search(source[0]):
        app.env.note_reread()  # the code may be another
    try:
        source[0] = MARK.sub(lambda mark: PARTS[mark[1]](), source[0])
    except Exception as error:  # of the code that is read; the other pages can still be looked at
        log.warning("what is to be read from the code raised %r", error, location=page)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
