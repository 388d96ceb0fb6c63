"""Gradients, their predictiveness, and random perturbations, against closed forms and NumPy in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_landscape.errors import UserError
from hpc_landscape.evaluate.evaluator import Evaluator
from hpc_landscape.metrics import Data, GradientNorm, GradientPredictiveness, Loss, LossGradient, LossPerturbations
from hpc_landscape.metrics.gradient import gradient, movable
from hpc_landscape.model import state
from hpc_landscape.model.placement import Placement
from hpc_landscape.model.wrapper import GeneralModelWrapper, ModelWrapper, wrap_model

NOTHING = torch.zeros(1)


class Quadratic(nn.Module):
    """Its output is w.A.w / 2 + b.w, which the loss passes on."""

    def __init__(self, size: int = 5):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        root = torch.randn(size, size, generator=generator, dtype=torch.float64)
        self.A = root + root.T
        self.b = torch.randn(size, generator=generator, dtype=torch.float64)
        self.w = nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w @ self.A @ self.w / 2 + self.b @ self.w

    def gradient(self, w: Tensor | None = None) -> np.ndarray:
        w = self.w.detach() if w is None else w
        return (self.A @ w + self.b).numpy()


def passed_on(output: Tensor, target: Tensor) -> Tensor:
    return output


def mlp(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)


def batches(sizes: list[int], dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (6,)) -> list:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, *shape, generator=generator).to(dtype), torch.randint(4, (n,), generator=generator))
        for n in sizes
    ]


def one(sizes: list[int], **keywords) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*batches(sizes, **keywords), strict=True)
    return torch.cat(inputs), torch.cat(targets)


def by_backward(model: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    """What .backward() leaves on a copy."""
    model = copy.deepcopy(model).requires_grad_(True)
    F.cross_entropy(model(x), y).backward()
    return np.concatenate([p.grad.double().numpy().reshape(-1) for p in model.parameters() if p.grad is not None])


def everything(model: nn.Module) -> list:
    """The bits of a model, its gradients, and what is trainable."""
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags = [(p.requires_grad, p.data_ptr()) for p in model.parameters()]
    return [{k: v.clone() for k, v in model.state_dict().items()}, grads, flags]


def assert_same(before: list, after: list) -> None:
    for name, value in before[0].items():
        assert value.numpy().tobytes() == after[0][name].numpy().tobytes(), name
    for a, b in zip(before[1], after[1], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert before[2] == after[2]


# The gradient


def test_of_a_quadratic():
    model = Quadratic()
    found = LossGradient(passed_on, NOTHING)(wrap_model(model))
    assert found.dtype == np.float64 and found.shape == (5,)
    np.testing.assert_allclose(found, model.gradient(), rtol=1e-14)
    norm = GradientNorm(passed_on, NOTHING)(wrap_model(model))
    np.testing.assert_allclose(norm, np.linalg.norm(model.gradient()), rtol=1e-14)


def test_unequal_batches_are_one_batch():
    model = mlp()
    sizes = [7, 4, 1, 9]
    expected = by_backward(model, *one(sizes))
    of_loader = LossGradient(F.cross_entropy, batches(sizes))(wrap_model(model))
    of_tensors = LossGradient(F.cross_entropy, *one(sizes))(wrap_model(model))
    np.testing.assert_allclose(of_loader, expected, rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(of_tensors, expected, rtol=1e-12, atol=1e-16)
    means = [by_backward(model, x, y) for x, y in batches(sizes)]
    assert np.abs(np.mean(means, axis=0) - expected).max() > 1e-3  # the test can tell them apart


def test_batches_weigh_by_their_count_and_empty_ones_not_at_all():
    model, data = mlp(), batches([3, 5, 2])
    weights = {3: 10, 5: 0, 2: 1}
    metric = LossGradient(F.cross_entropy, Data(data, count=lambda batch: weights[len(batch[0])]))
    expected = (10 * by_backward(model, *data[0]) + by_backward(model, *data[2])) / 11
    np.testing.assert_allclose(metric(wrap_model(model)), expected, rtol=1e-12)
    nothing = LossGradient(F.cross_entropy, Data(data, count=lambda batch: 0))
    assert np.isnan(nothing(wrap_model(model))).all()


def test_float32_batches_are_added_up_in_float64():
    model = nn.Linear(1, 1, bias=False)
    data = [(torch.full((3, 1), 0.1), torch.zeros(3, 1))] * 2000
    found, of_one = (LossGradient(lambda output, target: output.mean(), d)(wrap_model(model)) for d in (data, data[:1]))
    np.testing.assert_allclose(found, of_one, rtol=1e-12)
    np.testing.assert_allclose(found, 0.1, rtol=1e-6)


def test_dict_batches_with_forward():
    model, (x, y) = mlp(), one([8])
    data = Data([{"x": x, "y": y}], forward=lambda model, batch: model(batch["x"]), count=lambda batch: len(batch["x"]))
    found = LossGradient(lambda output, batch: F.cross_entropy(output, batch["y"]), data)(wrap_model(model))
    np.testing.assert_allclose(found, by_backward(model, x, y), rtol=1e-12)


def test_a_convolutional_model_with_batch_normalization_in_float32():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 4)
    )
    model(torch.randn(9, 2, 4, 4))  # running statistics that are not the initial ones
    model.eval()
    x, y = one([5, 8], dtype=torch.float32, shape=(2, 4, 4))
    before = everything(model)
    found = LossGradient(F.cross_entropy, [(x[:5], y[:5]), (x[5:], y[5:])])(wrap_model(model))
    assert_same(before, everything(model))
    expected = by_backward(copy.deepcopy(model).double(), x.double(), y)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


class Odd(nn.Module):
    """Tied, unused, integer, frozen parameters, and several dtypes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 6, dtype=torch.float64)
        self.steps = nn.Parameter(torch.arange(3), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2, 2))
        self.second = nn.Linear(6, 4)
        self.first_again = nn.Linear(6, 6, bias=False)
        self.first_again.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first_again(torch.tanh(self.first(x))).float())


