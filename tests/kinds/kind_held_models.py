"""Losses that hold the model, or a part of it: a penalty on weights, a second pass; and what cannot be copied."""

from __future__ import annotations

import threading

import torch
from case import Case
from torch import nn
from torch.nn import functional as F

from hpc_landscape import Problem


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(x)))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 4, generator=generator), torch.randint(0, 3, (60,), generator=generator)


def norm(model: nn.Module) -> torch.Tensor:
    return sum(p.square().sum() for p in model.parameters())


class Penalty(nn.Module):
    """A penalty on the weights of a model that is a module of the loss, or hidden in a list."""

    def __init__(self, model: nn.Module, hidden: bool, weights: torch.Tensor | None = None):
        super().__init__()
        self.criterion, self.model, self.lock = nn.CrossEntropyLoss(weights), [model] if hidden else model, None

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.criterion(output, target) + 0.1 * norm(
            self.model[0] if isinstance(self.model, list) else self.model
        )


class OfAPart(nn.Module):
    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output, target) + 0.1 * self.weight.square().sum()


def penalty(hidden: bool = False, locked: bool = False) -> Problem:
    model = Net()
    loss = Penalty(model, hidden)
    loss.lock = threading.Lock() if locked else None
    return Problem(model, loss, data())


def weighted() -> Problem:
    """With a buffer of its own, which a run in other precision moves."""
    model = Net()
    return Problem(model, Penalty(model, False, torch.ones(3)), data())


def of_a_part() -> Problem:
    model = Net()
    return Problem(model, OfAPart(model.head.weight), data())


def in_a_closure() -> Problem:
    model = Net()
    weight = model.head.weight
    return Problem(model, lambda o, t: F.cross_entropy(o, t) + 0.1 * weight.square().sum(), data())


def right(model: nn.Module) -> torch.Tensor:
    x, t = data()
    return F.cross_entropy(model(x), t) + 0.1 * norm(model)


def right_of_a_part(model: Net) -> torch.Tensor:
    x, t = data()
    return F.cross_entropy(model(x), t) + 0.1 * model.head.weight.square().sum()


CASES = [
    Case("penalty", right=right),
    Case("penalty", kwargs={"hidden": True}, right=right, name="hidden"),
    Case("penalty", kwargs={"locked": True}, right=right, name="locked"),
    Case("weighted", right=right, options=["--precision", "fp64"]),
    Case("penalty", right=right, options=["--block", "2"]),
    Case("of_a_part", right=right_of_a_part),
    Case("in_a_closure", right=right_of_a_part),
    Case(
        "in_a_closure", right=right_of_a_part, options=["--block", "2"], said=["uses weights that it does not get by"]
    ),
    Case("of_a_part", right=right_of_a_part, options=["--block", "3"], said=["uses weights that it does not get by"]),
]
