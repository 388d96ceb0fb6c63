"""Batches shared over the ranks of a team: all shares together are the full reading, and little else is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from hpc_landscape.data.batches import Batches, LoaderBatches, ReadBatches, StoredBatches
from hpc_landscape.data.data import Data
from hpc_landscape.data.fingerprint import checksum
from hpc_landscape.data.prepare import prepare
from hpc_landscape.data.resident import MovedBatches

N = 23


def item(i: int) -> tuple[Tensor, int]:
    return torch.randn(5, generator=torch.Generator().manual_seed(i)), i


class Items(Dataset):
    def __init__(self) -> None:
        self.reads: list[int] = []

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        self.reads.append(i)
        return item(i)


class Ready(Items):
    """Gives whole batches."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, i: int) -> Any:
        self.reads.append(i)
        return torch.full((3, 2), float(i)), torch.full((3,), i)


class Remembers(Items):
    """What it gives depends on what was read before, since the first item: a file that is read in turn, say."""

    def __getitem__(self, i: int) -> Any:
        self.reads = [i] if i == 0 else [*self.reads, i]
        return torch.tensor([float(len(self.reads))]), i


class Draws(Items):
    """Noise that is the same in every pass, and draws on from item to item."""

    def __getitem__(self, i: int) -> Any:
        if i == 0:
            torch.manual_seed(3)
        return torch.randn(5), i


class Stream(IterableDataset):
    """Two thirds are the first worker's: the others end before."""

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        mine = lambda i: worker is None or (i % 3 == 0) == (worker.id == 1)  # noqa: E731
        return (item(i) for i in range(N) if mine(i))


def made(data: Any) -> Batches:
    batches = prepare(data, 4, None, 0, "data", print)
    batches.check("data")
    return batches


def moved() -> Batches:
    return MovedBatches(made(tuple(torch.arange(2.0 * N).reshape(2, N))), torch.device("cpu"), torch.float64)


FORK = {"num_workers": 2, "multiprocessing_context": "fork"}
KINDS = {
    "tensors": lambda: made((torch.randn(N, 3), torch.arange(N))),
    "moved": moved,
    "list": lambda: made([torch.randn(3, 2) for _ in range(7)]),
    "data set": lambda: made(Items()),
    "loader": lambda: made(DataLoader(Items(), batch_size=4, **FORK)),
    "batch sampler": lambda: made(DataLoader(Items(), batch_sampler=[[7, 1], [3], [4, 9, 2], [0]])),
    "ready batches": lambda: made(DataLoader(Ready(), batch_size=None)),
    "stream": lambda: made(Stream()),
    "stream with workers": lambda: made(DataLoader(Stream(), batch_size=4, **FORK)),
    "remembers": lambda: made(Remembers()),
    "draws": lambda: made(Draws()),
    "one batch": lambda: made(DataLoader(Items(), batch_size=N)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_shares_are_the_full_reading(kind: str) -> None:
    batches = KINDS[kind]()
    if isinstance(batches, ReadBatches):
        batches = batches.to(None, torch.float64)
    full = [checksum(batch) for batch in batches]
    assert len(full) == batches.count()
    for count in (1, 2, 3):
        shards = [batches.shard(index, count) for index in range(count)]
        shares = [list(map(checksum, shard)) for shard in shards]
        assert shares == [full[index::count] for index in range(count)]
        assert [shard.count() for shard in shards] == list(map(len, shares))
        assert shares == [[checksum(b) for b in Data(batches).part(index, count).batches] for index in range(count)]
        assert all(shard.batch_size == batches.batch_size for shard in shards)
    quarter = batches.shard(1, 2).shard(1, 2)  # of a share
    assert list(map(checksum, quarter)) == full[3::4]


@pytest.mark.parametrize(("kind", "read"), [("data set", [4, 5, 6, 7, 16, 17, 18, 19]), ("ready batches", [1, 4])])
def test_only_its_share_is_read(kind: str, read: list[int]) -> None:
    batches = KINDS[kind]()
    assert isinstance(batches, LoaderBatches)
    shard = batches.shard(1, 3)
    list(shard)  # the first time it is seen whether that can be
    reads = batches.loader.dataset.reads
    reads.clear()
    list(shard)
    assert reads == read


def test_a_batch_that_depends_on_others_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for kind in ("data set", "remembers"):
        list(KINDS[kind]().shard(0, 2))
    assert [record.getMessage() for record in caplog.records] == [
        "team         data: a batch depends on those read before it: all are read"
    ]


def test_workers_stay_from_pass_to_pass() -> None:
    """And those of the full reading go."""
    batches = made(DataLoader(Items(), batch_size=4, **FORK))
    assert isinstance(batches, LoaderBatches)
    for _ in range(2):
        list(batches.shard(0, 2))
    loader = batches._parts.of((0, 2))
    workers = loader._iterator._workers
    list(batches.to(None, torch.float64).shard(0, 2))
    assert loader._iterator._workers is workers and all(worker.is_alive() for worker in workers)
    assert batches.loader._iterator is None
    list(batches)


def test_sizes_of_shares() -> None:
    tensors = KINDS["tensors"]()
    assert [tensors.shard(index, 4).size for index in range(4)] == [8, 7, 4, 4]
    assert isinstance(tensors.shard(0, 2), StoredBatches) and KINDS["stream"]().shard(0, 2).size is None
