"""Models kept in 16 bits: a point is computed in 32 and rounded once, and the loss of what the model says is, too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from case import Case
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_landscape import Problem

LOW = torch.bfloat16
CLOSE = ["--x", "-0.002:0.002:5", "--y", "none"]  # a neighbourhood in which bfloat16's steps are large


def net(outputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, outputs)).to(LOW)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 8, generator=generator).to(LOW), torch.randint(0, 4, (60,), generator=generator)


def low() -> Problem:
    return Problem(net(), nn.CrossEntropyLoss(), data())


def right(model: nn.Module) -> Tensor:
    x, y = data()
    return F.cross_entropy(model(x).float(), y)


def regression() -> Problem:
    """Targets in 16 bits, too."""
    x, _ = data()
    return Problem(net(), nn.MSELoss(), (x, x[:, :4] * 3))


def right_regression(model: nn.Module) -> Tensor:
    x, _ = data()
    return F.mse_loss(model(x).float(), (x[:, :4] * 3).float())


class Mixed(nn.Module):
    """A body in 16 bits, and a head in 32, as it is when one is fine-tuned."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x)).float())


def mixed() -> Problem:
    return Problem(Mixed(), nn.CrossEntropyLoss(), data())


class Output(OrderedDict):
    """A mapping whose items are attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Said(NamedTuple):
    logits: Tensor
    hidden: list[Tensor]


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "mapping": lambda t: Output(logits=t, hidden=(t, None)),
    "named": lambda t: Said(t, [t]),
    "record": lambda t: SimpleNamespace(logits=t, text="as it is"),
}


def outputs(form: str = "mapping") -> Problem:
    """An own forward, and a loss that takes the output's attributes."""
    forward = FORMS[form]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=20)

    def loss(output: Any, batch: Any) -> Tensor:
        return F.cross_entropy(output.logits, batch[1])

    return Problem(
        net(), loss, loader, forward=lambda model, batch: forward(model(batch[0])), count=lambda b: len(b[1])
    )


def normalizing() -> Problem:
    """Batch normalization in 32 bits among layers of 16."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)).to(LOW)
    model[1].float()
    return Problem(model, nn.CrossEntropyLoss(), data())


def right_normalizing(model: nn.Module) -> Tensor:
    x, _ = data()
    torch.optim.swa_utils.update_bn([x], model)
    return right(model.eval())


def own_loss() -> Problem:
    """A model that computes its loss, in 16 bits, by itself."""
    x, y = data()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=60)
    return Problem(
        net(),
        lambda loss, batch: loss,
        loader,
        forward=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        count=lambda b: len(b[1]),
    )


def right_own_loss(model: nn.Module) -> Tensor:
    x, y = data()
    return F.cross_entropy(model(x), y).float()


CASES = [
    Case("low", right, options=CLOSE, said=["bfloat16, as the model is"]),
    Case("low", right, options=[*CLOSE, "--precision", "bf16"], library=False),
    Case("low", right, options=[*CLOSE, "--block", "3"], rtol=2e-4, library=False),
    Case("regression", right_regression, options=CLOSE),
    Case("mixed", right, said=["bfloat16, float32, as the model is"]),
    *(Case("outputs", right, kwargs={"form": form}, options=CLOSE, name=form) for form in FORMS),
    Case("normalizing", right_normalizing),
    Case("own_loss", right_own_loss, library_said=["the loss is a bfloat16, of 2 or 3 digits"]),
]
