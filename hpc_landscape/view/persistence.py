"""Minima, how deep they are, and where they meet: the sublevel sets of a grid, as the level rises.

Two points of the grid are neighbours where they follow each other along one axis: the cubical complex with the values
at its vertices, and of that the components alone. One is born in each minimum; where two meet, the one that was born
at the higher value dies (the elder rule; Edelsbrunner and Harer 2010, chapter VII). Points without a value are no part
of the grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Index = tuple[int, ...]


@dataclass(frozen=True)
class Minimum:
    """A component of the sublevel sets.

    index: where it was born, of equal points the first. value: there. death: the level at which it meets an older one;
    infinite for the oldest of all that are joined. saddle: the level at which it first meets any other, which is its
    leaf's parent in the merge tree; infinite where it meets none.
    """

    index: Index
    value: float
    death: float
    saddle: float

    @property
    def persistence(self) -> float:
        """How far the level rises between birth and death."""
        return self.death - self.value


class SublevelSets:
    """The components of the points whose value is at most a level, as the level rises.

    Attributes:
        values: over a grid of any shape; NaN: no value. Of equal values the one that comes first counts as lower.
        lowest: the flat index of the minimum of each basin: of the points from which steepest descent leads to it.
            Basins are numbered from the lowest minimum up, and a component goes by the number of its lowest basin.
        basin: each point's, of the grid's shape; -1 without a value.
        merges: (older, younger, level) of all meetings, in their order.
    """

    def __init__(self, values: np.ndarray):
        self.values = values
        flat = values.reshape(-1)
        known = np.flatnonzero(np.isfinite(flat))
        order = known[np.argsort(flat[known], kind="stable")]
        rank = np.full(values.shape, len(order))
        rank.reshape(-1)[order] = np.arange(len(order))
        down = _lowest_neighbour(rank).reshape(-1)[order]  # from rank to rank
        while not np.array_equal(further := down[down], down):
            down = further
        bottoms, basin = np.unique(down, return_inverse=True)
        self.lowest = order[bottoms]
        self.basin = np.full(values.shape, -1)
        self.basin.reshape(-1)[order] = basin
        borders, heights = _borders(self.basin, rank, len(bottoms))
        self.merges = list(_merges(len(bottoms), borders.tolist(), flat[order[heights]].tolist()))

    def minima(self) -> list[Minimum]:
        """The minima, the most persistent first, of equal ones the lowest. A plateau is one minimum."""
        births = self.values.reshape(-1)[self.lowest].tolist()
        deaths, saddles = [np.inf] * len(births), [np.inf] * len(births)
        for older, younger, level in self.merges:
            deaths[younger] = level
            if births[younger] < level:  # else two parts of one plateau
                saddles[older], saddles[younger] = min(saddles[older], level), min(saddles[younger], level)
        places = np.stack(np.unravel_index(self.lowest, self.values.shape), axis=1).tolist()
        made = (Minimum(tuple(p), b, d, s) for p, b, d, s in zip(places, births, deaths, saddles, strict=True))
        return sorted((m for m in made if m.persistence > 0), key=lambda m: -m.persistence)

    def lowest_pass(self, start: Index, end: Index) -> float:
        """The least level at which start and end are joined: of all ways through the grid, that of the lowest highest
        point. Infinite where gaps part them; NaN where one has no value.
        """
        a, b = int(self.basin[start]), int(self.basin[end])
        high = max(float(self.values[start]), float(self.values[end]))
        if min(a, b) < 0:
            return np.nan
        if a == b:
            return high
        for older, younger, level in self.merges:
            a, b = (older if basin == younger else basin for basin in (a, b))
            if a == b:
                return max(high, level)
        return np.inf


def _merges(n: int, borders: list[list[int]], levels: list[float]) -> Iterator[tuple[int, int, float]]:
    """The borders, in rising order, at which two of n components become one: Kruskal's algorithm."""
    parent = list(range(n))

    def root(a: int) -> int:
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        return a

    for (a, b), level in zip(borders, levels, strict=True):
        older, younger = sorted((root(a), root(b)))
        if older != younger:
            parent[younger] = older
            yield older, younger, level


def _lowest_neighbour(rank: np.ndarray) -> np.ndarray:
    """The least rank of each point and its neighbours."""
    least = rank.copy()
    for one, next_one in _neighbours(rank.ndim):
        np.minimum(least[one], rank[next_one], out=least[one])
        np.minimum(least[next_one], rank[one], out=least[next_one])
    return least


def _borders(of: np.ndarray, rank: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of the n basins that touch, (m, 2), and the lowest rank at which each does, in rising order."""
    sides = _neighbours(of.ndim)
    two = np.sort(np.concatenate([np.stack([of[a].reshape(-1), of[b].reshape(-1)], 1) for a, b in sides]), axis=1)
    heights = np.concatenate([np.maximum(rank[a], rank[b]).reshape(-1) for a, b in sides])
    touch = (two[:, 0] >= 0) & (two[:, 0] != two[:, 1])
    two, heights = two[touch], heights[touch]
    rising = np.argsort(heights, kind="stable")
    two, heights = two[rising], heights[rising]
    first = np.sort(np.unique(two[:, 0] * n + two[:, 1], return_index=True)[1])
    return two[first], heights[first]


def _neighbours(dimensions: int) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """For each axis the points that have one after them, and those."""
    before = [(slice(None),) * k for k in range(dimensions)]
    return [((*axes, slice(None, -1)), (*axes, slice(1, None))) for axes in before]
