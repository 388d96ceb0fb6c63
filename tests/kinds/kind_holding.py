"""Losses that hold the model, or parts of it: a penalty on its parameters, an encoder that they look through."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Case
from torch import Tensor, nn

from hpc_landscape import Problem


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 4, generator=generator), torch.randint(0, 3, (24,), generator=generator)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


class Decay(nn.Module):
    """With class weights of its own, which are no model's."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.register_buffer("classes", torch.tensor([1.0, 2.0, 0.5]))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        values = F.cross_entropy(output, target, reduction="none") * self.classes.to(output.dtype)[target]
        return values.mean() + 0.1 * sum(p.square().sum() for p in self.model.parameters())


class Look(nn.Module):
    """A part of the model, by a method of it, and a teacher that cannot be copied."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.look = model[0].forward
        torch.manual_seed(1)
        self.teacher = nn.utils.weight_norm(nn.Linear(4, 6))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        x = data()[0].to(output.dtype)
        return F.cross_entropy(output, target) + F.mse_loss(self.look(x), self.teacher(x).detach())


def problem(loss: str) -> Problem:
    model = net()
    return Problem(model, {"decay": Decay, "look": Look}[loss](model), data())


def _right(loss):
    def right(model: nn.Module) -> Tensor:
        return loss(model)(model(data()[0]), data()[1])

    return right


def _norm(model: nn.Module) -> Tensor:
    gradients = torch.autograd.grad(_right(Decay)(model), list(model.parameters()))
    return sum(g.square().sum() for g in gradients).sqrt()


DECAY, LOOK = {"kwargs": {"loss": "decay"}}, {"kwargs": {"loss": "look"}}
CASES = [
    Case("problem", _right(Decay), name="decay", **DECAY),
    Case("problem", _right(Decay), name="decay-fp64", options=["--precision", "fp64"], library=False, **DECAY),
    Case("problem", _right(Decay), name="decay-blocks", options=["--block", "3"], library=False, **DECAY),
    Case(
        "problem",
        _right(Decay),
        others={"gradient_norm": _norm},
        options=["--metrics", "loss,gradient_norm"],
        library=False,
        name="decay-gradient",
        **DECAY,
    ),
    Case("problem", _right(Look), name="look", **LOOK),
]
