"""Strided slices: every size-th point, so that cheap and dear regions are shared evenly."""

from __future__ import annotations

import numpy as np

from .base import Schedule


def strided(points: np.ndarray, rank: int, size: int) -> np.ndarray:
    """The points that rank takes of size ranks: every size-th."""
    return points[rank::size]


class Strided(Schedule):
    """A rank's slice of the points, in their order."""

    def __init__(self, points: np.ndarray, rank: int, size: int):
        self._left = strided(points, rank, size)

    def next(self, count: int) -> np.ndarray:
        now, self._left = self._left[:count], self._left[count:]
        return now
