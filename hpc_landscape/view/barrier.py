"""How much worse it gets on the straight way between two models."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..store.layout import Stored
from .field import Field
from .frame import Model, models

Index = tuple[int, ...]
SAME = 1e-9  # of an axis's length, or of 1 where that is less: coordinates so close are one


@dataclass(frozen=True)
class Barrier:
    """The barrier between two models on the straight line that joins them.

    height: the most that a value on the way is worse than the linear interpolation of those at its ends, never less
        than 0 (Entezari et al. 2022, equation 1). Worse is larger, or smaller where larger is better.
    above_mean: by how much the worst value on the way is worse than the mean of those at its ends (Frankle et al.
        2020, section 2). The same as height where the ends are alike.
    where: the coordinates of the point that height is taken at. between: the models' names.
    """

    height: float
    above_mean: float
    where: tuple[float, ...]
    between: tuple[str, str]


def barrier(stored: Stored, field: Field) -> Barrier | None:
    """The highest barrier between any two of the models that the axes lead to.

    None where there is one model, or where no two are on the grid with points on the straight line between them that
    all have a value.
    """
    found = [b for a, z in combinations(models(stored), 2) if (b := between(field, a, z)) is not None]
    return max(found, key=lambda b: b.height, default=None)


def index_of(field: Field, where: tuple[float, ...]) -> Index | None:
    """The index of the grid point at these coordinates; None where there is none."""
    index, there = _nearest(field, np.array([where]))
    return tuple(map(int, index[0])) if there[0] else None


def between(field: Field, first: Model, last: Model) -> Barrier | None:
    """The barrier between two models; None where one is off the grid, a value is missing, or no point lies between."""
    start, end = index_of(field, first[1]), index_of(field, last[1])
    if start is None or end is None:
        return None
    t, way = _way(field, start, end)
    values = field.values[tuple(way.T)]
    if len(t) < 3 or not np.isfinite(values).all():
        return None
    worse = -values if field.larger_is_better else values
    with np.errstate(over="ignore"):
        above = worse - ((1 - t) * worse[0] + t * worse[-1])
        above_mean = worse.max() - (worse[0] / 2 + worse[-1] / 2)
    top = int(above.argmax())
    where = field.at(way[top])
    return Barrier(float(above[top]), float(above_mean), where, (first[0], last[0]))


def _way(field: Field, first: Index, last: Index) -> tuple[np.ndarray, np.ndarray]:
    """The grid points on the straight line: how far each is on the way, from 0 to 1, and its index, (n, axes)."""
    a, z = (np.array(field.at(end)) for end in (first, last))
    along = int(np.abs(np.subtract(last, first)).argmax())  # the axis that has most points on it
    step = 1 if last[along] > first[along] else -1
    t = (field.coordinates[along][np.arange(first[along], last[along] + step, step)] - a[along]) / (z - a)[along]
    index, there = _nearest(field, a + t[:, None] * (z - a))
    return t[there], index[there]


def _nearest(field: Field, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The index of the grid point nearest to each place, (n, axes), and whether it is there."""
    index = np.empty(places.shape, int)
    there = np.ones(len(places), bool)
    for k, c in enumerate(field.coordinates):
        index[:, k] = np.searchsorted((c[1:] + c[:-1]) / 2, places[:, k])
        there &= np.abs(c[index[:, k]] - places[:, k]) <= SAME * max(1.0, float(c[-1] - c[0]))
    return index, there
