"""Lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import draw
from .base import BEST, NO, Picture, Shown, long_axes
from .draw import Mark
from .frame import add_legend, axis_label, make_figure, marks_of, scale_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#1f4e9c", "#c0392b")


class Line(Picture):
    """One metric along the axis that has points, or two with a scale each."""

    most = 2

    def suits(self, shape: tuple[int, ...]) -> int:
        """Lines, and planes that are one."""
        return BEST if len(shape) == 1 or (len(shape) == 2 and len(long_axes(shape)) < 2) else NO

    def draw(self, shown: Shown) -> Figure:
        """The limits are those of the first metric."""
        stored, fields = shown.stored, shown.fields
        along = (long_axes(stored.grid.shape) or [0])[0]
        figure = make_figure(5.8, 4.0)
        left = figure.add_subplot()
        x = fields[0].coordinates[along]
        for axes, field, scale, color in zip((left, None), fields, shown.scales, COLORS, strict=False):
            axes = axes or left.twinx()
            line(axes, x, field.values.reshape(-1), scale.log, color)
            axes.set_ylabel(scale_label(field, scale))
            if len(fields) == 2:
                axes.yaxis.label.set_color(color)
                axes.tick_params(axis="y", colors=color)
            else:
                one_axis = [Mark(m.label, (m.where[along],), m.value, m.style) for m in marks_of(stored, field)]
                draw.marks_at_value(axes, one_axis)
        left.set(xlabel=axis_label(stored, along), ylim=shown.limits)
        left.grid(color="0.9", linewidth=0.5)
        left.set_axisbelow(True)
        add_legend(figure, left)
        return figure


def line(axes: Axes, x: np.ndarray, values: np.ndarray, log: bool, color: str) -> None:
    """Values along one axis: a gap breaks the line, and a point alone between gaps still shows."""
    axes.plot(x, values, color=color, linewidth=1.4)
    known = np.isfinite(np.concatenate([[np.nan], values, [np.nan]]))
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    dots = alone if len(x) > 61 else np.isfinite(values)
    axes.plot(x[dots], values[dots], color=color, linestyle="none", marker="o", markersize=3)
    if log:
        axes.set_yscale("log", nonpositive="mask")
