"""Directions, against NumPy: the draw recomputed, the norms part by part."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from hpc_landscape.directions.base import Origin
from hpc_landscape.directions.normalize import cosine, normalize, orthogonalize
from hpc_landscape.directions.projection import around
from hpc_landscape.directions.random import draw, random_directions
from hpc_landscape.directions.registry import make_directions
from hpc_landscape.errors import UserError
from hpc_landscape.grid import Axis
from hpc_landscape.settings import Settings

SHAPES = {"conv": (6, 3, 2, 2), "bias": (6,), "linear": (5, 7), "scale": (), "empty": (0, 4)}


def weights(dtype=torch.float32) -> dict[str, torch.Tensor]:
    draw = np.random.default_rng(7)
    return {name: torch.as_tensor(draw.standard_normal(shape)).to(dtype) for name, shape in SHAPES.items()}


def drawn(seed: int = 0, count: int = 1, distribution: str = "normal") -> list[dict[str, torch.Tensor]]:
    return random_directions(weights(), count, seed, distribution)


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


# The draw


def golden(seed: int, which: int, distribution: str) -> dict[str, np.ndarray]:
    """Direction number ``which``, drawn again from NumPy alone: a stream for each parameter's name."""
    values = {}
    for name, shape in SHAPES.items():
        digest = hashlib.sha256(name.encode()).digest()
        words = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4)]
        sequence = np.random.SeedSequence(entropy=seed, spawn_key=(which, *words))
        stream = np.random.Generator(np.random.PCG64(sequence))
        if distribution == "normal":
            values[name] = stream.standard_normal(shape, dtype=np.float32)
        else:
            values[name] = np.float32(2) * stream.random(shape, dtype=np.float32) - np.float32(1)
    return values


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_the_draw_is_numpy_s(seed, distribution):
    for which, direction in enumerate(drawn(seed, 3, distribution)):
        assert list(direction) == list(SHAPES)
        for name, values in golden(seed, which, distribution).items():
            assert direction[name].dtype == torch.float32 and direction[name].shape == SHAPES[name]
            assert direction[name].numpy().tobytes() == np.asarray(values).tobytes(), name


FIRST = {  # (seed, direction, name, distribution): what files that keep no directions are made again from
    (0, 0, "conv.weight", "normal"): [0.4809905, 0.09741771, 0.131543],
    (0, 1, "conv.weight", "normal"): [-1.8472052, -1.2733865, 2.5693786],
    (2**63 - 1, 0, "größe", "normal"): [-0.27019852, -0.23415472, -0.6933598],
    (7, 2, "", "uniform"): [0.20921457, 0.7123668, 0.19464362],
}


@pytest.mark.parametrize("of", FIRST)
def test_the_first_numbers(of):
    seed, direction, name, distribution = of
    np.testing.assert_array_equal(draw(seed, direction, name, (3,), distribution), np.float32(FIRST[of]))


def test_a_part_depends_on_no_other_part():
    """Any rank can draw any parameter's part alone."""
    some = {name: w for name, w in reversed(weights().items()) if name != "conv"} | {"more": torch.zeros(9)}
    among_others = random_directions(some, 2, 5)
    for number, direction in enumerate(drawn(5, 2)):
        for name in set(SHAPES) - {"conv"}:
            assert torch.equal(among_others[number][name], direction[name])
            assert np.array_equal(draw(5, number, name, SHAPES[name]), direction[name].numpy())


def test_streams_are_independent():
    """No correlation between names, however alike, between directions, or between seeds, nor at a small lag."""
    n = 50_000
    names = ["layer.0.weight", "layer.1.weight", "layer.0.weight ", "layer.0.bias", "Layer.0.weight"]
    keys = [(seed, direction, name) for seed in (0, 1, 2**32) for direction in (0, 1, 2) for name in names]
    values = np.stack([draw(*key, (n,)) for key in keys]).astype(np.float64)
    for lag in range(3):
        products = values[:, : n - lag] @ values[:, lag:].T / (n - lag)
        if lag == 0:
            np.fill_diagonal(products, 0)
        assert np.abs(products).max() < 5 / np.sqrt(n)  # five standard errors, of some 2,000 pairs at each lag


def test_the_draw_depends_on_the_seed_alone():
    before = drawn(3, 2)
    torch.manual_seed(99)
    np.random.seed(99)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        again = drawn(3, 2)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(before, again, strict=True) for n in a)


def test_seeds_and_directions_differ():
    flat = [torch.cat([d[n].reshape(-1) for n in d]) for seed in range(4) for d in drawn(seed, 3)]
    values = torch.cat(flat)
    assert len(values.unique()) > 0.999 * len(values)


@pytest.mark.parametrize("count", [2, 3])
def test_the_first_of_several_is_the_only_one_of_a_line(count):
    line, plane = drawn(5, 1), drawn(5, count)
    assert all(torch.equal(line[0][n], plane[0][n]) for n in line[0])


