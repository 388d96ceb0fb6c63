"""Batch normalization at a point, against torch.optim.swa_utils.update_bn and against NumPy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from still import still
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from hpc_landscape.data.prepare import prepare
from hpc_landscape.evaluate.evaluator import Evaluator
from hpc_landscape.evaluate.passes import warm_up
from hpc_landscape.metrics import Accuracy, Data, Loss
from hpc_landscape.model import batchnorm, state
from hpc_landscape.model.placement import Placement
from hpc_landscape.model.wrapper import wrap_model
from hpc_landscape.problems.problem import Problem

CLASSES = 3


pytestmark = pytest.mark.usefixtures("one_thread")


def network(dimensions: int, **options) -> nn.Module:
    """A small network with two BN layers for inputs of so many spatial dimensions (0: none)."""
    torch.manual_seed(0)
    bn = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dimensions]
    conv = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    kernel = (3,) if dimensions else ()
    width = 4
    model = nn.Sequential(
        conv(2, width, *kernel),
        bn(width, **options),
        nn.ReLU(),
        conv(width, width, *((1,) if dimensions else ())),
        bn(width, **options),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )
    model(torch.zeros(2, 2, *[5] * dimensions))
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias)
            if layer.running_mean is not None:  # statistics that a warm-up has to get rid of
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.2, 3)
                layer.num_batches_tracked.fill_(17)
    return model


def samples(n: int, dimensions: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = 2 * torch.randn(n, 2, *[5] * dimensions, generator=generator) + 0.5
    return inputs, torch.randint(CLASSES, (n,), generator=generator)


def directions(model: nn.Module, count: int = 2) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        {name: 0.5 * torch.randn(p.shape, generator=generator).to(p.dtype) for name, p in model.named_parameters()}
        for _ in range(count)
    ]


def points(n: int = 20) -> np.ndarray:
    return np.random.default_rng(3).uniform(-1, 1, (n, 2))


def evaluator(model, data, bn, batch_size, warmup_data=None, dtype=None, moves=None) -> Evaluator:
    problem = Problem(model, nn.CrossEntropyLoss(), data)
    moves = directions(model) if moves is None else moves
    placement = Placement(state.parameters(model), moves, torch.device("cpu"), dtype)
    batches = [
        prepare(d, batch_size, None, 0, "data", print).to(torch.device("cpu"), dtype)
        for d in (data, data if warmup_data is None else warmup_data)
    ]
    data, warmup_data = (problem.on(b) for b in batches)
    metrics = {"loss": Loss(problem.loss, data), "accuracy": Accuracy(data)}
    return Evaluator(problem.wrapper, placement, metrics, bn, warmup_data)


def at(evaluate: Evaluator, where) -> list[dict[str, np.ndarray]]:
    """Ours at these points. The model is the plain one again afterwards, for the oracle to copy."""
    with evaluate.attached():
        return [{name: np.float64(value) for name, value in evaluate(c).items()} for c in where]


def losses_at(evaluate: Evaluator, where) -> list[float]:
    return [float(values["loss"]) for values in at(evaluate, where)]


def moved(model: nn.Module, moves, coordinates) -> nn.Module:
    """The oracle's model: a copy, its parameters moved in float64."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            step = sum(c * d[name].double() for c, d in zip(coordinates, moves, strict=True))
            p.copy_((p.double() + step).to(p.dtype))
    return model


def plain(model: nn.Module, data) -> tuple[float, float]:
    """Loss and accuracy in eval mode, in one batch."""
    inputs, target = data
    model.eval()
    with torch.no_grad():
        output = model(inputs)
    return float(F.cross_entropy(output.double(), target)), float((output.argmax(1) == target).double().mean())


@torch.no_grad()
def batch_losses(model: nn.Module, data, batch_size: int = 8) -> list[float]:
    """The loss of each batch, in the modes that the model is in."""
    batches = zip(*(t.split(batch_size) for t in data), strict=True)
    return [float(F.cross_entropy(model(x), y)) for x, y in batches]


