"""How far the values of a fast way to compute are from those of the plain one, seen at a few points of the grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ..data.data import Data
from ..errors import UserError
from ..grid import Grid
from ..metrics import Accuracy, DataMetric, Metric
from ..store.exactness import DIFFERENCES, ERROR, FACTOR, POINTS, RELATIVE
from .build import EvaluatorBuilder
from .evaluator import Evaluator
from .execution import PLAIN

# Points at which the error is seen. FACTOR times their worst is more than the 95th percentile of normal errors in 9,999
# cases of 10,000, the worst alone in 5,600. ``python -m benchmarks errors`` compares it with whole grids.
SAMPLED = 16
# Of a metric's usual size: what is smaller is compared with this. Numbers of the usual size have cancelled out there,
# and float32's own rounding, 1e-7 of these, shows in every mode: OTHERS of this is as much.
FLOOR = 1e-3
THRESHOLDS = {"bf16": 1e-2, "tf32": 1e-2}  # relative, where nothing is said
OTHERS = 1e-4  # in full precision
IN_FULL = {"bf16": "fp32", "tf32": "fp32"}  # the precision of their plain way
# An accuracy is a share of 1, and its errors are relative to that. Samples whose best classes are all but equal change
# sides in any mode: of few samples one, of n as much as an accuracy over n is uncertain itself, sqrt(p (1 - p) / n).
SIDES = 2e-3


class Excess(NamedTuple):
    """Where a metric is off by too much: at which point (its flat index), by how much, and relative to its size."""

    metric: str
    point: int
    error: float
    relative: float


@dataclass
class ExecutionErrors:
    """How far a mode's values are from the plain ones, by metric, at points of the grid (flat indices).

    differences: float64, (points,); infinite where one value is finite alone. stated: what 95% of the grid's points are
    not off by more than: FACTOR times the worst that was seen; the worst, where these are all points. sizes: what each
    difference is compared with. allowed: a difference that is no error of the mode.
    """

    points: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    differences: dict[str, np.ndarray] = field(default_factory=dict)
    stated: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, np.ndarray] = field(default_factory=dict)
    allowed: dict[str, float] = field(default_factory=dict)

    @property
    def relative(self) -> dict[str, float]:
        """By metric, the worst that was seen relative to its size at the same point."""
        return {name: float(self._relative(name).max()) for name in self.sizes}

    def _relative(self, name: str) -> np.ndarray:
        return np.abs(self.differences[name]) / self.sizes[name]

    def beyond(self, limit: float) -> Excess | None:
        """The worst that is beyond a limit, which is relative; None where nothing is."""
        found = []
        for name, differences in self.differences.items():
            relative = np.where(np.abs(differences) > self.allowed.get(name, 0.0), self._relative(name), 0.0)
            at = int(relative.argmax())
            found.append(Excess(name, int(self.points[at]), abs(float(differences[at])), float(relative[at])))
        worst = max(found, key=lambda excess: excess.relative, default=None)
        return worst if worst is not None and worst.relative > limit else None

    def attributes(self) -> dict[str, Any]:
        """As a file keeps them."""
        if not self.differences:
            return {}
        return {
            POINTS: self.points,
            **{f"{ERROR}{name}": error for name, error in self.stated.items()},
            **{f"{RELATIVE}{name}": error for name, error in self.relative.items()},
            **{f"{DIFFERENCES}{name}": found for name, found in self.differences.items()},
        }

    @classmethod
    def read(cls, attributes: Mapping[str, Any]) -> ExecutionErrors:
        """What a file says of them; it does not keep sizes."""
        points = attributes.get(POINTS)
        if not isinstance(points, np.ndarray):
            return cls()
        found = {k.removeprefix(DIFFERENCES): v for k, v in attributes.items() if k.startswith(DIFFERENCES)}
        return cls(points, found, {name: float(attributes.get(f"{ERROR}{name}", np.nan)) for name in found})


def is_plain(evaluator: Evaluator) -> bool:
    """Whether values are as exact as this precision's can be: there is nothing to compare them with."""
    return evaluator.execution.exact and evaluator.precision not in IN_FULL


