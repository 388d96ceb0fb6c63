"""Surfaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import draw
from .base import NO, YES, Comparing, Shown, long_axes
from .frame import add_bar, add_legend, axis_label, make_figure
from .panels import side_by_side
from .scale import Scale

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d import Axes3D

    from .draw import Drawn


class Surface(Comparing):
    """A shaded surface above its contours, seen from --elevation and --azimuth."""

    def suits(self, shape: tuple[int, ...]) -> int:
        """Planes alone."""
        return YES if len(shape) == len(long_axes(shape)) == 2 else NO

    def draw(self, shown: Shown) -> Figure:
        """In axes of three dimensions."""
        figure = make_figure(6.6, 5.4)
        axes = figure.add_subplot(projection="3d")
        drawn = _panel(axes, shown)
        add_bar(figure, axes, [drawn], shown.fields[0], shown.scales[0], shown.cmap, (1.12, 0.15, 0.035, 0.7))
        add_legend(figure, axes)
        return figure

    def draw_several(self, shown: Sequence[Shown], names: Sequence[str]) -> Figure:
        """Side by side, seen from the same place."""
        return side_by_side(shown, names, _panel, (4.0, 3.8), projection="3d")


def _panel(axes: Axes3D, shown: Shown) -> Drawn:
    """The surface in these axes, with the marks on it."""
    field, scale = shown.fields[0], shown.scales[0]
    x, y = field.coordinates
    axes.computed_zorder = False
    drawn = surface(axes, x, y, field.values, scale, shown.cmap)
    axes.set(xlabel=axis_label(shown.stored, 0), ylabel=axis_label(shown.stored, 1))
    axes.locator_params(nbins=5)
    step = -(-len(scale.levels) // 6)
    axes.set_zticks(scale.transform(scale.levels[::step]), labels=scale.texts[::step])
    axes.tick_params(labelsize=7, pad=1)
    axes.view_init(*shown.view)
    ratio = np.ptp(x) / np.ptp(y)
    axes.set_box_aspect((min(max(ratio, 0.4), 2.5), 1, 0.75), zoom=1.05)
    at = np.nonzero(field.there & np.isfinite(field.values))
    draw.evaluated(axes, field, x[at[0]], y[at[1]], np.clip(scale.transform(field.values[at]), *scale.ends))
    draw.marks_at_value(axes, shown.marks, scale)
    return drawn


def surface(axes: Axes3D, x: np.ndarray, y: np.ndarray, values: np.ndarray, scale: Scale, cmap: str) -> Drawn:
    """A shaded surface above its contours, in 3-D axes; cut off flat where values leave the scale."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = scale.ends
    mappable = ScalarMappable(Normalize(low, high), matplotlib.colormaps[cmap])
    z = np.clip(scale.transform(values), low, high)
    floor = low - 0.35 * (high - low)
    axes.set(zlim=(floor, high), xlim=x[[0, -1]], ylim=y[[0, -1]])
    known = np.ma.masked_invalid(z)
    if known.count() == 0:
        return mappable
    levels = scale.transform(scale.levels)
    style = {"cmap": cmap, "norm": mappable.norm, "linewidths": 0.8}
    axes.contour(x, y, known.T, levels=levels, zdir="z", offset=floor, zorder=1, **style)
    for axis in (0, 1):
        z = _refined(z, axis)
    x, y = _refined(x), _refined(y)
    stride = {"rstride": -(-len(x) // 200), "cstride": -(-len(y) // 200)}
    colors = _face_colors(mappable, x, y, z)
    at = np.meshgrid(x, y, indexing="ij")
    axes.plot_surface(*at, z, facecolors=colors, shade=False, linewidth=0, antialiased=False, zorder=2, **stride)
    return mappable


def _refined(values: np.ndarray, axis: int = 0, least: int = 60) -> np.ndarray:
    """values with at least so many steps along axis, linear between the old ones."""
    n = values.shape[axis]
    parts = -(-least // (n - 1))
    old, new = np.arange(n), np.arange(parts * (n - 1) + 1) / parts
    return np.apply_along_axis(lambda row: np.interp(new, old, row), axis, values)


def _face_colors(mappable: ScalarMappable, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The colour of every face between four points, under a light from the left: (len(x) - 1, len(y) - 1, 3)."""
    corners = np.stack([z[:-1, :-1], z[:-1, 1:], z[1:, :-1], z[1:, 1:]])
    low, high = mappable.get_clim()
    mean = np.ma.masked_invalid(corners).mean(axis=0).filled(low)
    height = (corners - low) / (high - low)
    slope_x = (height[2:].sum(0) - height[:2].sum(0)) / 2 / (np.diff(x)[:, None] / np.ptp(x))
    slope_y = (height[1::2].sum(0) - height[::2].sum(0)) / 2 / (np.diff(y) / np.ptp(y))
    cosine = (0.55 * slope_x + 0.35 * slope_y + 0.76) / np.sqrt(1 + slope_x**2 + slope_y**2)
    cosine = np.where(np.isfinite(cosine), np.clip(cosine, 0, 1), 0.76)  # beside a gap: as if level
    return np.clip(mappable.to_rgba(mean)[..., :3] * (0.62 + 0.5 * cosine)[..., None] + 0.04, 0, 1)
