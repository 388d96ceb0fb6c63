"""Projection on a plane, against NumPy's lstsq."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from hpc_landscape.directions.components import principal_directions
from hpc_landscape.directions.projection import project

SHAPES = {"conv": (4, 3, 2, 2), "bias": (6,), "scale": (), "empty": (0, 4)}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())


def tensors(vector: np.ndarray, dtype=torch.float64) -> dict[str, torch.Tensor]:
    made, start = {}, 0
    for name, shape in SHAPES.items():
        n = int(np.prod(shape))
        made[name] = torch.tensor(np.asarray(vector)[start : start + n].reshape(shape)).to(dtype)
        start += n
    return made


def flat(mapping) -> np.ndarray:
    return np.concatenate([mapping[name].double().numpy().ravel() for name in SHAPES])


def callables(points):
    return [lambda p=p: {"running_mean": torch.full((3,), torch.nan), **dict(reversed(p.items()))} for p in points]


def drawn(n: int, seed: int = 0, dtype=torch.float64):
    draw = np.random.default_rng(seed)
    return [tensors(draw.standard_normal(SIZE), dtype) for _ in range(n)]


def lstsq(points, origin, directions) -> tuple[np.ndarray, np.ndarray]:
    a = np.stack([flat(d) for d in directions], axis=1)
    b = np.stack([flat(p) - flat(origin) for p in points], axis=1)
    c = np.linalg.lstsq(a, b, rcond=1e-10)[0]
    return c.T, np.linalg.norm(b - a @ c, axis=0)


def assert_least_squares(points, origin, directions, tolerance: float = 1e-12) -> None:
    coordinates, distances = project(callables(points), origin, directions)
    expected, expected_distances = lstsq(points, origin, directions)
    assert coordinates.dtype == distances.dtype == np.float64
    assert coordinates.shape == (len(points), len(directions)) and distances.shape == (len(points),)
    np.testing.assert_allclose(coordinates, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
    np.testing.assert_allclose(distances, expected_distances, rtol=tolerance)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_against_lstsq(k, dtype):
    origin, *points = drawn(6, dtype=dtype)
    assert_least_squares(points, origin, drawn(k, seed=1, dtype=dtype))


def test_mixed_precisions():
    origin, *points = drawn(6, dtype=torch.bfloat16)
    assert_least_squares([*points, *drawn(2, 5)], origin, [*drawn(1, 1, torch.float32), *drawn(1, 2, torch.float16)])


@pytest.mark.parametrize("angle", [1.0, 1e-2, 1e-4])
def test_oblique_directions(angle):
    origin, *points = drawn(6)
    a, b = drawn(2, seed=1)
    oblique = {name: a[name] + angle * b[name] for name in SHAPES}
    assert_least_squares(points, origin, [a, oblique], 1e-15 / angle**2 + 1e-12)


@pytest.mark.parametrize("length", [1e-12, 1e-5, 1e6, 1e15])
def test_lengths_do_not_matter(length):
    """A direction 1e12 times shorter than the other counts as much: only angles make directions dependent."""
    origin, *points = drawn(6)
    a, b = drawn(2, seed=1)
    expected, distance = lstsq(points, origin, [a, b])
    scaled = {name: t * length for name, t in b.items()}
    found, found_distance = project(callables(points), origin, [a, scaled])
    np.testing.assert_allclose(found * [1, length], expected, rtol=1e-12)
    np.testing.assert_allclose(found_distance, distance, rtol=1e-12)


ZERO = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
A, B = drawn(2, seed=1)


def times(direction, factor: float):
    return {name: t * factor for name, t in direction.items()}


@pytest.mark.parametrize(
    "directions",
    [
        [A, ZERO],
        [ZERO, A],
        [ZERO],
        [ZERO, ZERO, ZERO],
        [A, A],
        [A, times(A, -3)],
        [A, times(A, 0.1), times(A, 7)],
        [A, B, times(B, 1e-3)],
        [A, B, {name: 2 * A[name] - 0.3 * B[name] for name in SHAPES}],
        [A, ZERO, times(A, 1 / 3)],
    ],
)
def test_zero_and_dependent_directions(directions):
    """The solution of minimum norm, as lstsq has it."""
    origin, *points = drawn(6)
    assert_least_squares(points, origin, directions, 1e-10)


def test_points_of_the_plane_are_recovered():
    (origin,), wanted = drawn(1), np.random.default_rng(4).uniform(-2, 2, (20, 2))
    points = [tensors(flat(origin) + c @ np.stack([flat(A), flat(B)])) for c in wanted]
    coordinates, distances = project(callables(points), origin, [A, B])
    np.testing.assert_allclose(coordinates, wanted, rtol=1e-12, atol=1e-14)
    assert distances.max() < 1e-14 * np.linalg.norm(flat(A)) * 10
    at_origin, distance = project([lambda: origin], origin, [A, B])
    assert not at_origin.any() and not distance.any()


def test_a_known_distance():
    """Off the plane by 3 along one coordinate that no direction has."""
    origin = tensors(np.zeros(SIZE))
    x, y, off = (tensors(np.eye(SIZE)[i]) for i in (0, 5, 9))
    point = {name: 2 * x[name] - 7 * y[name] + 3 * off[name] for name in SHAPES}
    coordinates, distances = project([lambda: point], origin, [times(x, 4), y])
    np.testing.assert_allclose(coordinates, [[0.5, -7]], rtol=1e-15)
    np.testing.assert_allclose(distances, [3], rtol=1e-15)


def test_names():
    """What a direction lacks does not move; what the origin lacks is nobody's."""
    origin, *points = drawn(4)
    short = {"bias": A["bias"], "elsewhere": torch.ones(2)}
    full = {**ZERO, "bias": A["bias"]}
    found, expected = (project(callables(points), origin, [d, B]) for d in (short, full))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-14)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-14)
    np.testing.assert_allclose(found[0], lstsq(points, origin, [full, B])[0], rtol=1e-12)
    apart, _ = project(callables(points), origin, [{"bias": A["bias"]}, {"scale": A["scale"]}])  # no name in common
    one = (flat(points[0]) - flat(origin)) @ flat(full) / (flat(full) @ flat(full))
    np.testing.assert_allclose(apart[0, 0], one, rtol=1e-12)


