"""Layers with running statistics that are no batch normalization of torch's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Case
from torch import nn
from torch.optim.swa_utils import update_bn

from hpc_landscape import Problem


class Own(nn.Module):
    """Batch normalization by hand; new tensors take the place of its buffers."""

    def __init__(self, width: int, momentum: float = 0.1):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.full((width,), 0.3))
        self.register_buffer("running_var", torch.full((width,), 2.0))
        self.momentum = momentum

    def forward(self, x):
        if self.training:
            mean, var = x.mean(0), x.var(0)
            self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean
            self.running_var = (1 - self.momentum) * self.running_var + self.momentum * var
            return self.weight * (x - mean) / (x.var(0, unbiased=False) + 1e-5).sqrt() + self.bias
        return self.weight * (x - self.running_mean) / (self.running_var + 1e-5).sqrt() + self.bias


class OtherWay(Own):
    """The momentum is what stays, as in TensorFlow."""

    def forward(self, x):
        self.momentum, kept = 1 - self.momentum, self.momentum
        try:
            return super().forward(x)
        finally:
            self.momentum = kept


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's: buffers alone."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("running_mean", torch.full((width,), 0.3))
        self.register_buffer("running_var", torch.full((width,), 2.0))

    def forward(self, x):
        return (x - self.running_mean) / (self.running_var + 1e-5).sqrt()


class Functional(nn.Module):
    """Statistics by other names."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("m", torch.full((width,), 0.3))
        self.register_buffer("v", torch.full((width,), 2.0))

    def forward(self, x):
        return F.batch_norm(x, self.m, self.v, training=self.training)


class Waves(nn.Module):
    """Complex numbers, centred."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("running_mean", torch.full((width,), 0.3 + 0.1j))

    def forward(self, z):
        return z - (z.mean(0) if self.training else self.running_mean)


def net(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), layer, nn.ReLU(), nn.Linear(8, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 4, generator=generator), torch.randint(0, 3, (60,), generator=generator)


LAYERS = {
    "own": Own,
    "other_way": OtherWay,
    "frozen": FrozenBatchNorm2d,
    "functional": Functional,
    "synchronized": nn.SyncBatchNorm,
    "cumulative": lambda n: nn.BatchNorm1d(n, momentum=None),
    "plain": lambda n: nn.BatchNorm1d(n, affine=False),
    "none": lambda n: nn.BatchNorm1d(n, track_running_stats=False),
}


def problem(layer: str) -> Problem:
    return Problem(net(LAYERS[layer](8)), nn.CrossEntropyLoss(), data())


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
        self.first, self.last = nn.Conv1d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu().mean(2))


def signals() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(60, 2, 9, generator=torch.Generator().manual_seed(1)), data()[1]


def instance() -> Problem:
    return Problem(Images(), nn.CrossEntropyLoss(), signals())


def mixed() -> Problem:
    """One of torch's, and one that cannot be re-estimated."""
    return Problem(nn.Sequential(FrozenBatchNorm2d(4), *net(nn.BatchNorm1d(8))), nn.CrossEntropyLoss(), data())


def waves() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, dtype=torch.cfloat), Waves(6), nn.Linear(6, 3, dtype=torch.cfloat))
    return Problem(model, power, (torch.complex(*data()[0].chunk(2)), data()[1][:30]))


def power(output, target):
    return F.cross_entropy(output.abs(), target)


def waves_as_they_are(model: nn.Module) -> float:
    return power(model(torch.complex(*data()[0].chunk(2))), data()[1][:30])


@torch.no_grad()
def by_hand(model: nn.Module) -> float:
    (x, y), layer = data(), model[1]
    h = model[0](x)
    layer.running_mean.copy_(h.mean(0))
    layer.running_var.copy_(h.var(0))
    return F.cross_entropy(model.eval()(x), y)


@torch.no_grad()
def instances_by_hand(model: nn.Module) -> float:
    """The mean over instances of each one's mean and unbiased variance."""
    x, y = signals()
    h = model.first(x)
    mean, var = h.mean(2).mean(0), h.var(2).mean(0)
    h = (h - mean[:, None]) / (var[:, None] + model.norm.eps).sqrt()
    h = h * model.norm.weight[:, None] + model.norm.bias[:, None]
    return F.cross_entropy(model.last(h.relu().mean(2)), y)


def updated(model: nn.Module) -> float:
    x, y = data()
    update_bn([x], model)
    return F.cross_entropy(model.eval()(x), y)


def as_it_is(model: nn.Module) -> float:
    x, y = data()
    return F.cross_entropy(model.eval()(x), y)


def _named(layer: str) -> Case:
    said = [
        r"1 keeps the checkpoint's statistics: it is no torch batch normalization",
        "as in the checkpoint in 0 of 1",
    ]
    return Case("problem", as_it_is, kwargs={"layer": layer}, name=layer, said=said, library_said=said[:1])


CASES = [
    Case("problem", by_hand, kwargs={"layer": "own"}, name="own", said=["re-estimated at each point on 60 samples"]),
    Case("problem", by_hand, kwargs={"layer": "own"}, name="own-blocks", options=["--block", "3"], library=False),
    _named("other_way"),
    _named("frozen"),
    _named("functional"),
    *(Case("problem", updated, kwargs={"layer": x}, name=x) for x in ("synchronized", "cumulative", "plain")),
    Case("problem", as_it_is, kwargs={"layer": "none"}, name="none", said=["by each batch's own statistics alone"]),
    Case("instance", instances_by_hand),
    Case("instance", instances_by_hand, options=["--block", "3"], library=False),
    Case("waves", waves_as_they_are, said=["1 keeps the checkpoint's"], library_said=["1 keeps the checkpoint's"]),
    Case("mixed", updated, said=[r"in 1 of 2 layers \(not: 0\)"], library_said=["0 keeps the checkpoint's statistics"]),
]
