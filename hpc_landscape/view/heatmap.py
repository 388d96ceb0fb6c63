"""Heatmaps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import YES, Picture, Shown
from .plane import cells, draw_planes, suits_planes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Heatmap(Picture):
    """One coloured cell for each point, nothing between; of a volume three slices."""

    def suits(self, shape: tuple[int, ...]) -> int:
        """Any plane or volume."""
        return suits_planes(shape, YES)

    def draw(self, shown: Shown) -> Figure:
        """Cells."""
        return draw_planes(shown, cells)
