"""Planes of values, and slices of a volume: what contours and heatmaps have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from . import draw
from .base import NO, YES, Shown, long_axes
from .frame import add_bar, add_legend, axis_label, make_figure
from .panels import side_by_side
from .scale import Scale, choose, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .draw import Drawn

Paint = Callable[["Axes", np.ndarray, np.ndarray, np.ndarray, Scale, str], "Drawn | None"]


def suits_planes(shape: tuple[int, ...], usual: int) -> int:
    """Planes and volumes, as well as usual; a plane that is a line can be a strip of cells."""
    if len(shape) == 2 and len(long_axes(shape)) < 2:
        return YES
    return usual if len(shape) in (2, 3) else NO


def draw_planes(shown: Shown, paint: Paint) -> Figure:
    """The plane, or three slices of a volume, each painted; by cells where it has no lines to be drawn between.

    Of an ensemble the mean, and beside a plane the spread.
    """
    if len(shown.stored.grid.axes) == 3:
        return _slices(shown, paint)
    return _mean_and_spread(shown, paint) if shown.fields[0].summaries else _plane(shown, paint)


def planes_side_by_side(shown: Sequence[Shown], names: Sequence[str], paint: Paint) -> Figure:
    """A plane for each file; UserError where they are volumes."""
    if len(shown[0].stored.grid.axes) == 3:
        raise UserError(f"{shown[0].path} has three axes; several files side by side have two, --animate shows three")
    return side_by_side(shown, names, partial(_whole_plane, paint=paint), (3.3, 3.3))


def _plane(shown: Shown, paint: Paint) -> Figure:
    figure = make_figure(5.6, 5.2)
    axes = figure.add_subplot()
    drawn = _whole_plane(axes, shown, paint)
    add_bar(figure, axes, [drawn], shown.fields[0], shown.scales[0], shown.cmap)
    add_legend(figure, axes)
    return figure


def _mean_and_spread(shown: Shown, paint: Paint) -> Figure:
    """The mean of an ensemble, and how far apart its sets of directions are, each on its own scale."""
    mean = shown.fields[0]
    spread = replace(mean, summary="spread", values=mean.summaries["spread"], summaries={})
    models = [mark for mark in shown.marks if mark.style != "best"]
    figure = make_figure(10.8, 5.0)
    panels = figure.subplots(1, 2)
    own = replace(shown, fields=[spread], scales=[choose(spread.finite)], marks=models)
    for axes, one in zip(panels, (shown, own), strict=True):
        drawn = _whole_plane(axes, one, paint)
        add_bar(figure, axes, [drawn], one.fields[0], one.scales[0], shown.cmap)
    add_legend(figure, *panels)
    return figure


def _whole_plane(axes: Axes, shown: Shown, paint: Paint) -> Drawn | None:
    """The plane in these axes, with the trajectory and the marks over it."""
    field = shown.fields[0]
    x, y = field.coordinates
    drawn = _panel(axes, x, y, field.values, shown.scales[0], paint, shown.cmap)
    axes.set(xlabel=axis_label(shown.stored, 0), ylabel=axis_label(shown.stored, 1))
    at = np.nonzero(field.there)
    draw.evaluated(axes, field, x[at[0]], y[at[1]])
    draw.trajectories(axes, shown.trajectories, shown.farthest)
    draw.marks(axes, shown.marks, (0, 1))
    return drawn


def _slices(shown: Shown, paint: Paint) -> Figure:
    """Three planes through the origin, or through the middle where the origin is outside."""
    field, scale = shown.fields[0], shown.scales[0]
    middle = [int(np.abs(c).argmin()) if c[0] <= 0 <= c[-1] else len(c) // 2 for c in field.coordinates]
    figure = make_figure(11.5, 4.3)
    panels = figure.subplots(1, 3)
    drawn = []
    at = [field.coordinates[k][middle[k]] for k in range(3)]
    for axes, (across, up, through) in zip(panels, ((0, 1, 2), (0, 2, 1), (1, 2, 0)), strict=True):
        values = np.take(field.values, middle[through], axis=through)
        x, y = field.coordinates[across], field.coordinates[up]
        drawn.append(_panel(axes, x, y, values, scale, paint, shown.cmap))
        axes.set(xlabel=axis_label(shown.stored, across), ylabel=axis_label(shown.stored, up))
        axes.set_title(f"direction {through + 1} = {number(at[through])}", fontsize=8)
        done = np.nonzero(np.take(field.there, middle[through], axis=through))
        draw.evaluated(axes, field, x[done[0]], y[done[1]])
        inside = [mark for mark in shown.marks if np.isclose(mark.where[through], at[through])]
        draw.marks(axes, inside, (across, up))
    add_bar(figure, panels[-1], drawn, field, scale, shown.cmap)
    add_legend(figure, *panels)
    return figure


def _panel(
    axes: Axes, x: np.ndarray, y: np.ndarray, values: np.ndarray, scale: Scale, paint: Paint, cmap: str
) -> Drawn | None:
    """One plane of values, its gaps grey, its axes equal where their ranges are."""
    axes.set_facecolor(draw.GAP)
    paint = paint if min(len(x), len(y)) > 1 else cells
    drawn = paint(axes, x, y, values, scale, cmap)
    x_ends, y_ends = (edges(x), edges(y)) if paint is cells else (x, y)
    axes.set(xlim=x_ends[[0, -1]], ylim=y_ends[[0, -1]])
    axes.locator_params(nbins=5)
    ranges = np.ptp(x), np.ptp(y)
    if ranges[0] and np.isclose(*ranges, rtol=0.01):
        axes.set_aspect("equal")
    return drawn


def edges(centres: np.ndarray) -> np.ndarray:
    """The borders of the cells around these coordinates."""
    if len(centres) == 1:
        return centres[0] + np.array([-0.5, 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def cells(axes: Axes, x: np.ndarray, y: np.ndarray, values: np.ndarray, scale: Scale, cmap: str) -> Drawn:
    """One cell a point, nothing between; values (len(x), len(y)), NaN at gaps."""
    z = np.ma.masked_invalid(scale.transform(values).T)
    low, high = scale.ends
    return axes.pcolormesh(edges(x), edges(y), z, vmin=low, vmax=high, cmap=cmap, rasterized=z.size > 10_000)
