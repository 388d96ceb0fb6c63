"""Buffers in which two models differ: on the way from one to the other they go along with the parameters."""

from __future__ import annotations

from pathlib import Path

import torch
from case import Case
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_landscape import Problem


class Net(nn.Module):
    """Inputs are scaled by what was seen in training; ``place`` is 0 in one model and 1 in the other."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(4, 3)
        self.place = nn.Parameter(torch.tensor(float(seed)))
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("scale", torch.rand(4) + 0.5)
        self.register_buffer("used", torch.rand(4) < 0.7)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear((x - self.mean) / self.scale * self.used) * (1 + self.place)


class Filter(nn.Module):
    """Observations filtered by a matrix, in a module without parameters of its own; BN beside it."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.filter = nn.Module()
        self.filter.register_buffer("matrix", torch.randn(4, 4, dtype=torch.float64))
        self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.place = nn.Parameter(torch.tensor(float(seed)))
        self.norm.running_mean.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm((x.double() @ self.filter.matrix).float())) + self.place


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 4, generator=generator), torch.randint(0, 3, (60,), generator=generator)


def scaled() -> Problem:
    return Problem(Net(), nn.CrossEntropyLoss(), data())


def filtered() -> Problem:
    return Problem(Filter(), nn.CrossEntropyLoss(), data())


def right(model: nn.Module) -> Tensor:
    """The parameters are the point's: the buffers are put there, too."""
    x, y = data()
    c, start, end = model.place.item(), type(model)(0), type(model)(1)
    own = dict(model.named_buffers())
    for (name, a), (_, b) in zip(start.named_buffers(), end.named_buffers(), strict=True):
        if "running" not in name:
            own[name].copy_(a + c * (b - a) if a.is_floating_point() else b if c >= 1 else a)
    torch.optim.swa_utils.update_bn([x], model)
    return F.cross_entropy(model.eval()(x), y)


def others(folder: Path) -> None:
    for kind in (Net, Filter):
        torch.save(kind(1).state_dict(), folder / f"{kind.__name__}.pt")


def to(name: str) -> list[str]:
    return ["--directions", "interpolation", "--to", f"{name}.pt", "--x", "-0.5:1.5:5"]


PROPORTION = "note         as the other models have it, in proportion to the coordinate: "
WHOLE = "note         as the other models have it, from 1 on, the origin's before: used"

CASES = [
    Case("scaled", right, options=to("Net"), prepare=others, said=[PROPORTION + "mean, scale\n", WHOLE], library=False),
    Case("scaled", right, options=[*to("Net"), "--block", "2"], prepare=others, library=False),
    Case("filtered", right, options=to("Filter"), prepare=others, said=[f"{PROPORTION}filter.matrix\n"], library=False),
    Case("scaled", right),
]
