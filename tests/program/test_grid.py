"""The grid, against numpy.linspace and numpy.meshgrid."""

from __future__ import annotations

import numpy as np
import pytest

from hpc_landscape.errors import UserError
from hpc_landscape.grid import Axis, Grid
from hpc_landscape.schedule.strided import strided
from hpc_landscape.settings import Settings


def test_the_default():
    grid = Settings().grid()
    assert grid.shape == (51, 51) and grid.names == ("x", "y") and str(grid) == "x=-1:1:51 x y=-1:1:51"
    for axis in grid.coordinates:
        assert axis.dtype == np.float64
        np.testing.assert_allclose(axis, np.linspace(-1, 1, 51), rtol=0, atol=1e-16)
    assert grid.point(grid.size // 2) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("-1:1:51", Axis(-1, 1, 51)),
        ("0:1:2", Axis(0, 1, 2)),
        ("-1e-3:2.5e2:7", Axis(-0.001, 250, 7)),
        ("3:3:1", Axis(3, 3, 1)),
        (" -2 : 2 : 5 ", Axis(-2, 2, 5)),
    ],
)
def test_parse(text, axis):
    assert Axis.parse(text) == axis


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1:-1:5", "MIN must be less than MAX"),
        ("1:1:5", "MIN must be less than MAX"),
        ("-1:1:0", "at least 1"),
        ("-1:1:-3", "at least 1"),
        ("-1:1", "expected MIN:MAX:N"),
        ("-1:1:5:6", "expected MIN:MAX:N"),
        ("", "expected MIN:MAX:N"),
        ("a:1:5", "expected MIN:MAX:N"),
        ("-1:1:5.5", "expected MIN:MAX:N"),
        ("-1::5", "expected MIN:MAX:N"),
        ("nan:1:5", "finite"),
        ("-inf:1:5", "finite"),
        ("-1:1e999:5", "finite"),
    ],
)
def test_errors_are_one_line_that_names_the_option(text, said):
    with pytest.raises(UserError, match=said) as error:
        Axis.parse(text, "y")
    assert str(error.value).startswith(f"--y {text}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("half", [1, 0.1, 0.3, 1 / 3, 7.7, 1e-8])
@pytest.mark.parametrize("n", [3, 5, 7, 11, 21, 31, 49, 51, 101])
def test_zero_is_exact_on_odd_symmetric_axes(half, n):
    values = Axis(-half, half, n).coordinates
    assert values[n // 2] == 0.0 and not np.signbit(values[n // 2])
    assert values[0] == -half and values[-1] == half and (np.diff(values) > 0).all()


def test_one_point_sits_in_the_middle():
    assert Axis(-1, 1, 1).coordinates.tolist() == [0.0] and Axis(2, 4, 1).coordinates.tolist() == [3.0]


@pytest.mark.parametrize("sizes", [(6,), (4, 5), (2, 3, 4), (1, 3), (3, 1, 1)])
def test_flat_index_and_coordinates(sizes):
    axes = [Axis(-1 - k, 2 + k, n) for k, n in enumerate(sizes)]
    grid = Grid(*axes)
    mesh = np.meshgrid(
        *[[(a.low + a.high) / 2] if a.n == 1 else np.linspace(a.low, a.high, a.n) for a in axes], indexing="ij"
    )
    assert grid.shape == sizes == mesh[0].shape and grid.size == mesh[0].size
    points = [grid.point(i) for i in range(grid.size)]
    np.testing.assert_array_equal(points, np.stack([m.ravel() for m in mesh], axis=1))
    assert all(type(c) is float for c in points[0])
    assert [grid.nearest(p) for p in points] == list(range(grid.size))


def test_nearest():
    grid = Grid(Axis(-1, 1, 3), Axis(0, 10, 11))
    assert grid.point(grid.nearest((0.4, 6.6))) == (0.0, 7.0)
    assert grid.point(grid.nearest((99.0, -99.0))) == (1.0, 0.0)


def test_a_point_outside_is_an_error():
    with pytest.raises(ValueError):
        Grid(Axis(-1, 1, 3)).point(3)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 64])
def test_strided_covers_each_point_once(n, size):
    points = np.random.default_rng(n).permutation(1000)[:n]  # unfinished points: any subset
    parts = [strided(points, rank, size) for rank in range(size)]
    assert sorted(np.concatenate(parts)) == sorted(points)
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)


def test_sets_of_directions_are_the_first_dimension():
    grid = Settings(x="-1:1:3", y="0:1:2", ensemble=4).grid()
    plane = Settings(x="-1:1:3", y="0:1:2").grid()
    assert (grid.shape, grid.size, grid.dims, grid.names) == ((4, 3, 2), 24, ("direction", "x", "y"), ("x", "y"))
    assert (grid.plane.shape, plane.plane is plane) == (plane.shape, True)
    assert [grid.point(i) for i in range(24)] == 4 * [plane.point(i) for i in range(6)]
    assert [grid.set_of(i) for i in range(24)] == sorted(4 * [*range(4)] + 2 * [*range(4)])
    assert grid.nearest((0.1, 0.9)) == plane.nearest((0.1, 0.9)) == 3
    assert grid.text_of(21) == "(0, 1) of set 3" and plane.text_of(3) == "(0, 1)"
    assert str(grid) == "4 sets of x=-1:1:3 x y=0:1:2"
    assert [part.tolist() for part in grid.by_set(np.array([4, 5, 6, 11, 23]))] == [[4, 5], [6, 11], [23]]
    assert [part.tolist() for part in plane.by_set(np.array([0, 5]))] == [[0, 5]]
    assert grid.scales["direction"].tolist() == [0, 1, 2, 3]
