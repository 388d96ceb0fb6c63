"""Parameters that are not trained, and adapters that are fresh."""

from __future__ import annotations

import torch
from case import Case
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_landscape import Problem
from hpc_landscape.model.wrapper import wrap_model


class Adapted(nn.Module):
    """A linear layer that is kept, and a product of two small matrices beside it."""

    def __init__(self, inputs: int, outputs: int, fresh: bool):
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(2, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, 2) if fresh else torch.randn(outputs, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T


def net(fresh: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Adapted(4, 8, fresh), nn.ReLU(), Adapted(8, 3, fresh))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 4, generator=generator), torch.randint(0, 3, (60,), generator=generator)


def adapted(fresh: bool = False) -> Problem:
    return Problem(net(fresh), nn.CrossEntropyLoss(), data())


def adapters_alone(fresh: bool = False) -> Problem:
    """The wrapper says what moves, for the program and for the library."""
    return Problem(wrap_model(net(fresh)).restrict(trainable=True), nn.CrossEntropyLoss(), data())


def all_frozen() -> Problem:
    return Problem(net().requires_grad_(False), nn.CrossEntropyLoss(), data())


def right(model: nn.Module) -> Tensor:
    x, y = data()
    return F.cross_entropy(model(x), y)


def as_made(model: nn.Module) -> Tensor:
    """Where nothing that matters moves."""
    return right(net(True))


FROZEN = "113 in 8 tensors, of which 67 are frozen .requires_grad=False. and move all the same; --trainable leaves them"
ZERO = "2 of 4 tensors do not move, since .* zero, as a fresh adapter's are: 0.lora_B, 2.lora_B"

CASES = [
    Case("adapted", right, said=[FROZEN]),
    Case("adapted", right, options=["--trainable"], said=["113 in 8 tensors, of which 46 can move\n"], library=False),
    Case("adapters_alone", right, said=["of which 46 can move"]),
    Case("adapters_alone", as_made, kwargs={"fresh": True}, said=[ZERO], library_said=[ZERO]),
    Case("adapters_alone", right, kwargs={"fresh": True}, options=["--normalization", "none"], library=False),
    Case(
        "adapted",
        as_made,
        kwargs={"fresh": True},
        options=["--include", "*lora_B"],
        library=False,
        said=["zero everywhere, so that nothing changes along it: direction x, since the weights it is scaled to are"],
    ),
    Case("all_frozen", right, said=["113 are frozen"]),
    Case(
        "all_frozen",
        right,
        options=["--trainable"],
        refused="--trainable: every parameter is frozen",
        library_refused="",
    ),
    Case(
        "adapted",
        options=["--trainable", "--include", "*.base"],
        library=False,
        refused="--include .*base: fits no parameter that can move; there are 0.lora_A",
    ),
]
