"""The kinds of picture, each drawn into given axes. Values ``[i, j]`` lie at ``(x[i], y[j])``: axis 0 is horizontal."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .field import Trajectory
from .scale import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorizer import ColorizingArtist
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d import Axes3D

    Drawn: TypeAlias = ScalarMappable | ColorizingArtist  # what a colour bar is of

GAP = "0.87"  # the grey where there is no value
COLORS = ("#1f4e9c", "#c0392b")  # of lines
Look = dict[str, Any]  # keywords for matplotlib
WAYS = ("#e8384f", "#ff8c1a", "#b43fd6", "#1d1d1d", "#ff8fc0", "#8c5a2b")  # of trajectories, over any colour map


@dataclass(frozen=True)
class Mark:
    """A point worth pointing out, at these coordinates and this value."""

    label: str
    where: tuple[float, ...]
    value: float
    style: str  # a key of _STYLES


_STYLES: dict[str, Look] = {
    "model": {"marker": "*", "s": 90, "facecolor": "white", "edgecolor": "black", "linewidth": 0.8},
    "second": {"marker": "D", "s": 36, "facecolor": "white", "edgecolor": "black", "linewidth": 0.8},
    "third": {"marker": "s", "s": 40, "facecolor": "white", "edgecolor": "black", "linewidth": 0.8},
    "fourth": {"marker": "^", "s": 46, "facecolor": "white", "edgecolor": "black", "linewidth": 0.8},
    "best": {"marker": "o", "s": 150, "facecolor": "none", "edgecolor": "#e8384f", "linewidth": 1.5},
}


def edges(centres: np.ndarray) -> np.ndarray:
    """The borders of the cells around these coordinates."""
    if len(centres) == 1:
        return centres[0] + np.array([-0.5, 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def contour(axes: Axes, x: np.ndarray, y: np.ndarray, values: np.ndarray, scale: Scale, cmap: str) -> Drawn | None:
    """Filled levels with thin labelled lines; values (len(x), len(y)), NaN at gaps. None where all are gaps."""
    import matplotlib
    from matplotlib.colors import BoundaryNorm
    from matplotlib.patheffects import withStroke

    levels = scale.transform(scale.levels)
    z = np.ma.masked_invalid(scale.transform(values).T)  # matplotlib's rows run along y
    if z.count() == 0:
        return None
    norm = BoundaryNorm(levels, matplotlib.colormaps[cmap].N, extend=scale.extend)
    filled = axes.contourf(x, y, z, levels=levels, cmap=cmap, norm=norm, extend=scale.extend)
    lines = axes.contour(x, y, z, levels=levels, colors="black", linewidths=0.4, alpha=0.6, negative_linestyles="solid")
    texts = dict(zip(levels, scale.texts, strict=True))
    for label in axes.clabel(lines, levels=levels[1::2], fmt=texts, fontsize=6.5, inline_spacing=2):
        label.set(alpha=1, path_effects=[withStroke(linewidth=1.5, foreground="white", alpha=0.8)])
    return filled


def heatmap(axes: Axes, x: np.ndarray, y: np.ndarray, values: np.ndarray, scale: Scale, cmap: str) -> Drawn:
    """One cell a point, nothing between; values (len(x), len(y)), NaN at gaps."""
    z = np.ma.masked_invalid(scale.transform(values).T)
    low, high = scale.ends
    return axes.pcolormesh(edges(x), edges(y), z, vmin=low, vmax=high, cmap=cmap, rasterized=z.size > 10_000)


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


def line(axes: Axes, x: np.ndarray, values: np.ndarray, log: bool, color: str) -> None:
    """Values along one axis: a gap breaks the line, and a point alone between gaps still shows."""
    axes.plot(x, values, color=color, linewidth=1.4)
    known = np.isfinite(np.concatenate([[np.nan], values, [np.nan]]))
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    dots = alone if len(x) > 61 else np.isfinite(values)
    axes.plot(x[dots], values[dots], color=color, linestyle="none", marker="o", markersize=3)
    if log:
        axes.set_yscale("log", nonpositive="mask")


def trajectories(axes: Axes, ways: list[Trajectory]) -> None:
    """The checkpoints' ways over the plane, the first and the last of each named; axes have their limits."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.6, foreground="white")]
    style: Look = {"textcoords": "offset points", "fontsize": 7, "zorder": 6, "path_effects": halo, "parse_math": False}
    look: Look = {"linewidth": 1.2, "marker": "o", "markersize": 2.8, "path_effects": halo, "zorder": 4}
    for way, color in zip(ways, cycle(WAYS), strict=False):
        axes.plot(way.x, way.y, color=color, label=way.name or None, **look)
        for i in {0, len(way.x) - 1} & set(range(len(way.labels))):
            to_the_right = way.x[i] < np.mean(axes.get_xlim())  # so that it stays inside
            side: Look = {"xytext": (9, 5), "ha": "left"} if to_the_right else {"xytext": (-9, 5), "ha": "right"}
            axes.annotate(way.labels[i], (way.x[i], way.y[i]), annotation_clip=True, **side, **style)


def marks(axes: Axes, points: list[Mark], keep: tuple[int, ...]) -> None:
    """Draw the marks at these of their coordinates."""
    for mark in points:
        where = [mark.where[k] for k in keep]
        axes.scatter(*where, label=mark.label, clip_on=False, zorder=5, **_STYLES[mark.style])


def marks_at_value(axes: Any, points: list[Mark], scale: Scale | None = None) -> None:
    """Draw the marks at their coordinates and their value, in the space that is drawn; those without a value not.

    axes: with one dimension more than the marks have coordinates.
    """
    for mark in points:
        if np.isfinite(mark.value):
            height = mark.value if scale is None else float(np.clip(scale.transform(mark.value), *scale.ends))
            axes.scatter(*mark.where, height, label=mark.label, zorder=5, **_STYLES[mark.style])


def color_bar(figure: Figure, axes: Axes, drawn: Drawn, scale: Scale, label: str, **options: Any) -> None:
    """The colour bar of what was drawn, filling axes, with its levels as ticks."""
    bar = figure.colorbar(drawn, cax=axes, label=label, **options)
    step = -(-len(scale.levels) // 20)  # no more than 20 ticks
    bar.set_ticks(scale.transform(scale.levels[::step]).tolist(), labels=scale.texts[::step])
    bar.ax.tick_params(labelsize=8, width=0.5)
    bar.ax.minorticks_off()
    bar.outline.set_linewidth(0.5)
