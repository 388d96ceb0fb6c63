"""The numbers of one landscape: against closed forms, brute force, gudhi and SciPy."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from test_view_files import make

from hpc_landscape.cli import main
from hpc_landscape.errors import UserError
from hpc_landscape.grid import Axis
from hpc_landscape.store import layout
from hpc_landscape.store.layout import Quantity
from hpc_landscape.view.barrier import barrier
from hpc_landscape.view.field import read_field
from hpc_landscape.view.measure import convexity, interpolate, rise, within
from hpc_landscape.view.numbers import Numbers, numbers
from hpc_landscape.view.persistence import Minimum, SublevelSets
from hpc_landscape.view.tables import aligned

pytestmark = pytest.mark.usefixtures("at_once")

PLANE = (Axis(-1, 1, 41), Axis(-1, 1, 41))
LINE = (Axis(-0.5, 1.5, 41),)


def bowl(x: Any, y: Any = 0.0, z: Any = 0.0) -> Any:
    return 1 + 4 * (x**2 + y**2 + z**2)


def well(x: Any) -> Any:
    """Minima at 0 and 1, with a hill of height 1 between them."""
    return 16 * x**2 * (1 - x) ** 2


def strict(text: str) -> Any:
    """JSON as the standard has it, which knows no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def note(found: Numbers, name: str) -> str:
    return next(n.note for n in found.numbers if n.name == name)


# A quadratic bowl


@pytest.mark.parametrize("n", [1, 2, 3])
def test_of_a_quadratic_bowl_everything_is_known(tmp_path, n):
    axes = (Axis(-1, 1, 21),) * n
    found = numbers(make(tmp_path / "a.h5", axes, bowl), radius=0.6, level=2.01)
    x = np.linspace(-1, 1, 21)
    squares = sum(np.meshgrid(*[x**2] * n, indexing="ij"))
    assert found["points"] == 21**n and found["unfinished"] == found["nan"] == found["infinite"] == 0
    assert found["value_at_model"] == found["minimum"] == 1
    assert found["maximum"] == 1 + 4 * n
    inside = squares <= 0.36 + 1e-9
    assert found["mean_within_radius"] == pytest.approx((1 + 4 * squares[inside]).mean())
    assert found["maximum_within_radius"] == pytest.approx(1 + 4 * 0.36)
    assert found["share_under_level"] == pytest.approx((squares <= 0.2525).mean())
    assert found["convexity_share"] == 1 and note(found, "convexity_share") == f"of {19**n} inner points"
    assert found["minima"] == 1 and found["smad"] == 0
    assert found["depth_of_second_minimum"] is None and found["barrier"] is None
    for name in ("smallest_radius_of_rise", "median_radius_of_rise"):
        assert found[name] == pytest.approx(0.5, rel=0.02), "where 1 + 4 r^2 has become 2"
    assert [pit.at for pit in found.pits] == [(0.0,) * n] and found.pits[0].depth is None


def test_defaults_follow_the_grid_and_the_value_at_the_model(tmp_path):
    found = numbers(make(tmp_path / "a.h5", (Axis(-1, 1, 21), Axis(-0.5, 2, 26)), bowl), factor=3)
    assert found.options.radius == 0.25, "half of the way to the nearest end"
    assert found.options.level == 3
    assert found.options.persistence == pytest.approx(0.01 * 4 * (1 + 4))


def test_of_an_accuracy_worse_is_less(tmp_path):
    quantities = (Quantity("accuracy"),)
    path = make(tmp_path / "a.h5", PLANE, lambda x, y: 0.8 - 0.4 * (x**2 + y**2), quantities)
    found = numbers(path, radius=0.5, factor=1.25)
    x = np.linspace(-1, 1, 41)
    squares = np.add.outer(x**2, x**2)
    assert found.larger_is_better and found.options.level == pytest.approx(0.64)
    assert found["mean_within_radius"] == pytest.approx((0.8 - 0.4 * squares[squares <= 0.25 + 1e-9]).mean())
    assert found["minimum_within_radius"] == pytest.approx(0.7)
    assert found["share_over_level"] == pytest.approx((squares <= 0.4 - 1e-9).mean(), abs=8 / 41**2)
    assert found["smallest_radius_of_rise"] == pytest.approx(np.sqrt(0.4), rel=0.01)
    assert found["convexity_share"] == 1 and found["maximum"] == 0.8


