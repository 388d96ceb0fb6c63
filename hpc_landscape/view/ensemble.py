"""What an ensemble of direction sets says together: summaries of each point, and of all sets.

One random plane proves little: what is said of all directions wants many of them, and how sure it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from ..store.layout import Stored
from .field import Field, read_sets, setting
from .measure import SAME, distances
from .scale import number
from .tables import Number, finite

CONFIDENCE = 0.95  # of an interval for a share
RAW = {"directions": "random", "distribution": "normal", "normalization": "none", "ignore": "none"}


def ensemble_numbers(
    path: str, stored: Stored, field: Field, radius: float | None, level: float | None
) -> Iterator[Number]:
    """The numbers of an ensemble; none of another file. radius, level: as for the numbers of its mean."""
    if stored.grid.sets is None:
        return
    values = read_sets(path, stored, field.name)
    yield Number("directions", stored.grid.sets, "independent sets of directions")
    yield from _share(stored, field, values, radius, level)
    yield from _trace(stored, values)


def _share(
    stored: Stored, field: Field, values: np.ndarray, radius: float | None, level: float | None
) -> Iterator[Number]:
    """Of the sets that are done within the radius, the share whose values there are at most the level, all of them.

    A NaN is above any level. Where larger is better: at least the level.
    """
    over = field.larger_is_better
    name = f"share_of_directions_{'over' if over else 'under'}_level"
    names = name, f"{name}_at_least", f"{name}_at_most"
    plane = stored.grid.plane
    if radius is None or level is None:
        yield from (Number(name, None, "no radius, or no level: give --radius and --level") for name in names)
        return
    centre = plane.point(plane.nearest((0.0,) * len(plane.axes)))
    near = distances(plane.coordinates, centre) <= radius * (1 + SAME)
    inside = values[stored.done[:, near].all(axis=1)][:, near]
    stays = np.asarray((inside >= level if over else inside <= level).all(axis=1))
    n, k = int(stays.size), int(stays.sum())
    if not n:
        yield from (Number(name, None, "no set is done within the radius") for name in names)
        return
    low, high = clopper_pearson(k, n)
    yield Number(name, k / n, f"{k} of {n} stay there within radius {number(radius, 6)}, level {number(level, 6)}")
    for title, value in zip(names[1:], (low, high), strict=True):
        yield Number(title, value, f"{CONFIDENCE:.0%} confidence (Clopper and Pearson)")


def clopper_pearson(k: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval for a probability of which k of n independent trials have come true.

    C. J. Clopper, E. S. Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial,
    Biometrika 26 (1934) 404-413: the lowest p at which k or more of n are as likely as (1 - confidence) / 2, and the
    highest at which k or fewer are. These are quantiles of the beta distribution, found here by bisection.
    """
    rest = (1 - confidence) / 2
    low = 0.0 if k == 0 else _root(lambda p: _binomial(p, n, k, n) < rest)
    high = 1.0 if k == n else _root(lambda p: _binomial(p, n, 0, k) > rest)
    return low, high


def _root(before: Callable[[float], bool]) -> float:
    """Where, between 0 and 1, a condition ends that holds up to there."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if before(middle) else (low, middle)
    return low


def _binomial(p: float, n: int, first: int, last: int) -> float:
    """The probability that from first to last of n trials come true, each with probability p."""
    logs = (math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(first, last + 1))
    ways = zip(logs, range(first, last + 1), strict=True)
    return math.fsum(math.exp(log + i * math.log(p) + (n - i) * math.log1p(-p)) for log, i in ways)


def _trace(stored: Stored, values: np.ndarray) -> Iterator[Number]:
    """The trace of the metric's Hessian at the model, and its standard error.

    With d of independent entries of mean 0 and variance 1, E[d^T H d] = tr H (M. F. Hutchinson, A stochastic estimator
    of the trace of the influence matrix for Laplacian smoothing splines, Communications in Statistics 19 (1990)
    433-450; there the entries are 1 and -1). Each axis of each set is such a d, and d^T H d its second difference
    (f(h) - 2 f(0) + f(-h)) / h^2 over the steps next to the model. The error is that of the mean over directions.
    """
    names = "hessian_trace", "hessian_trace_error"
    known = {name: setting(stored.attributes, name) for name in RAW}
    if known != RAW or setting(stored.attributes, "orthogonalize"):
        why = "directions are not raw normal: that is --normalization none --ignore none"
        yield from (Number(name, None, why) for name in names)
        return
    found, steps = _second_differences(stored, values)
    if len(found) < 2:
        why = "the model, or a point on both sides of it at one distance, is not on the grid, or has no value"
        yield from (Number(name, None, why) for name in names)
        return
    mean, error = float(np.mean(found)), float(np.std(found, ddof=1)) / math.sqrt(len(found))
    note = f"over {len(found)} directions, step {' and '.join(number(step, 3) for step in steps)}"
    yield finite(names[0], mean, f"{note}; of the parameters that move")
    yield finite(names[1], error, "standard error of the mean over directions")


def _second_differences(stored: Stored, values: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """That of every axis in every set, where it is finite; and the different steps."""
    found: list[np.ndarray] = []
    steps: list[float] = []
    middle = [int(np.abs(c).argmin()) for c in stored.grid.coordinates]
    if any(c[i] != 0 for c, i in zip(stored.grid.coordinates, middle, strict=True)):
        return np.empty(0), steps
    for k, (c, i) in enumerate(zip(stored.grid.coordinates, middle, strict=True)):
        if not 0 < i < len(c) - 1 or not np.isclose(c[i + 1], -c[i - 1], rtol=SAME):
            continue
        line = np.moveaxis(values, (0, k + 1), (-2, -1))[tuple(j for axis, j in enumerate(middle) if axis != k)]
        left, centre, right = line[:, i - 1 : i + 2].T
        step = float(c[i + 1])
        found.append((right - 2 * centre + left) / step**2)
        if not np.isclose(step, steps).any():
            steps.append(step)
    everything = np.concatenate([np.empty(0), *found])
    return everything[np.isfinite(everything)], steps
