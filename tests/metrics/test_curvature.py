"""The Hessian's eigenvalues, eigenvectors and trace, against dense Hessians by torch.autograd in float64."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from test_gradient_metrics import NOTHING, assert_same, batches, everything, mlp, one, passed_on
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_landscape.errors import UserError
from hpc_landscape.evaluate.evaluator import Evaluator
from hpc_landscape.metrics import (
    Data,
    HessianTrace,
    Loss,
    LossGradient,
    PrincipalCurvatureEvaluator,
    hessian_eigenvectors,
    lanczos,
)
from hpc_landscape.metrics.statistics import mean_and_error
from hpc_landscape.model import state
from hpc_landscape.model.placement import Placement
from hpc_landscape.model.wrapper import GeneralModelWrapper, wrap_model

CurvatureOf = PrincipalCurvatureEvaluator


class Bowl(nn.Module):
    """w.A.w / 2, its A with these eigenvalues; w in two parts."""

    def __init__(self, eigenvalues: np.ndarray, dtype: torch.dtype = torch.float64):
        super().__init__()
        size = len(eigenvalues)
        self.Q = np.linalg.qr(np.random.default_rng(5).standard_normal((size, size)))[0]
        A = (self.Q * eigenvalues) @ self.Q.T
        self.A = torch.from_numpy((A + A.T) / 2).to(dtype)
        self.first = nn.Parameter(torch.ones(2, 3, dtype=dtype))
        self.second = nn.Parameter(torch.ones(size - 6, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        w = torch.cat([self.first.reshape(-1), self.second])
        return w @ self.A @ w / 2


def dense(model: nn.Module, x: Tensor, y: Tensor, loss=F.cross_entropy) -> np.ndarray:
    """The Hessian over all parameters as one vector."""
    named = {name: p.detach() for name, p in model.named_parameters()}

    def of(vector: Tensor) -> Tensor:
        parts = vector.split([p.numel() for p in named.values()])
        placed = {name: part.reshape(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}
        return loss(torch.func.functional_call(model, placed, (x,)), y)

    return torch.autograd.functional.hessian(of, torch.cat([p.reshape(-1) for p in named.values()])).numpy()


def ends(matrix: np.ndarray, n: int) -> np.ndarray:
    values = np.linalg.eigvalsh(matrix)
    return np.concatenate([values[:n], values[-n:]])


def wide(dtype: torch.dtype = torch.float64) -> nn.Module:
    """More parameters than are solved densely."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).to(dtype)


# Eigenvalues


def spectrum(kind: str) -> np.ndarray:
    rng = np.random.default_rng(2)
    bulk = rng.uniform(0, 0.5, 150)
    return {
        "one negative far below": np.concatenate([[-0.01], bulk, [100.0]]),
        "largest far below": np.concatenate([[-1e4], -bulk, [0.02, 0.01]]),
        "clusters at the ends": np.concatenate([[-0.01, -0.0099, -0.0098], bulk, [99.8, 99.9, 100.0]]),
        "a network's": np.concatenate([-(10 ** rng.uniform(-8, -1, 80)), 10 ** rng.uniform(-8, -1, 80), [1, 9, 90]]),
        "all negative": -1 - bulk,
        "tiny": 1e-9 * np.concatenate([[-3], bulk, [2]]),
    }[kind]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    "kind",
    ["one negative far below", "largest far below", "clusters at the ends", "a network's", "all negative", "tiny"],
)
def test_of_a_quadratic(kind, n):
    eigenvalues = spectrum(kind)
    metric = CurvatureOf(passed_on, NOTHING, n=n)
    found = metric(wrap_model(Bowl(eigenvalues)))
    assert found.shape == metric.shape == (2 * n,) and metric.dims == ("eigenvalue",) and metric.name == "curvature"
    np.testing.assert_allclose(found, np.sort(eigenvalues)[[*range(n), *range(-n, 0)]], rtol=1e-4)


def test_zeros_are_found():
    """No product tells an eigenvalue of zero from its rounding error: the search ends all the same."""
    eigenvalues = np.concatenate([np.zeros(100), np.linspace(0.1, 1, 30), [50.0]])
    np.testing.assert_allclose(CurvatureOf(passed_on, NOTHING)(wrap_model(Bowl(eigenvalues))), [0, 50], atol=1e-9)
    flat = CurvatureOf(passed_on, NOTHING, n=2)(wrap_model(Bowl(np.zeros(90))))
    np.testing.assert_allclose(flat, np.zeros(4), atol=1e-12)
    round_ = CurvatureOf(passed_on, NOTHING, n=2)(wrap_model(Bowl(np.full(90, 3.0))))
    np.testing.assert_allclose(round_, np.full(4, 3.0), rtol=1e-9)
    linear = CurvatureOf(lambda output, _: output.mean(), torch.ones(2, 80))(wrap_model(nn.Linear(80, 1)))
    np.testing.assert_allclose(linear, np.zeros(2), atol=1e-12)


