"""Forwards that compute in 16 bits by themselves: a cast of weights is of one point."""

from __future__ import annotations

import torch
from case import Case
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hpc_landscape import Problem

SIZE = 8


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3


def low(model: nn.Module, batch) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(batch[0]).float()


def lowest(model: nn.Module, batch) -> torch.Tensor:
    """One inside of another: the cache is emptied at the end of the outermost alone."""
    with torch.autocast("cpu", torch.bfloat16):
        inner = low(model, batch)
        return inner + model(batch[0]).float()


def casts(nested: bool = False, stream: bool = False) -> Problem:
    rows = list(zip(*data(), strict=True)) if stream else TensorDataset(*data())
    forward = lowest if nested else low
    return Problem(net(), lambda o, b: F.cross_entropy(o, b[1]), DataLoader(rows, SIZE), forward=forward)


def right(nested: bool):
    def loss(model: nn.Module) -> float:
        x, y = data()
        total = 0.0
        for batch in zip(x.split(SIZE), y.split(SIZE), strict=True):
            total += F.cross_entropy((lowest if nested else low)(model, batch), batch[1]).item() * len(batch[1])
        return total / 20

    return loss


def as_asked(model: nn.Module) -> float:
    """What --precision bf16 gives an own forward, up to the last bits of bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        return F.cross_entropy(model(data()[0]).float(), data()[1]).item()


def plainly(stream: bool = False) -> Problem:
    problem = casts(stream=stream)
    problem.forward = lambda model, batch: model(batch[0])
    problem.loss = lambda o, b: F.cross_entropy(o.float(), b[1])
    return problem


STREAM = ["--resident", "0"]
BF16 = ["--precision", "bf16"]
CASES = [
    *[Case("casts", right(nested), kwargs={"nested": nested}, name=f"nested-{nested}") for nested in (False, True)],
    *[
        Case("casts", right(nested), kwargs={"nested": nested, "stream": True}, options=STREAM, name=f"stream-{nested}")
        for nested in (False, True)
    ],
    Case("plainly", as_asked, options=BF16, library=False, rtol=1e-3),
    Case("plainly", as_asked, kwargs={"stream": True}, options=[*BF16, *STREAM], library=False, rtol=1e-3),
]
