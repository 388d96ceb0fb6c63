"""The library's lines and planes: where their points are, what is computed there, and that nothing else changes."""

from __future__ import annotations

import copy
import inspect
import random

import h5py
import numpy as np
import pytest
import torch
from held import held
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.optim.swa_utils import update_bn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import hpc_landscape
from hpc_landscape import (
    GeneralModelWrapper,
    LinearLossLandscape,
    ModelWrapper,
    PlanarLossLandscape,
    UserError,
    eval_loss,
    eval_warm_up,
    linear_interpolation,
    planar_interpolation,
    point,
    random_line,
    random_plane,
)
from hpc_landscape.metrics import Accuracy, Data, Loss, LossGradient, Metric, MetricPipeline
from hpc_landscape.model.wrapper import SimpleModelWrapper
from hpc_landscape.view.info import info

# A direction of zeros is told, and asked for by what is to stay where it is.
pytestmark = pytest.mark.filterwarnings("ignore:zero everywhere")

CROSS_ENTROPY = nn.CrossEntropyLoss()
EPS = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6, torch.float64: 1e-9}


# By hand


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Convolution, batch normalization, dropout and a linear layer, in a state that a training leaves behind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 3)
        )
        nn.init.uniform_(model[1].weight, 0.5, 1.5)
        nn.init.normal_(model[1].bias)
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    return model.to(dtype)


def images(n: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 5, 5, generator=generator).to(dtype), torch.randint(3, (n,), generator=generator)


def axes(landscape) -> tuple[np.ndarray, ...]:
    found = landscape.coordinates
    return found if isinstance(found, tuple) else (found,)


def moved(model: nn.Module, landscape, where: tuple[int, ...]) -> nn.Module:
    """A float64 copy of the model at a grid point, its parameters moved with NumPy."""
    copied = copy.deepcopy(model).double().eval()
    for name, parameter in model.named_parameters():
        value = parameter.detach().double().numpy().copy()
        for axis, i, direction in zip(axes(landscape), where, landscape.directions, strict=True):
            if name in direction:
                value += axis[i] * direction[name].double().numpy()
        copied.get_parameter(name).data = torch.from_numpy(value)
    return copied


@torch.no_grad()
def re_estimated(model: nn.Module, batches) -> nn.Module:
    """The model with its statistics averaged over batches by samples; hooks catch what a layer sees."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    seen = {layer: [] for layer in layers}

    def catch(layer, inputs):
        values = inputs[0].transpose(0, 1).flatten(1).numpy()
        seen[layer].append((len(inputs[0]), values.mean(1), values.var(1, ddof=1)))

    hooks = [layer.train().register_forward_pre_hook(catch) for layer in layers]
    for x in batches:
        model(x.to(next(model.parameters()).dtype))
    for layer, hook in zip(layers, hooks, strict=True):
        hook.remove()
        weights, means, variances = zip(*seen[layer], strict=True)
        layer.running_mean.copy_(torch.from_numpy(np.average(means, axis=0, weights=weights)))
        layer.running_var.copy_(torch.from_numpy(np.average(variances, axis=0, weights=weights)))
    return model.eval()


@torch.no_grad()
def loss_by_hand(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Cross entropy, the mean over all samples in one batch, in NumPy."""
    scores = model(x.double()).numpy()
    top = scores.max(1)
    return float((np.log(np.exp(scores - top[:, None]).sum(1)) + top - scores[np.arange(len(y)), y.numpy()]).mean())


def losses_by_hand(model, landscape, data, warm_up=None, shape=None) -> np.ndarray:
    found = np.empty(tuple(map(len, axes(landscape))))
    for where in np.ndindex(found.shape):
        here = moved(model, landscape, where)
        found[where] = loss_by_hand(here if warm_up is None else re_estimated(here, warm_up), *data)
    return found


def length(tensors) -> float:
    return float(np.sqrt(sum((np.float64(1) * t.double().numpy() ** 2).sum() for t in tensors)))


class Seen:
    """A metric that keeps a copy of the parameters at each point, by name."""

    def __init__(self):
        self.points: list[dict[str, Tensor]] = []

    def __call__(self, wrapper):
        self.points.append({name: p.detach().clone() for name, p in wrapper.root.named_parameters()})
        return 0.0


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else repr(tensor).encode()


