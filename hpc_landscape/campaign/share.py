"""Tensors and batches between ranks: rank 0's for all of them, and one copy for those of a node."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..data.batches import Batches, LoaderBatches, StoredBatches, TensorBatches, nbytes
from ..data.faults import Patience
from ..data.resident import in_memory, is_shared, pack, read_part, unpack, with_content
from ..model.parts import parts
from ..model.rest import differing, rest
from ..model.state import as_bytes
from ..model.wrapper import ModelWrapper
from ..progress import size
from ..ranks.base import Comm
from ..ranks.shared import ALIGNMENT, LEAST, pool

log = logging.getLogger(__name__)
COPIES = "memory cannot be shared between the ranks of a node here: each has a copy of its own"
ANEW = "for which some node has no room (--resident): it is read anew in each pass"
TOGETHER = 2**26  # bytes of tensors that are broadcast together


@torch.no_grad()
def broadcast_tensors(tensors: Iterable[Tensor], comm: Comm, kept: bool = True) -> None:
    """Fill every rank's tensors, alike in shapes, dtypes and order, with rank 0's; as buffers, never pickled.

    Small ones go together: a broadcast takes longer than the bytes of most of them. kept: false where this rank's
    tensors are those of another on its node, which fills them.
    """
    if comm.size == 1:
        return
    for group, ends in _groups(part for whole in tensors for part in parts(whole)):
        whole = as_bytes(group[0]) if len(group) == 1 and kept else np.empty(ends[-1], np.uint8)
        pieces = [whole[end - nbytes(tensor) : end] for tensor, end in zip(group, ends, strict=True)]
        if comm.is_root and len(group) > 1:
            for piece, tensor in zip(pieces, group, strict=True):
                piece[:] = as_bytes(tensor)
        comm.bcast_array(whole)
        if kept and not comm.is_root:
            for piece, tensor in zip(pieces, group, strict=True):
                tensor.copy_(torch.from_numpy(piece).view(tensor.dtype).reshape(tensor.shape))


def _groups(tensors: Iterable[Tensor]) -> Iterator[tuple[list[Tensor], list[int]]]:
    """Tensors that are broadcast together, and where the bytes of each end: some small ones, or a large one alone."""
    group: list[Tensor] = []
    ends: list[int] = []
    for tensor in tensors:
        if not tensor.numel():
            continue  # torch views no bytes as another type where there are none
        start = -(-ends[-1] // ALIGNMENT) * ALIGNMENT if ends else 0
        if group and start + nbytes(tensor) > TOGETHER:
            yield group, ends
            group, ends, start = [], [], 0
        group.append(tensor)
        ends.append(start + nbytes(tensor))
    if group:
        yield group, ends


def broadcast_rest(
    model: ModelWrapper, others: Sequence[Mapping[str, Tensor]], comm: Comm, any_error: bool = False
) -> tuple[list[dict[str, Tensor]], list[str]]:
    """(what goes along, for each of rank 0's other models; names of what stays), on every rank."""
    along, stays = comm.from_root(lambda: differing(model, others), any_error)
    own = {name: tensor for name, tensor in rest(model).items() if name in along}
    count = comm.bcast(len(others))
    theirs = others if comm.is_root else [own] * count
    made = [
        {name: other.get(name, t).detach().cpu().to(t.dtype, copy=True) for name, t in own.items()} for other in theirs
    ]
    broadcast_tensors((t for tensors in made for t in tensors.values()), comm)
    return made, stays


def one_copy(batches: Batches, comm: Comm) -> Batches:
    """Batches that are in memory, one copy for all ranks of this node, which all call it."""
    if comm.local_size == 1 or not isinstance(batches, (TensorBatches, StoredBatches)):
        return batches
    if comm.node_allgather(is_shared(batches))[0]:
        return batches
    found = _shared(in_memory(batches) if comm.local_rank == 0 else {}, comm)
    return batches if found is None else with_content(batches, found)


def keep_in_memory(batches: Batches, budget: int, comm: Comm) -> Batches:
    """The loader's batches in memory; as they are where all of them would take more than budget bytes on some node.

    Every rank calls it, whatever node it is on, and reads its share of its node's copy. All keep them or none does: the
    mode in which points are computed depends on it, and so do the values, by rounding.
    """
    if not isinstance(batches, LoaderBatches):
        return batches
    loader = batches.loader
    needed = len(loader) * batches.first_bytes
    found = mine = None
    if comm.on_all(0 < needed <= budget):
        mine = _read_together(loader, budget, comm, batches.patience)
    if mine is not None:
        found = mine if comm.local_size == 1 else _shared(mine, comm)
    if not comm.on_all(found is not None or (mine is not None and needed <= budget // comm.local_size)):
        if budget:
            log.info("note         %s: %s, %s", batches.readings.what, size(needed), ANEW)
        return batches
    if found is None and needed >= LEAST:
        log.info("note         %s: %s: %s", batches.readings.what, size(needed), COPIES)
    with comm.raise_on_all_ranks():
        found = dict(read_part(loader, 0, 1, batches.patience)) if found is None else found
    return StoredBatches([found[i] for i in range(len(loader))], batches.size, batches.batch_size)


def _read_together(loader: DataLoader, budget: int, comm: Comm, patience: Patience | None) -> dict[int, Any] | None:
    """This rank's share of the batches; None where those of some node take more than the first one promised."""
    mine, taken = {}, 0
    with comm.raise_on_all_ranks():
        for i, batch in read_part(loader, comm.local_rank, comm.local_size, patience):
            mine[i] = batch
            taken += nbytes(batch)
            if taken > budget:
                break
    fits = sum(comm.node_allgather(taken)) <= budget
    return mine if comm.on_all(fits) else None


def _shared(mine: dict[int, Any], comm: Comm) -> dict[int, Any] | None:
    """The batches of all ranks of this node, one copy for all of them; None where memory cannot be shared."""
    packed = pack(mine)
    if not all(comm.node_allgather(packed.sharable)):
        return None
    found = pool(packed.tensors, comm)
    if found is None:
        return None
    nests = {i: nest for part in comm.node_allgather(packed.nests) for i, nest in part.items()}
    return unpack(found, nests)