def test_a_model_at_the_end_of_an_axis_has_a_radius_all_the_same(tmp_path):
    assert numbers(make(tmp_path / "a.h5", (Axis(0, 1, 11),), bowl)).options.radius == 0.5


def test_axes_of_one_point_do_not_count(tmp_path):
    line = numbers(make(tmp_path / "a.h5", (Axis(-1, 1, 21),), bowl))
    plane = numbers(make(tmp_path / "b.h5", (Axis(0, 0, 1), Axis(-1, 1, 21), Axis(0, 0, 1)), bowl))
    assert [(n.name, n.value, n.note) for n in line.numbers if n.at is None] == [
        (n.name, n.value, n.note) for n in plane.numbers if n.at is None
    ]


def test_a_slice_that_leaves_the_model_out_has_none(tmp_path):
    found = numbers(make(tmp_path / "a.h5", (Axis(-1, 1, 21), Axis(0.5, 0.5, 1)), bowl))
    assert found["value_at_model"] is found["mean_within_radius"] is found["smallest_radius_of_rise"] is None
    assert note(found, "value_at_model") == "the model is not on the grid"
    assert found["minimum"] == 2 and found["convexity_share"] == 1


def test_between_points_the_nearest_stands_for_the_model_and_that_is_said(tmp_path):
    found = numbers(make(tmp_path / "a.h5", (Axis(-1, 1, 4),), bowl))
    assert found["value_at_model"] == pytest.approx(1 + 4 / 9)
    assert "the point nearest to the model" in note(found, "value_at_model")


# Barriers


def test_the_barrier_of_a_double_well_is_its_hill(tmp_path):
    found = numbers(make(tmp_path / "a.h5", LINE, well, directions="interpolation"))
    assert found["barrier"] == 1 and found["barrier_above_mean"] == 1
    assert found["value_at_model"] == found["value_at_second_model"] == 0
    assert found["minima"] == 2 and found["depth_of_second_minimum"] == 1 and found["smad"] == 1


def test_of_a_tilted_double_well_the_two_definitions_differ(tmp_path):
    path = make(tmp_path / "a.h5", LINE, lambda x: well(x) + x, directions="interpolation")
    stored = layout.read(path)
    found = barrier(stored, read_field(path, stored, "loss"))
    assert found is not None
    assert found.height == pytest.approx(1, abs=1e-12), "over the line from 0 to 1, which the tilt is (Entezari)"
    assert found.where == (0.5,) and found.between == ("first model", "second model")
    x = np.linspace(0, 1, 21)
    assert found.above_mean == pytest.approx((well(x) + x).max() - 0.5), "over the mean of the ends (Frankle)"


def test_on_a_convex_way_there_is_no_barrier(tmp_path):
    path = make(tmp_path / "a.h5", LINE, lambda x: (x - 0.5) ** 2, directions="interpolation")
    found = numbers(path)
    assert found["barrier"] == found["barrier_above_mean"] == 0


def test_of_an_accuracy_the_barrier_is_a_loss_of_accuracy(tmp_path):
    quantities = (Quantity("accuracy"),)
    path = make(tmp_path / "a.h5", LINE, lambda x: 0.9 - 0.5 * well(x), quantities, directions="interpolation")
    assert numbers(path)["barrier"] == pytest.approx(0.5)