def assert_bitwise(found: dict[str, Tensor], model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        assert bits(found[name]) == bits(parameter), name


def fingerprint(model: nn.Module) -> list:
    """All that must stay: which tensors, where, their bits, gradients, flags, modes and hooks."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return [
        (name, id(t), t.data_ptr(), t.dtype, t.requires_grad, id(t.grad), t.grad is None or bits(t.grad), bits(t))
        for name, t in tensors
    ] + [
        (m.training, getattr(m, "momentum", None), len(m._forward_hooks), len(m._forward_pre_hooks))
        for m in model.modules()
    ]


def awkward() -> nn.Sequential:
    """In a state that is easily lost: mixed modes, a gradient, a frozen parameter, another momentum."""
    model = network().train()
    model[0].weight.grad = torch.full_like(model[0].weight, 3.0)
    model[5].bias.requires_grad_(False)
    model[1].eval()
    model[1].momentum = 0.37
    return model


# Where points are


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 7, (3, 5), [4, 1]])
def test_a_plane_s_shape_and_coordinates(steps):
    x, y = images()
    plane = PlanarLossLandscape(network(), steps)
    assert plane.random_plain(distance=5, seed=0) is plane
    wanted = tuple(steps) if not isinstance(steps, int) else (steps, steps)
    assert plane.compute(Loss(CROSS_ENTROPY, x, y)).shape == wanted
    for n, axis in zip(wanted, plane.coordinates, strict=True):
        expected = -2.5 + 5 * np.arange(n) / (n - 1) if n > 1 else [0.0]
        np.testing.assert_allclose(axis, expected, rtol=0, atol=1e-15)
        np.testing.assert_allclose(axis, -axis[::-1], rtol=0, atol=1e-15)  # the model is in the middle
        assert (0.0 in axis) == (n % 2 == 1)


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_a_line_s_shape_and_coordinates(steps):
    line = LinearLossLandscape(network(), steps).random_line(distance=3, seed=0)
    assert line.compute(lambda _: 1.0).shape == line.coordinates.shape == (steps,)
    np.testing.assert_allclose(line.coordinates, np.linspace(-1.5, 1.5, steps) if steps > 1 else [0], atol=1e-15)


def test_not_centered_begins_at_the_model():
    plane = PlanarLossLandscape(network(), (4, 3)).random_plane(distance=2, centered=False, seed=0)
    np.testing.assert_allclose(plane.coordinates[0], [0, 2 / 3, 4 / 3, 2])
    np.testing.assert_allclose(plane.coordinates[1], [0, 1, 2])
    line = LinearLossLandscape(network(), 3).precomputed({"0.weight": torch.ones(4, 1, 3, 3)}, 4, centered=False)
    np.testing.assert_allclose(line.coordinates, [0, 2, 4])


class Two(nn.Module):
    def __init__(self, a: float = 3.0, b: float = -1.0):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[a]], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([[b]], dtype=torch.float64))


def along(name: str, by: float = 1.0) -> dict[str, Tensor]:
    return {name: torch.full((1, 1), by, dtype=torch.float64)}


@pytest.mark.parametrize("steps", [(5, 3), (4, 6), (1, 4), (4, 1)])
def test_values_lie_at_their_coordinates(steps):
    plane = PlanarLossLandscape(Two(), steps).precomputed(along("a", 2), along("b", 5), distance=4)
    found = plane.compute(lambda w: 100 * w.get_model().a.item() + w.get_model().b.item())
    x, y = (np.linspace(-2, 2, n) if n > 1 else np.zeros(1) for n in steps)
    np.testing.assert_allclose(found, 100 * (3 + 2 * x[:, None]) + (-1 + 5 * y[None, :]), rtol=1e-14)


def test_the_losses_of_a_plane_by_hand():
    model, data = network(), images()
    plane = PlanarLossLandscape(model, (5, 4)).random_plane(distance=2, seed=3)
    found = plane.compute(Loss(CROSS_ENTROPY, *data))
    np.testing.assert_allclose(found, losses_by_hand(model, plane, data), rtol=1e-5)
    assert len(np.unique(found)) == 20


# Random directions


@pytest.mark.parametrize("normalization", ["filter", "layer", "model", "none", None])
@pytest.mark.parametrize("ignore", ["biasbn", "none"])
@pytest.mark.parametrize("random_kind", ["normal", "uniform"])
def test_a_direction_is_as_long_as_what_it_moves(normalization, ignore, random_kind):
    model = network(dtype=torch.float64)
    plane = PlanarLossLandscape(model, 3).random_plane(4, normalization, random_kind, seed=1, ignore=ignore)
    weights = dict(model.named_parameters())
    for direction in plane.directions:
        still = {name for name, d in direction.items() if not d.any()}
        assert still == ({n for n, w in weights.items() if w.ndim < 2} if ignore == "biasbn" else set())
        of_what_moves = length(w.detach() for n, w in weights.items() if n not in still)
        assert length(direction.values()) == pytest.approx(of_what_moves, rel=1e-12)
    seen = Seen()
    plane.compute(seen)
    side = length(seen.points[6][n] - seen.points[0][n] for n in weights)  # from [0, 0] to [2, 0]
    assert side == pytest.approx(4 * of_what_moves, rel=1e-12), "distance is the side, in lengths of what moves"


def filters(tensor: Tensor) -> np.ndarray:
    return np.sqrt((tensor.detach().double().numpy().reshape(len(tensor), -1) ** 2).sum(1))


def test_filter_by_filter():
    model = network(dtype=torch.float64)
    for direction in PlanarLossLandscape(model, 3).random_plane(seed=2).directions:
        for name, w in model.named_parameters():
            if w.ndim > 1:
                np.testing.assert_allclose(filters(direction[name]), filters(w), rtol=1e-8)


def test_layer_by_layer():
    model = network(dtype=torch.float64)
    direction = LinearLossLandscape(model, 3).random_line(normalization="layer", seed=2).directions[0]
    for name in ("0.weight", "5.weight"):
        w = model.get_parameter(name)
        assert length([direction[name]]) == pytest.approx(length([w.detach()]), rel=1e-8)
        assert np.abs(filters(direction[name]) / filters(w) - 1).max() > 1e-2, "or the test could not tell it apart"


def test_the_whole_model_and_none_keep_what_was_drawn():
    model = network(dtype=torch.float64)
    whole, none = (
        LinearLossLandscape(model, 3).random_line(normalization=n, seed=2).directions[0] for n in ("model", None)
    )
    for name in whole:
        np.testing.assert_allclose(whole[name], none[name], rtol=1e-8)
    rms = [float(whole[name].square().mean().sqrt()) for name in ("0.weight", "5.weight")]
    assert rms[0] == pytest.approx(rms[1], rel=0.5), "numbers of one distribution, whatever the layer's weights"


def test_parameters_of_one_dimension_when_asked_are_one_filter():
    model = network(dtype=torch.float64)
    direction = LinearLossLandscape(model, 3).random_line(seed=2, ignore="none").directions[0]
    for name, w in model.named_parameters():
        if w.ndim == 1:
            assert length([direction[name]]) == pytest.approx(length([w.detach()]), rel=1e-8)
            assert not np.allclose(direction[name].abs(), w.detach().abs(), rtol=1e-3), name


@pytest.mark.parametrize(("kind", "kurtosis"), [("normal", 3.0), ("uniform", 1.8)])
def test_distributions(kind, kurtosis):
    model = nn.Linear(200, 200, bias=False)
    plane = PlanarLossLandscape(model, 3).random_plane(normalization=None, random=kind, seed=0)
    a, b = (d["weight"].double().numpy().ravel() for d in plane.directions)
    for d in (a, b):
        assert abs((d < 0).mean() - 0.5) < 0.02 and abs(d.mean()) < 0.02 * d.std()
        assert (d**4).mean() / (d**2).mean() ** 2 == pytest.approx(kurtosis, rel=0.05)
    if kind == "uniform":
        assert np.abs(a).max() / a.std() == pytest.approx(np.sqrt(3), rel=0.01)
    assert abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) < 0.03, "independent"


def generators() -> list:
    name, keys, *rest = np.random.get_state()
    return [torch.get_rng_state().numpy().tobytes(), (name, keys.tobytes(), *rest), random.getstate()]


def seed_all(seed: int) -> None:
    torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)


def test_seeds():
    def directions(seed):
        return PlanarLossLandscape(network(), 3).random_plane(seed=seed)

    def flat(plane):
        return torch.cat([d.reshape(-1) for direction in plane.directions for d in direction.values()]).numpy()

    seed_all(1)
    first = flat(directions(7))
    seed_all(2)
    assert flat(directions(7)).tobytes() == first.tobytes(), "whatever the global generators' state"
    assert not np.array_equal(flat(directions(8)), first)
    seed_all(1)
    fresh = directions(None)
    seed_all(1)
    assert not np.array_equal(flat(directions(None)), flat(fresh))
    assert isinstance(fresh.seed, int) and flat(directions(fresh.seed)).tobytes() == flat(fresh).tobytes()
    line = LinearLossLandscape(network(), 3).random_line(seed=7)
    assert torch.equal(line.directions[0]["0.weight"], directions(7).directions[0]["0.weight"])
    for seed in (np.int64(7), np.uint8(7)):
        plane = directions(seed)
        assert type(plane.seed) is int and flat(plane).tobytes() == first.tobytes()
        assert plane.compute(lambda _: 0.0).shape == (3, 3)


def test_the_global_generators_are_left_alone():
    x, y = images()
    loader = DataLoader(TensorDataset(x, y), 5)

    class Draws(Metric):
        def __call__(self, wrapper):
            return torch.rand(()) + np.random.rand() + random.random()

    draws = Draws()
    seed_all(3)
    before = generators()
    plane = PlanarLossLandscape(network(), 3, deepcopy_model=True).random_plane(random="uniform")
    plane.stats_initializer()
    assert generators() == before
    eval_warm_up(plane, loader, "cpu")
    plane.warm_up(draws)
    plane.warm_up(Loss(CROSS_ENTROPY, x, y))
    eval_loss(plane, loader, "cpu", CROSS_ENTROPY)
    assert generators() == before
    plane.compute(draws)
    point(network(), draws)
    with pytest.raises(ZeroDivisionError):
        plane.compute(lambda _: (seed_all(9), 1 / 0))
    assert generators() == before


# Weights of every kind


def test_zero_filters_and_zero_biases():
    model, data = network(), images()
    with torch.no_grad():
        model[0].weight[1] = 0
        for layer in (model[0], model[1], model[5]):
            layer.bias.zero_()
        model[1].weight.zero_()  # as zero_init_residual does
    for ignore in ("biasbn", "none"):
        plane = PlanarLossLandscape(model, 3).random_plane(5, seed=0, ignore=ignore)
        for direction in plane.directions:
            assert not direction["0.weight"][1].any() and bool(direction["0.weight"][0].any())
            assert not any(direction[f"{k}.bias"].any() for k in (0, 1, 5)) and not direction["1.weight"].any()
        assert all(bool(d.isfinite().all()) for direction in plane.directions for d in direction.values())
        assert np.isfinite(plane.compute(Loss(CROSS_ENTROPY, *data))).all()


def test_a_model_of_zeros():
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    for normalization in ("filter", "layer", "model", None):
        with pytest.warns(UserWarning, match="zero everywhere, so that nothing changes along it: direction x and y"):
            metric = Loss(CROSS_ENTROPY, torch.ones(2, 3), torch.tensor([0, 1]))
            values = random_plane(model, metric, 5, 3, normalization)
        np.testing.assert_allclose(values, np.log(2), rtol=1e-6)


class Odd(nn.Module):
    """0-d, tied, frozen, mixed dtypes, integers."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.scale = nn.Parameter(torch.tensor(-0.7))
            self.embedding = nn.Embedding(6, 4)
            self.head = nn.Linear(4, 6)
            self.head.weight = self.embedding.weight
            self.frozen = nn.Parameter(torch.randn(4, 4), requires_grad=False)
            self.wide = nn.Parameter(torch.randn(2, 3, dtype=torch.float64))
            self.narrow = nn.Parameter(torch.randn(5, 2).half())
            self.whole = nn.Parameter(torch.arange(4).reshape(2, 2), requires_grad=False)

    def forward(self, x):
        h = self.head(self.embedding(x) @ self.frozen) * self.scale
        return h + self.wide.sum() + self.narrow.sum() + self.whole.sum()


@pytest.mark.parametrize("ignore", ["biasbn", "none"])
def test_parameters_of_every_kind(ignore):
    model = Odd()
    x = torch.arange(6)
    before = fingerprint(model)
    plane = PlanarLossLandscape(model, (3, 2)).random_plane(1, seed=4, ignore=ignore)
    seen = Seen()

    def output(wrapper):
        seen(wrapper)
        assert wrapper.root.head.weight is wrapper.root.embedding.weight and not wrapper.root.frozen.requires_grad
        return wrapper(x).detach().double()

    found = plane.compute(output)
    assert found.shape == (3, 2, 6, 6)
    for direction in plane.directions:
        assert "whole" not in direction and "head.weight" not in direction
        assert bool(direction["scale"]) == (ignore == "none")
        for name, d in direction.items():
            own = model.get_parameter(name).dtype
            assert d.dtype == (torch.float32 if own == torch.float16 else own)  # directions have 32 bits at least
            if d.any() and d.ndim > 1:
                unit = max(EPS[d.dtype], 1e-4)
                np.testing.assert_allclose(filters(d), filters(model.get_parameter(name)), rtol=unit)
    for k, where in enumerate(np.ndindex(3, 2)):
        for name, p in moved(model, plane, where).named_parameters():
            if name != "whole":
                unit = EPS[model.get_parameter(name).dtype]
                np.testing.assert_allclose(seen.points[k][name].double(), p.detach(), rtol=unit, atol=4 * unit)
        by_hand = moved(model, plane, where)
        by_hand.whole.data = torch.arange(4).reshape(2, 2)
        np.testing.assert_allclose(found[where], by_hand(x).detach(), rtol=1e-2, atol=2e-2)
    assert fingerprint(model) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_one_dtype(dtype):
    model, (x, y) = network(dtype=dtype), images(dtype=dtype)
    plane = PlanarLossLandscape(model, 3).random_plane(3, seed=5)
    kinds = {d.dtype for direction in plane.directions for d in direction.values()}
    assert kinds == {torch.float64 if dtype == torch.float64 else torch.float32}
    found = plane.compute(Loss(lambda output, target: F.cross_entropy(output.double(), target), x, y))
    by_hand = losses_by_hand(model, plane, (x, y))
    np.testing.assert_allclose(found, by_hand, rtol=30 * EPS[dtype])
    assert np.ptp(by_hand) > 100 * EPS[dtype]


def test_norms_of_half_precision_do_not_overflow():
    """The square of a filter's norm, 1e7, is beyond float16."""
    model = nn.Linear(3000, 4).half()
    nn.init.constant_(model.weight, 60)
    direction = LinearLossLandscape(model, 3).random_line(seed=0).directions[0]
    np.testing.assert_allclose(filters(direction["weight"]), 60 * np.sqrt(3000), rtol=1e-3)


def test_weights_that_have_a_layout_of_their_own():
    model, data = network().to(memory_format=torch.channels_last), images()
    plane = PlanarLossLandscape(model, 3).random_plane(1, seed=5)
    np.testing.assert_allclose(plane.compute(Loss(CROSS_ENTROPY, *data)), losses_by_hand(model, plane, data), rtol=1e-5)


def test_recurrent_layers():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = nn.LSTM(3, 4), torch.randn(5, 2, 3)
    line = LinearLossLandscape(model, 3).random_line(2, seed=1)
    found = line.compute(lambda wrapper: wrapper(x)[0].sum().item())
    by_hand = [moved(model, line, (i,))(x.double())[0].sum().item() for i in range(3)]
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)


