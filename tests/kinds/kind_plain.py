"""A pair of tensors, a loss that is a mean over samples: what the program was built for."""

from __future__ import annotations

import torch
from case import Case
from torch import nn

from hpc_landscape import Problem


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 4, generator=generator), torch.randint(0, 3, (60,), generator=generator)


def plain() -> Problem:
    return Problem(net(), nn.CrossEntropyLoss(), data())


def right(model: nn.Module) -> float:
    x, y = data()
    torch.optim.swa_utils.update_bn([x], model)
    return nn.functional.cross_entropy(model.eval()(x), y)


def as_trained(model: nn.Module) -> float:
    x, y = data()
    return nn.functional.cross_entropy(model(x), y)


CASES = [
    Case("plain", right),
    Case("plain", as_trained, options=["--bn", "running"], warm_up=False),
]
