"""Principal directions, against NumPy's SVD of the centred checkpoints; and how many are held while they are found."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from hpc_landscape.directions import components
from hpc_landscape.directions.components import principal_directions
from hpc_landscape.directions.interpolation import differences
from hpc_landscape.errors import UserError

SHAPES = {"conv": (6, 3, 2, 2), "bias": (6,), "scale": (), "empty": (0, 4), "linear": (5, 7)}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())


def tensors(vector: np.ndarray, dtype=torch.float64) -> dict[str, torch.Tensor]:
    """A flat vector as parameters; dtype: of all, or by name."""
    made, start = {}, 0
    for name, shape in SHAPES.items():
        n = int(np.prod(shape))
        kind = dtype[name] if isinstance(dtype, dict) else dtype
        made[name] = torch.tensor(vector[start : start + n].reshape(shape)).to(kind)
        start += n
    return made


def flat(mapping) -> np.ndarray:
    return np.concatenate([mapping[name].double().numpy().ravel() for name in SHAPES])


def callables(points, extra: bool = True):
    """Extra: a name that the origin has not, and the names in another order."""
    more = {"running_mean": torch.full((3,), torch.nan)} if extra else {}
    return [lambda p=p: {**more, **dict(reversed(p.items()))} for p in points]


def cloud(n: int, seed: int = 0, dtype=torch.float64):
    """n checkpoints whose spread falls off from component to component, and an origin beside them."""
    draw = np.random.default_rng(seed)
    spread = np.geomspace(1, 0.05, SIZE)
    centre = draw.standard_normal(SIZE)
    points = [tensors(centre + spread * draw.standard_normal(SIZE), dtype) for _ in range(n)]
    return tensors(centre + 0.3 * draw.standard_normal(SIZE), dtype), points


def svd(points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(components (rank, SIZE), explained variance ratio, coordinates (n, rank)), as scikit-learn's PCA has them."""
    x = np.stack([flat(p) for p in points])
    x = x - x.mean(axis=0)
    _, s, v = np.linalg.svd(x, full_matrices=False)
    s, v = s[: len(points) - 1], v[: len(points) - 1]
    return v, s**2 / (s**2).sum(), x @ v.T


def assert_same_axes(found, expected: np.ndarray, tolerance: float) -> None:
    """Equal up to sign."""
    for direction, v in zip(found, expected, strict=False):
        d = flat(direction)
        np.testing.assert_allclose(d * np.sign(d @ v), v, rtol=0, atol=tolerance)


@pytest.mark.parametrize("n", [4, 9, 30])
@pytest.mark.parametrize("memory", [0, 2**31])
def test_against_svd(n, memory):
    origin, points = cloud(n)
    found, ratio = principal_directions(callables(points), origin, 3, memory)
    expected, expected_ratio, _ = svd(points)
    assert len(found) == 3 and all(list(d) == list(SHAPES) for d in found)
    assert_same_axes(found, expected[:3], 1e-12)
    assert ratio.dtype == np.float64
    np.testing.assert_allclose(ratio, expected_ratio, rtol=1e-11)
    np.testing.assert_allclose(ratio.sum(), 1, rtol=1e-14)


def test_the_origin_does_not_matter():
    origin, points = cloud(8)
    found, ratio = principal_directions(callables(points), origin, 2)
    again, ratio_again = principal_directions(callables(points), points[-1], 2)
    far = {name: t + 1e4 for name, t in origin.items()}
    from_far, _ = principal_directions(callables(points), far, 2)
    for a, b, c in zip(found, again, from_far, strict=True):
        np.testing.assert_allclose(flat(b), flat(a), rtol=0, atol=1e-13)
        np.testing.assert_allclose(flat(c), flat(a), rtol=0, atol=5e-6)
    np.testing.assert_allclose(ratio_again, ratio, rtol=1e-12)


def test_directions_are_orthonormal_even_where_one_is_much_the_shorter():
    """Eigenvectors of a Gram matrix alone are not: 1e-6 in length is 1e-12 in variance."""
    draw = np.random.default_rng(3)
    basis = np.linalg.qr(draw.standard_normal((SIZE, 3)))[0].T
    spread = np.array([1, 1e-3, 1e-5])
    points = [tensors(draw.standard_normal(3) * spread @ basis) for _ in range(12)]
    found, ratio = principal_directions(callables(points), points[-1], 3)
    d = np.stack([flat(x) for x in found])
    np.testing.assert_allclose(d @ d.T, np.eye(3), rtol=0, atol=1e-14)
    assert len(ratio) == 3
    np.testing.assert_allclose(ratio, svd(points)[1][:3], rtol=1e-4)