def test_between_three_models_there_are_three_barriers_and_passes(tmp_path):
    """A hill of height 1 between the first two, which a valley at y = 0.5 goes around."""
    axes = (Axis(-0.5, 1.5, 21), Axis(-0.5, 1.5, 21))

    def values(x: Any, y: Any) -> Any:
        return well(x) * np.abs(1 - 2 * y) + 0.25 * well(y)

    found = numbers(make(tmp_path / "a.h5", axes, values, directions="interpolation"))
    assert found["barrier_1_2"] == 1 and found["barrier_1_3"] == 0.25
    t = np.linspace(0, 1, 11)
    assert found["barrier_2_3"] == pytest.approx(values(t, 1 - t).max())
    assert found["pass_1_2"] == found["pass_1_3"] == 0.25
    path = tmp_path / "a.h5"
    stored = layout.read(str(path))
    highest = barrier(stored, read_field(str(path), stored, "loss"))
    assert highest is not None and highest.height == 1, "the highest of the three"


def test_a_diagonal_that_hits_no_points_has_no_barrier(tmp_path):
    axes = (Axis(0, 1, 5), Axis(0, 1, 4))
    found = numbers(make(tmp_path / "a.h5", axes, lambda x, y: x + y, directions="interpolation"))
    assert found["barrier_1_2"] == 0 and found["barrier_2_3"] is None
    assert found["pass_1_2"] == 0, "above the worse of the two, which is 1"


@pytest.mark.parametrize(
    ("axes", "done"),
    [
        ((Axis(0.1, 1.5, 15),), None),
        ((Axis(-0.5, 0.9, 15),), None),
        ((Axis(0, 1, 2),), None),
        (LINE, np.arange(41) != 17),
    ],
    ids=["first model off", "second model off", "nothing between", "gap on the way"],
)
def test_no_barrier_where_it_cannot_be_told(tmp_path, axes, done):
    path = make(tmp_path / "a.h5", axes, well, done=done, directions="interpolation")
    stored = layout.read(path)
    assert barrier(stored, read_field(path, stored, "loss")) is None
    found = numbers(path)
    assert found["barrier"] is None and note(found, "barrier")


# Near the model


def test_the_radii_of_rise_of_a_long_valley(tmp_path):
    """1 + a x^2 + b y^2 is 2 at r = 1 / sqrt(a cos^2 + b sin^2)."""
    found = numbers(
        make(tmp_path / "a.h5", (Axis(-1, 1, 101), Axis(-1, 1, 101)), lambda x, y: 1 + 4 * x**2 + 25 * y**2)
    )
    angle = np.linspace(0, 2 * np.pi, 3600, endpoint=False)
    exact = 1 / np.sqrt(4 * np.cos(angle) ** 2 + 25 * np.sin(angle) ** 2)
    assert found["smallest_radius_of_rise"] == pytest.approx(0.2, rel=0.01)
    assert found["median_radius_of_rise"] == pytest.approx(np.median(exact), rel=0.01)


def test_directions_that_end_before_the_rise_count_as_farther():
    x = np.linspace(-0.5, 2, 26)
    found = rise([x], np.abs(x), [0.0], 1.0)
    assert found[0] == math.inf and found[1] == pytest.approx(1)


def test_what_lies_behind_a_gap_is_not_known():
    x = np.linspace(-1, 1, 21)
    values = np.abs(x)
    values[13] = np.nan  # at 0.3
    found = rise([x], values, [0.0], 0.5)
    assert found[0] == pytest.approx(0.5) and found[1] == math.inf


def test_a_gap_beside_a_ray_does_not_count():
    x = np.linspace(-1, 1, 21)
    values = np.add.outer(np.abs(x), 0 * x)
    values[:, 11] = np.nan  # the row next to the x axis
    found = rise([x, x], values, [0.0, 0.0], 0.5)
    assert found[0] == found[180] == pytest.approx(0.5) and found[90] == math.inf


