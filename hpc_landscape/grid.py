"""The grid: axes, coordinates, flat index <-> point, and which points a rank takes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np

from .errors import UserError

NAMES = ("x", "y", "z")
SETS = "direction"  # the dimension of an ensemble's sets of directions
MOST = 2**62  # points of an axis
CLOSEST = 4  # neighbouring points of an axis, in units of rounding


@dataclass(frozen=True)
class Axis:
    """One direction's coordinates: ``linspace(low, high, n)``."""

    low: float
    high: float
    n: int

    @classmethod
    def parse(cls, text: str, name: str = "x") -> Axis:
        """Read ``MIN:MAX:N``; raises UserError where that is not an axis."""
        wanted = f"--{name} {text}: expected MIN:MAX:N, such as -1:1:51"
        parts = str(text).split(":")
        if len(parts) != 3:
            raise UserError(wanted)
        try:
            low, high, n = float(parts[0]), float(parts[1]), int(parts[2])
        except ValueError:
            raise UserError(wanted) from None
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError(f"--{name} {text}: MIN and MAX must be finite numbers")
        if n < 1:
            raise UserError(f"--{name} {text}: N is the number of points and must be at least 1")
        if n > MOST:
            raise UserError(f"--{name} {text}: N is too large")
        if low > high or (low == high and n > 1):
            raise UserError(f"--{name} {text}: MIN must be less than MAX")
        if not (math.isfinite(high - low) and math.isfinite(low + high)):
            raise UserError(f"--{name} {text}: MIN and MAX are too large")
        if n > 1 and (high - low) / (n - 1) < CLOSEST * math.ulp(max(-low, high)):
            raise UserError(f"--{name} {text}: {n} different numbers do not fit between MIN and MAX; lower N")
        return cls(low, high, n)

    @property
    def coordinates(self) -> np.ndarray:
        """The axis's coordinates, float64, shape (n,)."""
        if self.n == 1:  # a single point sits in the middle, on the model for a symmetric axis
            return np.array([(self.low + self.high) / 2])
        points = np.linspace(self.low, self.high, self.n)
        inner = points[1:-1]  # the ends are as they were given
        for model in (1.0, 0.0):  # exactly, not to within rounding: there are the models
            inner[np.abs(inner - model) < 1e-12 * (self.high - self.low)] = model
        return points

    def __str__(self) -> str:
        return f"{_short(self.low)}:{_short(self.high)}:{self.n}"


class Grid:
    """The points at which a landscape is computed, in C order: axis 0 is the first direction.

    sets: of an ensemble, how many independent sets of directions have these axes. Flat indices then run over one set
    after the other, (sets, *axes), and a value's place in the file begins with the set.
    """

    def __init__(self, *axes: Axis, sets: int | None = None):
        self.axes, self.sets = axes, sets
        self.coordinates = tuple(axis.coordinates for axis in axes)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the axes that are directions."""
        return NAMES[: len(self.axes)]

    @property
    def dims(self) -> tuple[str, ...]:
        """Of all dimensions of the shape."""
        return self.names if self.sets is None else (SETS, *self.names)

    @property
    def scales(self) -> dict[str, np.ndarray]:
        """The coordinates along each dimension, by name: of sets their numbers."""
        sets = {} if self.sets is None else {SETS: np.arange(self.sets)}
        return sets | dict(zip(self.names, self.coordinates, strict=True))

    @property
    def plane(self) -> Grid:
        """The grid of a single set: the line, plane or volume."""
        if self.sets is None:
            return self
        plane = Grid(*self.axes)
        plane.coordinates = self.coordinates
        return plane

    def apart(self, other: Grid) -> str:
        """In words where the points of the two are not the same; "" where all coincide, to a millionth of a step."""
        if self.names != other.names:
            return " and ".join(f"{n} axis" if n == 1 else f"{n} axes" for n in (len(self.axes), len(other.axes)))
        for name, axis, c, its, d in zip(
            *(self.names, self.axes, self.coordinates, other.axes, other.coordinates), strict=True
        ):
            step = (c[-1] - c[0]) / (len(c) - 1) if len(c) > 1 else 1.0
            if len(c) != len(d) or np.abs(c - d).max() > 1e-6 * step:
                return f"{name} is {axis} and {its}" if str(axis) != str(its) else f"{name} has other points inside"
        return ""

    @property
    def shape(self) -> tuple[int, ...]:
        n = tuple(axis.n for axis in self.axes)
        return n if self.sets is None else (self.sets, *n)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def point(self, index: int) -> tuple[float, ...]:
        """The coordinates of the point with this flat index."""
        where = np.unravel_index(index, self.shape)[-len(self.axes) :]
        return tuple(float(axis[i]) for axis, i in zip(self.coordinates, where, strict=True))

    def set_of(self, index: int) -> int:
        """The number of the set of directions that the point with this flat index is along."""
        return 0 if self.sets is None else index // (self.size // self.sets)

    def by_set(self, points: np.ndarray) -> list[np.ndarray]:
        """These points, which are in order, in a part for each set of directions."""
        if self.sets is None:
            return [points]
        return np.split(points, np.flatnonzero(np.diff(points // (self.size // self.sets))) + 1)

    def text_of(self, index: int) -> str:
        """A point's coordinates, as a person reads them."""
        of_set = "" if self.sets is None else f" of set {self.set_of(index)}"
        return "(" + ", ".join(f"{c:g}" for c in self.point(index)) + ")" + of_set

    def nearest(self, coordinates: tuple[float, ...]) -> int:
        """The flat index of the grid point nearest to these coordinates; of an ensemble the first set's."""
        where = [int(np.abs(axis - c).argmin()) for axis, c in zip(self.coordinates, coordinates, strict=True)]
        return int(np.ravel_multi_index(where, [axis.n for axis in self.axes]))

    def __str__(self) -> str:
        axes = " x ".join(f"{name}={axis}" for name, axis in zip(self.names, self.axes, strict=True))
        return axes if self.sets is None else f"{self.sets} sets of {axes}"


def _short(value: float) -> str:
    """The value as text that is read back to the bit."""
    return text if float(text := f"{value:g}") == value else repr(value)


def counts(steps: Any, dimensions: int) -> tuple[int, ...]:
    """Points along each axis, from one whole number or one for each."""
    try:
        found = tuple(map(index, steps)) if isinstance(steps, Iterable) else (index(steps),) * dimensions
    except TypeError:
        found = ()
    if len(found) != dimensions or min(found) < 1:
        raise UserError(f"steps={steps!r}: expected a positive whole number, or {dimensions} of them")
    return found
