"""info: what a file holds, in words; its numbers; and the environment."""

from __future__ import annotations

import argparse

from ..errors import UserError
from .number_options import add_number_options, chosen, form

DESCRIPTION = (
    "Say what a file holds, how complete it is, whether a run is at it and how it was made. The file may be in "
    "use: it is only read, and no lock is taken, so that a run is never disturbed."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for."""
    parser.add_argument("file", nargs="?", help="a landscape file; it may be in use")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--cite", action="store_true", help="print what the file's makers are to cite, as BibTeX")
    instead.add_argument(
        "--environment", action="store_true", help="no file: versions, MPI, GPUs, cores, for a report of a fault"
    )
    instead.add_argument("--numbers", action="store_true", help="measure one metric: barriers, minima, convexity, ...")
    add_number_options(parser)


def run(options: argparse.Namespace) -> None:
    """Print it."""
    if not options.numbers:
        _refuse_alone(options)
    if options.environment:
        if options.file is not None:
            raise UserError("info --environment takes no file; ask for the file's own by a second command")
        from .. import environment

        environment.tell(options.json)
        return
    if options.file is None:
        raise UserError("info: no file; name one, or --environment")
    if options.cite:
        print(_cited(options.file), end="")
        return
    if options.numbers:
        from ..view.numbers import numbers

        print(getattr(numbers(options.file, **chosen(options)), form(options))())
        return
    from ..view.info import info

    print(info(options.file))


def _refuse_alone(options: argparse.Namespace) -> None:
    """UserError for an option that goes with --numbers."""
    forms = ("csv",) if options.environment else ("json", "csv")
    alone = [*chosen(options), *(name for name in forms if getattr(options, name))]
    if alone:
        raise UserError(f"info --{alone[0]} goes with --numbers")


def _cited(path: str) -> str:
    """What whoever made the file is to cite, as BibTeX."""
    from ..cite import citations
    from ..store import layout
    from ..view.field import ordered, setting

    stored = layout.read(path)
    settings = {name: setting(stored.attributes, name) for name in ("problem", "directions", "bn")}
    settings["metrics"] = ",".join(quantity.name for quantity in ordered(stored))
    ranks = setting(stored.attributes, "ranks")
    return citations(settings, ranks if isinstance(ranks, int) else 1, stored=True)
