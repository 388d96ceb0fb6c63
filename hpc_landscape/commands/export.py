"""export: other formats."""

from __future__ import annotations

import argparse

DESCRIPTION = "Write a stored landscape in another format."


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is written, and where."""
    from ..view.export import FORMATS

    suffixes = ", ".join(dict.fromkeys(FORMATS.values()))
    parser.add_argument("file", help="a landscape file")
    parser.add_argument("-o", "--output", required=True, help=f"the new file: {suffixes}")
    parser.add_argument("--format", help=f"{', '.join(FORMATS)} (default: as the suffix says)")
    parser.add_argument("--metric", help="of a surface (.stl, .obj), and for landscaper (default: loss)")
    log = "the height of .stl and .obj is the metric's logarithm (default: where the values span decades)"
    parser.add_argument("--log", action=argparse.BooleanOptionalAction, help=log)


def run(options: argparse.Namespace) -> None:
    """Write, and print the new file's name."""
    from ..view.export import export

    print(export(options.file, options.output, options.format, options.metric, options.log))
