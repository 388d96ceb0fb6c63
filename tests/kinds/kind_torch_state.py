"""What of PyTorch a factory sets for the whole process."""

from __future__ import annotations

import torch
from case import Case
from torch import nn
from torch.utils.data import DataLoader

from hpc_landscape import Problem


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    parts = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    return nn.Sequential(*parts).to(dtype)


def data(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float32).to(dtype)
    return x, torch.randint(0, 3, (60,), generator=generator)


def right(model: nn.Module) -> float:
    x, y = data(next(model.parameters()).dtype)
    layer, inputs = model[1], model[0](x).detach()
    layer.running_mean.copy_(inputs.mean(0))
    layer.running_var.copy_(inputs.var(0))
    return nn.functional.cross_entropy(model(x), y)


def by_operations() -> None:
    """In the new way, which must not be mixed with ``allow_tf32``; PyTorch before 2.9 has the old one alone."""
    if hasattr(torch.backends, "fp32_precision"):
        torch.backends.fp32_precision = "tf32"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def in_the_old_way() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


STATES = {
    "by_operations": by_operations,
    "in_the_old_way": in_the_old_way,
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "without_gradients": lambda: torch.set_grad_enabled(False),
    "threads": lambda: torch.set_num_threads(2),
    "device": lambda: torch.set_default_device("cpu"),
    "elsewhere": lambda: torch.set_default_device("meta"),  # what does not say where it is made shows
    "double": lambda: torch.set_default_dtype(torch.float64),
}


def sets(what: str, dtype: str = "float32") -> Problem:
    kind = getattr(torch, dtype)
    problem = Problem(net(kind), nn.CrossEntropyLoss(), data(kind))
    STATES[what]()
    return problem


def trains() -> Problem:
    """Made without gradients, and trained all the same."""

    def train(model: nn.Module) -> None:
        (nn.functional.cross_entropy(model(data()[0]), data()[1]) * 0).backward()

    problem = Problem(net(), nn.CrossEntropyLoss(), DataLoader([*zip(*data(), strict=True)], 60), train=train)
    torch.set_grad_enabled(False)
    return problem


def doubles() -> nn.Module:
    return net(torch.float64)


# What the library makes of it is in tests/ranks/: here a factory's state would go on to the next test.
ALL = ["--metrics", "loss,accuracy,gradient_norm,hessian_trace(n_vectors=2)"]
CASES = [
    *[Case("sets", right, kwargs={"what": what}, model=net, library=False, name=what) for what in STATES],
    *[
        Case("sets", right, kwargs={"what": what}, options=ALL, model=net, library=False, name=f"{what}-all")
        for what in ("without_gradients", "elsewhere", "double")
    ],
    Case("sets", right, kwargs={"what": "double", "dtype": "float64"}, model=doubles, library=False, name="doubles"),
    Case("trains", right, model=net, library=False),
]
