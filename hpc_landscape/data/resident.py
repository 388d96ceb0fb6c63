"""Data that is kept in memory, or brought to a device: what of it one process does."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import UserError, user_traceback
from ..model.parts import is_plain
from .batches import Batches, StoredBatches, TensorBatches, as_made, part_of, start
from .faults import Patience
from .nest import each_tensor, move, tensors_in

Key = tuple[int, int]  # (batch, number of the tensor in it)


class MovedBatches(Batches):
    """Batches that are brought to a device in every pass: there is no room for all of them."""

    streamed = True

    def __init__(self, batches: Batches, *where: Any):
        self.batches, self.where = batches, where
        self.size, self.batch_size = batches.size, batches.batch_size

    def count(self) -> int:
        return self.batches.count()

    def __iter__(self) -> Iterator[Any]:
        return (move(batch, *self.where) for batch in self.batches)

    def shard(self, index: int, count: int) -> MovedBatches:
        return MovedBatches(self.batches.shard(index, count), *self.where)


def beginning(batches: Batches, count: int) -> StoredBatches:
    """The first few batches."""
    return StoredBatches(list(itertools.islice(batches, count)), None, batches.batch_size)


def read_part(loader: DataLoader, first: int, step: int, patience: Patience | None) -> Iterator[tuple[int, Any]]:
    """Every so many of the loader's batches, with their numbers; UserError where they cannot be read."""
    part = part_of(loader, first, step) if step > 1 else loader
    try:
        yield from zip(range(first, len(loader), step), as_made(lambda: start(part), [], patience), strict=True)
    except Exception as error:
        raise UserError(f"reading the problem's data raised {user_traceback(error)}") from None


class Packed(NamedTuple):
    """Batches taken apart: their tensors, and the nests that they were in, by the batch's number.

    sharable: whether there is nothing but plain tensors, and around them what another process can be sent.
    """

    tensors: dict[Key, Tensor]
    nests: dict[int, Any]
    sharable: bool


def pack(batches: dict[int, Any]) -> Packed:
    """Take batches, by their numbers, apart."""
    tensors: dict[Key, Tensor] = {}
    nests = {i: each_tensor(batch, partial(_take, tensors, i, itertools.count())) for i, batch in batches.items()}
    return Packed(tensors, nests, _can_be_shared(tensors, nests))


def unpack(tensors: dict[Key, Tensor], nests: dict[int, Any]) -> dict[int, Any]:
    """The batches that these were."""
    return {i: each_tensor(nest, partial(_give, tensors, i, itertools.count())) for i, nest in nests.items()}


def _can_be_shared(tensors: dict[Key, Tensor], nests: dict[int, Any]) -> bool:
    hidden = any(not t.is_meta for nest in nests.values() for t in tensors_in(nest))
    if hidden or not all(is_plain(t) for t in tensors.values()):
        return False  # sparse ones, or in objects that are not looked into
    try:
        return bool(pickle.dumps(nests))
    except Exception:
        return False


def _take(tensors: dict[Key, Tensor], batch: int, number: Iterator[int], tensor: Tensor) -> Tensor:
    tensors[batch, next(number)] = tensor.detach()
    return torch.empty(0, device="meta")  # its place in the nest


def _give(tensors: dict[Key, Tensor], batch: int, number: Iterator[int], place: Tensor) -> Tensor:
    return tensors[batch, next(number)]


def in_memory(batches: TensorBatches | StoredBatches) -> dict[int, Any]:
    """What batches in memory hold, by number: the whole tensors of those that are sliced."""
    return {0: batches.tensors} if isinstance(batches, TensorBatches) else dict(enumerate(batches.batches))


def is_shared(batches: TensorBatches | StoredBatches) -> bool:
    """Whether other processes have the same memory."""
    return all(is_plain(t) and t.is_shared() for t in tensors_in(list(in_memory(batches).values())))


def with_content(batches: TensorBatches | StoredBatches, content: dict[int, Any]) -> Batches:
    """The same batches of other memory."""
    if isinstance(batches, TensorBatches):
        return TensorBatches(content[0], batches.batch_size)
    return StoredBatches([content[i] for i in sorted(content)], batches.size, batches.batch_size)