def test_distributions():
    big = {"w": torch.zeros(400, 500)}
    n = 200_000
    normal = random_directions(big, 1, 0, "normal")[0]["w"].double().numpy().ravel()
    # Five standard errors: mean 1/sqrt(n), variance sqrt(2/n), fourth moment sqrt(96/n)
    assert abs(normal.mean()) < 5 / np.sqrt(n)
    assert abs(normal.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((normal**4).mean() - 3) < 5 * np.sqrt(96 / n)
    uniform = random_directions(big, 1, 0, "uniform")[0]["w"].double().numpy().ravel()
    assert uniform.min() >= -1 and uniform.max() <= 1
    assert uniform.min() < -0.999 and uniform.max() > 0.999
    assert abs(uniform.mean()) < 5 * np.sqrt(1 / 3 / n)
    assert abs(uniform.var() - 1 / 3) < 5 * np.sqrt(4 / 45 / n)
    assert abs((uniform < 0).mean() - 0.5) < 5 * np.sqrt(0.25 / n)


# Norms


def by_hand(d: np.ndarray, w: np.ndarray, how: str) -> np.ndarray:
    """Li et al. 2018, section 4, filter by filter in loops."""
    if how == "layer" or d.ndim < 2:
        return d * np.sqrt((w**2).sum()) / (np.sqrt((d**2).sum()) + 1e-10)
    out = np.zeros_like(d)
    for f in range(d.shape[0]):
        out[f] = d[f] * np.sqrt((w[f] ** 2).sum()) / (np.sqrt((d[f] ** 2).sum()) + 1e-10)
    return out


@pytest.mark.parametrize("how", ["filter", "layer"])
@pytest.mark.parametrize("ignore", ["biasbn", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_filter_and_layer(how, ignore, dtype):
    w, (d,) = weights(dtype), drawn(1)
    found = normalize(d, w, how, ignore)
    assert list(found) == list(SHAPES)
    for name in SHAPES:
        assert found[name].dtype == dtype and found[name].shape == SHAPES[name]
        expected = by_hand(array(d[name]), array(w[name]), how)
        if ignore == "biasbn" and len(SHAPES[name]) < 2:
            expected = np.zeros_like(expected)
        np.testing.assert_allclose(array(found[name]), expected, rtol=max(torch.finfo(dtype).eps, 1e-15), atol=0)


def test_filter_norms_are_those_of_the_weights():
    w, (d,) = weights(torch.float64), drawn(2)
    found = normalize(d, w, "filter", "none")
    for name in ("conv", "linear"):
        norms = [np.linalg.norm(array(t[name]).reshape(len(t[name]), -1), axis=1) for t in (found, w)]
        np.testing.assert_allclose(*norms, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(array(found["bias"])), np.linalg.norm(array(w["bias"])), rtol=1e-9)
    # and the direction's shape within a filter is as it was drawn
    ratio = array(found["conv"]) / array(d["conv"])
    np.testing.assert_allclose(ratio, ratio[:, :1, :1, :1] * np.ones_like(ratio), rtol=1e-12)


def flat(tensors, names=SHAPES) -> np.ndarray:
    return np.concatenate([array(tensors[n]).ravel() for n in names])


@pytest.mark.parametrize("ignore", ["biasbn", "none"])
def test_model(ignore):
    w, (d,) = weights(torch.float64), drawn(1)
    found = normalize(d, w, "model", ignore)
    kept = [n for n in SHAPES if ignore == "none" or len(SHAPES[n]) >= 2]
    scale = np.linalg.norm(flat(w)) / (np.linalg.norm(flat(d, kept)) + 1e-10)
    for name in SHAPES:
        expected = array(d[name]) * scale if name in kept else np.zeros(SHAPES[name])
        np.testing.assert_allclose(array(found[name]), expected, rtol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(flat(found)), np.linalg.norm(flat(w)), rtol=1e-9)


@pytest.mark.parametrize("ignore", ["biasbn", "none"])
def test_none(ignore):
    (d,) = drawn(1)
    found = normalize(d, weights(), "none", ignore)
    for name, shape in SHAPES.items():
        zero = ignore == "biasbn" and len(shape) < 2
        assert torch.equal(found[name], torch.zeros(shape) if zero else d[name])


@pytest.mark.parametrize("how", ["filter", "layer", "model", "none"])
@pytest.mark.parametrize("ignore", ["biasbn", "none"])
def test_zeros_stay_zeros(how, ignore):
    """A filter or a model of zeros: nothing divides by zero, in either operand."""
    w, (d,) = weights(), drawn(1)
    w["conv"][2] = 0
    d["linear"][3] = 0
    w["bias"].zero_()
    found = normalize(d, w, how, ignore)
    assert all(bool(torch.isfinite(t).all()) for t in found.values())
    if how == "filter":
        assert bool((found["conv"][2] == 0).all()) and bool((found["conv"][1] != 0).all())
    if how in ("filter", "layer"):
        assert bool((found["bias"] == 0).all())
    assert bool((found["linear"][3] == 0).all()) and bool((found["linear"][2] != 0).all())
    nothing = normalize(d, {n: torch.zeros_like(t) for n, t in w.items()}, how, ignore)
    assert all(bool(torch.isfinite(t).all()) for t in nothing.values())
    if how != "none":
        assert all(bool((t == 0).all()) for t in nothing.values())


def test_tiny_weights_keep_their_norm():
    """Norms are taken in float64: squares of 1e-30 are no zeros."""
    w = {"w": torch.full((4, 4), 1e-30)}
    found = normalize({"w": torch.ones(4, 4)}, w, "filter")
    np.testing.assert_allclose(array(found["w"]), 1e-30, rtol=1e-6)


def test_the_arguments_are_left_as_they_are():
    w, (d,) = weights(), drawn(1)
    before = {n: (w[n].clone(), d[n].clone()) for n in SHAPES}
    for how in ("filter", "layer", "model", "none"):
        for t in normalize(d, w, how).values():
            t.add_(1)
        assert all(torch.equal(w[n], before[n][0]) and torch.equal(d[n], before[n][1]) for n in SHAPES), how


# Angles


def test_cosine_by_hand():
    a, b = drawn(0, 2)
    expected = flat(a) @ flat(b) / (np.linalg.norm(flat(a)) * np.linalg.norm(flat(b)))
    np.testing.assert_allclose(cosine(a, b), expected, rtol=1e-12)
    np.testing.assert_allclose(cosine(a, a), 1, rtol=1e-12)
    assert cosine(a, {n: torch.zeros_like(t) for n, t in a.items()}) == 0


def test_orthogonalize():
    a, b = ({n: t.double() for n, t in d.items()} for d in drawn(0, 2))
    found = orthogonalize(b, a)
    assert abs(cosine(found, a)) < 1e-15
    projected = flat(b) - flat(a) * (flat(a) @ flat(b)) / (flat(a) @ flat(a))
    np.testing.assert_allclose(flat(found), projected, rtol=1e-9, atol=1e-14)
    zero = {n: torch.zeros_like(t) for n, t in a.items()}
    assert all(torch.equal(t, b[n]) for n, t in orthogonalize(b, zero).items())


@pytest.mark.parametrize("normalization", ["model", "none"])
@pytest.mark.parametrize("ignore", ["biasbn", "none"])
def test_orthogonal_recipe(normalization, ignore):
    settings = Settings(z="-1:1:3", orthogonalize=True, normalization=normalization, ignore=ignore).for_directions
    made = make_directions(settings, Origin(weights(), 3)).vectors
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(cosine(made[i], made[j])) < 1e-6  # float32
    line = make_directions(
        Settings(y="none", normalization=normalization, ignore=ignore).for_directions, Origin(weights(), 1)
    ).vectors
    assert all(torch.equal(line[0][n], made[0][n]) for n in line[0])


@pytest.mark.parametrize("normalization", ["filter", "layer"])
def test_orthogonal_filters_are_refused(normalization):
    with pytest.raises(UserError, match="--orthogonalize"):
        Settings(orthogonalize=True, normalization=normalization).check()


# The recipe as a whole


def test_recipe_is_draw_then_norm():
    made = make_directions(Settings(seed=4).for_directions, Origin(weights())).vectors
    for which, direction in enumerate(made):
        values = golden(4, which, "normal")
        for name, w in weights().items():
            expected = by_hand(np.asarray(values[name], np.float64), array(w), "filter") * (w.ndim >= 2)
            np.testing.assert_allclose(array(direction[name]), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("normalization", ["filter", "layer", "model"])
def test_recipe_does_not_depend_on_threads(normalization):
    big = {"w": torch.randn(16, 60_000, generator=torch.Generator().manual_seed(0))}
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            torch.manual_seed(n)
            found.append(
                make_directions(Settings(y="none", normalization=normalization).for_directions, Origin(big, 1)).vectors[
                    0
                ]["w"]
            )
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


# The axes around a trajectory


@pytest.mark.parametrize("low", [-3.7, -1e-5, 0.0, 2.0, 1e6])
@pytest.mark.parametrize("extent", [1e-7, 0.3, 17.0, 4e9])
def test_an_axis_around_coordinates(low, extent):
    """It shows them all with a margin, has round steps, and the origin is one of its points."""
    found = around(np.array([low, low + extent / 3, low + extent]), 0.25)
    axis = Axis(*found)
    span = max(low + extent, 0) - min(low, 0)
    assert axis.low <= min(low, 0) - 0.24 * span and axis.high >= max(low + extent, 0) + 0.24 * span
    assert 0.0 in axis.coordinates and 15 <= axis.n <= 45
    step = (axis.high - axis.low) / (axis.n - 1)
    assert round(step / 10 ** np.floor(np.log10(step * 1.0001)), 4) in (1, 2, 5)


def test_an_axis_around_nothing():
    assert Axis(*around(np.zeros(3), 0.25)).low < 0 < Axis(*around(np.zeros(3), 0.25)).high
