"""Numbers with a name, as a table, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import printable
from .scale import number


@dataclass(frozen=True)
class Number:
    """A number by its name; None with the reason as its note. at: the coordinates of the point where it is."""

    name: str
    value: float | None
    note: str = ""
    at: tuple[float, ...] | None = None


def finite(
    name: str, value: float | None, note: str = "", why: str = "", at: tuple[float, ...] | None = None
) -> Number:
    """The number, or, where there is none that is finite, why."""
    if value is None or not math.isfinite(value):
        return Number(name, None, why or "too large for a number")
    return Number(name, float(value), note, at)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text whose columns are below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [printable("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()) for row in rows]


def text(value: float | None) -> str:
    """A number as a reader wants it; a dash for none."""
    return "-" if value is None else str(value) if isinstance(value, int) else number(value, 6)


def to_json(tree: object) -> str:
    """As JSON, without the words NaN and Infinity, which it does not have."""
    return json.dumps(tree, indent=2, allow_nan=False)


def to_csv(rows: Iterable[Sequence[object]]) -> str:
    """As CSV, numbers in full precision."""
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines.getvalue().rstrip("\n")
