"""Several files side by side, on one scale."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import UserError, printable
from . import draw
from .base import Shown
from .draw import Look
from .frame import add_legend, any_drawn, make_figure, scale_label, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .draw import Drawn

MOST = 20
Panel = Callable[[Any, Shown], "Drawn | None"]  # draws one file into axes, without colour bar and legend


def side_by_side(
    shown: Sequence[Shown], names: Sequence[str], panel: Panel, size: tuple[float, float], projection: str | None = None
) -> Figure:
    """A panel for each file, in rows, with one colour bar and one legend. size: of a panel, in inches.

    Raises UserError where there are too many.
    """
    if len(shown) > MOST:
        raise UserError(f"{len(shown)} files: at most {MOST} side by side; --animate shows any number")
    rows, columns = rows_and_columns(len(shown))
    figure: Any = make_figure(columns * size[0] + 0.9, rows * (size[1] + 0.2) + 0.65)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.15)
    places = figure.subplots(rows, columns, squeeze=False, subplot_kw={"projection": projection}).reshape(-1)
    panels = list(places[: len(shown)])
    drawn = []
    for axes, one, name in zip(panels, shown, names, strict=True):
        drawn.append(panel(axes, replace(one, marks=[replace(mark, label=mark.name) for mark in one.marks])))
        _name(axes, name, ", ".join(mark.label for mark in one.marks), size[0])
    for axes in places[len(shown) :]:
        axes.remove()
    _label_once(panels, columns)
    field, scale = shown[0].fields[0], shown[0].scales[0]
    bar = any_drawn(drawn, scale, shown[0].cmap)
    beside = (1.06, 0, 0.05, 1) if projection is None else (1.22, 0.15, 0.035, 0.7)
    place: Look = {"cax": panels[-1].inset_axes(beside)} if rows == 1 else {"ax": panels, "aspect": 20 * rows}
    draw.color_bar(figure, bar, scale, scale_label(field, scale), **place)
    add_legend(figure, *panels)
    return figure


def rows_and_columns(n: int) -> tuple[int, int]:
    """How n panels are laid out: up to three in a row, then in rows that are nearly full, wider than high."""
    columns = n if n < 4 else math.ceil(math.sqrt(n))
    return math.ceil(n / columns), columns


def _name(axes: Any, name: str, numbers: str, width: float) -> None:
    """What the panel is of, and its numbers in small letters below."""
    lines = textwrap.wrap(numbers, int(17 * width))
    axes.set_title(short(printable(name), int(13 * width)), fontsize=9, parse_math=False, pad=5 + 9 * len(lines))
    style: Look = {"fontsize": 7, "color": "0.35", "ha": "center", "va": "bottom", "linespacing": 1.2}
    above: Look = {"xycoords": "axes fraction", "xytext": (0, 4), "textcoords": "offset points", "parse_math": False}
    axes.annotate("\n".join(lines), (0.5, 1), **above, **style)


def _label_once(panels: Sequence[Any], columns: int) -> None:
    """The axes' names at the left and at the bottom alone, where all panels have the same."""
    if len({(axes.get_xlabel(), axes.get_ylabel()) for axes in panels}) > 1:
        return
    for i, axes in enumerate(panels):
        if i + columns < len(panels):
            axes.set_xlabel("")
        if i % columns if axes.name != "3d" else i + columns < len(panels):  # in three dimensions both are below
            axes.set_ylabel("")
