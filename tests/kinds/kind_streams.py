"""Streams: with an end, without one, over several workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from case import Case
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hpc_landscape import Problem


class Stream(IterableDataset):
    """shares: whether each of several workers gives its own part."""

    def __init__(self, size: int | None, shares: bool = False):
        self.size, self.shares = size, shares

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info() if self.shares else None
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        yield from itertools.islice(endless(), first, self.size, step)


def endless() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        x = torch.randn(4, generator=generator)
        yield x, (x.sum() > 0).long()


class Whims(IterableDataset):
    """Its first batch is always the same, what comes then is not."""

    def __iter__(self) -> Iterator[Any]:
        yield from itertools.islice(endless(), 8)
        yield torch.randn(4), torch.tensor(0)


class Words(IterableDataset):
    """Batches that are made of the samples by a function: objects whose size nobody can tell."""

    def __iter__(self) -> Iterator[Any]:
        return endless()


def joined(items: list[Any]) -> Any:
    x, y = zip(*items, strict=True)
    return Joined(torch.stack(x), torch.stack(y))


class Joined:
    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y = x, y

    def to(self, device: Any) -> Joined:
        return Joined(self.x.to(device), self.y.to(device))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()


def stream(size: int = 0, workers: int = 0, shares: bool = False) -> Problem:
    options = {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}
    loader = DataLoader(Stream(size or None, shares), batch_size=8, **options)
    return Problem(net(), nn.CrossEntropyLoss(), loader)


def whims() -> Problem:
    return Problem(net(), nn.CrossEntropyLoss(), DataLoader(Whims(), batch_size=8))


def objects() -> Problem:
    loader = DataLoader(Words(), batch_size=8, collate_fn=joined)
    loss = lambda output, batch: nn.functional.cross_entropy(output, batch.y)  # noqa: E731
    return Problem(net(), loss, loader, forward=lambda model, batch: model(batch.x), count=lambda batch: len(batch.y))


def right_of(count: int) -> Any:
    def right(model: nn.Module) -> Tensor:
        x, y = map(torch.stack, zip(*itertools.islice(endless(), count), strict=True))
        return nn.functional.cross_entropy(model(x), y)

    return right


RUNNING = ["--bn", "running"]


def case(factory: str, right: Any = None, options: Any = (), **rest: Any) -> Case:
    words = "-".join([factory, *rest.get("kwargs", {}), *(str(v) for v in rest.get("kwargs", {}).values()), *options])
    return Case(factory, right, options=[*RUNNING, *options], warm_up=False, name=words.replace("--", ""), **rest)


CASES = [
    case("stream", right_of(40), options=["--samples", "40"], library=False, said=["first 40 samples are taken"]),
    case("stream", right_of(21), options=["--samples", "21"], library=False),
    case("stream", right_of(24), options=["--batches", "3"], library=False),
    case("stream", right_of(40), kwargs={"size": 40}),
    case("stream", right_of(20), kwargs={"size": 20}),
    case("objects", right_of(21), options=["--samples", "21"], library=False),
    case("whims", refused="differs between two readings, in batch 2: random augmentation", library=False),
    case("stream", refused="--shuffle_data: the problem's data", options=["--shuffle_data"], library=False),
    case(
        "stream",
        right_of(40),
        kwargs={"size": 40, "workers": 2},
        said=["each of the loader's 2 workers gives all of the samples"],
        library=False,
    ),
    case("stream", right_of(40), kwargs={"size": 40, "workers": 2, "shares": True}, library=False),
]
