"""Problems whose batches are shared by a team: of uneven sizes, streamed, with losses of every kind."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from hpc_landscape import Problem
from hpc_landscape.metrics import BatchMetric


class Net(nn.Module):
    """Convolutions with batch normalization, of which one layer is used twice.

    draws: random numbers, where what it says is larger than that. memory: adds what it has said to the batch before.
    """

    def __init__(self, draws: float, memory: bool):
        super().__init__()
        self.first, self.twice = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.again = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.last, self.draws, self.memory = nn.Linear(6, 3), draws, memory
        self.register_buffer("said", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        for _ in range(2):
            x = torch.relu(self.again(self.twice(x)))
        x = x.mean((2, 3))
        x = self.last(x)
        if self.memory:
            x = x + self.said
            self.said.copy_(x.detach().mean(0))
        return x + torch.rand_like(x) if float(x.detach().abs().mean()) > self.draws else x


class Rows(IterableDataset):
    """Rows, one after the other."""

    def __init__(self, rows: tuple[Tensor, Tensor]):
        self.rows = rows

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*self.rows, strict=True)


class OnlyOfClass(BatchMetric):
    """The share of right answers among targets of one class; of a batch without any it raises where it is asked to."""

    def __init__(self, data: object, kind: int = 0, least: float = -1.0):
        super().__init__(data)
        self.kind, self.least = kind, least

    def batch_mean(self, output: Tensor, target: Tensor) -> Tensor:
        right = (output.argmax(1) == target)[target == self.kind].double().mean()
        if float(right) < self.least:
            raise ArithmeticError("the user's own fault")
        return right

    def batch_weight(self, output: Tensor, target: Tensor, items: object) -> int:
        return int((target == self.kind).sum())


def problem(
    samples: int = 103,
    batch: int = 4,
    stream: bool = False,
    loader: bool = False,
    draws: float = 9.0,
    memory: bool = False,
) -> Problem:
    """A small network on random images; with more of other images to warm up on."""

    def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(n, 1, 5, 5, generator=generator), torch.randint(3, (n,), generator=generator)

    def data(n: int, seed: int) -> object:
        if stream:
            return DataLoader(Rows(rows(n, seed)), batch_size=batch)
        return DataLoader(list(zip(*rows(n, seed), strict=True)), batch_size=batch) if loader else rows(n, seed)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Net(draws, memory)
    return Problem(model, nn.CrossEntropyLoss(), data(samples, 1), warmup_data=data(samples + 7, 2))
