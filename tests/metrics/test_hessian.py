"""Products with the Hessian, of kept graphs and of recomputed ones, one by one and together: against the dense one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from test_curvature import dense, list_of, wide
from test_gradient_metrics import batches, everything, one
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hpc_landscape.metrics import Criterion, Data, HessianTrace, PrincipalCurvatureEvaluator, hessian
from hpc_landscape.metrics.hessian import Hessian, twice_differentiable
from hpc_landscape.model.wrapper import GeneralModelWrapper, wrap_model

SIZES = [3, 16, 1, 8]
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.1], dtype=torch.float64)


def vectors(size: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, size))


def products(model: nn.Module, data: Data, loss=F.cross_entropy, keeps: bool | None = None) -> np.ndarray:
    wrapper = wrap_model(model)
    with twice_differentiable(wrapper) as parameters:
        made = Hessian(wrapper, parameters, loss, data)
        found = np.stack([made.product(vector) for vector in vectors(made.size)])
        assert keeps is None or made.keeps == keeps
    return found


@pytest.fixture
def no_room(monkeypatch):
    """Graphs take memory that is not there: of what is free at first little is left once there is one."""
    free = iter([1000] + [499] * 10**6)
    monkeypatch.setattr(hessian, "free_memory", lambda device: next(free))


def dense_of(model: nn.Module, x: Tensor, y: Tensor, loss=F.cross_entropy) -> np.ndarray:
    matrix = dense(model, x, y, loss)
    return vectors(len(matrix)) @ matrix


# What they are


def sum_of_squares(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, F.one_hot(target, 4).to(output), reduction="sum")


ignoring = nn.CrossEntropyLoss(ignore_index=2)
weighted = nn.CrossEntropyLoss(weight=WEIGHTS)
summed = Criterion(sum_of_squares, "sum")


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    "loss", [F.cross_entropy, weighted, ignoring, summed], ids=["mean", "weights", "ignored", "sum"]
)
def test_unequal_batches_are_weighed(loss, kept, request):
    if not kept:
        request.getfixturevalue("no_room")
    model, (x, y) = wide(), one([28])
    whole = sum_of_squares if loss is summed else loss
    found = products(model, Data(list_of(x, y, SIZES)), loss, kept)
    np.testing.assert_allclose(found, dense_of(model, x, y, whole), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(products(model, Data(x, y), loss, True), found, rtol=1e-9, atol=1e-12)


def test_kept_ones_equal_recomputed_ones(monkeypatch):
    """In float32, to the bit; and where there is room the loss is computed once for each batch, not in each product."""
    calls = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls.append(0)
        return F.cross_entropy(output, target)

    model, data = wide(torch.float32), Data(batches(SIZES, dtype=torch.float32))
    kept = products(model, data, loss, True)
    assert len(calls) == len(SIZES)
    calls.clear()
    free = iter([1000, 600, 499])  # enough after the first batch; after the second no more
    monkeypatch.setattr(hessian, "free_memory", lambda device: next(free))
    monkeypatch.setattr(hessian, "LOOK", 0)
    np.testing.assert_array_equal(products(model, data, loss, False), kept)
    assert len(calls) == 2 + 3 * len(SIZES)


def test_metrics_are_the_same_to_the_bit_without_room(monkeypatch):
    model, data = wide(torch.float32), Data(batches(SIZES, dtype=torch.float32))
    metrics = [PrincipalCurvatureEvaluator(F.cross_entropy, data, n=2), HessianTrace(F.cross_entropy, data)]
    kept = [metric(wrap_model(model)) for metric in metrics]
    before = everything(model)
    free = iter([1000, 499] * 2)
    monkeypatch.setattr(hessian, "free_memory", lambda device: next(free))
    for metric, expected in zip(metrics, kept, strict=True):
        np.testing.assert_array_equal(metric(wrap_model(model)), expected)
    assert str(before) == str(everything(model))


def test_the_graph_of_a_single_batch_is_kept_always(no_room):
    model, (x, y) = wide(), one([9])
    np.testing.assert_allclose(products(model, Data(x, y), keeps=True), dense_of(model, x, y), rtol=1e-9, atol=1e-12)


# Where memory ends


def failing(real, at: list[int]):
    """The function, that raises what PyTorch does where memory ends, at these calls."""
    calls = []

    def function(*arguments, **keywords):
        calls.append(0)
        if len(calls) in at:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(*arguments, **keywords)

    return function


def test_memory_that_ends_while_graphs_are_made_or_used(monkeypatch):
    model, data = wide(), Data(batches(SIZES))
    expected = products(model, data, keeps=True)
    third = failing(F.cross_entropy, [3])
    np.testing.assert_array_equal(products(model, data, third, False), expected)
    monkeypatch.setattr(Hessian, "_product", failing(Hessian._product, [2]))
    np.testing.assert_array_equal(products(model, data, keeps=False), expected)
    with pytest.raises(RuntimeError, match="out of memory"):  # of one batch: nothing helps
        products(model, data, failing(F.cross_entropy, [1]))
    with pytest.raises(RuntimeError, match="out of memory"):
        products(model, Data(*one([3])), failing(F.cross_entropy, [1]))


# What a later batch's pass does to an earlier one's graph


class Counting(nn.Module):
    """Overwrites in each pass a buffer that the graph of the pass before needs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = wide()
        self.register_buffer("scale", torch.ones(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.scale.copy_(torch.full((4,), float(len(x))))
        return self.inner(x) ** 2 * self.scale


def test_a_model_that_overwrites_what_a_graph_needs():
    model, data = Counting(), batches(SIZES)
    expected = sum(len(x) * dense_of(model, x, y) for x, y in data) / sum(SIZES)
    np.testing.assert_allclose(products(model, Data(data), keeps=False), expected, rtol=1e-9, atol=1e-12)
    trace = HessianTrace(F.cross_entropy, Data(data), n_vectors=4)(wrap_model(model))
    assert np.isfinite(trace).all()


class Refilling:
    """A loader with one batch that it fills again and again, past PyTorch."""

    def __init__(self, all_batches: list):
        self.all, self.x, self.y = all_batches, np.zeros((4, 6)), np.zeros(4, dtype=np.int64)

    def __iter__(self):
        for x, y in self.all:
            self.x[:], self.y[:] = x.numpy(), y.numpy()
            yield torch.from_numpy(self.x), torch.from_numpy(self.y)


def test_a_loader_that_fills_one_batch_again():
    model, data = wide(), batches([4, 4, 4])
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    expected = dense_of(model, x, y)
    np.testing.assert_allclose(products(model, Data(Refilling(data)), keeps=True), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kept", [True, False])
def test_a_loader_that_shuffles(kept, request):
    if not kept:
        request.getfixturevalue("no_room")
    model, (x, y) = wide(), one([28])
    loader = DataLoader(TensorDataset(x, y), 5, shuffle=True)
    np.testing.assert_allclose(products(model, Data(loader), keeps=kept), dense_of(model, x, y), rtol=1e-9, atol=1e-12)


def test_what_the_forward_draws_is_the_same_in_every_product(monkeypatch):
    """Whether graphs are kept or not: the operator is one, and a value does not depend on the memory there is."""
    model, data = wide(), batches(SIZES)
    noisy = GeneralModelWrapper(model, [model], lambda model, x: model(x + torch.randn_like(x)))

    def found() -> tuple[np.ndarray, np.ndarray, Tensor]:
        torch.manual_seed(3)
        with twice_differentiable(noisy) as parameters:
            made = Hessian(noisy, parameters, F.cross_entropy, Data(data))
            return made.product(np.ones(made.size)), made.product(np.ones(made.size)), torch.rand(2)

    first, again, drawn = found()
    np.testing.assert_array_equal(first, again)
    free = iter([1000] + [499] * 100)
    monkeypatch.setattr(hessian, "free_memory", lambda device: next(free))
    recomputed, once_more, after = found()
    np.testing.assert_array_equal(recomputed, first)
    np.testing.assert_array_equal(once_more, first)
    assert torch.equal(after, drawn)


# Several vectors at a time


def signs(size: int, count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.stack([2.0 * generator.integers(0, 2, size, dtype=np.int8) - 1 for _ in range(count)])


def counted(monkeypatch) -> list[bool]:
    """Of each product of a batch, whether it was of several vectors."""
    seen, real = [], Hessian._product

    def product(self, gradient, vector, several=False):
        seen.append(several)
        return real(self, gradient, vector, several)

    monkeypatch.setattr(Hessian, "_product", product)
    return seen


@pytest.mark.parametrize("loss", [F.cross_entropy, weighted, summed], ids=["mean", "weights", "sum"])
@pytest.mark.parametrize("sizes", [[20], [3, 16, 1]])
@pytest.mark.parametrize("n_vectors", [1, 5, 16, 37])
def test_the_trace_is_that_of_its_vectors(sizes, n_vectors, loss, monkeypatch):
    """Their mean is known from the dense matrix, and it takes a few passes where batches are small."""
    seen, model = counted(monkeypatch), wide()
    data = batches(sizes)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    matrix = dense(model, x, y, sum_of_squares if loss is summed else loss)
    v = signs(len(matrix), n_vectors)
    forms = ((v @ matrix) * v).sum(axis=1)
    found = HessianTrace(loss, data, n_vectors=n_vectors, seed=0)(wrap_model(model))
    np.testing.assert_allclose(found[0], forms.mean(), rtol=1e-10)
    assert seen == ([False] if n_vectors == 1 else [True] * -(-n_vectors // 16)) * len(sizes)


def test_together_and_one_by_one_are_the_same(monkeypatch):
    model, data = wide(), batches([20, 7])
    together = HessianTrace(F.cross_entropy, data)(wrap_model(model))
    monkeypatch.setattr(hessian, "SMALL", 0)
    seen = counted(monkeypatch)
    np.testing.assert_allclose(HessianTrace(F.cross_entropy, data)(wrap_model(model)), together, rtol=1e-12)
    assert seen == [False] * 64


def test_large_batches_are_taken_one_by_one(monkeypatch):
    """There together is slower."""
    seen = counted(monkeypatch)
    HessianTrace(F.cross_entropy, *one([1100]), n_vectors=2)(wrap_model(wide()))  # 12 numbers each of 8 bytes
    assert seen == [False, False]
    HessianTrace(F.cross_entropy, *one([1000]), n_vectors=2)(wrap_model(wide()))
    assert seen == [False, False, True]


class Cubed(torch.autograd.Function):
    """Differentiable any number of times, but not under vmap."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        assert float(gradient.detach().reshape(-1)[0]) == gradient.detach().reshape(-1)[0]
        return Squared.apply(x, gradient)


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(x, gradient)
        return 3 * x**2 * gradient

    @staticmethod
    def backward(ctx, given: Tensor) -> tuple[Tensor, Tensor]:
        x, gradient = ctx.saved_tensors
        float(given.detach().reshape(-1)[0])  # a number of a vector: there is none under vmap
        return 6 * x * gradient * given, 3 * x**2 * given


def test_what_cannot_be_taken_together_is_taken_one_by_one(monkeypatch):
    seen = counted(monkeypatch)

    class Model(nn.Module):
        def __init__(self, cubed) -> None:
            super().__init__()
            self.inner, self.cubed = wide(), cubed

        def forward(self, x: Tensor) -> Tensor:
            return self.cubed(self.inner(x))

    model, x, y = Model(Cubed.apply), *one([9])
    matrix = dense(Model(lambda x: x**3), x, y)
    v = signs(len(matrix), 5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = HessianTrace(F.cross_entropy, [(x[:4], y[:4]), (x[4:], y[4:])], n_vectors=5)(wrap_model(model))
    np.testing.assert_allclose(found[0], ((v @ matrix) * v).sum(axis=1).mean(), rtol=1e-9)
    assert seen == [True] + [False] * 10 and not caught  # it is tried once


def test_what_is_said_to_be_slow_together_is_taken_one_by_one(monkeypatch):
    """PyTorch warns of functions that it does for each vector all the same."""
    model, data, real = wide(), [one([9])], Hessian._product

    def product(self, gradient, vector, several=False):
        if several:
            warnings.warn("There is a performance drop", stacklevel=1)
        return real(self, gradient, vector, several)

    expected = HessianTrace(F.cross_entropy, data, n_vectors=3)(wrap_model(model))
    monkeypatch.setattr(Hessian, "_product", product)
    seen = counted(monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = HessianTrace(F.cross_entropy, data, n_vectors=3)(wrap_model(model))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert seen == [True, False, False, False] and not caught


def test_a_loss_by_functional_transforms():
    """Which cannot be looked into: one by one, then."""
    model, (x, y) = wide(), one([6])

    def loss(output: Tensor, target: Tensor) -> Tensor:
        slope = torch.func.grad(lambda x: torch.func.functional_call(model, placed(), (x,)).square().sum())(x)
        return F.cross_entropy(output, target) + slope.square().mean()

    def placed() -> dict[str, Tensor]:
        return dict(model.named_parameters())

    def by_hand(output: Tensor, target: Tensor) -> Tensor:
        inputs = x.clone().requires_grad_()
        slope = torch.autograd.grad(model(inputs).square().sum(), inputs, create_graph=True)[0]
        return F.cross_entropy(output, target) + slope.square().mean()

    found = HessianTrace(loss, x, y, n_vectors=3)(wrap_model(model))
    np.testing.assert_allclose(found, HessianTrace(by_hand, x, y, n_vectors=3)(wrap_model(model)), rtol=1e-9)


def test_what_is_not_finite_stays_so(no_room):
    model, data = wide(), Data(batches(SIZES))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    assert np.isnan(HessianTrace(F.cross_entropy, data)(wrap_model(model))).all()
    assert np.isnan(PrincipalCurvatureEvaluator(F.cross_entropy, data)(wrap_model(model))).all()
