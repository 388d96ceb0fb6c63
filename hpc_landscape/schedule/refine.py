"""Refinement: points only where they are needed, in rounds that follow from the values so far.

Levels are of the fixed grid: at level m each axis of n points is cut at k (n - 1) / 2^m, rounded, so that a level has
the points of those before it, and cells of any n differ by one step at most. A round cuts those cells in halves along
each axis where linear and cubic interpolation disagree most, times their area, and has at least a fixed part of the
grid's points. It follows from the values of earlier rounds' points alone: from a file the same rounds come on any
number of ranks, after a kill too.

Values are interpolated from level to level, known ones in place of predicted ones: D. L. Donoho, Interpolating wavelet
transforms, Stanford (1992); by Lagrange's polynomials, since cells are uneven.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..errors import UserError

FIRST = 2  # level of the first round, or a finer one that has at most a COARSE-th of the grid's points
COARSE = 16
ROUND = 64  # a round has a ROUND-th of the grid's points at least, where as many are wanted
EDGE = 5  # level down to which a border between finite and other values is followed: to a 32nd of an axis
DECADES = 100.0  # positive values whose largest is so many times the smallest are taken by their logarithms
HELD_OUT = 100  # one of so many points is held out, and LEAST at least
LEAST = 4
# What cubic interpolation is off by, in units of what the linear one differs from it: of a cell that was cut before, as
# it was there, within limits; of others the most that is seen at a kink.
RATIO = (0.1, 4.0)
UNCUT = 2.0
# And at least so much of what was found when the cell's parent was cut: a kink halves from level to level, what is
# smooth shrinks by 16, and between the points of a jump nothing disagrees.
SHRINKS = 0.25
ROUNDING = 1e-13  # of the largest value


@dataclass(frozen=True)
class Told:
    """What is known of one metric at all points.

    Attributes:
        values: known or estimated ones, of the grid's shape; NaN where nothing can be said.
        error: what they are off by, as estimated; 0 where points are done, NaN where nothing can be said.
        estimated_error: the largest, as a share of the values' range; on a log scale both are of logarithms.
        true_error: the largest at the points held out; NaN before they are done.
        held_out: how many of these had an estimate.
        log: whether values span decades.
    """

    values: np.ndarray
    error: np.ndarray
    estimated_error: float
    true_error: float
    held_out: int
    log: bool


@dataclass(frozen=True)
class Refinement:
    """How far a refinement is.

    Attributes:
        points: flat indices of those that are to be evaluated next, together; none: it has ended.
        cells: those whose corners are all done; None before there are any.
        held_out: whether a point is; None while rounds are to come.
    """

    points: np.ndarray
    cells: Cells | None = None
    held_out: np.ndarray | None = None

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""
        return not len(self.points)

    def tell(self, values: np.ndarray, done: np.ndarray) -> Told:
        """What the points that are done say of the others, of one metric. values, done: of the grid's shape."""
        if self.cells is None:
            nothing = np.full(values.shape, np.nan)
            return Told(nothing, nothing, math.nan, math.nan, 0, False)
        known = estimate(self.cells, values.reshape(self.cells.points.shape))
        guess, error = known.unscaled() if known.log else (known.values, known.error)
        off = np.empty(0)
        if self.held_out is not None and self.ended:
            there = self.held_out
            off = np.abs(known.scale(values.reshape(there.shape)[there]) - known.values[there])
            off = off[np.isfinite(off)]
        share = 1 / known.range if known.range > 0 else 0.0
        return Told(
            np.where(done, values, guess.reshape(values.shape)),
            np.where(done, 0.0, error.reshape(values.shape)),
            float(np.nanmax(known.error, initial=0.0)) * share,
            float(off.max()) * share if off.size else math.nan,
            off.size,
            known.log,
        )


def check_size(shape: Sequence[int]) -> None:
    """UserError where the first round would have most of the points."""
    long = [n for n in shape if n > 1]
    size, first = math.prod(long), math.prod(map(len, levels_of(long)[0])) if long else 1
    if 2 * first > size:
        raise UserError(f"--refine: a grid of {size} points is too small, of which it would begin with {first}")


def levels_of(shape: Sequence[int]) -> list[list[np.ndarray]]:
    """From the first round's level to the grid itself: the indices along each axis."""
    finest = math.ceil(math.log2(max(shape) - 1))
    levels = [[_cuts(n, level) for n in shape] for level in range(finest + 1)]
    first = min(FIRST, finest)
    while first < finest and COARSE * math.prod(map(len, levels[first + 1])) <= math.prod(shape):
        first += 1
    return levels[first:]


