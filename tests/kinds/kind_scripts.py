"""Models that are modules by name: TorchScript, exported; and those that work as modules do: traces of torch.fx."""

from __future__ import annotations

import torch
from case import Case
from torch import nn
from torch.optim.swa_utils import update_bn

from hpc_landscape import Problem

EAGER = "not an eager one: .* give the eager model"


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    for _ in range(5):
        model.train()(data()[0] * 2 + 1)
    return model.eval()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 4, generator=generator), torch.randint(0, 3, (60,), generator=generator)


class Around(nn.Module):
    """An eager model with a part that is none."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part, self.head = part, nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.part(x))


MAKE = {
    "scripted": lambda: torch.jit.script(net()),
    "traced": lambda: torch.jit.trace(net(), data()[0]),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(net())),
    "exported": lambda: torch.export.export(net(), (data()[0],)).module(),
    "unflattened": lambda: torch.export.unflatten(torch.export.export(net(), (data()[0],))),
    "part": lambda: Around(torch.jit.script(net())),
    "exported_part": lambda: Around(torch.export.export(net(), (data()[0],)).module()),
    "fx": lambda: torch.fx.symbolic_trace(net()),
    "fx_part": lambda: Around(torch.fx.symbolic_trace(net())),
    "parallel": lambda: nn.DataParallel(net()),
    "compiled": lambda: torch.compile(net(), backend="eager"),
}


def problem(kind: str) -> Problem:
    torch.manual_seed(0)
    return Problem(MAKE[kind](), nn.CrossEntropyLoss(), data())


def right(model: nn.Module) -> float:
    x, y = data()
    update_bn([x], model)
    return nn.functional.cross_entropy(model.eval()(x), y)


REFUSED = ("scripted", "traced", "frozen", "exported", "unflattened", "part", "exported_part")
CASES = [
    *(Case("problem", kwargs={"kind": kind}, name=kind, refused=EAGER) for kind in REFUSED),
    *(Case("problem", right, kwargs={"kind": kind}, name=kind) for kind in ("fx", "fx_part", "parallel", "compiled")),
]