def test_float32_is_right_to_its_precision():
    eigenvalues = spectrum("one negative far below")
    found = CurvatureOf(passed_on, NOTHING)(wrap_model(Bowl(eigenvalues, torch.float32)))
    np.testing.assert_allclose(found, [-0.01, 100], atol=1e-7 * 100, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_of_a_network(n):
    model, (x, y) = wide(), one([20])
    expected = ends(dense(model, x, y), n)
    assert expected[0] < 0 < expected[-1]
    for metric in (CurvatureOf(F.cross_entropy, x, y, n), CurvatureOf(F.cross_entropy, list_of(x, y, [3, 16, 1]), n=n)):
        before = everything(model)
        np.testing.assert_allclose(metric(wrap_model(model)), expected, rtol=1e-4)
        assert_same(before, everything(model))


def list_of(x: Tensor, y: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


@pytest.mark.parametrize("n", [1, 3])
def test_few_parameters(n):
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 4)).double(), one([12])
    expected = ends(dense(model, x, y), n)
    found = CurvatureOf(F.cross_entropy, list_of(x, y, [5, 7]), n=n)(wrap_model(model))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)


def test_all_eigenvalues_and_one_too_many():
    model = Bowl(np.arange(1.0, 11.0))
    found = CurvatureOf(passed_on, NOTHING, n=5)(wrap_model(model))
    np.testing.assert_allclose(found, np.arange(1.0, 11.0), rtol=1e-12)
    with pytest.raises(UserError, match="12 eigenvalues of 10 parameters"):
        CurvatureOf(passed_on, NOTHING, n=6)(wrap_model(model))
    with pytest.raises(UserError, match="at least 1"):
        CurvatureOf(passed_on, NOTHING, n=0)
    many = CurvatureOf(passed_on, NOTHING, n=30)(wrap_model(Bowl(np.arange(1.0, 101.0))))
    np.testing.assert_allclose(many, [*range(1, 31), *range(71, 101)], rtol=1e-9)


def test_where_nothing_is_finite():
    for model in (wide(torch.float32), mlp(torch.float32)[2]):
        x, y = one([6], dtype=torch.float32, shape=(next(model.parameters()).shape[1],))
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)
        before = everything(model)
        assert np.isnan(CurvatureOf(F.cross_entropy, x, y, 2)(wrap_model(model))).all()
        assert np.isnan(HessianTrace(F.cross_entropy, x, y)(wrap_model(model))).all()
        with pytest.raises(UserError, match="no finite second derivatives"):
            hessian_eigenvectors(wrap_model(model), F.cross_entropy, Data(x, y), 2)
        assert_same(before, everything(model))


def test_no_convergence_is_nan_and_one_warning(monkeypatch):
    monkeypatch.setattr(lanczos, "PRODUCTS", 60)
    hard = np.concatenate([1e-6 * np.arange(1000), [1.0, 2.0]])  # many small ones, close to each other
    for eigenvalues, expected in ((hard, [np.nan, 2]), (-hard, [-2, np.nan])):
        with pytest.warns(UserWarning, match="did not converge") as caught:
            found = CurvatureOf(passed_on, NOTHING)(wrap_model(Bowl(eigenvalues)))
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        assert len(caught) == 1
    with pytest.raises(UserError, match="did not converge"):
        hessian_eigenvectors(wrap_model(Bowl(-hard)), passed_on, Data(NOTHING), 2)


def test_a_subset_of_the_modules_frozen_or_not():
    model, (x, y) = wide(), one([20])
    inner = dense(model, x, y)[:84, :84]
    wrapper = GeneralModelWrapper(model, [model[0]], lambda model, x: model(x))
    for frozen in (True, False):
        model[0].requires_grad_(not frozen)
        model[2].weight.grad = torch.ones(4, 12, dtype=torch.float64)
        before = everything(model)
        np.testing.assert_allclose(CurvatureOf(F.cross_entropy, x, y, 2)(wrapper), ends(inner, 2), rtol=1e-4)
        estimate, error = HessianTrace(F.cross_entropy, x, y)(wrapper)
        assert abs(estimate - np.trace(inner)) < 4 * error
        assert_same(before, everything(model))


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 4)
    )
    model(torch.randn(9, 2, 4, 4))  # running statistics that are not the initial ones
    return model.eval()


def test_a_convolutional_model_with_batch_normalization_in_float32():
    model = convolutional()
    x, y = one([5, 8], dtype=torch.float32, shape=(2, 4, 4))
    expected = dense(copy.deepcopy(model).double(), x.double(), y)
    before = everything(model)
    found = CurvatureOf(F.cross_entropy, list_of(x, y, [5, 8]))(wrap_model(model))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, ends(expected, 1), rtol=1e-4, atol=1e-6 * scale)
    estimate, error = HessianTrace(F.cross_entropy, list_of(x, y, [5, 8]))(wrap_model(model))
    assert abs(estimate - np.trace(expected)) < 4 * error
    assert_same(before, everything(model))