def plainly(builder: EvaluatorBuilder) -> EvaluatorBuilder:
    """The builder of what values are compared with, and fall back to: as where nothing fast is asked for."""
    speed = builder.speed
    block = speed.block if builder.sets.streamed else None  # there it changes no value
    last = None if speed.channels_last else speed.channels_last
    return replace(
        builder,
        precision=IN_FULL.get(builder.precision, builder.precision),
        speed=replace(speed, compile=False, tune=False, block=block, channels_last=last),
    )


def described(evaluator: Evaluator) -> str:
    """What is fast in the way in which it computes, in words; of the order of memory only where it is all there is."""
    mode = evaluator.execution
    words = str(replace(mode, channels_last=False))
    words = str(mode) if words == str(PLAIN) else words
    if evaluator.precision != "tf32":
        return words  # which name 16 bits
    return "tf32" if mode.exact else f"{words}, tf32"


def threshold(precision: str, asked: float | None) -> float:
    """The largest relative error that is taken, as asked for, or as the precision has it."""
    return THRESHOLDS.get(precision, OTHERS) if asked is None else asked


def sample(shape: Sequence[int], count: int = SAMPLED) -> np.ndarray:
    """Points spread over a grid of this shape, as flat indices in order: the corners, and inside a sequence.

    All of them where there are no more. The sequence begins in the middle, and is of low discrepancy: an additive
    recurrence, with the steps of Roberts (2018), "The unreasonable effectiveness of quasirandom sequences".
    """
    size = math.prod(shape)
    if size <= count:
        return np.arange(size)
    corners = itertools.product(*(sorted({0, n - 1}) for n in shape))
    found: dict[int, None] = {}  # in order, each once
    for point in itertools.chain(corners, _recurrence(shape)):
        found[int(np.ravel_multi_index(point, tuple(shape)))] = None
        if len(found) == count:
            break
    return np.sort(np.array([*found]))


def _recurrence(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Without end: the middle of the grid, and then each axis's own irrational step farther."""
    root = 1.5
    for _ in range(60):  # of root^(d + 1) = root + 1: the golden ratio for one axis
        root = (1 + root) ** (1 / (1 + len(shape)))
    for i in itertools.count():
        yield tuple(int((0.5 + i / root**k) % 1 * n) for k, n in enumerate(shape, 1))


def compare(
    grid: Grid,
    points: np.ndarray,
    fast: Mapping[str, np.ndarray],
    plain: Mapping[str, np.ndarray],
    metrics: Mapping[str, Metric],
) -> ExecutionErrors:
    """How far the metrics, by name, are off at the points. fast, plain: their values there, float64: (points,)."""
    errors, factor = ExecutionErrors(points), 1.0 if len(points) == grid.size else FACTOR
    for name, exact in plain.items():
        metric = metrics[name]
        errors.differences[name] = found = _differences(fast[name], exact)
        errors.stated[name] = factor * float(np.abs(found).max())
        errors.sizes[name] = np.ones(len(points)) if isinstance(metric, Accuracy) else _sizes(exact)
        if isinstance(metric, Accuracy):
            n = _samples(metric)
            errors.allowed[name] = max(SIDES, 0.5 / math.sqrt(n), 1.5 / n)
    return errors


def _differences(fast: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """0 where both are NaN, or infinite alike, and infinite where one is finite alone."""
    same = (fast == plain) | (np.isnan(fast) & np.isnan(plain))
    with np.errstate(invalid="ignore", over="ignore"):
        found = fast - plain
    return np.where(same, 0.0, np.where(np.isfinite(found), found, np.inf))


def _sizes(plain: np.ndarray) -> np.ndarray:
    """What is not finite has none: there is no error there, or an infinite one."""
    sizes = np.abs(np.where(np.isfinite(plain), plain, 0.0))
    usual = float(np.median(sizes[sizes > 0])) if sizes.any() else 1.0
    return np.maximum(sizes, FLOOR * usual)


def _samples(metric: DataMetric) -> float:
    """Over how many the metric is a mean, as far as its data tell; infinite where they do not."""
    data: Data = metric.data
    size = getattr(data.batches, "size", None)
    if size is None and data.kept:
        with suppress(UserError):
            size = sum(map(data.samples, data.batches))
    return size or math.inf
