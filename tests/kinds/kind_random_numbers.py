"""What is drawn: from the generators of torch, NumPy and Python, or from one of one's own."""

from __future__ import annotations

import random

import numpy as np
import torch
from case import Case
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hpc_landscape import Problem

SIZE = 8
AGAIN = "computed again .* which are seeded at every point"


def net(norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8) if norm else nn.SiLU(), nn.Linear(8, 2))


def data() -> torch.Tensor:
    return torch.randn(20, 2, generator=torch.Generator().manual_seed(1))


def noised(model: nn.Module, batch):
    """Diffusion steps from NumPy, noise from torch, a weight from Python."""
    x = batch[0]
    t = torch.from_numpy(np.random.random(len(x)).astype(np.float32))[:, None]
    noise = torch.randn_like(x)
    return model(torch.cat([(1 - t) ** 0.5 * x + t**0.5 * noise, t], 1)), noise, random.random() + np.random.random()


def weighted(output, batch):
    return output[2] * ((output[0] - output[1]) ** 2).mean()


def drawn(stream: bool = False, norm: bool = False) -> Problem:
    return Problem(net(norm), weighted, DataLoader(Rows() if stream else TensorDataset(data()), SIZE), forward=noised)


class Rows(Dataset):
    """Draws while it is read, to no effect."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> tuple[torch.Tensor]:
        random.random()
        np.random.random()
        torch.rand(())
        return (data()[i],)


def seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def passed(model: nn.Module) -> float:
    """One pass over the data, from the seed on."""
    seeded()
    total = 0.0
    for x in data().split(SIZE):
        total += weighted(noised(model, [x]), [x]).item() * len(x)
    return total / 20


def passed_after_warm_up(model: nn.Module) -> float:
    seeded()
    layer, seen = model[1], []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for x in data().split(SIZE):
        noised(model, [x])
    hook.remove()
    layer.running_mean.copy_(sum(x.mean(0) * len(x) for x in seen) / 20)
    layer.running_var.copy_(sum(x.var(0) * len(x) for x in seen) / 20)
    return passed(model)


class Own:
    """A generator of its own, of one kind or another."""

    def __init__(self, kind: str):
        self.kind, self.calls = kind, 0
        self.torch = torch.Generator().manual_seed(0)
        self.numpy, self.python = np.random.default_rng(0), random.Random(0)

    def __call__(self) -> float:
        self.calls += 1
        if self.kind == "anew":  # seeded at each call: as right as any
            return float(torch.rand((), generator=self.torch.manual_seed(0)))
        draws = {"torch": lambda: float(torch.rand((), generator=self.torch)), "numpy": self.numpy.random}
        return (draws | {"python": self.python.random, "calls": lambda: self.calls})[self.kind]()


def own(kind: str) -> Problem:
    draw = Own(kind)
    return Problem(net(), lambda o, b: draw() * o.square().mean(), _three(), forward=lambda m, b: m(b[0]))


def in_the_loader() -> Problem:
    """A loader that shuffles by a generator of its own, which the program reads in sequence, and the library as is."""
    loader = DataLoader(TensorDataset(_three()[0]), SIZE, shuffle=True, generator=torch.Generator().manual_seed(0))
    return Problem(net(), lambda o, b: o.square().mean(), loader, forward=lambda m, b: m(b[0]))


class Augmented(Dataset):
    """A transform that holds a generator."""

    def __init__(self) -> None:
        self.random = random.Random(0)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.ones(3) * self.random.random(), i % 2


def augmented() -> Problem:
    return Problem(net(), nn.CrossEntropyLoss(), DataLoader(Augmented(), SIZE))


def _three() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([data(), data()[:, :1]], 1), torch.arange(20) % 2


def in_place() -> Problem:
    def forward(model, batch):
        return model(batch[0].mul_(2))

    return Problem(net(), lambda o, b: o.square().mean(), _three(), forward=forward)


class Remembers(nn.Module):
    """A recurrent state that goes on from batch to batch, and would from point to point."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.state = net(), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        before, self.state = self.state, (x.mean(), x.std())
        return x if before is None else x + before[0]


def remembers(stream: bool = False) -> Problem:
    x, y = _three()
    rows = [(a, b) for a, b in zip(x, y, strict=True)] if stream else TensorDataset(x, y)
    return Problem(Remembers(), nn.CrossEntropyLoss(), DataLoader(rows, SIZE))


def remembering(model: nn.Module) -> float:
    model.state = None
    x, y = _three()
    total = 0.0
    for a, b in zip(x.split(SIZE), y.split(SIZE), strict=True):
        total += nn.functional.cross_entropy(model(a), b).item() * len(a)
    return total / 20


STREAM = ["--resident", "0"]
CASES = [
    Case("drawn", passed),
    Case("drawn", passed, options=["--metrics", "loss,gradient_norm"]),
    Case("drawn", passed, options=["--block", "2"]),
    Case("drawn", passed, kwargs={"stream": True}, options=STREAM, name="streamed"),
    Case("drawn", passed_after_warm_up, kwargs={"norm": True}, name="warm-up"),
    Case("drawn", passed_after_warm_up, kwargs={"norm": True, "stream": True}, options=STREAM, name="both"),
    *[Case("own", refused=AGAIN, kwargs={"kind": kind}, name=kind) for kind in ("torch", "numpy", "python", "calls")],
    Case("own", lambda model: 0.496256589 * model(_three()[0]).square().mean(), kwargs={"kind": "anew"}, name="anew"),
    Case("in_the_loader", lambda model: model(_three()[0]).square().mean(), library_refused=AGAIN),
    Case("augmented", refused="differs between two readings|computed again"),
    Case("in_place", refused=AGAIN),
    Case("remembers", remembering),
    Case("remembers", remembering, kwargs={"stream": True}, options=STREAM, name="remembers-stream"),
]