def by_update_bn(model: nn.Module, data, batch_size: int) -> nn.Module:
    """PyTorch's own re-estimation, dropout off."""
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    update_bn(data[0].split(batch_size), model)
    return model


def compare(model, data, batch_size=8, n=20, dtype=None, rtol=1e-6) -> None:
    """Ours at n random points, against update_bn and an evaluation by hand."""
    moves = directions(model)
    evaluate = evaluator(model, data, "warmup", batch_size, dtype=dtype)
    copied = model if dtype is None else copy.deepcopy(model).to(dtype)
    inputs = data[0] if dtype is None else data[0].to(dtype)
    found = at(evaluate, points(n))
    for c, values in zip(points(n), found, strict=True):
        oracle = by_update_bn(moved(copied, moves, c), (inputs, data[1]), batch_size)
        loss, accuracy = plain(oracle, (inputs, data[1]))
        np.testing.assert_allclose(values["loss"], loss, rtol=rtol)
        np.testing.assert_allclose(values["accuracy"], accuracy, rtol=1e-12)


@pytest.mark.parametrize("dimensions", [0, 1, 2, 3])
def test_warm_up_is_update_bn(dimensions):
    compare(network(dimensions), samples(32, dimensions))


@pytest.mark.parametrize("dimensions", [0, 2])
def test_warm_up_is_update_bn_in_float64(dimensions):
    compare(network(dimensions), samples(32, dimensions), n=5, dtype=torch.float64, rtol=1e-12)


@pytest.mark.parametrize("options", [{"momentum": None}, {"momentum": 0.9}, {"affine": False}, {"eps": 0.1}])
def test_layer_options(options):
    model = network(2, **options)
    compare(model, samples(24, 2), n=5)
    assert all(m.momentum == options.get("momentum", 0.1) for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_dropout_stays_off():
    model = network(0)
    model.insert(3, nn.Dropout(0.5))
    compare(model, samples(24, 0), n=5)


def test_frozen_layers_are_re_estimated_as_well():
    model = network(2)
    for p in model[1].parameters():
        p.requires_grad_(False)
    model.train()
    model[1].eval()
    compare(model, samples(24, 2), n=5)
    assert model.training and not model[1].training and not model[1].weight.requires_grad


def test_a_layer_that_is_used_twice_counts_both_uses():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.bn, self.last = nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES)

        def forward(self, x):
            return self.last(F.relu(self.bn(F.relu(self.bn(self.first(x))) - 1)))

    torch.manual_seed(0)
    compare(Twice(), samples(24, 0), n=5)


def test_layers_without_running_statistics_use_their_batch():
    model = network(0, track_running_stats=False)
    data = samples(24, 0)
    moves = directions(model)
    evaluate = evaluator(model, data, "warmup", 8)
    for c, found in zip(points(5), losses_at(evaluate, points(5)), strict=True):
        np.testing.assert_allclose(found, np.mean(batch_losses(moved(model, moves, c).eval(), data)), rtol=1e-6)


def test_mixed_layers_with_and_without_running_statistics():
    model = network(0)
    model[1] = nn.BatchNorm1d(4, track_running_stats=False)
    data = samples(24, 0)
    moves, evaluate = directions(model), evaluator(model, data, "warmup", 8)
    for c, found in zip(points(5), losses_at(evaluate, points(5)), strict=True):
        oracle = by_update_bn(moved(model, moves, c), data, 8).eval()
        np.testing.assert_allclose(found, np.mean(batch_losses(oracle, data)), rtol=1e-6)


# Unequal batches: the weighted average, by hand in NumPy