class Attention(nn.Module):
    def __init__(self, fused: bool):
        super().__init__()
        torch.manual_seed(0)
        self.mixed = nn.Linear(8, 24)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 4)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mixed(x).chunk(3, dim=-1)
        if self.fused:
            mixed = F.scaled_dot_product_attention(*(t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v)))
            mixed = mixed.transpose(1, 2).flatten(2)
        else:
            mixed = self.attention(q, k, v, need_weights=False)[0]
        return self.out(mixed.mean(dim=1))


@pytest.mark.parametrize("fused", [True, False])
def test_attention(fused):
    model = Attention(fused).double().eval()
    x, y = one([6], shape=(5, 8))
    wrapper = GeneralModelWrapper(model, [model.mixed, model.out], lambda model, x: model(x))
    found = CurvatureOf(F.cross_entropy, x, y)(wrapper)
    # By differences of gradients: the dense Hessian would need the same attention.
    vectors, values = hessian_eigenvectors(wrapper, F.cross_entropy, Data(x, y), 1)
    np.testing.assert_allclose(values, found[1:], rtol=1e-6)
    moved, h = [], 1e-4
    for sign in (1, -1):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in twin.named_parameters():
                p.add_(sign * h * vectors[0].get(name, torch.zeros(())))
        inner = GeneralModelWrapper(twin, [twin.mixed, twin.out], lambda model, x: model(x))
        moved.append(LossGradient(F.cross_entropy, x, y)(inner))
    product = (moved[0] - moved[1]) / (2 * h)
    vector = np.concatenate([part.numpy().reshape(-1) for part in vectors[0].values()])
    np.testing.assert_allclose(product, values[0] * vector, atol=2e-4 * values[0])