def test_nothing():
    origin, point = drawn(2)
    coordinates, distances = project([], origin, [A, B])
    assert coordinates.shape == (0, 2) and distances.shape == (0,)
    coordinates, distances = project([lambda: point], origin, [])
    assert coordinates.shape == (1, 0)
    np.testing.assert_allclose(distances, [np.linalg.norm(flat(point) - flat(origin))], rtol=1e-14)


def test_values_that_are_not_finite_stay_so():
    origin, *points = drawn(4)
    points[1]["bias"][0] = torch.nan
    points[2]["scale"].fill_(torch.inf)
    coordinates, distances = project(callables(points), origin, [A, B])
    assert np.isfinite(coordinates).all(axis=1).tolist() == [True, False, False]
    assert np.isfinite(distances).tolist() == [True, False, False]


def test_parameters_that_want_gradients():
    origin, *points = drawn(4)
    wanted = project(callables(points), origin, [A, B])

    def grad(p):
        return {name: torch.nn.Parameter(t) for name, t in p.items()}

    found = project(callables([grad(p) for p in points]), grad(origin), [grad(A), grad(B)])
    assert np.array_equal(found[0], wanted[0]) and np.array_equal(found[1], wanted[1])


def test_the_arguments_are_left_as_they_are():
    everything = drawn(4, dtype=torch.float64)
    before = [flat(p).tobytes() for p in everything]
    project([lambda: everything[0], lambda: everything[1]], everything[2], everything[3:])
    assert [flat(p).tobytes() for p in everything] == before


def test_one_point_at_a_time():
    alive, peak, calls = set(), [], []

    def load(i: int):
        array = np.random.default_rng(i).standard_normal(SIZE)
        calls.append(i)
        alive.add(i)
        weakref.finalize(array, alive.discard, i)
        peak.append(len(alive))
        tensor = torch.from_numpy(array)
        del array
        return {"w": tensor[:-1], "b": tensor[-1]}

    zero = {"w": torch.zeros(SIZE - 1), "b": torch.tensor(0.0)}
    project([lambda i=i: load(i) for i in range(6)], zero, [{"w": torch.ones(SIZE - 1)}])
    assert peak == [1] * 6 and calls == list(range(6)) and not alive


def test_with_principal_directions():
    """Coordinates of a trajectory on its own components, about the origin: differences of them are those of PCA."""
    origin, *points = drawn(9)
    directions, ratio = principal_directions(callables(points), origin, 2)
    coordinates, distances = project(callables(points), origin, directions)
    x = np.stack([flat(p) for p in points])
    centred = x - x.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(coordinates - coordinates.mean(axis=0)), np.abs(u * s)[:, :2], rtol=1e-9)
    share = ((coordinates - coordinates.mean(axis=0)) ** 2).sum() / (centred**2).sum()
    np.testing.assert_allclose(share, ratio[:2].sum(), rtol=1e-12)
    assert distances.min() > 0
