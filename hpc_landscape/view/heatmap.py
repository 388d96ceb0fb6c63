"""Heatmaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .base import YES, Comparing, Shown
from .plane import cells, draw_planes, planes_side_by_side, suits_planes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Heatmap(Comparing):
    """One coloured cell for each point, nothing between; of a volume three slices."""

    def suits(self, shape: tuple[int, ...]) -> int:
        """Any plane or volume."""
        return suits_planes(shape, YES)

    def draw(self, shown: Shown) -> Figure:
        """Cells."""
        return draw_planes(shown, cells)

    def draw_several(self, shown: Sequence[Shown], names: Sequence[str]) -> Figure:
        """Side by side."""
        return planes_side_by_side(shown, names, cells)