def numpy_loss(model: nn.Sequential, moves, c, data, sizes: list[int], warmup=None) -> float:
    """network(0)'s loss after a warm-up on batches of these sizes, statistics weighted by batch size; float64."""
    p = {
        name: (w.detach().double() + sum(a * d[name].double() for a, d in zip(c, moves, strict=True))).numpy()
        for name, w in model.named_parameters()
    }
    inputs = (data if warmup is None else warmup)[0].double().numpy()
    batches = np.split(inputs, np.cumsum(sizes)[:-1])
    assert [len(b) for b in batches] == sizes
    weights = np.array(sizes) / sum(sizes)

    def normalized(h, mean, var, layer):
        return (h - mean) / np.sqrt(var + model[layer].eps) * p[f"{layer}.weight"] + p[f"{layer}.bias"]

    def linear(h, layer):
        return h @ p[f"{layer}.weight"].T + p[f"{layer}.bias"]

    statistics = {}
    hidden = [linear(b, 0) for b in batches]
    for layer in (1, 4):
        statistics[layer] = (
            sum(w * h.mean(0) for w, h in zip(weights, hidden, strict=True)),
            sum(w * h.var(0, ddof=1) for w, h in zip(weights, hidden, strict=True)),
        )
        if layer == 1:  # while it warms up, a batch is normalized by its own, biased, statistics
            hidden = [linear(np.maximum(normalized(h, h.mean(0), h.var(0), 1), 0), 3) for h in hidden]
    h = linear(data[0].double().numpy(), 0)
    h = linear(np.maximum(normalized(h, *statistics[1], 1), 0), 3)
    scores = linear(np.maximum(normalized(h, *statistics[4], 4), 0), 7)
    log_sum = np.log(np.exp(scores - scores.max(1, keepdims=True)).sum(1)) + scores.max(1)
    return float((log_sum - scores[np.arange(len(scores)), data[1].numpy()]).mean())


@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        (24, [8, 8, 8]),
        (21, [8, 8, 5]),
        (18, [8, 8, 2]),
        (17, [8, 9]),  # a last batch of one sample joins the one before
        (9, [9]),
        (5, [5]),
    ],
)
def test_unequal_batches_by_hand(n, sizes):
    model, data = network(0), samples(n, 0)
    moves, evaluate = directions(model), evaluator(model, data, "warmup", 8, dtype=torch.float64)
    by_hand = [numpy_loss(model, moves, c, data, sizes) for c in points()]
    np.testing.assert_allclose(losses_at(evaluate, points()), by_hand, rtol=1e-12)
    evaluate = evaluator(model, data, "warmup", 8)
    np.testing.assert_allclose(losses_at(evaluate, points()), by_hand, rtol=1e-6)


def test_warm_up_data_of_its_own():
    model, data = network(0), samples(12, 0)
    warmup = (samples(40, 0)[0][15:] * 1.7 - 0.3, torch.zeros(25, dtype=torch.long))
    moves = directions(model)
    evaluate = evaluator(model, data, "warmup", 8, warmup_data=warmup, dtype=torch.float64)
    by_hand = [numpy_loss(model, moves, c, data, [8, 8, 9], warmup) for c in points(5)]
    np.testing.assert_allclose(losses_at(evaluate, points(5)), by_hand, rtol=1e-12)


def test_statistics_do_not_depend_on_the_point_before():
    model, data = network(2), samples(20, 2)
    evaluate = evaluator(model, data, "warmup", 8)
    somewhere, huge = points(1)[0], (1e19, -1e19)  # the second leaves NaN or infinite statistics behind
    with evaluate.attached():
        first = evaluate(somewhere)["loss"]
        evaluate(huge)
        assert evaluate(somewhere)["loss"] == first


# The other policies


@pytest.mark.parametrize("dimensions", [0, 2])
def test_running_at_the_centre_is_the_plain_model(dimensions):
    model, data = network(dimensions), samples(21, dimensions)
    loss, accuracy = plain(copy.deepcopy(model), data)
    evaluate = evaluator(model, data, "running", 8)
    with evaluate.attached():
        found = evaluate((0.0, 0.0))
        np.testing.assert_allclose(found["loss"], loss, rtol=1e-6)
        np.testing.assert_allclose(found["accuracy"], accuracy, rtol=1e-12)
        evaluate((1.0, 1.0))
        assert evaluate((0.0, 0.0))["loss"] == found["loss"]


