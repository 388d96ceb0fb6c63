"""Contour pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .base import BEST, Comparing, Shown
from .plane import draw_planes, planes_side_by_side, suits_planes
from .scale import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .draw import Drawn


class Contour(Comparing):
    """Filled contours with labelled lines; of a volume three slices."""

    def suits(self, shape: tuple[int, ...]) -> int:
        """Planes and volumes, best of all."""
        return suits_planes(shape, BEST)

    def draw(self, shown: Shown) -> Figure:
        """Levels; cells where the plane is a line."""
        return draw_planes(shown, contour)

    def draw_several(self, shown: Sequence[Shown], names: Sequence[str]) -> Figure:
        """Side by side."""
        return planes_side_by_side(shown, names, contour)


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
