"""What can be measured on a grid of values: small functions of coordinates, ``(n,)`` for each axis, and values.

Values that are not finite are no values, and are left out. Distances are Euclidean, in units of the coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SAME = 1e-9  # relative: so close is equal
ANGLES = 360  # directions in which a plane is searched
DIRECTIONS = 1000  # and a volume
Coordinates = Sequence[np.ndarray]


def distances(coordinates: Coordinates, centre: Sequence[float]) -> np.ndarray:
    """Of every grid point from the centre, of the grid's shape."""
    squares = [(c - at) ** 2 for c, at in zip(coordinates, centre, strict=True)]
    return np.sqrt(sum(np.ix_(*squares), np.zeros(())))


def within(coordinates: Coordinates, values: np.ndarray, centre: Sequence[float], radius: float) -> np.ndarray:
    """The values of the points whose distance from the centre is at most the radius, 1-D."""
    inside = values[distances(coordinates, centre) <= radius * (1 + SAME)]
    return inside[np.isfinite(inside)]


def share_at_most(values: np.ndarray, level: float) -> float:
    """The share of the values that are at most the level; NaN where there are none."""
    known = values[np.isfinite(values)]
    return float(np.mean(known <= level)) if known.size else np.nan


def convexity(coordinates: Coordinates, values: np.ndarray) -> np.ndarray:
    """Whether the Hessian is positive definite at each inner point whose 3 x ... x 3 neighbourhood has all its values.

    It is that of the parabola through three points along each axis, and of the bilinear surface through four for each
    two axes: by central differences, exact for a quadratic function. Definite means beyond what rounding explains: the
    smallest eigenvalue, per step of the grid, is over 64 units of rounding of the neighbourhood's largest value.

    Returns:
        bool, 1-D. Empty where an axis has fewer than 3 points.
    """
    n = values.ndim
    if min(values.shape) < 3:
        return np.empty(0, bool)
    values = values / (np.fmax.reduce(np.abs(values), axis=None, initial=0) or 1)
    core = tuple(np.s_[1:-1] for _ in range(n))
    hessian = np.empty((*values[core].shape, n, n))
    windows = np.lib.stride_tricks.sliding_window_view(values, (3,) * n)
    around = tuple(range(n, 2 * n))
    whole = np.isfinite(windows).all(axis=around)
    largest = np.maximum(windows.max(axis=around), -windows.min(axis=around))[whole]
    for i in range(n):
        for j in range(i + 1):
            hessian[..., i, j] = hessian[..., j, i] = _second(coordinates, values, i, j)
    return np.asarray(np.linalg.eigvalsh(hessian[whole])[:, 0] > 64 * np.finfo(np.float64).eps * largest)


def _second(coordinates: Coordinates, values: np.ndarray, i: int, j: int) -> np.ndarray:
    """The second derivative along axes i and j at the inner points, times a mean step of each of the two."""

    def moved(a: int, b: int) -> np.ndarray:
        """The values at the points that are a and b to the right of the inner ones along i and j."""
        shift = [0] * values.ndim
        shift[i] += a
        shift[j] += b
        return values[tuple(slice(1 + s, n - 1 + s) for s, n in zip(shift, values.shape, strict=True))]

    def steps(k: int) -> tuple[np.ndarray, np.ndarray]:
        """To the left and to the right of the inner points of axis k, in units of the mean step."""
        h = np.diff(coordinates[k])
        along = [-1 if axis == k else 1 for axis in range(values.ndim)]
        return tuple((part / h.mean()).reshape(along) for part in (h[:-1], h[1:]))

    if i == j:
        left, right = steps(i)
        return 2 * ((moved(1, 0) - moved(0, 0)) / right - (moved(0, 0) - moved(-1, 0)) / left) / (left + right)
    widths = sum(steps(i)) * sum(steps(j))
    return (moved(1, 1) - moved(1, -1) - moved(-1, 1) + moved(-1, -1)) / widths


def rise(coordinates: Coordinates, values: np.ndarray, centre: Sequence[float], level: float) -> np.ndarray:
    """How far from the centre the values first reach the level, in each of many directions.

    Two directions on a line, 360 at equal angles in a plane, 1000 spread evenly over the sphere (Fibonacci's spiral) in
    a volume. Between the grid's points the values are interpolated linearly along each axis.

    Returns:
        (directions,). Infinite where they do not reach it before the grid's end, or before a point without a value.
    """
    rays = _rays(len(coordinates))
    return np.array([_first(coordinates, values, centre, ray, _stops(coordinates, centre, ray), level) for ray in rays])


def _stops(coordinates: Coordinates, centre: Sequence[float], ray: np.ndarray) -> np.ndarray:
    """Distances on a ray up to the grid's end: where it crosses the grid's lines, and three between every two."""
    crossed = [(c - at) / part for c, at, part in zip(coordinates, centre, ray, strict=True) if part]
    far = min(float(t.max()) for t in crossed)
    t = np.unique(np.clip(np.concatenate([[0.0], *crossed]), 0, far))
    return np.interp(np.arange(4 * len(t) - 3) / 4, np.arange(len(t)), t)


def _first(
    coordinates: Coordinates, values: np.ndarray, centre: Sequence[float], ray: np.ndarray, t: np.ndarray, level: float
) -> float:
    """The first distance, of those in t and between them, at which the values on a ray reach the level."""
    found = interpolate(coordinates, values, centre + t[:, None] * ray)
    gaps = np.flatnonzero(np.isnan(found))
    found = found[: gaps[0]] if gaps.size else found
    if not (reached := found >= level).any():
        return np.inf
    after = int(reached.argmax())
    if after == 0:
        return 0.0
    before, rest = found[after - 1], found[after]
    return float(t[after - 1] + (level - before) / (rest - before) * (t[after] - t[after - 1]))


def _rays(dimensions: int) -> np.ndarray:
    """Unit vectors, (directions, dimensions)."""
    if dimensions == 1:
        return np.array([[-1.0], [1.0]])
    if dimensions == 2:
        angle = 2 * np.pi * np.arange(ANGLES) / ANGLES
        rays = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return np.where(np.abs(rays) < SAME, 0, rays)
    i = np.arange(DIRECTIONS)
    z = 1 - (2 * i + 1) / DIRECTIONS
    turn = np.pi * (1 + 5**0.5) * i
    return np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], axis=1)


def interpolate(coordinates: Coordinates, values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The values at places, (n, axes), linearly along each axis; NaN where a value is missing that counts there."""
    index, part = [], []
    for k, c in enumerate(coordinates):
        left = np.clip(np.searchsorted(c, places[:, k], side="right") - 1, 0, len(c) - 2)
        index.append(left)
        part.append(np.clip((places[:, k] - c[left]) / (c[left + 1] - c[left]), 0, 1))
    total: np.ndarray = np.zeros(len(places))
    for corner in np.ndindex(*(2,) * len(coordinates)):
        weight = np.prod([p if right else 1 - p for p, right in zip(part, corner, strict=True)], axis=0)
        value = values[tuple(i + right for i, right in zip(index, corner, strict=True))]
        total += np.where(weight > SAME, weight * value, 0)
    return total