def test_a_trajectory_in_a_plane_is_recovered():
    """Every checkpoint is the mean plus its two coordinates times the directions, and nothing else is left."""
    draw = np.random.default_rng(1)
    angle = np.linspace(0, 2, 15)[:, None]
    plane = np.concatenate([3 * np.cos(angle), np.sin(angle)], axis=1) @ draw.standard_normal((2, SIZE))
    start = draw.standard_normal(SIZE)
    points = [tensors(start + p) for p in plane]
    found, ratio = principal_directions(callables(points), points[-1], 2)
    x = np.stack([flat(p) for p in points])
    d = np.stack([flat(f) for f in found])
    centred = x - x.mean(axis=0)
    assert np.linalg.norm(centred - centred @ d.T @ d) < 1e-12 * np.linalg.norm(centred)
    assert len(ratio) == 2
    np.testing.assert_allclose(ratio.sum(), 1, rtol=1e-12)


def test_signs():
    """Of the checkpoints farthest out, the first is on the negative side; two checkpoints are a tie."""
    for n, seed in [(2, 0), (2, 1), (2, 2), (7, 0), (7, 1), (7, 2)]:
        origin, points = cloud(n, seed)
        count = min(n - 1, 3)
        found, _ = principal_directions(callables(points), origin, count)
        x = np.stack([flat(p) for p in points])
        coordinates = (x - x.mean(axis=0)) @ np.stack([flat(d) for d in found]).T
        size = np.abs(coordinates)
        first = [int(np.flatnonzero(s > s.max() * (1 - 1e-6))[0]) for s in size.T]
        assert all(coordinates[i, k] < 0 for k, i in enumerate(first))
        if n == 2:
            assert first == [0]


def test_reversing_two_checkpoints_turns_the_direction():
    origin, points = cloud(2)
    ((there,), _), ((back,), _) = (principal_directions(callables(p), origin, 1) for p in (points, points[::-1]))
    np.testing.assert_allclose(flat(back), -flat(there), rtol=0, atol=1e-15)
    way = flat(points[1]) - flat(points[0])
    np.testing.assert_allclose(flat(there), way / np.linalg.norm(way), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    """The arithmetic is of float64 on the values as they are; only the result is rounded."""
    origin, points = cloud(10, dtype=dtype)
    found, ratio = principal_directions(callables(points), origin, 2)
    assert all(d[name].dtype == dtype and d[name].shape == SHAPES[name] for d in found for name in SHAPES)
    expected, expected_ratio, _ = svd(points)
    assert_same_axes(found, expected[:2], torch.finfo(dtype).eps / 2)
    np.testing.assert_allclose(ratio, expected_ratio, rtol=1e-10)


def test_mixed_precisions():
    kinds = [torch.bfloat16, torch.float32, torch.float64, torch.float16, torch.float32]
    dtypes = dict(zip(SHAPES, kinds, strict=True))
    origin, _ = cloud(1, dtype=dtypes)
    _, points = cloud(10)  # the checkpoints have another one
    found, ratio = principal_directions(callables(points), origin, 2)
    assert all(d[name].dtype == dtypes[name] for d in found for name in SHAPES)
    expected, expected_ratio, _ = svd(points)
    assert_same_axes(found, expected[:2], 2**-8)
    np.testing.assert_allclose(ratio, expected_ratio, rtol=1e-10)


def test_layouts_and_gradients():
    """Channels-last and transposed weights, and parameters that want gradients, are numbers like others."""
    origin, points = cloud(6)
    expected, _ = principal_directions(callables(points), origin, 2)

    def other(p):
        last = p["conv"].contiguous(memory_format=torch.channels_last)
        p = {**p, "conv": last, "linear": p["linear"].t().contiguous().t()}
        return {name: torch.nn.Parameter(t) for name, t in p.items()}

    found, _ = principal_directions(callables([other(p) for p in points]), other(origin), 2)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(found, expected, strict=True) for name in SHAPES)
    assert not any(t.requires_grad for d in found for t in d.values())


@pytest.mark.parametrize("piece", [1, 7, 100])
def test_pieces(piece, monkeypatch):
    origin, points = cloud(6)
    expected, ratio = principal_directions(callables(points), origin, 2)
    monkeypatch.setattr(components, "PIECE", piece * 12)
    found, again = principal_directions(callables(points), origin, 2)
    np.testing.assert_allclose(again, ratio, rtol=1e-12)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(flat(a), flat(b), rtol=0, atol=1e-13)


def test_the_arguments_are_left_as_they_are():
    origin, points = cloud(5)
    before = [flat(p).tobytes() for p in [origin, *points]]
    found, _ = principal_directions(callables(points), origin, 2)
    for d in found:
        for t in d.values():
            t.add_(1)
    assert [flat(p).tobytes() for p in [origin, *points]] == before


# Memory


class Loader:
    """Checkpoints made anew at each call; counts how many are alive, by the memory behind their tensors."""

    def __init__(self, vectors: np.ndarray):
        self.vectors, self.calls, self.peak = vectors, 0, 0
        self.alive: set[int] = set()

    def __getitem__(self, i: int):
        return lambda: self.load(i)

    def __len__(self) -> int:
        return len(self.vectors)

    def load(self, i: int):
        array = self.vectors[i].copy()
        self.calls += 1
        self.alive.add(self.calls)
        weakref.finalize(array, self.alive.discard, self.calls)
        self.peak = max(self.peak, len(self.alive))
        tensor = torch.from_numpy(array)  # holds the array as long as anything uses its memory
        del array
        return {"w": tensor[:90].view(9, 10), "b": tensor[90]}