def test_recurrent_models():
    """In float64 against differences of gradients along the eigenvector."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.rnn = nn.GRU(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0][:, -1]

    model, (x, y) = Recurrent().double().eval(), one([7], shape=(3, 3))
    vectors, values = hessian_eigenvectors(wrap_model(model), F.cross_entropy, Data(x, y), 1, tolerance=1e-8)
    gradients = []
    for h in (1e-5, -1e-5):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in twin.named_parameters():
                p.add_(vectors[0][name], alpha=h)
        gradients.append(LossGradient(F.cross_entropy, x, y)(wrap_model(twin)))
    vector = np.concatenate([part.numpy().reshape(-1) for part in vectors[0].values()])
    np.testing.assert_allclose((gradients[0] - gradients[1]) / 2e-5, values[0] * vector, atol=1e-6 * values[0])


# Everything inside the Evaluator


METRICS = [
    lambda data: CurvatureOf(F.cross_entropy, data),
    lambda data: HessianTrace(F.cross_entropy, data, n_vectors=4),
]


@pytest.mark.parametrize("make", METRICS)
@pytest.mark.parametrize("bn", ["warmup", "running", "batch"])
def test_values_depend_on_the_point_alone(make, bn):
    """In any order and beside other metrics, bitwise; also after a warm-up without a gradient."""
    model = convolutional()
    data = Data(batches([5, 8], dtype=torch.float32, shape=(2, 4, 4)))
    before = everything(model)
    placement = Placement(state.parameters(model), [{"5.weight": torch.ones(4, 16)}])

    def values(points: list[float], **metrics) -> dict[float, bytes]:
        evaluate = Evaluator(wrap_model(model), placement, {**metrics, "it": make(data)}, bn, data)
        with evaluate.attached():
            return {c: np.asarray(evaluate([c])["it"]).tobytes() for c in points}

    first = values([-0.1, 0.0, 0.2])
    assert np.isfinite(np.frombuffer(b"".join(first.values()))).all() and len(set(first.values())) == 3
    assert values([0.2, 0.0, -0.1], loss=Loss(F.cross_entropy, data)) == first
    assert values([0.0])[0.0] == first[0.0]
    assert_same(before, everything(model))


@pytest.mark.parametrize("make", METRICS)
@pytest.mark.parametrize("fails_at", [1, 2, 5])
def test_an_error_leaves_the_model_as_it_was(make, fails_at):
    model, calls = wide().requires_grad_(False), []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls.append(0)
        if len(calls) == fails_at:
            raise RuntimeError("an error of the loss")
        return F.cross_entropy(output, target)

    metric = make(Data(batches([3, 4, 2, 5, 6])))
    metric.loss_fn = loss
    before = everything(model)
    with pytest.raises(RuntimeError, match="an error of the loss"):
        metric(wrap_model(model))
    assert_same(before, everything(model))


# Eigenvectors


@pytest.mark.parametrize("make", [wide, lambda: nn.Linear(6, 4).double()])
def test_eigenvectors(make):
    """Also of a matrix that is small enough to be solved densely."""
    model, (x, y) = make(), one([20])
    before = everything(model)
    vectors, values = hessian_eigenvectors(wrap_model(model), F.cross_entropy, Data(x, y), 3, tolerance=1e-8)
    assert_same(before, everything(model))
    matrix = dense(model, x, y)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[::-1][:3], rtol=1e-8)
    for vector, value in zip(vectors, values, strict=True):
        assert {name: part.shape for name, part in vector.items()} == {n: p.shape for n, p in model.named_parameters()}
        flat = np.concatenate([part.numpy().reshape(-1) for part in vector.values()])
        np.testing.assert_allclose(np.linalg.norm(flat), 1, rtol=1e-12)
        np.testing.assert_allclose(matrix @ flat, value * flat, atol=1e-7 * value)
        assert flat[np.abs(flat).argmax()] > 0


def test_eigenvectors_of_a_flat_loss_are_the_same_each_time():
    """Any vector is one: they are drawn."""
    found = [hessian_eigenvectors(wrap_model(Bowl(np.zeros(90))), passed_on, Data(NOTHING), 2)[0] for _ in range(2)]
    for first, second in zip(*found, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_eigenvectors_have_the_parameters_dtypes():
    model = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 4, dtype=torch.float64))
    wrapper = GeneralModelWrapper(model, [model], lambda model, x: model[2](model[:2](x).double()))
    vectors, _ = hessian_eigenvectors(wrapper, F.cross_entropy, Data(*one([9], dtype=torch.float32)), 1)
    assert {n: v.dtype for n, v in vectors[0].items()} == {n: p.dtype for n, p in model.named_parameters()}
    with pytest.raises(UserError, match="38 eigenvectors of 37 parameters"):
        hessian_eigenvectors(wrapper, F.cross_entropy, Data(*one([9], dtype=torch.float32)), 38)


# Trace


def test_trace_of_a_diagonal_matrix_is_exact():
    """v.D.v is the trace for every v of signs."""
    weights = torch.linspace(-1, 2, 30, dtype=torch.float64)
    model = nn.Linear(30, 1, bias=False).double()
    metric = HessianTrace(lambda output, _: (weights * model.weight**2).sum() / 2, torch.ones(1, 30).double())
    estimate, error = metric(wrap_model(model))
    np.testing.assert_allclose([estimate, error], [float(weights.sum()), 0], rtol=1e-12, atol=1e-14)
    assert metric.shape == (2,) and metric.dims == ("statistic",) and metric.name == "hessian_trace"


def test_trace_of_a_network_and_its_standard_error():
    """Of signs the variance of one vector's estimate is 2 (||H||_F^2 - sum of H_ii^2)."""
    model, (x, y) = wide(), one([20])
    matrix = dense(model, x, y)
    deviation = np.sqrt(2 * ((matrix**2).sum() - (np.diag(matrix) ** 2).sum()))
    before = everything(model)
    found = HessianTrace(F.cross_entropy, x, y, 300)(wrap_model(model))
    assert_same(before, everything(model))
    assert abs(found[0] - np.trace(matrix)) < 4 * found[1]
    assert found[1] == pytest.approx(deviation / np.sqrt(300), rel=0.2)
    of_loader = HessianTrace(F.cross_entropy, list_of(x, y, [3, 16, 1]), n_vectors=300)(wrap_model(model))
    np.testing.assert_allclose(of_loader, found, rtol=1e-10)
    other = HessianTrace(F.cross_entropy, x, y, 300, seed=1)(wrap_model(model))
    assert other[0] != found[0] and abs(other[0] - np.trace(matrix)) < 4 * other[1]
    few = HessianTrace(F.cross_entropy, x, y)(wrap_model(model))
    assert few[1] == pytest.approx(deviation / np.sqrt(32), rel=0.5)


def test_trace_of_one_vector_and_of_none():
    estimate, error = HessianTrace(F.cross_entropy, *one([5]), n_vectors=1)(wrap_model(wide()))
    assert np.isfinite(estimate) and np.isnan(error)
    assert np.isnan(HessianTrace(F.cross_entropy, Data([]))(wrap_model(wide()))).all()
    with pytest.raises(UserError, match="at least 1"):
        HessianTrace(F.cross_entropy, *one([5]), n_vectors=0)


def test_mean_and_error():
    np.testing.assert_allclose(mean_and_error([1.0, 2.0, 6.0]), [3, np.sqrt(7 / 3)], rtol=1e-15)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(mean_and_error([2.0])[1]) and mean_and_error([2.0])[0] == 2
        assert mean_and_error([1.0, np.inf])[0] == np.inf