def test_running_keeps_the_statistics_at_other_points():
    model, data = network(2), samples(20, 2)
    moves, evaluate = directions(model), evaluator(model, data, "running", 8)
    by_hand = [plain(moved(model, moves, c), data)[0] for c in points(5)]
    np.testing.assert_allclose(losses_at(evaluate, points(5)), by_hand, rtol=1e-6)


def test_batch_uses_each_batch_s_own_statistics():
    model, data = network(2), samples(21, 2)
    model.insert(6, nn.Dropout(0.5))  # must stay off
    moves, evaluate = directions(model), evaluator(model, data, "batch", 8)
    found = losses_at(evaluate, points(5))
    assert losses_at(evaluate, points(5)) == found
    for c, value in zip(points(5), found, strict=True):
        oracle = moved(model, moves, c).train()
        oracle[6].eval()
        np.testing.assert_allclose(value, np.average(batch_losses(oracle, data), weights=[8, 8, 5]), rtol=1e-6)


# Everything as it was


def snapshot(model: nn.Module) -> dict:
    return {
        "tensors": {k: (id(v), v.data_ptr(), v.detach().clone()) for k, v in model.named_parameters()}
        | {k: (id(v), v.data_ptr(), v.clone()) for k, v in model.named_buffers()},
        "grads": {k: (id(p.grad), p.requires_grad, p.dtype) for k, p in model.named_parameters()},
        "modes": [m.training for m in model.modules()],
        "momentum": [getattr(m, "momentum", "none") for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
    }


def assert_same(before: dict, after: dict) -> None:
    for key in ("grads", "modes", "momentum", "hooks"):
        assert before[key] == after[key], key
    assert before["tensors"].keys() == after["tensors"].keys()
    for name, (identity, pointer, value) in before["tensors"].items():
        assert after["tensors"][name][:2] == (identity, pointer), name
        assert value.numpy().tobytes() == after["tensors"][name][2].numpy().tobytes(), name


def awkward() -> nn.Module:
    """A model in a state that is easily lost: mixed modes, gradients, one frozen parameter, other momenta."""
    model = network(2)
    F.cross_entropy(model(samples(8, 2)[0]), samples(8, 2)[1]).backward()
    model.train()
    model[1].eval()
    model[1].momentum, model[4].momentum = None, 0.37
    model[0].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("bn", ["warmup", "running", "batch"])
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_the_model_is_bitwise_what_it_was(bn, dtype):
    model = awkward()
    before = snapshot(model)
    evaluate = evaluator(model, samples(20, 2), bn, 8, dtype=dtype)
    with evaluate.attached():
        evaluate((0.3, 0.4))
    assert_same(before, snapshot(model))


@pytest.mark.parametrize(("bn", "calls_before"), [("warmup", 0), ("warmup", 1), ("warmup", 4), ("batch", 1)])
def test_the_model_is_what_it_was_after_an_exception_inside_a_pass(bn, calls_before):
    class Breaks(nn.Module):
        left = calls_before

        def forward(self, x):
            if not self.left:
                raise RuntimeError("inside the pass")
            self.left -= 1
            return x

    model = awkward()
    model.insert(5, Breaks())
    before = snapshot(model)
    evaluate = evaluator(model, samples(20, 2), bn, 8)
    with pytest.raises(RuntimeError, match="inside the pass"), evaluate.attached():
        evaluate((0.3, 0.4))
    assert_same(before, snapshot(model))


def test_a_pass_alone_restores_modes_and_momenta_after_an_exception():
    model = awkward().eval()
    modes, momenta = [m.training for m in model.modules()], [getattr(m, "momentum", 0) for m in model.modules()]

    def batches():
        yield samples(8, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warm_up(still(wrap_model(model)), Data(batches()))
    assert [m.training for m in model.modules()] == modes
    assert [getattr(m, "momentum", 0) for m in model.modules()] == momenta
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_which_layers():
    model = nn.Sequential(
        nn.BatchNorm1d(2),
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.InstanceNorm1d(2),
        nn.LayerNorm(2),
        nn.SyncBatchNorm(2),
        nn.GroupNorm(1, 2),
    )
    assert batchnorm.batchnorm_layers(model) == [model[0], model[4]]
