"""Streams with the interfaces of Hugging Face's ``datasets`` and of WebDataset, as their documentation has them."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hpc_landscape import Problem
from hpc_landscape.ranks.comm import launched

SHARDS = [range(0, 9), range(9, 12), range(12, 20), range(20, 21)]


def sample(i: int) -> tuple[torch.Tensor, int]:
    return torch.randn(4, generator=torch.Generator().manual_seed(i)), i % 3


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def plain() -> Problem:
    x, y = zip(*(sample(i) for shard in SHARDS for i in shard), strict=True)
    return Problem(net(), nn.CrossEntropyLoss(), (torch.stack(x), torch.tensor(y)))


class Drifting(IterableDataset):
    """The last sample is another from the fifth full pass on."""

    passes = 0

    def __init__(self, last: int):
        self.last = last

    def __iter__(self) -> Iterator[Any]:
        yield from map(sample, range(16))
        self.passes += 1
        yield sample(self.last + self.passes // 5)


def drifting(by_rank: bool = False) -> Problem:
    last = 20 + launched()[1] if by_rank else 16
    return Problem(net(), nn.CrossEntropyLoss(), DataLoader(Drifting(last), batch_size=4))


class HuggingFace(IterableDataset):
    """Dicts; shards for the workers; a shuffle through a buffer, by the seed and the epoch."""

    def __init__(self) -> None:
        self.seed: int | None = None
        self.buffer, self.epoch, self.position = 1, 0, 0

    @property
    def num_shards(self) -> int:
        return len(SHARDS)

    n_shards = num_shards

    def shuffle(self, seed: int, buffer_size: int) -> HuggingFace:
        other = copy.copy(self)
        other.seed, other.buffer = seed, buffer_size
        return other

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position, self.epoch = state["position"], state["epoch"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        draw, shards = random.Random(f"{self.seed} {self.epoch}"), list(SHARDS)
        if self.seed is not None:
            draw.shuffle(shards)
        worker = get_worker_info()
        mine = shards[worker.id :: worker.num_workers] if worker else shards
        held: list[int] = []
        for i in (i for shard in mine for i in shard):
            held.append(i)
            if len(held) == self.buffer:
                yield self._given(held.pop(draw.randrange(len(held))))
        yield from map(self._given, held)

    def _given(self, i: int) -> dict[str, Any]:
        self.position += 1
        return dict(zip(("x", "y"), sample(i), strict=True))


class EpochLoader(DataLoader):
    """As a trainer's: another epoch in each pass."""

    epoch = 0

    def __iter__(self) -> Any:
        self.dataset.set_epoch(self.epoch)
        self.epoch += 1
        return super().__iter__()


def hugging_face(shuffles: bool = False, epochs: bool = False, workers: int = 0) -> Problem:
    data = HuggingFace().shuffle(seed=1, buffer_size=6)
    options = {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}
    loader = (EpochLoader if epochs else DataLoader)(data if shuffles or epochs else HuggingFace(), 4, **options)
    loss = lambda output, batch: nn.functional.cross_entropy(output, batch["y"])  # noqa: E731
    return Problem(net(), loss, loader, forward=lambda model, batch: model(batch["x"]))


class WebDataset(IterableDataset):
    """A pipeline, whose shuffle draws anew in each pass."""

    def __init__(self, *pipeline: Any):
        self.pipeline = list(pipeline)

    def __iter__(self) -> Iterator[Any]:
        found: Any = self.pipeline[0]
        for stage in self.pipeline[1:]:
            found = stage(found)
        return iter(found)


class WebLoader(WebDataset):
    """A pipeline around a loader."""


def split_by_worker(shards: Any) -> Any:
    worker = get_worker_info()
    return shards[worker.id :: worker.num_workers] if worker else shards


def samples(shards: Any) -> Iterator[Any]:
    return (sample(i) for shard in shards for i in shard)


def shuffled(items: Any) -> Iterator[Any]:
    found = list(items)
    random.Random().shuffle(found)
    return iter(found)


def resampled_shards(shards: Any) -> Iterator[Any]:
    while True:
        yield random.Random().choice(shards)


def web_dataset(shuffles: bool = False, resampled: bool = False, loader: bool = False, workers: int = 0) -> Problem:
    stages = [SHARDS, resampled_shards if resampled else split_by_worker, samples, *([shuffled] if shuffles else [])]
    options = {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}
    data: Any = DataLoader(WebDataset(*stages), batch_size=4, **options)
    return Problem(net(), nn.CrossEntropyLoss(), WebLoader(data) if loader else data)
