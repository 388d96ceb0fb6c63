"""Gradients where the user's code takes derivatives, or does without: right, or it is said that they are not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Case
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpc_landscape import Problem


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 4, generator=generator), torch.randn(24, 1, generator=generator)


def net(last: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, last))


class Potential(nn.Module):
    """Energies, and forces that can be differentiated in train mode only. keep: whether the energies' graph stays."""

    def __init__(self, keep: bool):
        super().__init__()
        self.net, self.keep = net(), keep

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            energy, keep = self.net(x), self.keep or self.training
            forces = torch.autograd.grad(energy.sum(), x, create_graph=self.training, retain_graph=keep)[0]
        return energy, -forces


def fit(output, batch) -> Tensor:
    return F.mse_loss(output[0], batch[1]) + F.mse_loss(output[1], torch.ones_like(output[1]))


def potential(keep: bool = True, mode: str = "eval") -> Problem:
    return Problem(Potential(bool(keep)), fit, data(), forward=lambda m, b: m(b[0]), mode=mode)


def freed(mode: str = "eval") -> Problem:
    return potential(False, mode)


class Saving(nn.Module):
    """Memory is saved in every mode."""

    def __init__(self):
        super().__init__()
        self.first, self.last = net(8), net()
        self.last[0] = nn.Linear(8, 8)

    def forward(self, x):
        h = checkpoint(self.first, x.clone().requires_grad_(True), use_reentrant=True)
        return self.last(h)


def saving() -> Problem:
    return Problem(Saving(), nn.MSELoss(), data())


class Black(nn.Module):
    """Pictures with black borders, and biases of zero: at the very point a ReLU has no slope."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(384, 3)
        nn.init.zeros_(self.a.bias)

    def forward(self, x):
        return self.b(self.a(F.pad(x.reshape(-1, 1, 2, 2), (3, 3, 3, 3))).relu().flatten(1))


def labels() -> Tensor:
    return torch.randint(0, 3, (24,), generator=torch.Generator().manual_seed(1))


def black() -> Problem:
    return Problem(Black(), nn.CrossEntropyLoss(), (data()[0], labels()))


def right_black(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(data()[0]), labels())


def right(model: nn.Module) -> Tensor:
    model.train()
    return fit(model(data()[0]), data())


def norm_of(right):
    def norm(model: nn.Module) -> Tensor:
        gradients = torch.autograd.grad(right(model), list(model.parameters()), allow_unused=True)
        return sum(g.square().sum() for g in gradients if g is not None).sqrt()

    return norm


BOTH = ["--metrics", "loss,gradient_norm"]
TRAIN = {"kwargs": {"mode": "train_without_dropout"}}
CASES = [
    Case("potential", right, options=BOTH, said=["gradient_norm: the loss does not change along its gradient"]),
    Case("potential", refused="the loss does not change along", options=["--metrics", "hessian_trace"], library=False),
    Case("potential", right, others={"gradient_norm": norm_of(right)}, options=BOTH, name="trained", **TRAIN),
    Case("freed", refused="create_graph=True; .* mode=.train_without_dropout", options=BOTH, library=False),
    Case("freed", right, others={"gradient_norm": norm_of(right)}, options=BOTH, name="freed-trained", **TRAIN),
    Case("saving", refused="use_reentrant=False", options=BOTH, library=False),
    Case("saving", refused="use_reentrant=False", options=["--metrics", "hessian_trace"], library=False),
    Case(
        "black",
        right_black,
        others={"gradient_norm": norm_of(right_black)},
        options=["--metrics", "loss,gradient_norm,hessian_trace"],
    ),
]