def test_a_rise_within_one_step_is_too_coarse_to_say(tmp_path):
    found = numbers(make(tmp_path / "a.h5", (Axis(-1, 1, 3),), lambda x: 1 + 100 * x**2))
    assert found["smallest_radius_of_rise"] is None and "step of the grid, 1" in note(found, "smallest_radius_of_rise")


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_model_without_a_positive_value_has_no_factor(tmp_path, value):
    found = numbers(make(tmp_path / "a.h5", (Axis(-1, 1, 11),), lambda x: value + x**2))
    assert found["share_under_level"] is found["smallest_radius_of_rise"] is None
    assert numbers(str(tmp_path / "a.h5"), level=value + 0.25)["share_under_level"] == pytest.approx(5 / 11)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_interpolation_is_scipys(n):
    interpolation = pytest.importorskip("scipy.interpolate", reason="SciPy is the oracle")
    rng = np.random.default_rng(n)
    axes = [np.sort(rng.normal(size=size)) for size in (7, 5, 4)[:n]]
    values = rng.normal(size=[len(c) for c in axes])
    places = np.stack([rng.uniform(c[0], c[-1], 200) for c in axes], axis=1)
    expected = interpolation.RegularGridInterpolator(axes, values)(places)
    np.testing.assert_allclose(interpolate(axes, values, places), expected, atol=1e-8)


def test_within_a_radius_by_brute_force():
    x, y = np.linspace(-1, 1, 9), np.linspace(0, 3, 7)
    values = np.add.outer(x, 10 * y)
    values[2, 1] = np.nan
    near = [
        values[i, j]
        for i, j in np.ndindex(values.shape)
        if math.dist((x[i], y[j]), (0.25, 1.0)) <= 0.75 + 1e-12 and not np.isnan(values[i, j])
    ]
    assert sorted(within((x, y), values, (0.25, 1.0), 0.75)) == sorted(near) != []


# Convexity


@given(st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_convexity_is_exact_for_quadratic_functions(n, seed):
    rng = np.random.default_rng(seed)
    hessian = rng.normal(size=(n, n))
    hessian += hessian.T + rng.uniform(-1, 5) * np.eye(n)
    axes = [np.sort(rng.uniform(-1, 1, 5)) + np.arange(5) for _ in range(n)]  # uneven ones, too
    mesh = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    values = 0.5 * np.einsum("...i,ij,...j", mesh, hessian, mesh) + mesh @ rng.normal(size=n) + 7
    found = convexity(axes, values)
    assert found.size == 3**n and set(found) == {bool(np.linalg.eigvalsh(hessian)[0] > 0)}


def test_convexity_of_a_quartic_by_its_own_difference():
    """x^4 - x^2 has the second difference 12 x^2 + 2 h^2 - 2."""
    x = np.linspace(-1, 1, 41)
    found = convexity([x], x**4 - x**2)
    np.testing.assert_array_equal(found, 12 * x[1:-1] ** 2 + 2 * 0.05**2 - 2 > 0)


def test_a_slope_is_not_convex_by_rounding():
    x, y = np.linspace(-1, 1, 41), np.linspace(-2, 3, 31)
    assert not convexity([x, y], np.add.outer(x / 3, 10 * y) + 1000).any()
    assert not convexity([x, y], np.full((41, 31), 0.1)).any()


def test_points_beside_a_gap_are_left_out(tmp_path):
    x = np.linspace(-1, 1, 7)
    values = np.add.outer(x**2, x**2)
    values[3, 3] = np.nan
    assert convexity([x, x], values).size == 25 - 9
    found = numbers(make(tmp_path / "a.h5", (Axis(-1, 1, 2), Axis(-1, 1, 9)), bowl))
    assert found["convexity_share"] is None and note(found, "convexity_share") == "an axis has fewer than 3 points"


# Minima


def minima(values: np.ndarray) -> list[Minimum]:
    return SublevelSets(values).minima()


DEPTHS = (5.0, 3.0, 2.0, 0.5)
CENTRES = ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5))