def _cuts(n: int, level: int) -> np.ndarray:
    return np.unique((2 * np.arange(2**level + 1) * (n - 1) + 2**level) // 2 ** (level + 1))


def refine(values: np.ndarray, done: np.ndarray, tolerance: float, seed: int = 0) -> Refinement:
    """The points of the first round that is not all done; after the last, those held out.

    values, done: of the grid's shape; of a round that is not all done no value counts. tolerance: of the values' range.
    seed: of the points held out.
    """
    long = [n for n in values.shape if n > 1]
    values, done = values.reshape(long), done.reshape(long)
    cells, whole = Cells(long), None
    while done[cells.points].all():
        whole = deepcopy(cells)
        if not cells.cut_worst(estimate(cells, values), tolerance):
            held_out = _held_out(cells.points, seed)
            return Refinement(np.flatnonzero(held_out & ~done), whole, held_out)
    return Refinement(np.flatnonzero(cells.points & ~done), whole)


def _held_out(points: np.ndarray, seed: int) -> np.ndarray:
    """Of those that are no points of the rounds a few, drawn from the seed."""
    others = np.flatnonzero(~points)
    count = min(len(others), max(LEAST, points.size // HELD_OUT))
    held_out = np.zeros(points.shape, bool)
    held_out.reshape(-1)[np.random.default_rng(seed).choice(others, count, replace=False)] = True
    return held_out


@dataclass(frozen=True)
class Estimate:
    """Values and their errors of all points, of logarithms where that is told; range: of the values that are known.

    rounding: an error that says nothing.
    """

    values: np.ndarray
    error: np.ndarray
    range: float = 0.0
    rounding: float = 0.0
    log: bool = False

    def scale(self, values: np.ndarray) -> np.ndarray:
        """Values as they are compared; NaN where they are not finite."""
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = np.log(values) if self.log else values
        return np.where(np.isfinite(scaled), scaled, np.nan)

    def unscaled(self) -> tuple[np.ndarray, np.ndarray]:
        """Values and errors, upwards, of what the logarithms are of."""
        with np.errstate(over="ignore"):
            values = np.exp(self.values)
            return values, values * np.expm1(self.error)


class Cells:
    """The cells of all levels, and which of them are cut; points: those that are corners of one."""

    def __init__(self, shape: Sequence[int]):
        self.levels = levels_of(shape)
        self.first = math.ceil(math.log2(max(shape) - 1)) - len(self.levels) + 1
        self.cuts = [np.zeros([len(p) - 1 for p in level], bool) for level in self.levels[:-1]]
        self.points = np.zeros(shape, bool)
        self.points[np.ix_(*self.levels[0])] = True

    def cut_worst(self, known: Estimate, tolerance: float) -> bool:
        """Cut the half of the cells that need it, a round's points at least; false where none does."""
        priorities = [self._priorities(k, known, tolerance).reshape(-1) for k in range(len(self.cuts))]
        order = np.argsort(-np.concatenate([*priorities, [0.0]]), kind="stable")
        count = sum(np.count_nonzero(some) for some in priorities)
        least = self.points.size // (ROUND * 2**self.points.ndim)  # a cell's cut gives about 2^dimensions points
        chosen = np.zeros(len(order), bool)
        chosen[order[: min(count, max(-(-count // 2), least))]] = True
        for cuts, begin in zip(self.cuts, np.cumsum([0, *map(len, priorities)]), strict=False):
            cuts |= chosen[begin : begin + cuts.size].reshape(cuts.shape)
        self._balance()
        for cuts, (coarse, fine) in zip(self.cuts, pairwise(self.levels), strict=True):
            self.points[np.ix_(*fine)] |= _points_in(cuts, coarse, fine)
        return bool(count)

    def _priorities(self, k: int, known: Estimate, tolerance: float) -> np.ndarray:
        """Of the cells of a level what they disagree by, times their area; 0 of those that are not to be cut."""
        coarse, grid = self.levels[k], self.levels[-1]
        leaves = ~self.cuts[k]
        if k:
            leaves &= self.cuts[k - 1][np.ix_(*_parents(self.levels[k - 1], coarse))]
        area = math.prod(np.ix_(*map(np.diff, coarse)))
        error = np.nan_to_num(largest_in(known.error, coarse, grid))
        wanted = np.where(error > max(tolerance * known.range, known.rounding), error, 0.0)
        if self.first + k < EDGE:
            finite = np.isfinite(known.values)
            edge = largest_in(self.points & finite, coarse, grid) & largest_in(self.points & ~finite, coarse, grid)
            wanted[edge] = np.maximum(wanted[edge], known.range or 1.0)
        return np.where(leaves & (area > 1), wanted * area, 0.0)

    def _balance(self) -> None:
        """Cut more, so that cells that touch are of neighbouring levels at most."""
        for k in range(len(self.cuts) - 1, 0, -1):
            needed = around(self.cuts[k])
            for axis, parents in enumerate(_parents(self.levels[k - 1], self.levels[k])):
                needed = np.logical_or.reduceat(needed, np.flatnonzero(np.diff(parents, prepend=-1)), axis)
            self.cuts[k - 1] |= needed


def estimate(cells: Cells, values: np.ndarray) -> Estimate:
    """Of all points, from the values at the cells' corners."""
    there = values[cells.points & np.isfinite(values)]
    log = bool(there.size and there.min() > 0 and there.max() >= DECADES * there.min())
    scaled = Estimate(values, values, log=log).scale(values)
    ends = np.log(there) if log else there
    cubic = linear = scaled[np.ix_(*cells.levels[0])]
    ratio, least = np.full(values.shape, UNCUT), np.zeros(values.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        for cut, (coarse, fine) in zip(cells.cuts, pairwise(cells.levels), strict=True):
            for axis, (p, q) in enumerate(zip(coarse, fine, strict=True)):
                cubic, linear = predict(cubic, axis, p, q, 3), predict(linear, axis, p, q, 1)
            at = np.ix_(*fine)
            known = cells.points[at]
            off, differ = (_of_cut(np.abs(a - cubic), known, cut, coarse, fine) for a in (scaled[at], linear))
            cubic, linear = (np.where(known, scaled[at], predicted) for predicted in (cubic, linear))
            of_points = np.ix_(*_cells_of(values.shape, coarse))
            seen = np.clip(np.divide(off, differ, out=np.full(off.shape, RATIO[0]), where=differ > 0), *RATIO)
            ratio = np.where(cut[of_points], seen[of_points], ratio)
            least = np.where(cut[of_points], SHRINKS * off[of_points], least)
        error = np.maximum(ratio * np.abs(cubic - linear), least)
    error = np.where(cells.points, 0.0, np.where(np.isfinite(cubic), error, np.nan))
    rounding = float(np.abs(ends).max(initial=0.0)) * ROUNDING
    return Estimate(cubic, error, float(np.ptp(ends)) if ends.size else 0.0, rounding, log)


def _of_cut(
    off: np.ndarray, known: np.ndarray, cut: np.ndarray, coarse: list[np.ndarray], fine: list[np.ndarray]
) -> np.ndarray:
    """The largest at the known points of each cell that is cut, and of those around it: few may agree by luck."""
    return around(np.where(cut, largest_in(np.where(known, np.nan_to_num(off), 0.0), coarse, fine), 0.0))


def predict(values: np.ndarray, axis: int, p: np.ndarray, q: np.ndarray, degree: int) -> np.ndarray:
    """Values at q from those at p along an axis, by the polynomial through the nearest degree + 1; linear beside a gap.

    NaN where one of the two beside is NaN.
    """
    count = min(degree + 1, len(p))
    begin = np.clip(np.searchsorted(p, q, "right") - count // 2, 0, len(p) - count)
    found = np.zeros(values.shape[:axis] + (len(q),) + values.shape[axis + 1 :])
    along = [1] * values.ndim
    along[axis] = len(q)
    for i in range(count):
        others = [p[begin + j] for j in range(count) if j != i]
        weight = math.prod((q - x) / (p[begin + i] - x) for x in others)
        part = values.take(begin + i, axis)
        weights = np.reshape(weight, along)
        found += np.where(weights == 0, 0.0, part * weights)
    if count <= 2:
        return found
    return np.where(np.isfinite(found), found, predict(values, axis, p, q, 1))


def largest_in(values: np.ndarray, coarse: list[np.ndarray], fine: list[np.ndarray]) -> np.ndarray:
    """Of each cell of a level the largest of the values at finer points in it, those of its border too."""
    for axis, (p, q) in enumerate(zip(coarse, fine, strict=True)):
        at = np.searchsorted(q, p)
        inside = np.fmax.reduceat(values.take(np.arange(at[-1]), axis), at[:-1], axis)
        values = np.fmax(inside, values.take(at[1:], axis))
    return values


def around(cells: np.ndarray) -> np.ndarray:
    """Of each cell the largest of it and its neighbours."""
    for axis, n in enumerate(cells.shape):
        i = np.arange(n)
        sides = (cells.take(np.clip(i + side, 0, n - 1), axis) for side in (-1, 1))
        cells = np.maximum(np.maximum(*sides), cells)
    return cells


def _parents(coarse: list[np.ndarray], fine: list[np.ndarray]) -> list[np.ndarray]:
    """Along each axis the coarse cell in which a fine one is."""
    return [np.searchsorted(p, q[:-1], "right") - 1 for p, q in zip(coarse, fine, strict=True)]


def _cells_of(shape: Sequence[int], coarse: list[np.ndarray]) -> list[np.ndarray]:
    """Along each axis of the grid the cell in which a point is."""
    pairs = zip(coarse, shape, strict=True)
    return [np.clip(np.searchsorted(p, np.arange(n), "right") - 1, 0, len(p) - 2) for p, n in pairs]


def _points_in(cells: np.ndarray, coarse: list[np.ndarray], fine: list[np.ndarray]) -> np.ndarray:
    """The points of the finer level that are in one of these cells, or on its border."""
    for axis, (p, q) in enumerate(zip(coarse, fine, strict=True)):
        left, right = (np.clip(np.searchsorted(p, q, side) - 1, 0, len(p) - 2) for side in ("left", "right"))
        cells = cells.take(left, axis) | cells.take(right, axis)
    return cells