def test_tied_unused_integer_and_frozen_parameters_of_several_dtypes():
    model, (x, y) = Odd(), one([9])
    model.first.bias.requires_grad_(False)
    model.second.weight.grad = torch.ones_like(model.second.weight)
    before = everything(model)
    found = LossGradient(F.cross_entropy, x, y)(wrap_model(model))
    assert_same(before, everything(model))
    assert found.shape == (36 + 6 + 4 + 24 + 4,)
    twin = copy.deepcopy(model)
    twin.first.bias.requires_grad_(True)
    twin.zero_grad()
    F.cross_entropy(twin(x), y).backward()
    order = [twin.unused, twin.first.weight, twin.first.bias, twin.second.weight, twin.second.bias]
    expected = [np.zeros(4), *(p.grad.double().numpy().reshape(-1) for p in order[1:])]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-12)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_frozen_model(mode):
    """Also where nothing is differentiated."""
    model, (x, y) = mlp().requires_grad_(False), one([9])
    before = everything(model)
    with mode():
        found = LossGradient(F.cross_entropy, x, y)(wrap_model(model))
        distance = GradientPredictiveness(F.cross_entropy, x, y)(wrap_model(model))
    assert_same(before, everything(model))
    np.testing.assert_allclose(found, by_backward(model, x, y), rtol=1e-12)
    assert distance == GradientPredictiveness(F.cross_entropy, x, y)(wrap_model(model))


def test_a_subset_of_the_modules():
    model, (x, y) = mlp(), one([9])
    wrapper = GeneralModelWrapper(model, [model[2]], lambda model, x: model(x))
    np.testing.assert_allclose(
        LossGradient(F.cross_entropy, x, y)(wrapper),
        by_backward(model, x, y)[-model[2].weight.numel() - 4 :],
        rtol=1e-12,
    )