# Interpolation


def other(model: nn.Module, seed: int) -> nn.Module:
    end = copy.deepcopy(model)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for p in end.parameters():
            p.copy_(torch.randn_like(p))
    return end


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_ends_are_the_models_bitwise(dtype):
    a = network(1, dtype)
    b, c = other(a, 2), other(a, 3)
    line, plane = Seen(), Seen()
    LinearLossLandscape(a, 5).interpolation(b).compute(line)
    assert_bitwise(line.points[0], a)
    assert_bitwise(line.points[4], b)
    PlanarLossLandscape(a, (5, 3)).interpolation(b, c).compute(plane)
    assert_bitwise(plane.points[0], a)
    assert_bitwise(plane.points[4 * 3], b)
    assert_bitwise(plane.points[2], c)
    beyond = Seen()
    found = PlanarLossLandscape(a, 9).interpolation(b, c, low=-0.5, high=1.5)
    found.compute(beyond)
    zero, one = (found.coordinates[0].tolist().index(v) for v in (0.0, 1.0))
    assert_bitwise(beyond.points[9 * zero + zero], a)
    assert_bitwise(beyond.points[9 * one + zero], b)
    assert_bitwise(beyond.points[9 * zero + one], c)


def test_negative_zeros_of_the_ends():
    a = nn.Linear(20, 20)
    b, c = other(a, 2), other(a, 3)
    with torch.no_grad():
        a.bias[::2] = -0.0
        b.weight[::2], c.weight[1::2] = -0.0, -0.0
    seen = Seen()
    PlanarLossLandscape(a, 2).interpolation(b, c).compute(seen)
    for found, model in zip(seen.points, (a, c, b), strict=False):
        assert_bitwise(found, model)


def test_between_the_ends_by_hand():
    a, data = network(1), images()
    b, c = other(a, 2), other(a, 3)
    metric = Loss(CROSS_ENTROPY, *data)
    found = planar_interpolation(a, b, c, metric, steps=3)
    assert found.shape == (3, 3)
    for where in np.ndindex(3, 3):
        here, (u, v) = copy.deepcopy(a).double().eval(), (w / 2 for w in where)
        for p, *ends in zip(here.parameters(), *(m.parameters() for m in (a, b, c)), strict=True):
            wa, wb, wc = (w.detach().double() for w in ends)
            p.data = wa + u * (wb - wa) + v * (wc - wa)
        assert found[where] == pytest.approx(loss_by_hand(here, *data), rel=1e-4)
    line = linear_interpolation(a, b, metric, steps=3)
    np.testing.assert_allclose(line, found[:, 0], rtol=1e-6)


def test_an_end_is_a_model_a_wrapper_a_state_dict_or_a_file(tmp_path):
    a, metric = network(1), Loss(CROSS_ENTROPY, *images())
    b = other(a, 2)
    path = tmp_path / "b.pt"
    torch.save(b.state_dict(), path)
    torch.save({"state_dict": {f"module.{k}": v for k, v in b.state_dict().items()}}, tmp_path / "parallel.pt")
    wanted = linear_interpolation(a, b, metric, steps=3)
    ends = [SimpleModelWrapper(b), b.state_dict(), dict(b.named_parameters()), str(path), path]
    for end in [*ends, str(tmp_path / "parallel.pt")]:
        assert linear_interpolation(a, end, metric, steps=3).tobytes() == wanted.tobytes()


def test_an_end_that_changes_afterwards_is_still_the_old_one():
    a, metric = network(1), Loss(CROSS_ENTROPY, *images())
    b = other(a, 2)
    line = LinearLossLandscape(a, 3).interpolation(b)
    before = line.compute(metric)
    with torch.no_grad():
        b[5].weight.zero_()
        a[5].weight.zero_()
    assert line.compute(metric).tobytes() == before.tobytes()


# Precomputed directions


def test_precomputed_by_name_in_order_or_flat():
    model, metric = network(), Loss(CROSS_ENTROPY, *images())
    draw = np.random.default_rng(0)
    named = {n: torch.from_numpy(draw.standard_normal(p.shape)).float() for n, p in model.named_parameters()}
    flat = torch.cat([d.reshape(-1) for d in named.values()])
    forms = [named, list(named.values()), [d.numpy() for d in named.values()], flat, flat.numpy(), flat[None]]
    found = [LinearLossLandscape(model, 3).precomputed(form, distance=0.5) for form in forms]
    values = [line.compute(metric) for line in found]
    np.testing.assert_allclose(values[0], losses_by_hand(model, found[0], images()), rtol=1e-5)
    assert all(torch.equal(found[0].directions[0][n], d) for n, d in named.items()), "as they are"
    assert {v.tobytes() for v in values} == {values[0].tobytes()} and len(set(values[0])) == 3
    plane = PlanarLossLandscape(model, 3).precomputed(named, flat)
    assert torch.equal(plane.directions[0]["5.weight"], plane.directions[1]["5.weight"])
    normalized = LinearLossLandscape(model, 3).precomputed(named, normalization="filter").directions[0]
    np.testing.assert_allclose(filters(normalized["5.weight"]), filters(model[5].weight), rtol=1e-5)


def test_a_name_that_is_missing_does_not_move():
    model = network()
    seen = Seen()
    LinearLossLandscape(model, 2).precomputed({"5.bias": torch.ones(3)}, 2).compute(seen)
    for name, p in model.named_parameters():
        expected = [p - 1, p + 1] if name == "5.bias" else [p, p]
        assert all(torch.equal(s[name], e.detach()) for s, e in zip(seen.points, expected, strict=True))


def test_precomputed_directions_are_copied():
    model = Two()
    given = along("a")
    line = LinearLossLandscape(model, 2).precomputed(given, 2)
    given["a"].fill_(100)
    assert line.compute(lambda w: w.get_model().a.item()).tolist() == [2, 4]


# A value depends on the point alone


@pytest.mark.parametrize("kind", ["loss", "gradient", "warmed"])
def test_a_point_s_value_is_the_same_bits_in_any_landscape(kind):
    model, data = network(), images()
    metric = LossGradient(CROSS_ENTROPY, *data) if kind == "gradient" else Loss(CROSS_ENTROPY, *data)

    def values(steps):
        plane = PlanarLossLandscape(model, steps).random_plane(2, seed=6)
        if kind == "warmed":
            plane.warm_up(metric)
        return plane.compute(metric)

    fine, coarse = values((9, 5)), values(3)
    assert fine[::4, ::2].tobytes() == coarse.tobytes() and len(np.unique(fine.reshape(45, -1)[:, 0])) > 40
    assert coarse[1, 1].tobytes() == values(1)[0, 0].tobytes()
    if kind == "loss":
        assert point(model, metric) == coarse[1, 1]


