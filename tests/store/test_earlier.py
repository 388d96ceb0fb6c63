"""Which points of a new grid an earlier file has."""

from __future__ import annotations

import numpy as np
import pytest

from hpc_landscape.errors import UserError
from hpc_landscape.grid import Axis, Grid
from hpc_landscape.store.earlier import Earlier, Taken, find
from hpc_landscape.store.layout import Stored


def taken(old: Grid, new: Grid, done: np.ndarray | None = None) -> Taken:
    done = np.ones(old.shape, dtype=bool) if done is None else done
    return find(Earlier("old.h5", Stored({}, old, (), done, False, False)), new)


def lattice(low: int, high: int, step: float, finer: int = 1) -> Axis:
    """From low to high steps; finer: points for each step."""
    return Axis(float(f"{low * step:g}"), float(f"{high * step:g}"), (high - low) * finer + 1)


def test_decimal_axes_share_the_points_that_arithmetic_says() -> None:
    """All multiples of a step, however linspace rounds them; and where nothing is rounded, it is said so."""
    random = np.random.default_rng(0)
    rounded = 0
    for step in [0.1, 0.02, 0.03, 0.07, 0.0123, 0.125] * 50:
        low, high = (int(n) for n in np.sort(random.choice(np.arange(-60, 61), 2, replace=False)))
        more, finer = random.integers(0, 61, 2), int(random.integers(1, 8))
        old, new = lattice(low, high, step), lattice(low - int(more[0]), high + int(more[1]), step, finer)
        found = taken(Grid(old), Grid(new))
        assert found.there.tolist() == list(range(old.n))
        assert found.points.tolist() == [(more[0] + k) * finer for k in range(old.n)]
        x, y = old.coordinates, new.coordinates[found.points]
        assert found.alike == (x.tobytes() == y.tobytes())
        rounded += not found.alike
    assert 0 < rounded < 300


def test_points_of_a_plane_that_are_done() -> None:
    old, new = Grid(Axis(-1, 1, 5), Axis(0, 0, 1)), Grid(Axis(-2, 0.5, 6), Axis(-1, 1, 3))
    done = np.array([1, 1, 0, 1, 1], dtype=bool)[:, None]
    found = taken(old, new, done)
    assert [new.point(int(i)) for i in found.points] == [(-1.0, 0.0), (-0.5, 0.0), (0.5, 0.0)]
    assert [old.point(int(i)) for i in found.there] == [(-1.0, 0.0), (-0.5, 0.0), (0.5, 0.0)]


@pytest.mark.parametrize("apart", [1e-11, 1e-6, 0.1])
def test_what_is_near_is_not_the_same(apart: float) -> None:
    with pytest.raises(UserError, match="none of the points that are done there"):
        taken(Grid(Axis(-1, 1, 5)), Grid(Axis(-2 + apart, 2 + apart, 9)))


def test_neighbours_a_few_roundings_apart() -> None:
    """Each is itself alone, on the finest axis that there can be."""
    ulp = 2.0**-52
    fine = Axis(1, 1 + 40 * ulp, 11)
    found = taken(Grid(fine), Grid(fine))
    assert found.points.tolist() == found.there.tolist() == list(range(11))
    shifted = Axis(1 + 2 * ulp, 1 + 42 * ulp, 11)
    with pytest.raises(UserError):
        taken(Grid(fine), Grid(shifted))
