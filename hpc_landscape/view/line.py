"""Lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from . import draw
from .base import BEST, NO, Comparing, Shown, long_axes
from .draw import Look
from .field import Field
from .frame import add_legend, axis_label, make_figure, scale_label
from .panels import MOST
from .scale import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#1f4e9c", "#c0392b")
# Of several files: M. Okabe and K. Ito's, but for yellow; people who see fewer colours can tell these apart.
MANY = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


class Line(Comparing):
    """One metric along the axis that has points, or two with a scale each."""

    most = 2

    def suits(self, shape: tuple[int, ...]) -> int:
        """Lines, and planes that are one."""
        return BEST if len(shape) == 1 or (len(shape) == 2 and len(long_axes(shape)) < 2) else NO

    def draw(self, shown: Shown) -> Figure:
        """The limits are those of the first metric."""
        along, fields = _along(shown), shown.fields
        figure = make_figure(5.8, 4.0)
        left = figure.add_subplot()
        x = fields[0].coordinates[along]
        for axes, field, scale, color in zip((left, None), fields, shown.scales, COLORS, strict=False):
            axes = axes or left.twinx()
            of_sets = f"mean of {shown.stored.grid.sets} sets of directions" if field.summaries else None
            line(axes, x, field.values.reshape(-1), scale.log, color, of_sets, field.there.reshape(-1))
            _bands(axes, x, field, color, named=True)
            axes.set_ylabel(scale_label(field, scale))
            if len(fields) == 2:
                axes.yaxis.label.set_color(color)
                axes.tick_params(axis="y", colors=color)
            else:
                draw.marks_at_value(axes, [replace(mark, where=(mark.where[along],)) for mark in shown.marks])
                _draw_barrier(axes, shown, "0.3")
        _finish(figure, left, shown)
        return figure

    def draw_several(self, shown: Sequence[Shown], names: Sequence[str]) -> Figure:
        """All in one axis."""
        if len(shown) > MOST:
            raise UserError(f"{len(shown)} files: at most {MOST} lines in one axis; --animate shows any number")
        figure = make_figure(6.4, 4.6)
        axes = figure.add_subplot()
        field, scale = shown[0].fields[0], shown[0].scales[0]
        for one, name, color in zip(shown, names, colors(len(shown)), strict=True):
            values, x = one.fields[0].values.reshape(-1), one.fields[0].coordinates[_along(one)]
            barrier = _draw_barrier(axes, one, color, arrow=False)
            label = f"{name}, {barrier}" if barrier else name
            line(axes, x, values, scale.log, color, label, one.fields[0].there.reshape(-1))
            _bands(axes, x, one.fields[0], color)
        axes.set_ylabel(scale_label(field, scale))
        _finish(figure, axes, shown[0])
        return figure


def _along(shown: Shown) -> int:
    """The axis that has points."""
    return (long_axes(shown.stored.grid.plane.shape) or [0])[0]


def _finish(figure: Figure, axes: Axes, shown: Shown) -> None:
    axes.set(xlabel=axis_label(shown.stored, _along(shown)), ylim=shown.limits)
    axes.grid(color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    add_legend(figure, axes)


def colors(n: int) -> Sequence[str]:
    """n colours that can be told apart on white; of many files in the order of a colour map, as a training goes."""
    import matplotlib
    from matplotlib.colors import to_hex

    return MANY[:n] if n <= len(MANY) else [to_hex(c) for c in matplotlib.colormaps["viridis"](np.linspace(0, 0.92, n))]


def line(
    axes: Axes, x: np.ndarray, values: np.ndarray, log: bool, color: str, label: str | None = None, done: Any = True
) -> None:
    """Values along one axis: a gap breaks the line, and a point alone between gaps still shows.

    done: a dot is where a point is; of many points, where some are not, and values estimated.
    """
    axes.plot(x, values, color=color, linewidth=1.4, label=label)
    known = np.isfinite(np.concatenate([[np.nan], values, [np.nan]]))
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    dots = alone if len(x) > 61 and np.all(done | ~known[1:-1]) else np.isfinite(values) & done
    axes.plot(x[dots], values[dots], color=color, linestyle="none", marker="o", markersize=3)
    if log:
        axes.set_yscale("log", nonpositive="mask")


def _bands(axes: Axes, x: np.ndarray, field: Field, color: str, named: bool = False) -> None:
    """Of an ensemble, between which values its sets of directions lie."""
    for low, high, alpha in ((5, 95, 0.15), (25, 75, 0.25)) if field.summaries else ():
        below, above = (field.summaries[f"q{share}"].reshape(-1) for share in (low, high))
        label = f"{low}% to {high}% of them" if named else None
        axes.fill_between(x, below, above, color=color, alpha=alpha, linewidth=0, label=label)


def _draw_barrier(axes: Axes, shown: Shown, color: str, arrow: bool = True) -> str:
    """The straight line between two models' values, and how far the way rises above it; returns that in words."""
    found, along = shown.barrier, _along(shown)
    if found is None:
        return ""
    ends = {mark.name: mark for mark in shown.marks}
    (start, first), (stop, last) = ((ends[name].where[along], ends[name].value) for name in found.between)
    share = np.linspace(0, 1, 101)  # so many: on a log scale it is no straight line
    axes.plot(start + share * (stop - start), first + share * (last - first), color=color, linewidth=0.8, linestyle=":")
    at = found.where[along]
    words = f"barrier: {number(found.height)} at {number(at, 3)}"
    if arrow:
        foot = first + (at - start) / (stop - start) * (last - first)
        top = foot - found.height if shown.fields[0].larger_is_better else foot + found.height
        look: Look = {"marker": "_", "markersize": 7, "linewidth": 1.0, "linestyle": "--"}
        axes.plot([at, at], [foot, top], color=color, label=words, **look)
    return words
