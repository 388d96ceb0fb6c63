"""Models projected on a plane: where they are on it, and how far from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..model.numbers import double
from .normalize import dot, norm

STEPS = 40  # at most about so many along an axis that is made for it
DEPENDENT = 1e-12  # a squared sine: directions at an angle below 1e-6 span one dimension


@torch.no_grad()
def project(
    points: Sequence[Callable[[], Mapping[str, Tensor]]],
    origin: Mapping[str, Tensor],
    directions: Sequence[Mapping[str, Tensor]],
) -> tuple[np.ndarray, np.ndarray]:
    """(coordinates (n, k), distances (n,)) of n points in, and from, the plane of k directions through the origin.

    Coordinates are least squares solutions of point - origin = sum_k c[k] * direction[k], whatever the directions'
    lengths and angles, in float64; those of minimum norm where directions are zero or dependent. Each point is called
    once, one at a time; names that the origin has not are left out, names that a direction has not do not move there.
    Values that are not finite give coordinates that are not.
    """
    spanning = [{name: d for name, d in direction.items() if name in origin} for direction in directions]
    k = len(spanning)
    products = np.array([[float(dot(a, _same_names(b, a))) for b in spanning] for a in spanning]).reshape(k, k)
    solver = _solver(products)
    coordinates, distances = np.empty((len(points), k)), np.empty(len(points))
    for i, point in enumerate(points):
        coordinates[i], distances[i] = _project_one(point(), origin, spanning, solver)
    return coordinates, distances


def _project_one(
    point: Mapping[str, Tensor],
    origin: Mapping[str, Tensor],
    directions: Sequence[Mapping[str, Tensor]],
    solver: np.ndarray,
) -> tuple[np.ndarray, float]:
    rest = {name: double(point[name]) - double(start) for name, start in origin.items()}
    coordinates = solver @ np.array([float(dot(direction, rest)) for direction in directions])
    for c, direction in zip(coordinates, directions, strict=True):
        for name, d in direction.items():
            rest[name].sub_(double(d), alpha=float(c))
    return coordinates, float(norm(rest))


def _same_names(direction: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The direction with the other's names; where it has none it is zero."""
    return {name: direction[name] if name in direction else torch.zeros_like(t) for name, t in like.items()}


def _solver(products: np.ndarray) -> np.ndarray:
    """The matrix (k, k) that makes coordinates of a point's products with the directions, from theirs among each other.

    Directions are scaled to length 1 first, so that a short one counts as much as a long one.
    """
    lengths = np.sqrt(np.diag(products))
    scale = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    values, vectors = np.linalg.eigh(products * np.outer(scale, scale))
    vectors *= scale[:, None]
    span, null = vectors[:, values > DEPENDENT], vectors[:, values <= DEPENDENT]
    solver = span / values[values > DEPENDENT] @ span.T
    return solver - null @ np.linalg.pinv(null) @ solver  # minimum norm: nothing along what leads nowhere


def around(coordinates: np.ndarray, margin: float) -> tuple[float, float, int]:
    """(low, high, points) of an axis that shows these coordinates with a margin, in round steps, the origin on one."""
    low, high = min(coordinates.min(), 0.0), max(coordinates.max(), 0.0)
    margin = margin * (high - low) or 1.0
    rough = (high - low + 2 * margin) / STEPS
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * round_ for round_ in (1, 2, 5, 10) if power * round_ >= rough)
    first, last = np.floor((low - margin) / step), np.ceil((high + margin) / step)
    return float(f"{first * step:.6g}"), float(f"{last * step:.6g}"), int(last - first) + 1