def test_the_last_point_of_many_is_not_off():
    """Steps are not added up."""
    model = network()
    many, few = Seen(), Seen()
    PlanarLossLandscape(model, 33).random_plane(3, seed=1).compute(many)
    PlanarLossLandscape(model, 2).random_plane(3, seed=1).compute(few)
    for i, j in ((-1, -1), (32, 1), (32 * 33, 2)):
        assert all(bits(many.points[i][n]) == bits(p) for n, p in few.points[j].items())
    assert_bitwise(many.points[16 * 33 + 16], model)


class Counting(nn.Module):
    """Counts its calls, in place or by a new buffer, and says so."""

    def __init__(self, in_place: bool):
        super().__init__()
        self.layer, self.in_place = nn.Linear(2, 2), in_place
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.in_place:
            self.calls.add_(1)
        else:
            self.calls = self.calls + 1
        return self.layer(x) * 0 + self.calls


def with_train_mode(wrapper):
    value = wrapper(images()[0]).detach().double().sum()
    wrapper.train()
    wrapper(images()[0])
    return value


def with_backward(wrapper):
    F.cross_entropy(wrapper(images()[0]), images()[1]).backward()
    return sum(p.grad.double().square().sum() for p in wrapper.parameters() if p.grad is not None)


def with_requires_grad(wrapper):
    moving = sum(p.requires_grad for p in wrapper.parameters())
    wrapper.requires_grad_(moving != 3)
    next(wrapper.parameters()).requires_grad_(False)
    return moving


def with_random_numbers(wrapper):
    return [torch.rand(()).item(), float(np.random.rand()), random.random(), wrapper.train()(images()[0]).sum().item()]


def with_writing(wrapper):
    value = wrapper(images()[0]).detach().double().sum()
    with torch.no_grad():
        for tensor in (*wrapper.parameters(), *(b for b in wrapper.root.buffers() if b.is_floating_point())):
            tensor.add_(1)
    return value


def with_new_buffers(wrapper):
    value = wrapper(images()[0]).detach().double().sum()
    wrapper.root[1].running_mean = wrapper.root[1].running_mean + 1
    return value


def with_new_data(wrapper):
    value = wrapper(images()[0]).detach().double().sum()
    for p in wrapper.parameters():
        p.data = p.data + 1
    return value


def with_pruning(wrapper):
    prune.l1_unstructured(wrapper.root[5], "weight", 0.5)
    return wrapper(images()[0]).detach().double().sum()


def with_hooks_and_other_layers(wrapper):
    """The features before the last layer, by a metric that does not clean up."""
    wrapper.root[0].register_forward_hook(lambda *given: 2 * given[-1])
    wrapper.root[2] = nn.Sigmoid()
    wrapper.root[0].extra = nn.BatchNorm1d(3)
    wrapper.root[5] = nn.Identity()
    return wrapper(images()[0])[..., :3].detach().double().sum()


with_anything = pytest.mark.parametrize(
    "metric",
    [
        *(with_train_mode, with_backward, with_requires_grad, with_random_numbers, with_writing, with_new_buffers),
        *(with_new_data, with_pruning, with_hooks_and_other_layers),
    ],
    ids=lambda metric: metric.__name__,
)


@with_anything
def test_nothing_leaks_to_the_next_point(metric):
    """All points of a direction of zeros are one point."""
    model = network().train()
    before = fingerprint(model)
    found = LinearLossLandscape(model, 4).precomputed({}).compute(metric)
    assert np.isfinite(found).all() and (found == found[0]).all(), found
    assert fingerprint(model) == before
    many = PlanarLossLandscape(model, 3).random_plane(1, seed=0)
    several, alone = many.compute(metric), PlanarLossLandscape(model, 2).random_plane(1, seed=0).compute(metric)
    assert several[::2, ::2].tobytes() == alone.tobytes()


@with_anything
def test_nothing_leaks_where_a_part_moves(metric):
    """Nor into what does not move."""
    model = network().train()
    before, state = fingerprint(model), list(model.state_dict())
    part = GeneralModelWrapper(model, [model[0]], lambda model, x: model(x))

    def of_all(wrapper):
        return metric(SimpleModelWrapper(wrapper.get_model()))

    found = LinearLossLandscape(part, 3).precomputed({}).compute(of_all)
    assert np.isfinite(found).all() and (found == found[0]).all(), found
    assert fingerprint(model) == before and list(model.state_dict()) == state
    several = LinearLossLandscape(part, 3).random_line(1, seed=0).compute(of_all)
    alone = LinearLossLandscape(part, 2).random_line(1, seed=0).compute(of_all)
    assert several[::2].tobytes() == alone.tobytes()


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_a_model_that_keeps_count_begins_anew_at_every_point(in_place, own):
    model, x = Counting(in_place), torch.ones(3, 2)
    loss = Loss(lambda output, target: output.mean(), x, x)
    metric = (lambda wrapper: wrapper(x).mean().item()) if own else loss
    found = LinearLossLandscape(model, 4).precomputed({}).compute(metric)
    assert found.tolist() == [1, 1, 1, 1] and model.calls.item() == 0


def test_nothing_leaks_from_a_metric_that_warms_up():
    class Trains(Metric):
        def __call__(self, wrapper):
            wrapper(x)
            wrapper.train()  # dropout is on at the next point, unless that is undone

    x, y = images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 40), nn.Dropout(0.5), nn.BatchNorm1d(40), nn.Linear(40, 3))
    line = LinearLossLandscape(model, 3).precomputed({})
    line.warm_up(Trains())
    found = line.compute(Loss(CROSS_ENTROPY, x, y))
    assert found[0] == found[1] == found[2]


# The model is what it was


@pytest.mark.parametrize("what", ["compute", "own metric", "warm_up", "loader", "interpolation", "point"])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_is_bitwise_what_it_was(what, error):
    model, (x, y) = awkward(), images()
    grad = model[0].weight.grad
    before = fingerprint(model)
    calls = []

    def criterion(output, target):
        calls.append(1)
        if error and len(calls) == 2:
            raise error
        return F.cross_entropy(output, target)

    def own(wrapper):
        wrapper.train()
        criterion(wrapper(x), y).backward()
        wrapper.requires_grad_(True)
        return 1.0

    class WarmUp(Metric):
        def __call__(self, wrapper):
            criterion(wrapper(x), y)

    plane = PlanarLossLandscape(model, 3).random_plane(1, seed=0)
    metric = Loss(criterion, x, y)
    try:
        if what == "compute":
            plane.compute(metric)
        elif what == "own metric":
            plane.compute(own)
        elif what == "warm_up":
            plane.warm_up(WarmUp())
            plane.compute(own)
        elif what == "loader":
            eval_warm_up(plane, DataLoader(TensorDataset(x, y), 5), "cpu", criterion)
            eval_loss(plane, DataLoader(TensorDataset(x, y), 5), "cpu", criterion)
        elif what == "interpolation":
            linear_interpolation(model, other(model, 1), metric, steps=3)
        else:
            point(model, metric), point(model, own)
        assert error is None
    except (RuntimeError, KeyboardInterrupt) as caught:
        assert type(caught) is error
    assert len(calls) >= 2
    assert fingerprint(model) == before
    assert model[0].weight.grad is grad and bool((grad == 3).all())


def test_a_deep_copy_leaves_the_model_alone_meanwhile():
    model, x = network(), images()[0]
    before = fingerprint(model)

    def output(wrapper):
        assert wrapper.get_model() is not model and fingerprint(model) == before
        return wrapper(x).detach().double().sum()

    plane = PlanarLossLandscape(model, 3, deepcopy_model=True).random_plane(1, seed=0)
    copied = plane.compute(output)
    moves = []
    in_place = PlanarLossLandscape(model, 3).random_plane(1, seed=0)
    found = in_place.compute(lambda w: (moves.append(fingerprint(model) != before), w(x).detach().double().sum())[1])
    assert found.tobytes() == copied.tobytes() and all(moves) and fingerprint(model) == before
    with torch.no_grad():
        model[5].weight.zero_()
    again = plane.random_plane(1, seed=0).compute(lambda w: w(x).detach().double().sum())
    assert again.tobytes() == copied.tobytes(), "nor does the model move the copy"


# What a metric may return


