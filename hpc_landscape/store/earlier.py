"""An earlier file; which points of a new grid it has, and their way into a new file: ``--extend``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from ..errors import UserError
from ..grid import Grid
from . import layout

# Attributes of a file that has taken points: from which file, when that was begun, how many.
EXTENDED, EXTENDED_CREATED, EXTENDED_POINTS = "extended", "extended_created", "extended_points"
# Of an axis's largest coordinate: as far apart may two axes have a point that is the same but for rounding. Two decimal
# axes of 2 to 600 points were at most 5 apart.
ULPS = 8


@dataclass(frozen=True)
class Earlier:
    """A file that weights, directions and values come from. instead: what helps where it is of another run."""

    path: str
    stored: layout.Stored
    instead: str = "choose another --output, or --overwrite"


@dataclass
class Taken:
    """The points that a grid has in common with what is done in an earlier file.

    points, there: their flat indices in the grid and in the file's. alike: whether their coordinates are the same to
    the bit. mixed: whether values are so to rounding alone, as ``runs/mixed`` tells.
    """

    earlier: Earlier
    points: np.ndarray
    there: np.ndarray
    alike: bool
    mixed: bool = False

    def attributes(self) -> dict[str, Any]:
        """What the new file says of it."""
        created = self.earlier.stored.attributes.get("created", "unknown")
        return {EXTENDED: self.earlier.path, EXTENDED_CREATED: created, EXTENDED_POINTS: len(self.points)}

    def fill(self, file: h5py.File, names: Iterable[str]) -> None:
        """Put the values of these names, times and flags into a new file."""
        here = np.unravel_index(self.points, file[layout.DONE].shape)
        where = np.unravel_index(self.there, self.earlier.stored.grid.shape)
        for name in (*names, layout.WALL_TIME):
            there, values = layout.read_values(self.earlier.path, name), file[name][()]
            values[here] = there[where]
            file[name][...] = values
        done = file[layout.DONE][()]
        done[here] = 1
        file[layout.DONE][...] = done
        file[layout.MIXED][...] = self.mixed


def find(earlier: Earlier, grid: Grid) -> Taken:
    """The grid's points that are done in the file, and have not failed; UserError where there is none."""
    old = earlier.stored
    pairs = [_coinciding(*axes) for axes in zip(grid.coordinates, old.grid.coordinates, strict=True)]
    good = old.done if old.failed is None else old.done & ~old.failed
    mask = good[np.ix_(*(there for _, there in pairs))].reshape(-1)
    here, there = (
        np.ravel_multi_index(np.ix_(*(pair[side] for pair in pairs)), shape).reshape(-1)[mask]
        for side, shape in enumerate((grid.shape, old.grid.shape))
    )
    if not len(here):
        raise UserError(
            f"--extend {earlier.path}: none of the points that are done there, of {old.grid}, is one of {grid}; "
            "choose axes that share some, or leave out --extend"
        )
    alike = all(
        np.array_equal(mine[i], its[j])
        for mine, its, (i, j) in zip(grid.coordinates, old.grid.coordinates, pairs, strict=True)
    )
    return Taken(earlier, here, there, alike)


def _coinciding(here: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(indices of one axis's coordinates, of the other's) of those that are equal but for rounding."""
    after = np.searchsorted(there, here)
    beside = np.stack([after - 1, after]).clip(0, len(there) - 1)
    apart = np.abs(there[beside] - here)
    nearest = np.where(apart[0] < apart[1], *beside)
    rounding = ULPS * math.ulp(max(np.abs(axis).max() for axis in (here, there)))
    steps = [np.diff(axis).min() for axis in (here, there) if len(axis) > 1]
    equal = apart.min(0) <= min([rounding, *(step / 4 for step in steps)])
    return np.flatnonzero(equal), nearest[equal]