def pits(x: Any, y: Any) -> Any:
    """A plain at 10 with cones of these depths in it, which do not touch."""
    cones = [d * np.maximum(0, 1 - np.hypot(x - a, y - b) / 0.3) for d, (a, b) in zip(DEPTHS, CENTRES, strict=True)]
    return 10 - sum(cones)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_plain_with_pits_has_as_many_minima(tmp_path, k):
    threshold = DEPTHS[k - 1] - 0.01
    found = numbers(make(tmp_path / "a.h5", PLANE, pits), persistence=threshold)
    assert found["minima"] == k
    assert found["depth_of_second_minimum"] == (pytest.approx(3) if k > 1 else None)
    assert found["mean_depth_of_minima"] == (pytest.approx(np.mean(DEPTHS[1:k])) if k > 1 else None)
    assert found["smad"] == pytest.approx(np.mean(DEPTHS)), "of all minima, whatever the threshold"
    assert found["smad_of_range"] == pytest.approx(np.mean(DEPTHS) / 5)
    depths = [pit.depth for pit in found.pits]
    assert depths == [None, *(pytest.approx(d) for d in DEPTHS[1:k])]
    for pit, centre in zip(found.pits, CENTRES, strict=False):
        assert pit.at == pytest.approx(centre)


def test_hills_of_an_accuracy_are_minima_of_its_negative(tmp_path):
    path = make(tmp_path / "a.h5", PLANE, lambda x, y: -pits(x, y), (Quantity("accuracy"),))
    found = numbers(path, persistence=0.4)
    assert found["minima"] == 4 and found["depth_of_second_minimum"] == pytest.approx(3)
    assert found.pits[0].value == pytest.approx(-5), "with its own sign"


def test_the_merge_tree_of_a_line_by_hand():
    found = minima(np.array([9.0, 0, 5, 1, 3, 2, 8]))
    assert [(m.index, m.value, m.death, m.saddle) for m in found] == [
        ((1,), 0, math.inf, 5),
        ((3,), 1, 5, 3),
        ((5,), 2, 3, 3),
    ]


def test_smad_is_the_mean_height_of_the_first_saddle(tmp_path):
    values = np.array([9.0, 0, 5, 1, 3, 2, 8])
    found = numbers(make(tmp_path / "a.h5", (Axis(-3, 3, 7),), lambda x: values))
    assert found["smad"] == pytest.approx((5 + 2 + 1) / 3)


def test_a_plateau_is_one_minimum_whatever_its_shape():
    ring = np.full((5, 5), 1.0)
    ring[2, 2] = 2
    ring[0] = ring[4] = ring[:, 0] = ring[:, 4] = 3
    assert len(minima(ring)) == 1
    assert len(minima(np.zeros((4, 4)))) == 1
    u = np.array([[0.0, 5, 0], [0, 5, 0], [0, 0, 0]])
    assert [m.index for m in minima(u)] == [(0, 0)]


def intervals(values: np.ndarray) -> list[tuple[float, float]]:
    """The births and deaths of components as gudhi finds them; gaps never come to be."""
    gudhi = pytest.importorskip("gudhi", reason="gudhi is the oracle")
    complex_ = gudhi.CubicalComplex(vertices=np.where(np.isnan(values), np.inf, values))
    complex_.compute_persistence(min_persistence=0)
    found = complex_.persistence_intervals_in_dimension(0)
    return sorted((birth, death) for birth, death in found.tolist() if birth < math.inf)


FIELDS = arrays(
    np.float64,
    array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6),
    elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0, np.nan]),
)


@given(FIELDS)
@settings(max_examples=150, deadline=None)
def test_minima_are_gudhis(values):
    assert sorted((m.value, m.death) for m in minima(values)) == intervals(values)


@pytest.mark.parametrize("shape", [(300,), (25, 20), (8, 9, 7)])
def test_minima_of_noise_are_gudhis(shape):
    values = np.random.default_rng(0).normal(size=shape)
    assert sorted((m.value, m.death) for m in minima(values)) == intervals(values)


def flooded(values: np.ndarray, start: tuple[int, ...], level: float) -> set[tuple[int, ...]]:
    """The points that are joined to start by points that are not above the level."""
    seen, todo = set(), [start]
    while todo:
        point = todo.pop()
        if point in seen or not values[point] <= level:
            continue
        seen.add(point)
        for k, step in itertools.product(range(values.ndim), (-1, 1)):
            other = point[:k] + (point[k] + step,) + point[k + 1 :]
            if all(0 <= i < n for i, n in zip(other, values.shape, strict=True)):
                todo.append(other)
    return seen


