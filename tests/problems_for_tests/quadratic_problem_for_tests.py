"""A quadratic loss in float64 whose Hessian is known: around its minimum it is 1 + d^T H d / 2."""

from __future__ import annotations

import torch
from torch import nn

from hpc_landscape import Problem

SIZE = 26  # parameters: a matrix of 5 x 4, and 6 that are no filters


def hessian() -> torch.Tensor:
    root = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return root @ root.T / SIZE


class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        start = torch.randn(SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.matrix, self.vector = nn.Parameter(start[:20].reshape(5, 4).clone()), nn.Parameter(start[20:].clone())
        self.register_buffer("start", start)
        self.register_buffer("hessian", hessian())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        d = torch.cat([self.matrix.reshape(-1), self.vector]) - self.start
        return (1 + d @ self.hessian @ d / 2).expand(len(x), 1)


def mean(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return output.mean()


def quadratic() -> Problem:
    rows = torch.zeros(2, 1, dtype=torch.float64)
    return Problem(Quadratic(), mean, (rows, rows))