ONE = 91 * 8  # bytes


@pytest.mark.parametrize(
    "fit, peak", [(0, 2), (1, 2), (2, 2), (3, 2), (4, 4), (5, 4), (9, 8), (10, 10), (11, 11), (12, 11)]
)
def test_memory_is_kept_to(fit, peak):
    vectors = np.random.default_rng(0).standard_normal((11, 91))
    loader = Loader(vectors)
    origin = {"w": torch.zeros(9, 10, dtype=torch.float64), "b": torch.tensor(0.0, dtype=torch.float64)}
    found, ratio = principal_directions(loader, origin, 2, fit * ONE)
    assert loader.peak == peak and not loader.alive
    size = 11 if fit >= 11 else max(2, fit) // 2
    blocks = [min(size, 11 - i) for i in range(0, 11, size)]
    pairs = sum(block * (row + 1 if row else 1) for row, block in enumerate(blocks))
    assert loader.calls == 1 + pairs + 11  # for the size, for the inner products, for the directions
    x = vectors - vectors.mean(axis=0)
    _, s, v = np.linalg.svd(x, full_matrices=False)
    d = np.stack([np.append(f["w"].numpy().ravel(), f["b"].numpy()) for f in found])
    np.testing.assert_allclose(np.abs(d @ v[:2].T), np.eye(2), rtol=0, atol=1e-12)
    np.testing.assert_allclose(ratio, s[:10] ** 2 / (s[:10] ** 2).sum(), rtol=1e-11)


# Mistakes


@pytest.mark.parametrize("n, count", [(0, 1), (1, 1), (1, 2), (2, 2), (3, 3)])
def test_too_few(n, count):
    origin, points = cloud(n)
    with pytest.raises(UserError, match=f"need at least {count + 1} different checkpoints.* there are {n}"):
        principal_directions(callables(points), origin, count)


def test_too_few_that_differ():
    origin, points = cloud(2)
    same = [points[i % 2] for i in range(9)]
    with pytest.raises(UserError, match="the 9 given span a space of dimension 1"):
        principal_directions(callables(same), origin, 2)
    (found,), ratio = principal_directions(callables(same), origin, 1)
    np.testing.assert_allclose(ratio, [1])
    way = flat(points[0]) - flat(points[1])  # the second is the farther from the mean of 5 and 4
    np.testing.assert_allclose(flat(found), way / np.linalg.norm(way), rtol=0, atol=1e-13)
    with pytest.raises(UserError, match="dimension 0"):
        principal_directions(callables(points[:1] * 4), origin, 1)
    with pytest.raises(UserError, match="dimension 0"):
        principal_directions(callables(points[:1] * 4), points[0], 1)


def test_checkpoints_along_one_line():
    origin, (a, b) = cloud(2)
    line = [{name: torch.lerp(a[name], b[name], c) for name in SHAPES} for c in np.linspace(0, 1, 6)]
    with pytest.raises(UserError, match="dimension 1"):
        principal_directions(callables(line), origin, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("memory", [0, 2**31])
def test_not_finite(value, memory):
    origin, points = cloud(5)
    points[3]["scale"].fill_(value)
    with pytest.raises(UserError, match="checkpoint 4 of 5 has values in scale that are not finite"):
        principal_directions(callables(points), origin, 2, memory)


# Interpolation


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_differences(dtype):
    origin, ends = cloud(2, dtype=dtype)
    found = differences(origin, [{**end, "running_mean": torch.ones(3)} for end in ends])
    for direction, end in zip(found, ends, strict=True):
        assert list(direction) == list(SHAPES)
        for name in SHAPES:
            assert direction[name].dtype == dtype and direction[name].shape == SHAPES[name]
            wanted = end[name].double().numpy() - origin[name].double().numpy()
            assert torch.equal(direction[name], torch.as_tensor(wanted).to(dtype))
    assert differences(origin, []) == []


def test_differences_to_another_precision():
    """The values as they are, then the origin's precision."""
    (origin, _), (_, ends) = cloud(1, dtype=torch.bfloat16), cloud(2)
    for direction, end in zip(differences(origin, ends), ends, strict=True):
        for name in SHAPES:
            assert torch.equal(direction[name], (end[name] - origin[name].double()).to(torch.bfloat16))


def test_no_difference():
    origin, (end,) = cloud(1)
    with pytest.raises(UserError, match="model 2 of the 2 to go to equals the model at the origin"):
        differences(origin, [end, {name: t.clone() for name, t in origin.items()}])
    one = {name: t.clone() for name, t in origin.items()}
    one["scale"] += 1e-3
    (direction,) = differences(origin, [one])  # a single number suffices
    assert [name for name in SHAPES if direction[name].any()] == ["scale"]
    end["bias"][2] = torch.nan
    with pytest.raises(UserError, match="model 1 of the 1 to go to differs from the origin in bias"):
        differences(origin, [end])
