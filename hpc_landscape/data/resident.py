"""Data that is kept: read once, before the first point, and held by all ranks of a node together."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import UserError, user_traceback
from ..model.parts import is_plain
from ..ranks.comm import Comm
from ..ranks.shared import pool
from .batches import Batches, LoaderBatches, StoredBatches, TensorBatches, as_made, nbytes, start
from .faults import Patience
from .nest import each_tensor, move, tensors_in


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


def kept(batches: Batches, budget: int, comm: Comm) -> Batches:
    """The loader's batches in memory; as they are where all of them would take more than budget bytes on some node.

    Every rank calls it, whatever node it is on, and reads its share of its node's copy. All keep them or none does: the
    form that points are computed in depends on it, and so do the values, by rounding.
    """
    if not isinstance(batches, LoaderBatches):
        return batches
    loader = batches.loader
    needed = len(loader) * batches.first_bytes
    if not all(comm.allgather(0 < needed <= budget)):
        return batches
    mine = _read_together(loader, budget, comm, batches.patience)
    if mine is None:
        return batches
    found = mine if comm.local_size == 1 else _shared(mine, comm)
    if not all(comm.allgather(found is not None or needed <= budget // comm.local_size)):
        return batches
    with comm.raise_on_all_ranks():
        found = dict(_read(loader, 0, 1, batches.patience)) if found is None else found
    return StoredBatches([found[i] for i in range(len(loader))], batches.size, batches.batch_size)


def _read_together(loader: DataLoader, budget: int, comm: Comm, patience: Patience | None) -> dict[int, Any] | None:
    """This rank's share of the batches; None where those of some node take more than the first one promised."""
    mine, taken = {}, 0
    with comm.raise_on_all_ranks():
        for i, batch in _read(loader, comm.local_rank, comm.local_size, patience):
            mine[i] = batch
            taken += nbytes(batch)
            if taken > budget:
                break
    fits = sum(comm.node_allgather(taken)) <= budget
    return mine if all(comm.allgather(fits)) else None


def _read(loader: DataLoader, first: int, step: int, patience: Patience | None) -> Iterator[tuple[int, Any]]:
    """Every so many of the loader's batches, with their numbers."""
    part = loader
    if step > 1:
        options = {
            "num_workers": loader.num_workers,
            "prefetch_factor": loader.prefetch_factor,
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
        yield from zip(range(first, len(loader), step), as_made(lambda: start(part), [], patience), strict=True)
    except Exception as error:
        raise UserError(f"reading the problem's data raised {user_traceback(error)}") from None


def _shared(mine: dict[int, Any], comm: Comm) -> dict[int, Any] | None:
    """The batches of all ranks of this node, one copy for all of them; None where memory cannot be shared."""
    tensors: dict[Any, Tensor] = {}
    nests = {i: each_tensor(batch, partial(_take, tensors, i, itertools.count())) for i, batch in mine.items()}
    if not all(comm.node_allgather(_can_be_shared(tensors, nests))):
        return None
    found = pool(tensors, comm)
    if found is None:
        return None
    return {
        i: each_tensor(nest, partial(_give, found, i, itertools.count()))
        for part in comm.node_allgather(nests)
        for i, nest in part.items()
    }


def _can_be_shared(tensors: dict[Any, Tensor], nests: dict[int, Any]) -> bool:
    """Whether there is nothing but plain tensors, and around them what another process can be sent."""
    hidden = any(not t.is_meta for nest in nests.values() for t in tensors_in(nest))
    if hidden or not all(is_plain(t) for t in tensors.values()):
        return False  # sparse ones, or in objects that are not looked into
    try:
        return bool(pickle.dumps(nests))
    except Exception:
        return False


def _take(tensors: dict[Any, Tensor], batch: int, number: Iterator[int], tensor: Tensor) -> Tensor:
    tensors[batch, next(number)] = tensor.detach()
    return torch.empty(0, device="meta")  # its place in the nest


def _give(tensors: dict[Any, Tensor], batch: int, number: Iterator[int], place: Tensor) -> Tensor:
    return tensors[batch, next(number)]


def share(batches: Batches, comm: Comm) -> Batches:
    """Batches that are in memory, one copy for all ranks of this node, which all call it."""
    if comm.local_size == 1 or batches.streamed:
        return batches
    sliced = isinstance(batches, TensorBatches)
    mine = {0: batches.tensors} if sliced else dict(enumerate(batches.batches))
    if comm.node_allgather(all(is_plain(t) and t.is_shared() for t in tensors_in(list(mine.values()))))[0]:
        return batches
    found = _shared(mine if comm.local_rank == 0 else {}, comm)
    if found is None:
        return batches
    if sliced:
        return TensorBatches(found[0], batches.batch_size)
    return StoredBatches([found[i] for i in sorted(found)], batches.size, batches.batch_size)
