"""compare: two landscapes on one grid."""

from __future__ import annotations

import argparse

from .number_options import add_number_options, chosen, form

DESCRIPTION = (
    "Compare two landscapes on one grid: how their values agree, the numbers of each, and what was different when they "
    "were made. What is not chosen is chosen by the first, for both."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which two, and how."""
    parser.add_argument("a", metavar="A.h5", help="a landscape file")
    parser.add_argument("b", metavar="B.h5", help="another one, on the same grid")
    add_number_options(parser)


def run(options: argparse.Namespace) -> None:
    """Print it; beside CSV, which has no place for them, the warnings on standard error."""
    from ..console import notice
    from ..errors import printable
    from ..view.compare import compare

    found = compare(options.a, options.b, **chosen(options))
    chosen_form = form(options)
    if chosen_form == "csv":
        for warning in found.warnings:
            notice(printable(f"warning: {warning}"))
    print(getattr(found, chosen_form)())