@given(FIELDS, st.randoms())
@settings(max_examples=100, deadline=None)
def test_the_lowest_pass_by_flooding(values, random):
    start, end = (tuple(random.randrange(n) for n in values.shape) for _ in range(2))
    levels = [level for level in (0, 1, 2, 3, 4) if end in flooded(values, start, level)]
    found = SublevelSets(values).lowest_pass(start, end)
    if np.isnan(values[start]) or np.isnan(values[end]):
        assert math.isnan(found)
    else:
        assert found == (levels[0] if levels else math.inf)


@given(FIELDS)
@settings(max_examples=100, deadline=None)
def test_the_first_saddle_by_flooding(values):
    """It is where the flooded region of a minimum first holds another that is lower than the level, and apart below."""
    found = minima(values)
    for m in found:
        others = {o.index for o in found} - {m.index}
        levels = [level for level in (0, 1, 2, 3, 4) if level > m.value and others & flooded(values, m.index, level)]
        first = next((v for v in levels if any(values[o] < v for o in others & flooded(values, m.index, v))), math.inf)
        assert m.saddle == first


# What is missing, and what is wrong


def test_what_has_no_value_is_left_out_and_counted(tmp_path):
    values = np.array([[1.0, 2, np.nan], [4, np.inf, 6], [7, -np.inf, 9]])
    done = np.ones((3, 3), bool)
    done[0, 0] = False
    found = numbers(make(tmp_path / "a.h5", (Axis(-1, 1, 3),) * 2, lambda x, y: values, done=done))
    assert (found["points"], found["unfinished"], found["nan"], found["infinite"]) == (5, 1, 1, 2)
    assert (found["minimum"], found["maximum"]) == (2, 9)
    assert found["value_at_model"] is None and note(found, "value_at_model") == "no value there"
    assert found["convexity_share"] is None


@pytest.mark.parametrize("huge", [1e308, -1e308])
def test_of_huge_values_what_is_no_number_is_null(tmp_path, huge):
    path = make(
        tmp_path / "a.h5", PLANE, lambda x, y: np.where(x > 0, huge, -huge) * (1 - y**2), directions="interpolation"
    )
    found = strict(numbers(path).json())
    assert found["numbers"]["maximum"]["value"] == 1e308


def refused(capsys: Any, *words: str) -> str:
    """The one line with which the command ends, with exit code 2."""
    assert main(list(words)) == 2
    out, error = capsys.readouterr()
    assert not out and error.count("\n") == 1 and error.startswith("hpc_landscape: error: ")
    return str(error)


def test_one_point_no_value_and_no_point_are_refused_in_a_line(tmp_path, capsys):
    one = make(tmp_path / "one.h5", (Axis(0, 0, 1), Axis(0, 0, 1)))
    assert "one point" in refused(capsys, "info", one, "--numbers")
    nothing = make(tmp_path / "nan.h5", PLANE, lambda x, y: x * np.nan)
    assert "no finite value: 1681 NaN" in refused(capsys, "info", nothing, "--numbers")
    undone = make(tmp_path / "undone.h5", PLANE, done=np.zeros((41, 41)))
    assert "0 of 1681 points done" in refused(capsys, "info", undone, "--numbers")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--numbers", "--metric", "f1"], "has no metric 'f1'"),
        (["--numbers", "--radius", "0"], "radius 0"),
        (["--numbers", "--radius", "nan"], "radius nan"),
        (["--numbers", "--level", "inf"], "level inf"),
        (["--numbers", "--factor", "1"], "factor 1"),
        (["--numbers", "--persistence=-1"], "persistence -1"),
        (["--numbers", "--json", "--csv"], "one of the two"),
        (["--json"], "--json goes with --numbers"),
        (["--csv"], "--csv goes with --numbers"),
        (["--level", "0"], "--level goes with --numbers"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_a_line(tmp_path, capsys, words, said):
    assert said in refused(capsys, "info", make(tmp_path / "a.h5"), *words)


def test_files_that_are_none_are_refused_in_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "text.h5").write_text("no file of ours")
    refused(capsys, "info", str(tmp_path / "text.h5"), "--numbers")
    refused(capsys, "info", str(tmp_path / "none.h5"), "--numbers")
    with pytest.raises(UserError):
        numbers(str(tmp_path / "none.h5"))