@pytest.mark.parametrize(
    ("returns", "shape"),
    [
        (lambda a: a, ()),
        (lambda a: np.float32(a), ()),
        (lambda a: torch.tensor(a, requires_grad=True), ()),
        (lambda a: torch.tensor(a, dtype=torch.bfloat16), ()),
        (lambda a: a > 3, ()),
        (lambda a: np.array([a, 2 * a, 3 * a]), (3,)),
        (lambda a: torch.full((2, 3), a), (2, 3)),
        (lambda a: (a, -a), (2,)),
        (lambda a: [a, -a], (2,)),
        (lambda a: (np.ones(3) * a, torch.zeros(3)), (2, 3)),
        (lambda a: np.zeros((0, 2)), (0, 2)),
    ],
)
def test_shapes_of_values(returns, shape):
    plane = PlanarLossLandscape(Two(), (4, 3)).precomputed(along("a"), along("b"), 2)
    found = plane.compute(lambda w: returns(w.get_model().a.item()))
    assert found.shape == (4, 3, *shape) and found.dtype == np.float64
    for i, a in enumerate(3 + np.linspace(-1, 1, 4)):
        value = returns(float(a))
        parts = [
            np.asarray(t.detach().float() if isinstance(t, Tensor) else t)
            for t in (value if isinstance(value, (tuple, list)) else [value])
        ]
        expected = np.stack(parts) if isinstance(value, (tuple, list)) else parts[0]
        for j in range(3):
            np.testing.assert_allclose(found[i, j], expected, rtol=1e-2)


def test_a_ragged_tuple_gives_a_tuple_of_arrays():
    plane = PlanarLossLandscape(Two(), (4, 3)).precomputed(along("a"), along("b"), 2)

    def ragged(wrapper):
        a, b = wrapper.get_model().a.item(), wrapper.get_model().b.item()
        return a, np.array([a, b]), torch.full((2, 2), b)

    a, pair, square = plane.compute(ragged)
    assert (a.shape, pair.shape, square.shape) == ((4, 3), (4, 3, 2), (4, 3, 2, 2))
    x, y = 3 + np.linspace(-1, 1, 4), -1 + np.linspace(-1, 1, 3)
    np.testing.assert_allclose(a, np.repeat(x[:, None], 3, 1))
    np.testing.assert_allclose(pair[..., 1], np.repeat(y[None], 4, 0))
    np.testing.assert_allclose(square[..., 1, 0], np.repeat(y[None], 4, 0), rtol=1e-6)


def test_tuples_in_tuples():
    line = LinearLossLandscape(Two(), 4).precomputed(along("a"), 2)
    a, (b, pair) = line.compute(lambda w: (w.get_model().a.item(), (w.get_model().b.item(), np.arange(2))))
    np.testing.assert_allclose(a, 3 + np.linspace(-1, 1, 4))
    assert b.tolist() == [-1] * 4 and pair.tolist() == [[0, 1]] * 4
    assert line.compute(lambda _: ((1, 2, 3), (4, 5, 6))).shape == (4, 2, 3)


def test_a_pipeline_of_metrics():
    model, data = network(), images()
    loss, accuracy = Loss(CROSS_ENTROPY, *data), Accuracy(*data)
    line = LinearLossLandscape(model, 3).random_line(1, seed=0)
    both = line.compute(MetricPipeline([loss, accuracy]))
    assert both.tobytes() == np.stack([line.compute(loss), line.compute(accuracy)], axis=1).tobytes()
    count = sum(p.numel() for p in model.parameters())
    losses, gradients = line.compute(MetricPipeline([loss, LossGradient(CROSS_ENTROPY, *data)]))
    assert losses.tobytes() == both[:, 0].tobytes() and gradients.shape == (3, count)


def test_gradients_by_hand():
    model, (x, y) = network(dtype=torch.float64), images(dtype=torch.float64)
    line = LinearLossLandscape(model, 3).random_line(1, seed=0)
    found = line.compute(LossGradient(CROSS_ENTROPY, x, y))
    for i in range(3):
        here = moved(model, line, (i,))
        parts = torch.autograd.grad(F.cross_entropy(here(x), y), list(here.parameters()))
        np.testing.assert_allclose(found[i], torch.cat([g.reshape(-1) for g in parts]).numpy(), rtol=1e-9, atol=1e-14)


