"""Losses of several terms, and losses without data."""

from __future__ import annotations

from collections import namedtuple

import torch
import torch.nn.functional as F
from case import Case
from torch import Tensor, nn

from hpc_landscape import Problem
from hpc_landscape.metrics import GradientNorm, LossTerm

Terms = namedtuple("Terms", "fit size")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).eval()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(23, 2, generator=generator), torch.randint(0, 3, (23,), generator=generator)


def fit(o: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(o, y)


def size(o: Tensor, y: Tensor) -> Tensor:
    return (o**2).mean()


LOSSES = {
    "mapping": lambda o, y: {"fit": fit(o, y), "size": size(o, y), "constant": 0.5},
    "pair": lambda o, y: (fit(o, y), size(o, y)),
    "named": lambda o, y: Terms(fit(o, y), size(o, y)),
    "awkward": lambda o, y: {"x": fit(o, y), "accuracy": size(o, y), "l2 norm": size(o, y), "l2_norm": fit(o, y)},
    "total": lambda o, y: {"loss": fit(o, y) + size(o, y), "fit": fit(o, y), "logits": o.detach()},
    "ragged": lambda o, y: {"fit": fit(o, y), "each": o.mean(0)},
    "text": lambda o, y: "low",
    "empty": lambda o, y: {},
}


def terms(kind: str, two: bool = False) -> Problem:
    x, y = data()
    return Problem(net(), LOSSES[kind], {"train": (x, y), "test": (x[:7], y[:7])} if two else (x, y))


def term(function, n: int = 23):
    def right(model: nn.Module) -> Tensor:
        x, y = data()
        return function(model(x[:n]), y[:n])

    return right


def both(o: Tensor, y: Tensor) -> Tensor:
    return fit(o, y) + size(o, y)


def closure(with_model: bool = False) -> Problem:
    model, (x, y) = net(), data()
    if with_model:
        return Problem(model, lambda m: fit(m(x), y))
    return Problem(model, lambda: fit(model(x), y))


class Penalty(nn.Module):
    """A module without data."""

    def forward(self, model):
        return sum((p**2).sum() for p in model.parameters())


def penalty() -> Problem:
    return Problem(net(), Penalty())


def penalty_right(model: nn.Module) -> float:
    return Penalty()(model).item()


def closure_warm(model: nn.Module) -> Tensor:
    x, _ = data()
    torch.optim.swa_utils.update_bn([x], model)
    return term(fit)(model.eval())


def closure_gradient(model: nn.Module) -> Tensor:
    found = torch.autograd.grad(term(fit)(model), list(model.parameters()))
    return torch.cat([g.reshape(-1) for g in found]).norm()


RUNNING = ("--bn", "running", "--batch_size", "5")
LINE = r"error: the loss"


def case(kind: str, right, others, **more) -> Case:
    return Case("terms", right, others, kwargs={"kind": kind}, options=RUNNING, warm_up=False, name=kind, **more)


CASES = [
    case(
        "mapping",
        term(lambda o, y: both(o, y) + 0.5),
        {"fit": term(fit), "size": term(size), "constant": lambda model: 0.5},
        said=[r"metrics +loss, accuracy, fit, size, constant"],
    ),
    case("pair", term(both), {"loss_0": term(fit), "loss_1": term(size)}, said=[r"loss_0, loss_1"]),
    case("named", term(both), {"fit": term(fit), "size": term(size)}, said=["fit, size"]),
    case(
        "awkward",
        term(lambda o, y: 2 * both(o, y)),
        {"term_x": term(fit), "term_accuracy": term(size), "l2_norm": term(size), "term_l2_norm": term(fit)},
        said=[r"term_x, term_accuracy, l2_norm, term_l2_norm"],
    ),
    case(
        "total",
        term(both),
        {"fit": term(fit)},
        said=["'loss' is taken for the loss", r"metrics +loss, accuracy, fit\n"],
    ),
    case("ragged", None, {}, refused=r"the loss's term 'each' is a tensor of shape \(3,\)"),
    case("text", None, {}, refused="the loss is a str: a loss returns a number, or a dict or tuple of numbers"),
    case("empty", None, {}, refused="an empty dict"),
    Case(
        "terms",
        None,
        {"train_loss": term(both), "test_loss_1": term(size, 7), "train_loss_0": term(fit)},
        kwargs={"kind": "pair", "two": True},
        options=RUNNING,
        said=["train_loss_0, train_loss_1, test_loss_0, test_loss_1"],
        library=False,
        name="two-sets",
    ),
    Case(
        "terms",
        term(size),
        {"size": term(size)},
        kwargs={"kind": "named"},
        options=(*RUNNING, "--metrics", "size,accuracy"),
        library=lambda p: LossTerm(p.loss, "size", *p.data),
        said=[r"metrics +size, accuracy\n"],
        warm_up=False,
        name="one-term",
    ),
    Case(
        "terms",
        kwargs={"kind": "named"},
        options=(*RUNNING, "--metrics", "loss,siez"),
        refused="--metrics siez: there is no such metric; there are loss, .*, fit, size, or file.py",
        library=False,
        name="no-such-term",
    ),
    Case(
        "terms",
        term(both),
        {"loss_1": term(size)},
        kwargs={"kind": "pair"},
        options=(*RUNNING, "--block", "2"),
        warm_up=False,
    ),
    Case("closure", closure_warm),
    Case("closure", closure_warm, options=("--block", "3")),
    Case("closure", closure_warm, kwargs={"with_model": True}, name="with-model"),
    Case("penalty", penalty_right, warm_up=False),
    Case(
        "closure",
        closure_gradient,
        {"gradient_norm": closure_gradient},
        options=("--bn", "running", "--metrics", "gradient_norm"),
        library=lambda p: GradientNorm(p.loss),
        warm_up=False,
        name="gradient",
    ),
]