# How they are printed


def test_table_json_and_csv_say_the_same(tmp_path, capsys):
    path = make(tmp_path / "a.h5", LINE, lambda x: 0.1 + well(x), directions="interpolation")
    found = numbers(path, persistence=0.5)
    forms = []
    for form in ([], ["--json"], ["--csv"]):
        assert main(["info", path, "--numbers", "--persistence", "0.5", *form]) == 0
        forms.append(capsys.readouterr().out)
    table, tree, rows = forms[0], strict(forms[1]), list(csv.DictReader(io.StringIO(forms[2])))
    assert tree["options"]["persistence"] == 0.5 and tree["metric"] == "loss"
    assert {name: n["value"] for name, n in tree["numbers"].items()} == {n.name: n.value for n in found.numbers}
    assert tree["numbers"]["barrier"]["at"] == [0.5]
    assert [(r["name"], r["value"]) for r in rows] == [
        (n.name, "" if n.value is None else repr(n.value)) for n in found.numbers
    ]
    assert tree["minima"][1]["depth"] == pytest.approx(1)
    lines = table.splitlines()
    assert lines[0] == f"{path}: loss, 41 points"
    barrier_row = next(line for line in lines if line.startswith("barrier "))
    assert barrier_row.split(maxsplit=2) == ["barrier", "1", "first model to second model, at 0.5"]


def test_components_of_a_metric_have_numbers_too(tmp_path):
    quantities = (Quantity("eigenvalues", (2,), ("eigenvalue",)),)
    path = make(tmp_path / "a.h5", PLANE, lambda x, y: np.stack([x, y**2], axis=-1), quantities)
    assert numbers(path, "eigenvalues[1]")["maximum"] == 1


def test_a_file_of_an_unknown_kind_and_hostile_texts_is_measured(tmp_path, capsys):
    path = make(tmp_path / "a\x1b[31m.h5", PLANE, directions="nobody's", title="<script>", settings="{[")
    assert main(["info", path, "--numbers"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_table_steers_no_terminal():
    assert aligned([("a", "bc"), ("def", "\x1b[31m")]) == ["a    bc", "def  \\x1b[31m"]


def test_one_large_value_hides_no_convexity():
    """The bowl is convex wherever its corner is not a neighbour."""
    x = np.linspace(-1, 1, 21)
    values = x[:, None] ** 2 + x**2
    values[0, 0] = 1e13
    assert convexity((x, x), values).sum() == 19 * 19 - 1


def test_a_rise_at_a_grid_point_is_there():
    """1 + 4 x^2 is 2 at 0.5, which is a point of the grid: linear interpolation reaches it there, and no earlier."""
    x = np.linspace(-1, 1, 5)
    np.testing.assert_allclose(rise((x,), 1 + 4 * x**2, [0.0], 2.0), 0.5, rtol=1e-12)


def test_a_rise_of_one_step_is_told(tmp_path):
    path = make(tmp_path / "a.h5", (Axis(-1, 1, 5),), bowl)
    assert numbers(path)["smallest_radius_of_rise"] == pytest.approx(0.5)


def test_minima_that_gaps_part_have_no_saddle(tmp_path):
    path = make(tmp_path / "a.h5", (Axis(-2, 2, 5),), lambda x: np.where(x == 0, np.nan, np.abs(np.abs(x) - 1)))
    found = numbers(path)
    assert found["minima"] == 2 and found["smad"] is None and "gaps" in note(found, "smad")


def test_paths_may_be_path_objects(tmp_path):
    make(tmp_path / "a.h5", LINE, bowl)
    assert strict(numbers(tmp_path / "a.h5").json())["file"] == str(tmp_path / "a.h5")