def test_recurrent_models_and_sparse_embeddings():
    class Text(nn.Module):
        def __init__(self, sparse: bool):
            super().__init__()
            torch.manual_seed(0)
            self.words = nn.Embedding(11, 5, sparse=sparse)
            self.rnn = nn.LSTM(5, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(self.words(x))[0][:, -1]

    x, y = torch.arange(12).reshape(4, 3) % 11, torch.arange(4)
    enabled = torch.backends.cudnn.enabled
    sparse, plain = (LossGradient(F.cross_entropy, x, y)(wrap_model(Text(s).eval())) for s in (True, False))
    np.testing.assert_allclose(sparse, plain, rtol=1e-12)
    np.testing.assert_allclose(plain, by_backward(Text(False), x, y), rtol=1e-6)
    assert torch.backends.cudnn.enabled == enabled


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model, (x, y) = mlp(dtype), one([9], dtype=dtype)
    expected = np.linalg.norm(by_backward(copy.deepcopy(model).double(), x.double(), y))
    norm = GradientNorm(F.cross_entropy, x, y)(wrap_model(model))
    assert norm == pytest.approx(expected, rel=3e-2) and norm != float(np.float32(norm))


@pytest.mark.parametrize(
    "loss", [lambda output, target: 0.5, lambda output, target: (output.argmax(1) == target).double().mean()]
)
def test_a_loss_without_a_gradient(loss):
    model = mlp().requires_grad_(False)
    for metric in (LossGradient, GradientNorm, GradientPredictiveness):
        with pytest.raises(UserError, match="no gradient") as error:
            metric(loss, *one([3]))(wrap_model(model))
        assert "\n" not in str(error.value)
    assert not any(p.requires_grad for p in model.parameters())


# Predictiveness


def test_predictiveness_of_a_quadratic():
    """The gradient changes by -step * A.g: its norm is known."""
    model = Quadratic()
    g = model.gradient()
    expected = [step * np.linalg.norm(model.A.numpy() @ g) for step in (0.1, 0.5, 2.0)]
    before = everything(model)
    metric = GradientPredictiveness(passed_on, NOTHING, step=(0.1, 0.5, 2.0))
    found = metric(wrap_model(model))
    assert metric.shape == found.shape == (3,) and metric.dims == ("step",)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    metric = GradientPredictiveness(passed_on, NOTHING, step=0.5)
    assert metric.shape == () and metric.dims == ()
    np.testing.assert_allclose(metric(wrap_model(model)), expected[1], rtol=1e-13)
    assert_same(before, everything(model))


def test_predictiveness_of_a_network():
    model, (x, y) = mlp(), one([9])
    g = by_backward(model, x, y)
    moved = copy.deepcopy(model)
    offsets = np.cumsum([p.numel() for p in model.parameters()])[:-1]
    with torch.no_grad():
        for p, part in zip(moved.parameters(), np.split(g, offsets), strict=True):
            p.sub_(0.3 * torch.from_numpy(part).reshape(p.shape))
    expected = np.linalg.norm(by_backward(moved, x, y) - g)
    found = GradientPredictiveness(F.cross_entropy, x, y, step=0.3)(wrap_model(model))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


METRICS = [
    lambda x, y: LossGradient(F.cross_entropy, x, y),
    lambda x, y: GradientNorm(F.cross_entropy, x, y),
    lambda x, y: GradientPredictiveness(F.cross_entropy, x, y, (0.1, 3.0)),
    lambda x, y: LossPerturbations(F.cross_entropy, x, y, 3, 0.5),
]


@pytest.mark.parametrize("make", METRICS)
def test_values_depend_on_the_point_alone(make):
    """In any order, between other points, and beside other metrics: bitwise the same."""
    model = nn.Sequential(*mlp(torch.float32), nn.BatchNorm1d(4)).eval()
    data = Data(batches([6, 9], dtype=torch.float32))
    before = everything(model)
    metric = make(data, None)
    placement = Placement(state.parameters(model), [{"0.weight": torch.ones(8, 6)}])

    def values(points: list[float], **metrics) -> dict[float, bytes]:
        evaluate = Evaluator(wrap_model(model), placement, {"it": metric, **metrics}, "warmup", data)
        with evaluate.attached():
            return {c: np.asarray(evaluate([c])["it"]).tobytes() for c in points}

    first = values([-1.0, 0.0, 0.5])
    assert values([0.5, 0.0, -1.0], loss=Loss(F.cross_entropy, data)) == first
    assert values([0.0])[0.0] == first[0.0] and len(set(first.values())) == 3
    assert_same(before, everything(model))


@pytest.mark.parametrize("make", METRICS)
def test_far_off_the_values_are_not_finite(make):
    model, (x, y) = mlp(torch.float32), one([6], dtype=torch.float32)
    with torch.no_grad():
        model[2].weight.fill_(torch.nan)
    before = everything(model)
    assert np.isnan(make(x, y)(wrap_model(model))).all()
    assert_same(before, everything(model))


@pytest.mark.parametrize("make", METRICS)
@pytest.mark.parametrize("fails_at", [1, 2])
def test_an_error_leaves_the_model_as_it_was(make, fails_at):
    model, data = mlp(torch.float32), batches([6], dtype=torch.float32)
    model[0].requires_grad_(False)
    calls = []

    class Fails(ModelWrapper):
        def forward(self, x):
            calls.append(0)
            if len(calls) == fails_at:
                raise RuntimeError("an error of the model")
            return model(x)

    before = everything(model)
    metric = make(data * 2, None)
    with pytest.raises(RuntimeError, match="an error of the model"):
        metric(Fails([model]))
    assert_same(before, everything(model))


def test_movable_restores_every_bit():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight[0, 0], model.weight[0, 1], model.weight[0, 2] = torch.nan, -0.0, torch.inf
    before = everything(model)
    wrapper = wrap_model(model)
    direction = gradient(wrapper, lambda output, _: output.sum(), Data(torch.ones(1, 3)))
    with pytest.raises(KeyError), movable(wrapper) as move:
        move(direction, 1e30)
        assert model.bias.detach()[0] > 1e29
        raise KeyError
    assert_same(before, everything(model))


def test_bf16_arithmetic_does_not_see_casts_of_earlier_parameters():
    """autocast keeps the low-precision copies of parameters until it ends."""
    model, (x, y) = mlp(torch.float32), one([9], dtype=torch.float32)
    metrics = [make(x, y) for make in METRICS]
    loss = Loss(F.cross_entropy, x, y)
    exact = [metric(wrap_model(model)) for metric in metrics]
    with torch.autocast("cpu", torch.bfloat16):
        loss(wrap_model(model))  # without a gradient
        found = [metric(wrap_model(model)) for metric in metrics]
        again = loss(wrap_model(model))
    for value, expected in zip(found, exact, strict=True):
        np.testing.assert_allclose(value, expected, atol=0.1 * np.abs(expected).max())
    assert again == pytest.approx(loss(wrap_model(model)), rel=1e-2)


# Perturbations


def test_perturbations_of_a_linear_loss_are_uniform_on_the_sphere():
    """L = b.w changes by alpha * b.d: of d uniform on the sphere in n dimensions b.d / |b| has variance 1 / n."""
    model = Quadratic(7)
    model.A.zero_()
    metric = LossPerturbations(passed_on, NOTHING, None, 3000, 0.25)
    assert metric.shape == (3000,) and metric.dims == ("perturbation",)
    found = metric(wrap_model(model)) / (0.25 * float(model.b.norm()))
    assert np.abs(found).max() <= 1 + 1e-7
    assert abs(found.mean()) < 4 / np.sqrt(7 * 3000)
    assert (found**2).mean() == pytest.approx(1 / 7, rel=0.1)
    assert (found**4).mean() == pytest.approx(3 / (7 * 9), rel=0.15)  # not that of normal numbers, 3 / 49


def test_perturbations_of_a_quadratic():
    """The directions found from the linear loss give the quadratic one."""
    model = Quadratic()
    wrapper = wrap_model(model)
    directions = []
    for k in range(5):
        plain = copy.deepcopy(model)
        plain.A.zero_()
        plain.b = torch.eye(5, dtype=torch.float64)[k]
        directions.append(LossPerturbations(passed_on, NOTHING, None, 6, 0.25)(wrap_model(plain)) / 0.25)
    d = np.array(directions).T
    np.testing.assert_allclose(np.linalg.norm(d, axis=1), 1, rtol=1e-7)
    before = everything(model)
    for alpha in (0.25, 2.0):
        expected = alpha * d @ model.gradient() + alpha**2 / 2 * np.einsum("ni,ij,nj->n", d, model.A.numpy(), d)
        found = LossPerturbations(passed_on, NOTHING, None, 6, alpha)(wrapper)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert_same(before, everything(model))
    np.testing.assert_array_equal(
        LossPerturbations(passed_on, NOTHING, None, 3, 2.0)(wrapper), found[:3]
    )  # more are added at the end
    other = LossPerturbations(passed_on, NOTHING, None, 6, 2.0, seed=1)(wrapper)
    assert not set(other) & set(found)


def test_perturbations_by_default_and_none():
    assert LossPerturbations(F.cross_entropy, *one([6]))(wrap_model(mlp())).shape == (10,)
    with pytest.raises(UserError, match="at least 1"):
        LossPerturbations(F.cross_entropy, *one([6]), 0)
