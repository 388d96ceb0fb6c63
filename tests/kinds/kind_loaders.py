"""What may give the batches: loaders of one's own, lists, samplers; in an order that is the same at every point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from case import Case
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from hpc_landscape import Problem

N = 24


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def tensors() -> tuple[Tensor, Tensor]:
    """Sorted by class, as they often are."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, 4, generator=generator), torch.arange(3).repeat_interleave(N // 3)


class Items(Dataset):
    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        x, y = tensors()
        return x[i], int(y[i])


class Spread(nn.Module):
    """A loss that depends on what else is in the batch."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        centred = output - output.mean(0)
        return (centred**2).sum(1).mean() + nn.functional.cross_entropy(output, target)


def right_of(batches: list[list[int]]) -> Any:
    def right(model: nn.Module) -> Tensor:
        x, y = tensors()
        return sum(Spread()(model(x[b]), y[b]) * len(b) for b in batches) / sum(map(len, batches))

    return right


def in_eights(rows: Any) -> list[list[int]]:
    rows = list(rows)
    return [rows[i : i + 8] for i in range(0, len(rows), 8)]


IN_ORDER = right_of(in_eights(range(N)))
SHUFFLED = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(2**31 + 1,))).permutation(N).tolist()


# Loaders of one's own


class Reversed(DataLoader):
    """Changes what it gives."""

    def __iter__(self) -> Iterator[Any]:
        for x, y in super().__iter__():
            yield x.flip(0)[:6], y.flip(0)[:6]


class Wrapped:
    """As one that moves batches to a device ahead of time."""

    def __init__(self, loader: DataLoader):
        self.loader, self.dataset = loader, loader.dataset

    def __iter__(self) -> Iterator[Any]:
        yield from self.loader

    def __len__(self) -> int:
        return len(self.loader)


class OnlyIterable:
    """No length: until it ends nobody knows that it does."""

    def __iter__(self) -> Iterator[Any]:
        return iter(DataLoader(Items(), batch_size=8))


class Again:
    """Goes on where it was."""

    def __init__(self, size: int = 8) -> None:
        self.left = iter(list(DataLoader(Items(), batch_size=size)))

    def __iter__(self) -> Iterator[Any]:
        return self.left

    def __len__(self) -> int:
        return 3


class Prefetcher:
    """Is its own iterator, and begins anew."""

    def __iter__(self) -> Prefetcher:
        self.left = iter(loader())
        return self

    def __next__(self) -> Any:
        return next(self.left)

    def __len__(self) -> int:
        return 3


def loader() -> DataLoader:
    return DataLoader(Items(), batch_size=8)


# Samplers


class ShuffledHalf(Sampler):
    """A subset, in another order every time."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[int]:
        return iter((2 * torch.randperm(N // 2, generator=self.generator)).tolist())

    def __len__(self) -> int:
        return N // 2


class Fixed(Sampler):
    """Long ones first, say."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(N - 1, -1, -1))

    def __len__(self) -> int:
        return N


class Endless(Sampler):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield from range(N)


class Whims(Sampler):
    """Other samples every time."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(N)[:8].tolist())


SAMPLERS = {
    "half": ShuffledHalf,
    "fixed": Fixed,
    "endless": Endless,
    "whims": Whims,
    "subset": lambda: SubsetRandomSampler([9, 3, 17, 4, 0, 21]),
    "weighted": lambda: WeightedRandomSampler(torch.arange(1.0, N + 1), N, generator=torch.Generator()),
    "shard": lambda: DistributedSampler(Items(), num_replicas=2, rank=1, shuffle=False),
}
MAKERS = {
    "own": lambda: Reversed(Items(), batch_size=8),
    "wrapped": lambda: Wrapped(loader()),
    "wrapped_shuffle": lambda: Wrapped(DataLoader(Items(), batch_size=8, shuffle=True)),
    "wrapped_tensors": lambda: Wrapped(DataLoader(TensorDataset(*tensors()), batch_size=8)),
    "iterable": OnlyIterable,
    "again": Again,
    "once": lambda: Again(N),
    "prefetcher": Prefetcher,
    "list": lambda: list(loader())[:2],
    "tuple": lambda: tuple(loader()),
    "uneven": lambda: list(DataLoader(Items(), batch_size=10)),
    "generator": lambda: (batch for batch in list(loader())),
    "samples": lambda: [Items()[i] for i in range(N)],
    "tensor_samples": lambda: [(x, y) for x, y in zip(*tensors(), strict=True)],
    "vectors": lambda: [(x, x) for x in tensors()[0]],
    "images": lambda: [(torch.zeros(3, 5, 5), torch.zeros(3)) for _ in range(4)],
    "one_graph": lambda: [(torch.zeros(20, 4), torch.zeros(2, 50), torch.zeros(20))],
    "objects": lambda: [Graph(), Graph()],
    "batch_sampler": lambda: DataLoader(Items(), batch_sampler=[[5, 6, 7], [1, 2]]),
    "half_batches": lambda: DataLoader(Items(), batch_sampler=BatchSampler(ShuffledHalf(), 8, False)),
    "tensors": tensors,
    "shuffling": lambda: DataLoader(Items(), batch_size=8, shuffle=True),
    "shuffling_tensors": lambda: DataLoader(TensorDataset(*tensors()), batch_size=8, shuffle=True),
    **{k: (lambda make=make: DataLoader(Items(), batch_size=8, sampler=make())) for k, make in SAMPLERS.items()},
}


class Graph:
    def to(self, device: Any) -> Graph:
        return self


def made(kind: str) -> Problem:
    return Problem(net(), Spread(), MAKERS[kind]())


def case(kind: str, right: Any = None, **options: Any) -> Case:
    name = "-".join([kind, *(word.strip("-") for word in options.get("options", ()))])
    return Case("made", right, kwargs={"kind": kind}, warm_up=False, name=name, **options)


def alone(kind: str, right: Any = None, **options: Any) -> Case:
    """For the program: the library is given a loader, and iterates over it as it is."""
    return case(kind, right, library=False, **options)


SHUFFLE = ["--shuffle_data"]
BY_EIGHT = ["--batch_size", "8"]
UNCLEAR = r"may be samples or batches: give DataLoader\(list, batch_size=None\)"
CASES = [
    case("own", right_of([list(range(b + 7, b + 1, -1)) for b in (0, 8, 16)])),
    case("wrapped", IN_ORDER),
    case("wrapped_tensors", IN_ORDER),
    case("iterable", IN_ORDER),
    case("list", right_of(in_eights(range(16))), said=["a list of 2 batches, the first of 8 samples"]),
    case("tuple", IN_ORDER),
    case("uneven", right_of([[*range(10)], [*range(10, 20)], [*range(20, 24)]])),
    alone("samples", IN_ORDER, options=BY_EIGHT),
    alone("tensor_samples", IN_ORDER, options=BY_EIGHT),
    case("generator", IN_ORDER, refused="can be read only once: give a DataLoader, or a list", library_refused=""),
    alone("again", refused="differs between two readings of its first batch"),
    alone("once", refused="can be read only once: give a DataLoader, or a list"),
    case("prefetcher", IN_ORDER),
    alone("wrapped_shuffle", refused="differs between two readings of its first batch"),
    alone("vectors", refused=UNCLEAR),
    alone("images", refused=UNCLEAR),
    alone("one_graph", refused=r"one item.*DataLoader\(\[graph\], batch_size=None\)"),
    alone("objects", refused="objects of type Graph, which " + UNCLEAR),
    case("batch_sampler", right_of([[5, 6, 7], [1, 2]])),
    alone("half_batches", right_of(in_eights(range(0, N, 2))), options=BY_EIGHT, said=["12 samples that it names"]),
    alone("half", right_of(in_eights(range(0, N, 2))), said=["the loader shuffles.*the 12 samples that it names"]),
    case("fixed", right_of(in_eights(range(N - 1, -1, -1)))),
    alone("subset", right_of([[0, 3, 4, 9, 17, 21]])),
    alone("endless", IN_ORDER, said=["samples by Endless, which has no end"]),
    alone("whims", IN_ORDER, said=["samples by Whims; it is read in sequence and in full"]),
    alone("weighted", IN_ORDER, said=["draws samples by weights, which are not used here"]),
    alone("shard", IN_ORDER, said=["gives a part of the data to each process"]),
    # The first batches, and another order
    alone("tensors", right_of(in_eights(range(16))), options=[*BY_EIGHT, "--batches", "2"]),
    alone("fixed", right_of([list(range(N - 1, N - 9, -1))]), options=["--batches", "1"]),
    alone("wrapped", right_of(in_eights(range(16))), options=["--batches", "2"]),
    alone("wrapped", right_of([[*range(8)], [8, 9]]), options=["--samples", "10"], said=["first 10 samples are taken"]),
    alone("list", right_of([[*range(8)], [8, 9]]), options=["--samples", "10"]),
    alone("tensors", right_of(in_eights(SHUFFLED)), options=[*BY_EIGHT, *SHUFFLE]),
    alone("samples", right_of(in_eights(SHUFFLED)), options=[*BY_EIGHT, *SHUFFLE]),
    alone("shuffling", right_of(in_eights(SHUFFLED)), options=SHUFFLE, said=["in an order drawn from the seed"]),
    alone("shuffling_tensors", right_of(in_eights(SHUFFLED)[:2]), options=[*SHUFFLE, "--batches", "2"]),
    alone("wrapped", refused="--shuffle_data: the problem's data comes in ready batches", options=SHUFFLE),
    alone("list", refused="--shuffle_data: the problem's data comes in ready batches", options=SHUFFLE),
]
