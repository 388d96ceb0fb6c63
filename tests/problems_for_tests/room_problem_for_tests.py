"""A problem whose batches, of 2 or 12 MiB each, are given by data-loading workers."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hpc_landscape import Problem

WIDTH = 2**16


class Rows(Dataset):
    def __len__(self) -> int:
        return 48

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.full((WIDTH,), i / 48), i % 3


class Stream(IterableDataset):
    def __iter__(self):
        return (Rows()[i] for i in range(48) if i % 2 == torch.utils.data.get_worker_info().id)


class Own(DataLoader):
    """A loader that is read as it is."""

    def __iter__(self):
        return super().__iter__()


def room(kind: str, workers: int = 2) -> Problem:
    """kind: rows, stream, or own."""
    loader, data = (Own if kind == "own" else DataLoader), (Stream() if kind == "stream" else Rows())
    size = 48 if kind == "own" else 8
    model = nn.Linear(WIDTH, 3, bias=False)
    nn.init.constant_(model.weight, 1e-4)
    return Problem(
        model, nn.CrossEntropyLoss(), loader(data, batch_size=size, num_workers=workers), neutral=("workers",)
    )
