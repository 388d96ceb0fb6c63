"""A landscape with infinite values on one side and NaN on the other, and points at which something is raised."""

from __future__ import annotations

import resource
import zlib
from pathlib import Path

import torch
from torch import Tensor, nn

from hpc_landscape import Problem

ON_A_GPU = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 17.88 GiB is "
    "free. Including non-PyTorch memory, this process has 61.23 GiB memory in use."
)


class Cliff(nn.Module):
    """A linear layer times exp of how far its weights have gone, plus log of it; raises at a fifth of all points."""

    def __init__(self, raises: str, steep: float):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 1)
        self.raises, self.steep = raises, steep
        self.start = float(self.linear.weight.detach().sum())
        self.wrong = (self.digest() + 1) % 5  # not at the origin

    def digest(self) -> int:
        return zlib.crc32(self.linear.weight.detach().numpy().tobytes())

    def forward(self, x: Tensor) -> Tensor:
        gone = (self.linear.weight.sum() - self.start) * self.steep
        if self.raises and self.digest() % 5 == self.wrong:
            if self.raises == "gpu memory":
                raise torch.OutOfMemoryError(ON_A_GPU)
            if self.raises == "memory":
                torch.ones(2**30)
            raise ArithmeticError(f"the user's own fault, {gone.item()} from the origin")
        return self.linear(x) * torch.exp(gone) + torch.log1p(gone)


def cliff(raises: str = "", steep: float = 0.0) -> Problem:
    """raises: nothing, "error", "memory" (4 GiB where 1 is allowed), "gpu memory". steep: 1000 for infinite values."""
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(20, 4, generator=generator), torch.randn(20, 1, generator=generator)
    if raises == "memory":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, taken + 2**30))
    return Problem(Cliff(raises, steep), nn.MSELoss(), data)


class Breaks:
    """A loss that raises at some of its calls: points at a time are one call."""

    def __init__(self, first: int, last: int):
        self.calls, self.first, self.last = 0, first, last

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        if self.first <= self.calls <= self.last:
            raise OSError("the server has gone away")
        return nn.functional.mse_loss(output, target)


def breaks(first: int = 0, last: int = 0) -> Problem:
    problem = cliff()
    return Problem(nn.Sequential(problem.model.linear), Breaks(first, last), problem.data)


def at_once() -> Problem:
    """A model that needs too much memory for its first batch already."""
    problem = cliff("memory")
    problem.model.digest = lambda: problem.model.wrong
    return problem
