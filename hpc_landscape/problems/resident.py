"""Data that is kept: read once, before the first point, and held by all ranks of a node together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..errors import UserError
from ..metrics.data import each_tensor, move
from ..parallel.comm import Comm
from ..parallel.shared import pool
from .data import Batches, LoaderBatches, TensorBatches, nbytes
from .problem import user_traceback


class StoredBatches(Batches):
    """Batches, of whatever nesting, as a loader has given them."""

    def __init__(self, batches: list[Any], size: int | None, batch_size: int | None):
        self.batches, self.size, self.batch_size = batches, size, batch_size
        self.bytes = sum(map(nbytes, batches))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def to(self, device: torch.device, dtype: torch.dtype | None, channels_last: bool = False) -> StoredBatches:
        moved = [move(batch, device, dtype, channels_last) for batch in self.batches]
        return StoredBatches(moved, self.size, self.batch_size)


class MovedBatches(Batches):
    """Batches that are brought to a device in every pass: there is no room for all of them."""

    streamed = True

    def __init__(self, batches: Batches, *where: Any):
        self.batches, self.where = batches, where
        self.size, self.batch_size, self.count = batches.size, batches.batch_size, batches.count

    def __iter__(self) -> Iterator[Any]:
        return (move(batch, *self.where) for batch in self.batches)


def beginning(batches: Batches, count: int) -> StoredBatches:
    """The first few batches."""
    return StoredBatches(list(itertools.islice(batches, count)), None, batches.batch_size)


def kept(batches: LoaderBatches, budget: int, comm: Comm) -> Batches:
    """The loader's batches in memory; as they are where all of them would take more than budget bytes on this node.

    Every rank of the node calls it, and reads its share of them.
    """
    loader = batches.loader
    if isinstance(loader.dataset, IterableDataset):
        return batches
    needed = len(loader) * batches.first_bytes
    if any(comm.node_allgather(needed == 0 or needed > budget)):
        return batches
    mine = _read_together(loader, budget, comm)
    if mine is None:
        return batches
    if comm.local_size > 1:
        shared = _shared(mine, comm)
        if shared is None and any(comm.node_allgather(needed > budget // comm.local_size)):
            return batches
        with comm.together():
            mine = dict(_read(loader, 0, 1)) if shared is None else shared
    return StoredBatches([mine[i] for i in range(len(loader))], batches.size, batches.batch_size)


def _read_together(loader: DataLoader, budget: int, comm: Comm) -> dict[int, Any] | None:
    """This rank's share of the batches; None where those of the node take more than the first one promised."""
    mine, taken = {}, 0
    with comm.together():
        for i, batch in _read(loader, comm.local_rank, comm.local_size):
            mine[i] = batch
            taken += nbytes(batch)
            if taken > budget:
                break
    return mine if sum(comm.node_allgather(taken)) <= budget else None


def _read(loader: DataLoader, first: int, step: int) -> Iterator[tuple[int, Any]]:
    """Every so many of the loader's batches, with their numbers."""
    part = loader
    if step > 1:
        options = {
            "num_workers": loader.num_workers,
            "collate_fn": loader.collate_fn,
            "timeout": loader.timeout,
            "worker_init_fn": loader.worker_init_fn,
            "multiprocessing_context": loader.multiprocessing_context,
        }
        ready = loader.batch_sampler is None  # the data set gives whole batches
        order = list(loader.sampler if ready else loader.batch_sampler)[first::step]
        how = {"batch_size": None, "sampler": order} if ready else {"batch_sampler": order}
        part = DataLoader(loader.dataset, **how, **options)
    try:
        yield from zip(range(first, len(loader), step), part, strict=True)
    except Exception as error:
        raise UserError(f"reading the problem's data raised {user_traceback(error)}") from None


def _shared(mine: dict[int, Any], comm: Comm) -> dict[int, Any] | None:
    """The batches of all ranks of this node, one copy for all of them; None where memory cannot be shared."""
    tensors: dict[Any, Tensor] = {}
    nests = {i: each_tensor(batch, partial(_take, tensors, i, itertools.count())) for i, batch in mine.items()}
    found = pool(tensors, comm)
    if found is None:
        return None
    return {
        i: each_tensor(nest, partial(_give, found, i, itertools.count()))
        for part in comm.node_allgather(nests)
        for i, nest in part.items()
    }


def _take(tensors: dict[Any, Tensor], batch: int, number: Iterator[int], tensor: Tensor) -> Tensor:
    tensors[batch, next(number)] = tensor
    return torch.empty(0, device="cpu")  # its place in the nest


def _give(tensors: dict[Any, Tensor], batch: int, number: Iterator[int], place: Tensor) -> Tensor:
    return tensors[batch, next(number)]


def share(batches: Batches, comm: Comm) -> Batches:
    """Batches that are in memory, one copy for all ranks of this node, which all call it."""
    if comm.local_size == 1 or batches.streamed:
        return batches
    sliced = isinstance(batches, TensorBatches)
    mine = {0: batches.tensors} if sliced else dict(enumerate(batches.batches))
    tensors: dict[Any, Tensor] = {}
    each_tensor(list(mine.values()), partial(_take, tensors, 0, itertools.count()))
    if comm.node_allgather(all(t.is_shared() for t in tensors.values()))[0]:
        return batches
    found = _shared(mine if comm.local_rank == 0 else {}, comm)
    if found is None:
        return batches
    if sliced:
        return TensorBatches(found[0], batches.batch_size)
    return StoredBatches([found[i] for i in sorted(found)], batches.size, batches.batch_size)
