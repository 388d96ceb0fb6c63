"""The options of the commands that give numbers, and how these are printed."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UserError

CHOICES = ("metric", "radius", "level", "factor", "persistence")


def add_number_options(parser: argparse.ArgumentParser) -> None:
    """What can be said of numbers."""
    group = parser.add_argument_group("numbers", "their definitions: the documentation's page on numbers")
    group.add_argument("--metric", help="default: loss; one component: NAME[0]")
    group.add_argument("--radius", type=float, help="what is near the model (default: half the way to the grid's end)")
    group.add_argument("--level", type=float, help="count the points under it (default: factor x the model's value)")
    group.add_argument("--factor", type=float, help="how far the metric has risen at the radii of rise (default: 2)")
    group.add_argument("--persistence", type=float, help="how deep a minimum must be to count (default: range / 100)")
    group.add_argument("--json", action="store_true", help="as JSON; what cannot be had is null")
    group.add_argument("--csv", action="store_true", help="as CSV; what cannot be had is empty")


def chosen(options: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, as keywords."""
    return {name: value for name in CHOICES if (value := getattr(options, name)) is not None}


def form(options: argparse.Namespace) -> str:
    """table, json or csv; UserError for two of them."""
    if options.json and options.csv:
        raise UserError("--json and --csv: one of the two")
    return "json" if options.json else "csv" if options.csv else "table"