def test_what_is_not_finite_is_a_value():
    line = LinearLossLandscape(Two(), 3).precomputed(along("a"), 2)
    values = iter([np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(line.compute(lambda _: next(values)), [np.nan, np.inf, -np.inf])


def test_values_that_differ_in_shape_are_refused():
    line = LinearLossLandscape(Two(), 3).precomputed(along("a"), 2)
    lengths = iter([2, 2, 3])
    with pytest.raises(UserError, match="differ in shape"):
        line.compute(lambda _: np.zeros(next(lengths)))


def test_a_metric_that_returns_nothing_is_refused():
    """Not an array of NaN."""
    with pytest.raises((UserError, TypeError)):
        LinearLossLandscape(Two(), 3).precomputed(along("a"), 2).compute(lambda _: None)


# Batch normalization


def test_without_a_warm_up_points_have_the_model_s_own_statistics():
    model, data = network(), images()
    plane = PlanarLossLandscape(model, 3).random_plane(2, seed=0)
    bare = plane.compute(Loss(CROSS_ENTROPY, *data))
    plane.stats_initializer()
    assert plane.compute(Loss(CROSS_ENTROPY, *data)).tobytes() == bare.tobytes()
    np.testing.assert_allclose(bare, losses_by_hand(model, plane, data), rtol=1e-5)


@pytest.mark.parametrize("given", ["names", "tensors of another dtype", "state dict", "one name", "pairs"])
def test_statistics_of_the_user_s_own(given):
    model, data = network(), images()
    mean, variance = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([1.0, 0.5, 2.0, 4.0])
    plane = PlanarLossLandscape(model, 3).random_plane(2, seed=0)
    wanted = copy.deepcopy(model)
    wanted[1].running_mean.copy_(mean)
    if given != "one name":
        wanted[1].running_var.copy_(variance)
    statistics = {
        "names": {"1.running_mean": mean, "1.running_var": variance},
        "tensors of another dtype": {"1.running_mean": mean.double(), "1.running_var": variance.numpy()},
        "state dict": dict(wanted.named_buffers()),
        "one name": {"1.running_mean": mean},
        "pairs": [(mean, variance)],
    }[given]
    plane.stats_initializer(statistics)
    np.testing.assert_allclose(
        plane.compute(Loss(CROSS_ENTROPY, *data)), losses_by_hand(wanted, plane, data), rtol=1e-5
    )
    before = losses_by_hand(model, plane, data)
    plane.stats_initializer()
    np.testing.assert_allclose(plane.compute(Loss(CROSS_ENTROPY, *data)), before, rtol=1e-5)


@pytest.mark.parametrize("given", [{"1.mean": torch.zeros(4)}, {"1.running_mean": torch.zeros(5)}, [torch.zeros(2, 5)]])
def test_statistics_that_fit_no_layer(given):
    plane = PlanarLossLandscape(network(), 3).random_plane(seed=0)
    with pytest.raises(UserError, match="running_stats"):
        plane.stats_initializer(given)


class OwnMetric(Metric):
    """As the loss-landscapes README writes them."""

    def __init__(self, inputs):
        super().__init__()
        self.inputs = inputs

    def __call__(self, wrapper):
        return wrapper.forward(self.inputs).sum().item()


def plain_function(wrapper):
    return wrapper(images()[0]).sum().item()


@pytest.mark.parametrize(
    ("source", "sizes"),
    [
        (lambda x, y: Loss(CROSS_ENTROPY, x, y), [12]),
        (lambda x, y: LossGradient(CROSS_ENTROPY, x, y), [12]),
        (lambda x, y: OwnMetric(x), [12]),
        (lambda x, y: plain_function, [12]),
        (lambda x, y: (x, y), [12]),
        (lambda x, y: Data(x, y), [12]),
        (lambda x, y: TensorDataset(x, y), [12]),
        (lambda x, y: DataLoader(TensorDataset(x, y), 5), [5, 5, 2]),
        (lambda x, y: Loss(CROSS_ENTROPY, DataLoader(TensorDataset(x, y), 5)), [5, 5, 2]),
        (lambda x, y: [(x[:3], y[:3]), (x[3:], y[3:])], [3, 9]),
        (lambda x, y: iter([(x[:3], y[:3]), (x[3:], y[3:])]), [3, 9]),
    ],
    ids=["Loss", "LossGradient", "Metric", "function", "pair", "Data", "Dataset", "loader", "Loss of loader", "list",
         "iterator"],
)  # fmt: skip
def test_warm_up_on_whatever_gives_inputs(source, sizes):
    model, (x, y) = network(), images()
    plane = PlanarLossLandscape(model, 3).random_plane(3, seed=1)
    bare = plane.compute(Loss(CROSS_ENTROPY, x, y))
    plane.warm_up(source(x, y))
    found = plane.compute(Loss(CROSS_ENTROPY, x, y))
    np.testing.assert_allclose(found, losses_by_hand(model, plane, (x, y), x.split(sizes)), rtol=2e-5)
    assert np.abs(found / bare - 1).max() > 0.1, "or the test could not tell them apart"
    assert plane.compute(Loss(CROSS_ENTROPY, x, y)).tobytes() == found.tobytes()
    plane.random_plane(3, seed=1)  # other points: what was warmed up is gone
    assert plane.compute(Loss(CROSS_ENTROPY, x, y)).tobytes() == bare.tobytes()


def test_warm_up_is_update_bn_at_every_point():
    model, (x, y) = network(), images()
    plane = PlanarLossLandscape(model, (3, 2)).random_plane(3, seed=1)
    eval_warm_up(plane, DataLoader(TensorDataset(x, y), 4), "cpu")
    found = plane.compute(Loss(CROSS_ENTROPY, x, y))
    for where in np.ndindex(3, 2):
        oracle = moved(model, plane, where)
        oracle[3].p = 0.0
        update_bn(x.double().split(4), oracle)
        assert found[where] == pytest.approx(loss_by_hand(oracle.eval(), x, y), rel=1e-5)


def test_warm_up_of_a_model_without_batch_normalization():
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(25, 3)), images()
    line = LinearLossLandscape(model, 3).random_line(1, seed=0)
    bare = line.compute(Loss(CROSS_ENTROPY, *data))
    line.stats_initializer()
    line.warm_up(Loss(CROSS_ENTROPY, *data))
    assert line.compute(Loss(CROSS_ENTROPY, *data)).tobytes() == bare.tobytes()


def test_warm_up_keeps_small_arrays():
    """For each point a mean and a variance for each feature, in float32, and no copies of modules."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 7), nn.BatchNorm1d(7), nn.Linear(7, 2000))
    model.register_buffer("large", torch.zeros(10_000))
    x, y = images()
    plane = PlanarLossLandscape(model, 8).random_plane(1, seed=0)
    plane.compute(Loss(CROSS_ENTROPY, x, y))
    modules, size = held()
    plane.warm_up((x, y))
    modules_after, size_after = held()
    assert modules_after <= modules  # fewer, where the collector has found one of another test's meanwhile
    assert 64 * 2 * 7 * 4 <= size_after - size < 2 * 64 * 2 * 7 * 4


# The whole of a loader


@pytest.mark.parametrize("n", [12, 13, 10])
def test_eval_weighs_by_samples(n):
    model, (x, y) = network(), images(n)
    loader = DataLoader(TensorDataset(x, y), 4)
    plane = PlanarLossLandscape(model, 3).random_plane(2, seed=2)
    assert eval_warm_up(plane, loader, torch.device("cpu"), CROSS_ENTROPY) is None
    found = eval_loss(plane, loader, torch.device("cpu"), CROSS_ENTROPY)
    batches = x.split([4, 4, 5] if n == 13 else 4)  # a last batch of one sample joins the one before
    np.testing.assert_allclose(found, losses_by_hand(model, plane, (x, y), batches), rtol=2e-5)


@pytest.mark.parametrize("options", [{"shuffle": True}, {"drop_last": True}, {"shuffle": True, "drop_last": True}])
def test_loaders_that_shuffle_or_drop_are_read_in_sequence_and_in_full(options):
    model, (x, y) = network(), images(11)
    plain, odd = DataLoader(TensorDataset(x, y), 4), DataLoader(TensorDataset(x, y), 4, **options)
    plane = PlanarLossLandscape(model, 3).random_plane(2, seed=2)
    with pytest.warns(UserWarning, match="in sequence and in full"):
        eval_warm_up(plane, odd, "cpu", CROSS_ENTROPY)
    with pytest.warns(UserWarning, match="in sequence and in full"):
        found = eval_loss(plane, odd, "cpu", CROSS_ENTROPY)
    eval_warm_up(plane, plain, "cpu", CROSS_ENTROPY)
    assert found.tobytes() == eval_loss(plane, plain, "cpu", CROSS_ENTROPY).tobytes()


@pytest.mark.filterwarnings("ignore:data. the loader")
def test_a_batch_sampler_that_drops_samples_is_not_followed():
    model, (x, y) = network(), images(11)
    data = TensorDataset(x, y)
    plane = PlanarLossLandscape(model, 3).random_plane(2, seed=2)
    drops = DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 4, drop_last=True))
    np.testing.assert_allclose(
        eval_loss(plane, drops, "cpu", CROSS_ENTROPY), losses_by_hand(model, plane, (x, y)), rtol=1e-5
    )


def test_a_last_batch_of_one_sample_joins_the_one_before():
    """Batch normalization of vectors cannot normalize it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(25, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    x, y = images(9)
    plane = PlanarLossLandscape(model, 3).random_plane(2, seed=2)
    eval_warm_up(plane, DataLoader(TensorDataset(x, y), 4), "cpu")
    found = plane.compute(Loss(CROSS_ENTROPY, x, y))
    np.testing.assert_allclose(found, losses_by_hand(model, plane, (x, y), x.split([4, 5])), rtol=2e-5)


def test_a_generator_of_batches_lasts_for_all_points():
    """It can be read once; the second point must not find it empty."""
    x, y = images()
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    line = LinearLossLandscape(network(), 3).random_line(1, seed=0)
    wanted = line.compute(Loss(CROSS_ENTROPY, batches))
    try:
        found = line.compute(Loss(CROSS_ENTROPY, (batch for batch in batches)))
    except UserError:
        return
    assert found.tobytes() == wanted.tobytes()


def test_a_criterion_with_tensors_of_its_own():
    model, (x, y) = network(), images(10)
    weights = torch.tensor([1.0, 2.0, 0.5])
    criterion = nn.CrossEntropyLoss(weight=weights)
    plane = PlanarLossLandscape(model, 2).random_plane(2, seed=2)
    found = eval_loss(plane, DataLoader(TensorDataset(x, y), 10), "cpu", criterion)
    with torch.no_grad():
        for where in np.ndindex(2, 2):
            by_hand = F.cross_entropy(moved(model, plane, where)(x.double()), y, weights.double())
            assert found[where] == pytest.approx(by_hand.item(), rel=1e-5)


# Wrappers


class Agent:
    """No module itself; its modules are attributes."""

    def __init__(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.policy = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
            self.q_function = nn.Sequential(nn.Linear(4, 3))
            self.encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
            self.nested = nn.ModuleDict({"policy": self.policy})
        self.name = "agent"

    def act(self, x):
        return self.policy(self.encoder(x)) + self.q_function(x).sum(1, keepdim=True)


class Slots:
    __slots__ = ("head",)

    def __init__(self, head):
        self.head = head


class Scattered:
    """Its modules are in lists, dicts and objects, and have names that every module has."""

    def __init__(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.forward = nn.Linear(4, 5)
            self.layers = [nn.BatchNorm1d(5), (nn.Dropout(0.5), nn.Linear(5, 5))]
            self.heads = {"a.b": Slots(nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 2))), "a_b": nn.Linear(5, 2)}
            self.module0 = nn.Linear(2, 2)
        self.itself, self.memory = self, [nn.Linear(2, 2)] * 2000

    def every(self):
        return nn.ModuleList(
            [self.forward, self.layers[0], *self.layers[1], self.heads["a.b"].head, self.heads["a_b"], self.module0]
        )

    def act(self, x):
        norm, (dropout, second) = self.layers
        x = second(dropout(norm(self.forward(x))))
        return self.module0(self.heads["a.b"].head(x) + self.heads["a_b"](x))


def act(agent, x):
    return agent.act(x)


def test_an_agent_that_keeps_its_modules_anywhere():
    """All in eval mode meanwhile, warmed up, and what they were afterwards."""
    agent, x = Scattered(), torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    every = agent.every().train()
    before = fingerprint(every)
    wrapper = GeneralModelWrapper(agent, [agent.forward], act)
    assert [id(p) for p in wrapper.parameters()] == [id(p) for p in agent.forward.parameters()]
    assert {id(p) for p in wrapper.root.parameters()} == {id(p) for p in every.parameters()}
    line = LinearLossLandscape(wrapper, 3).random_line(1, seed=0)
    line.warm_up([(x, x)])

    def output(w):
        assert not any(module.training for module in every)
        return w(x).detach().double().numpy()

    found = line.compute(output)
    assert fingerprint(every) == before
    by_hand = copy.deepcopy(agent)  # at the origin, in the middle of the line
    modules = by_hand.every().eval().double()
    for norm in (m for m in modules.modules() if isinstance(m, nn.BatchNorm1d)):
        norm.train().momentum = 1.0
    with torch.no_grad():
        by_hand.act(x.double())
        modules.eval()
        np.testing.assert_allclose(found[1], by_hand.act(x.double()).numpy(), rtol=1e-4, atol=1e-5)
    copied = LinearLossLandscape(wrapper, 3, deepcopy_model=True).random_line(1, seed=0)
    copied.warm_up([(x, x)])
    assert copied.compute(lambda w: w(x).detach().double().numpy()).tobytes() == found.tobytes()


def test_modules_that_are_no_attributes_of_the_agent():
    agent, others = Scattered(), [nn.Linear(2, 3), nn.Linear(3, 2)]
    wrapper = GeneralModelWrapper(agent, [agent.module0, *others], act)
    ids = [id(p) for module in (agent.module0, *others) for p in module.parameters()]
    assert [id(p) for p in wrapper.parameters()] == ids


@pytest.mark.parametrize("moving", [["policy"], ["q_function", "policy"], ["nested"], ["policy", "nested"]])
def test_an_agent_of_which_some_modules_move(moving):
    agent, x = Agent(), torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    every = [agent.policy, agent.q_function, agent.encoder]
    before = [fingerprint(m) for m in every]
    states = {id(p): p.detach().clone() for m in every for p in m.parameters()}
    modules = [getattr(agent, name) for name in moving]
    wrapper = GeneralModelWrapper(agent, modules, lambda agent, x: agent.act(x))
    names = dict(wrapper.named_parameters())
    plane = PlanarLossLandscape(wrapper, 3).random_plane(2, seed=0)
    assert set(plane.directions[0]) == set(names)
    assert {id(p) for p in names.values()} == {id(p) for m in modules for p in m.parameters()}

    def outputs(model_wrapper):
        assert model_wrapper.get_model() is agent and not any(m.training for m in every)
        still = {id(p) for m in every for p in m.parameters()} - {id(p) for p in names.values()}
        assert all(torch.equal(p, states[id(p)]) for m in every for p in m.parameters() if id(p) in still)
        return model_wrapper(x).detach().double().numpy()

    found = plane.compute(outputs)
    for where in np.ndindex(3, 3):
        by_hand = copy.deepcopy(agent)
        for m in (by_hand.policy, by_hand.q_function, by_hand.encoder):
            m.double().eval()
        ids = {id(p): name for name, p in names.items()}
        for mine, theirs in zip(
            (p for m in every for p in m.parameters()),
            (p for m in (by_hand.policy, by_hand.q_function, by_hand.encoder) for p in m.parameters()),
            strict=True,
        ):
            if id(mine) in ids:
                d = [direction[ids[id(mine)]].double() for direction in plane.directions]
                theirs.data = mine.detach().double() + sum(
                    c[i] * v for c, i, v in zip(plane.coordinates, where, d, strict=True)
                )
        np.testing.assert_allclose(found[where], by_hand.act(x.double()).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert [fingerprint(m) for m in every] == before


def test_batch_normalization_of_parts_that_are_left_out_is_the_model_s_own():
    agent, x = Agent(), torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    agent.encoder[1].running_mean.fill_(0.5)
    wrapper = GeneralModelWrapper(agent, [agent.q_function], lambda agent, x: agent.act(x))
    line = LinearLossLandscape(wrapper, 3).random_line(1, seed=0)
    line.warm_up([(x, x)])
    seen = []
    line.compute(lambda w: (seen.append(agent.encoder[1].running_mean.clone()), 0.0)[1])
    assert len(seen) == 3 and all((s == 0.5).all() for s in seen)


def test_a_part_of_a_module():
    model, x = network(), images()[0]
    wrapper = GeneralModelWrapper(model, [model[5]], lambda model, x: model(x))
    plane = PlanarLossLandscape(wrapper, 3).random_plane(2, seed=0)
    assert set(plane.directions[0]) == {"5.weight", "5.bias"}, "the names that they have in the whole model"
    found = plane.compute(lambda w: w(x).detach().double().numpy())
    for where in np.ndindex(3, 3):
        np.testing.assert_allclose(
            found[where], moved(model, plane, where)(x.double()).detach().numpy(), rtol=1e-4, atol=1e-5
        )
    copied = PlanarLossLandscape(wrapper, 3, deepcopy_model=True).random_plane(2, seed=0)
    assert copied.compute(lambda w: w(x).detach().double().numpy()).tobytes() == found.tobytes()


class Scaled(ModelWrapper):
    """A wrapper of the user's own."""

    def __init__(self, model, scale):
        super().__init__([model])
        self.net, self.scale = model, scale

    def forward(self, x):
        return self.scale * self.net(x)


def test_a_wrapper_of_the_user_s_own():
    model, data = network(), images()
    wrapper = Scaled(model, 3.0)
    plane = PlanarLossLandscape(wrapper, 2).random_plane(2, seed=0)
    found = plane.compute(lambda w: w(data[0]).detach().double().numpy())
    for where in np.ndindex(2, 2):
        by_hand = 3 * moved(model, plane, where)(data[0].double())
        np.testing.assert_allclose(found[where], by_hand.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert random_plane(wrapper, Loss(CROSS_ENTROPY, *data), 2, 2, seed=0, deepcopy_model=True).shape == (2, 2)


def test_modules_of_another_model_are_refused():
    with pytest.raises(ValueError, match="none of the model's"):
        GeneralModelWrapper(network(), [nn.Linear(2, 2)], lambda model, x: x)
    with pytest.raises(TypeError, match="Modules"):
        GeneralModelWrapper(Agent(), [], lambda model, x: x)
    with pytest.raises(TypeError, match="GeneralModelWrapper"):
        PlanarLossLandscape(Agent(), 3)


# Functions


def test_the_signatures_are_those_of_loss_landscapes():
    """Of its version 3.0.6; what we add comes after."""
    steps, copied = "steps={}", "deepcopy_model=False"
    for function, theirs in [
        (point, ["model", "metric"]),
        (linear_interpolation, ["model_start", "model_end", "metric", steps.format(100), copied]),
        (random_line, ["model_start", "metric", "distance=0.1", steps.format(100), "normalization='filter'", copied]),
        (
            planar_interpolation,
            ["model_start", "model_end_one", "model_end_two", "metric", steps.format(20), copied],
        ),
        (random_plane, ["model", "metric", "distance=1", steps.format(20), "normalization='filter'", copied]),
    ]:
        ours = inspect.signature(function).parameters.values()
        ours = [str(p.replace(annotation=inspect.Parameter.empty)) for p in ours]
        assert ours[: len(theirs)] == theirs and all("=None" in p for p in ours[len(theirs) :])


def test_point():
    model, data = awkward(), images()
    before = fingerprint(model)
    found = point(model, Loss(CROSS_ENTROPY, *data))
    assert found == pytest.approx(loss_by_hand(copy.deepcopy(model).double().eval(), *data), rel=1e-6)
    assert isinstance(found, float) and fingerprint(model) == before
    assert point(model, lambda w: (1, "as it is")) == (1, "as it is")


def test_functions_are_the_classes():
    model, metric = network(), Loss(CROSS_ENTROPY, *images())
    line = LinearLossLandscape(model, 4).random_line(0.3, "layer", centered=False, seed=1)
    found = random_line(model, metric, distance=0.3, steps=4, normalization="layer", seed=1)
    np.testing.assert_allclose(found, losses_by_hand(model, line, images()), rtol=1e-5)
    np.testing.assert_allclose(line.coordinates, [0, 0.1, 0.2, 0.3])
    plane = PlanarLossLandscape(model, 3).random_plane(0.3, "model", seed=1)
    found = random_plane(model, metric, distance=0.3, steps=3, normalization="model", seed=1, deepcopy_model=True)
    np.testing.assert_allclose(found, losses_by_hand(model, plane, images()), rtol=1e-5)
    assert random_plane(model, metric).shape == (20, 20), "the defaults of loss-landscapes"
    assert random_line(model, lambda _: 0.0).shape == linear_interpolation(model, other(model, 1), lambda _: 0).shape
    assert random_line(model, lambda _: 0.0).shape == (100,)


# Trajectories and files


def trajectory(model: nn.Module, plane, coordinates) -> list[dict[str, Tensor]]:
    return [
        {
            name: p.detach() + sum(c * d[name] for c, d in zip(where, plane.directions, strict=True))
            for name, p in model.named_parameters()
        }
        for where in coordinates
    ]


def test_project_finds_coordinates_in_directions_of_any_length_and_angle(tmp_path):
    model = network(dtype=torch.float64)
    draw = np.random.default_rng(0)
    d = {n: torch.from_numpy(draw.standard_normal(p.shape)) for n, p in model.named_parameters()}
    skew = {n: 7 * v + 2 * torch.from_numpy(draw.standard_normal(v.shape)) for n, v in d.items()}
    plane = PlanarLossLandscape(model, 3).precomputed(d, skew)
    where = np.array([[0.0, 0.0], [0.3, -0.4], [-2.0, 1.5]])
    np.testing.assert_allclose(plane.project(trajectory(model, plane, where)), where, atol=1e-10)
    np.testing.assert_allclose(plane.trajectory.distances, 0, atol=1e-9)
    for i, state in enumerate(trajectory(model, plane, where)):
        torch.save(model.state_dict() | state, tmp_path / f"epoch{i + 9}.pt")  # 9, 10, 11: by number, not by letter
    np.testing.assert_allclose(plane.project(f"{tmp_path}/*.pt"), where, atol=1e-10)
    assert plane.trajectory.labels == ["epoch9", "epoch10", "epoch11"]
    for paths in (tmp_path, [tmp_path / f"epoch{i}.pt" for i in (9, 10, 11)]):
        np.testing.assert_allclose(plane.project(paths), where, atol=1e-10)
        assert plane.trajectory.labels == ["epoch9", "epoch10", "epoch11"]


def test_pca_against_numpy():
    model = network(dtype=torch.float64)
    draw = np.random.default_rng(1)
    points = [
        {n: p.detach() + torch.from_numpy(draw.standard_normal(p.shape)) for n, p in model.named_parameters()}
        for _ in range(5)
    ]
    plane = PlanarLossLandscape(model, 3).pca(points)
    matrix = np.stack([np.concatenate([t.numpy().ravel() for t in p.values()]) for p in points])
    _, singular, components = np.linalg.svd(matrix - matrix.mean(0), full_matrices=False)
    for direction, component in zip(plane.directions, components, strict=False):
        flat = np.concatenate([t.numpy().ravel() for t in direction.values()])
        assert abs(flat @ component) == pytest.approx(1, rel=1e-9) and np.linalg.norm(flat) == pytest.approx(1)
    ratios = singular[:4] ** 2 / (singular[:4] ** 2).sum()
    np.testing.assert_allclose(plane.explained_variance_ratio, ratios, rtol=1e-9)
    origin = np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])
    signs = [np.sign(np.concatenate([t.numpy().ravel() for t in d.values()]) @ c) for d, c in
             zip(plane.directions, components, strict=False)]  # fmt: skip
    np.testing.assert_allclose(
        plane.trajectory.coordinates, (matrix - origin) @ components[:2].T * signs, rtol=1e-8, atol=1e-8
    )
    for axis, seen in zip(plane.coordinates, plane.trajectory.coordinates.T, strict=True):
        assert axis[0] < seen.min() and axis[-1] > seen.max() and axis[0] < 0 < axis[-1]


def test_what_is_saved_is_plotted_told_and_loaded(tmp_path):
    pytest.importorskip("matplotlib")
    model, data = network(), images()
    path = str(tmp_path / "mine.h5")
    plane = PlanarLossLandscape(model, (5, 3)).random_plane(3, seed=11)
    where = np.array([[0.5, 0.25], [0.0, 0.0]])
    plane.project([model.state_dict() | state for state in trajectory(model, plane, where)])
    loss, gradient = plane.compute(Loss(CROSS_ENTROPY, *data)), plane.compute(lambda w: [1.0, 2.0])
    plane.save(path, title="a title of my own", loss=loss, pair=gradient)
    with h5py.File(path) as file:
        assert file["loss"][()].tobytes() == loss.tobytes() and file["pair"].shape == (5, 3, 2)
        assert file["x"][()].tobytes() == plane.coordinates[0].tobytes()
        assert file["y"][()].tobytes() == plane.coordinates[1].tobytes()
        assert file["done"][()].all() and file.attrs["seed"] == 11
        for axis, direction in zip("xy", plane.directions, strict=True):
            for name, d in direction.items():
                assert file[f"directions/along_{axis}/{name}"][()].tobytes() == d.numpy().tobytes()
        np.testing.assert_allclose(file["trajectory/x"][()], where[:, 0], atol=1e-6)
        np.testing.assert_allclose(file["trajectory/y"][()], where[:, 1], atol=1e-6)
    text = info(path)
    assert "a title of my own" in text and "all done" in text and f"{loss.min():.4g}" in text
    hpc_landscape.plot(path, str(tmp_path / "mine.png"))
    assert (tmp_path / "mine.png").read_bytes()[:4] == b"\x89PNG"
    again = PlanarLossLandscape(model, 3).load_directions(path, distance=3)
    corners = again.compute(Loss(CROSS_ENTROPY, *data))
    assert corners[::2, ::2].tobytes() == loss[::4, ::2].tobytes()


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_directions_from_files(tmp_path, suffix):
    model = network()
    given = {"5.weight": np.full((3, 36), 0.5, np.float32)}
    path = tmp_path / f"x.{suffix}"
    if suffix == "npz":
        np.savez(path, **given)
    else:
        torch.save({n: torch.from_numpy(a) for n, a in given.items()}, path)
    line = LinearLossLandscape(model, 3).load_directions(path)
    assert line.coordinates.tolist() == [-1, 0, 1]
    seen = Seen()
    line.compute(seen)
    assert torch.equal(seen.points[2]["5.weight"], model[5].weight.detach() + 0.5)
    assert torch.equal(seen.points[2]["0.weight"], model[0].weight.detach())


# Mistakes


@pytest.mark.parametrize("steps", [0, -3, (3, 0), (3,), (3, 3, 3), [], 2.5, (2.5, 3), "5", None])
def test_wrong_steps(steps):
    with pytest.raises(UserError, match="steps"):
        PlanarLossLandscape(network(), steps).random_plane(seed=0).compute(lambda _: 0.0)


def test_steps_of_numpy_s_integers():
    assert LinearLossLandscape(Two(), np.int64(3)).precomputed(along("a")).compute(lambda _: 0.0).shape == (3,)


@pytest.mark.parametrize("distance", [0, -1, float("nan"), float("inf")])
def test_wrong_distance(distance):
    with pytest.raises(UserError, match="distance"):
        PlanarLossLandscape(network(), 3).random_plane(distance)
    with pytest.raises(UserError, match="distance"):
        LinearLossLandscape(Two(), 3).precomputed(along("a"), distance)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda p: p.random_plane(normalization="filters"), "filters.*filter, layer, model"),
        (lambda p: p.random_plane(random="gaussian"), "gaussian.*normal or uniform"),
        (lambda p: p.random_plane(seed=-1), "seed"),
        (lambda p: p.precomputed({}, {}, normalization="weight"), "weight.*filter"),
        (lambda p: p.precomputed({"nothing": torch.zeros(1)}, {}), "nothing"),
        (lambda p: p.precomputed({"5.bias": torch.zeros(4)}, {}), "5.bias"),
        (lambda p: p.precomputed(torch.zeros(7), torch.zeros(7)), "7 numbers for 159 parameters"),
        (lambda p: p.precomputed([torch.zeros(3)], [torch.zeros(3)]), "1 tensors for 6 parameters"),
        (lambda p: p.interpolation(nn.Linear(3, 2), nn.Linear(3, 2)), "no parameter"),
        (lambda p: p.interpolation(network(), network(1)), "equals the model"),
        (lambda p: p.interpolation("nowhere.pt", network(1)), "nowhere.pt"),
        (lambda p: p.load_directions("nowhere.npz"), "nowhere.npz"),
        (lambda p: p.pca([network()]), "checkpoints"),
        (lambda p: p.pca("nowhere/*.pt"), "nowhere"),
        (lambda p: p.random_plane().warm_up(3), "int"),
        (lambda p: p.random_plane().save("x.h5", loss=np.zeros(3)), r"\(3, 3\)"),
        (lambda p: p.random_plane().save("x.h5"), "nothing is given"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(call, word):
    with pytest.raises(UserError, match=word) as error:
        call(PlanarLossLandscape(network(), 3))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("a", "b"), [((3, 2), (3, 4)), ((3, 2), (1, 2)), ((3, 1), (3, 4))])
def test_another_architecture_with_the_same_names(a, b):
    """Also where its tensors would broadcast to the model's."""
    with pytest.raises(UserError):
        LinearLossLandscape(nn.Linear(*a), 3).interpolation(nn.Linear(*b))
    with pytest.raises(UserError):
        LinearLossLandscape(nn.Linear(*a), 3).random_line(seed=0).project([nn.Linear(*b).state_dict()])


@pytest.mark.parametrize("name", ["compute", "warm_up", "stats_initializer", "save", "project", "coordinates"])
def test_before_a_direction_is_said(name, tmp_path):
    arguments = {"compute": [lambda _: 0], "warm_up": [images()], "save": [str(tmp_path / "a.h5")], "project": [[]]}
    for landscape, words in (
        (PlanarLossLandscape(network(), 3), "PlanarLossLandscape.random_plane"),
        (LinearLossLandscape(network(), 3), "LinearLossLandscape.random_line"),
    ):
        with pytest.raises(UserError, match=words):
            found = getattr(landscape, name)
            found(*arguments.get(name, []))


@pytest.mark.parametrize("name", ["x", "y", "done", "directions"])
def test_a_name_that_the_file_has_for_itself(name, tmp_path):
    plane = PlanarLossLandscape(Two(), 3).precomputed(along("a"), along("b"))
    with pytest.raises(UserError, match=name):
        plane.save(str(tmp_path / "a.h5"), **{name: np.zeros((3, 3))})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path):
    plane = PlanarLossLandscape(Two(), 3).precomputed(along("a"), along("b"))
    with pytest.raises((UserError, FileNotFoundError)):
        plane.save(str(tmp_path / "nowhere" / "a.h5"), loss=np.zeros((3, 3)))
