"""Curvature of what has no second derivative: one line, by the program and by the library; and no line for what has."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import hpc_landscape
from hpc_landscape import Problem, UserError
from hpc_landscape.metrics import Data, HessianTrace, PrincipalCurvatureEvaluator, hessian_eigenvectors
from hpc_landscape.model.wrapper import wrap_model

LINE = "second derivative|backward cannot be differentiated|straight through"


class Once(torch.autograd.Function):
    """x ** 3, in the way of a CUDA extension."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad * 3 * ctx.saved_tensors[0] ** 2


class Silent(Once):
    """The same without a word of it."""

    @staticmethod
    def backward(ctx, grad):
        with torch.no_grad():
            return grad * 3 * ctx.saved_tensors[0] ** 2


class Forgotten(torch.autograd.Function):
    """The same, with a tensor kept on the side, whose history is lost; linear in what comes back."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = 3 * x.detach() ** 2
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.slope


class Sign(torch.autograd.Function):
    """A binary activation, straight through."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Cube(torch.autograd.Function):
    """x ** 3 as it should be done."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return grad * 3 * ctx.saved_tensors[0] ** 2


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def rounded(x: Tensor) -> Tensor:
    return x + (torch.round(4 * x) / 4 - x).detach()


def quantized(x: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, 0.25, 0, -8, 7)


def net(function) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), Of(function), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


def data(n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def once() -> Problem:
    return Problem(net(Once.apply), nn.CrossEntropyLoss(), data())


def silent() -> Problem:
    return Problem(net(Silent.apply), nn.CrossEntropyLoss(), data())


def straight() -> Problem:
    return Problem(net(rounded), nn.CrossEntropyLoss(), data())


WITHOUT = {"once": Once.apply, "silent": Silent.apply, "forgotten": Forgotten.apply, "sign": Sign.apply}
WITHOUT |= {"rounded": rounded, "quantized": quantized, "detached sign": lambda x: x + (x.sign() - x).detach()}


@pytest.mark.parametrize("name", WITHOUT)
@pytest.mark.parametrize("metric", [HessianTrace, PrincipalCurvatureEvaluator])
def test_the_library_refuses(name, metric):
    line = hpc_landscape.LinearLossLandscape(net(WITHOUT[name]), 3).random_line(seed=0)
    with pytest.raises(UserError, match=LINE):
        line.compute(metric(F.cross_entropy, *data()))


@pytest.mark.parametrize("name", WITHOUT)
def test_there_are_no_eigenvectors(name):
    with pytest.raises(UserError, match=LINE):
        hessian_eigenvectors(wrap_model(net(WITHOUT[name])), F.cross_entropy, Data(*data()), 1)


@pytest.mark.parametrize("factory", ["once", "silent", "straight"])
@pytest.mark.parametrize("options", [("--metrics", "loss,curvature"), ("--directions", "hessian")])
def test_the_program_refuses(factory, options, program, tmp_path):
    if factory != "once" and "--directions" in options:
        pytest.skip("as hessian_eigenvectors")
    problem, output = f"{Path(__file__)}:{factory}", tmp_path / "out.h5"
    run = program("--problem", problem, "--x=-1:1:3", "--y=none", *options, "--plot=false", f"--output={output}")
    assert run.code == 2 and "Traceback" not in run.err and not output.exists(), run
    assert [line for line in run.err.splitlines() if "curvature: " in line], run


# No false alarms


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        return self.head(self.layer(self.embed(x)[:, None]).mean(1))


def wide(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 64), *layers, nn.Linear(64, 3))


ORDINARY = {
    "relu": lambda: wide(nn.ReLU(), nn.Linear(64, 64), nn.ReLU()),
    "gelu": lambda: wide(nn.GELU()),
    "tanh": lambda: wide(nn.Tanh()),
    "bn": lambda: wide(nn.BatchNorm1d(64), nn.ReLU()),
    "layer norm": lambda: wide(nn.LayerNorm(64), nn.Hardswish()),
    "attention": Attention,
    "cube": lambda: net(Cube.apply),
    "cube and relu": lambda: wide(Of(Cube.apply), nn.LayerNorm(64), nn.Linear(64, 64), nn.ReLU()),
    "in float32 inside": lambda: wide(Of(lambda x: F.normalize(x.float(), dim=1).to(x.dtype)), nn.ReLU()),
    "linear": lambda: nn.Linear(4, 3),
    "dropout that stays on": lambda: wide(Of(lambda x: F.dropout(x, 0.3, True))),
}


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("loss", [F.cross_entropy, lambda o, y: F.mse_loss(o, F.one_hot(y, 3).to(o.dtype))])
def test_ordinary_models_have_curvature(name, loss):
    torch.manual_seed(1)
    model = ORDINARY[name]()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    line = hpc_landscape.LinearLossLandscape(model, 3).random_line(seed=0)
    found = line.compute(HessianTrace(loss, *data(), n_vectors=2))
    assert np.isfinite(found).all()
    assert all(torch.equal(v, before[k]) and v.dtype == before[k].dtype for k, v in model.state_dict().items())


def test_what_a_loss_draws_is_no_reason():
    model, rng = wide(nn.GELU()), np.random.default_rng(0)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) * (1 + 0.1 * rng.random())

    value = HessianTrace(loss, *data(), n_vectors=2)(wrap_model(model))
    assert math.isfinite(value[0])


def test_a_function_that_can_be_differentiated_twice_has_the_right_trace():
    model, (x, y) = net(Cube.apply), data()
    by_torch = net(lambda x: x**3)
    values = [HessianTrace(F.cross_entropy, x, y, n_vectors=4)(wrap_model(m)) for m in (model, by_torch)]
    np.testing.assert_allclose(*values, rtol=1e-4)
