"""Memory that the ranks of a node share: one copy of the data for all of them."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from .comm import Comm

FOLDER = "/dev/shm"
ALIGNMENT = 64  # bytes: vector kernels take other paths on unaligned data
LEAST = 2**20  # bytes: less is not worth it


def pool(mine: Mapping[Hashable, Tensor], comm: Comm) -> dict[Hashable, Tensor] | None:
    """All tensors of all ranks of this node, by their keys: one copy that they share; None where that cannot be.

    Every rank of the node calls it, with CPU tensors under keys that no other rank has. Their order of dimensions
    (channels last, say) is kept. The file is gone as soon as all have it, so that a killed job leaves nothing.
    """
    kinds = {key: (t.dtype, tuple(t.shape), torch.empty_like(t, device="meta").stride()) for key, t in mine.items()}
    everyone = comm.node_allgather(kinds)
    where, end = {}, 0
    for key, (dtype, shape, stride) in (item for theirs in everyone for item in theirs.items()):
        where[key] = (end // dtype.itemsize, dtype, shape, stride)
        end += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
    path = comm.node_allgather(_new_file(end) if comm.local_rank == 0 else None)[0]
    if path is None:
        return None
    whole = torch.UntypedStorage.from_file(path, True, end)
    comm.node_allgather(None)  # all have it
    if comm.local_rank == 0:
        os.unlink(path)
    views = {
        key: torch.empty(0, dtype=dtype, device="cpu").set_(whole, start, shape, stride)
        for key, (start, dtype, shape, stride) in where.items()
    }
    for key, tensor in mine.items():
        views[key].copy_(tensor)
    comm.node_allgather(None)  # all is there
    return views


def _new_file(size: int) -> str | None:
    """A file of this size in memory, its space taken; None where there is no room for it."""
    if size < LEAST or not os.path.isdir(FOLDER) or shutil.disk_usage(FOLDER).free < 1.1 * size:
        return None
    try:
        descriptor, path = tempfile.mkstemp(prefix="hpc_landscape-", dir=FOLDER)
    except OSError:
        return None
    try:
        os.posix_fallocate(descriptor, 0, size)  # or a write into it may find no room, and end the process
    except OSError:
        os.unlink(path)
        return None
    finally:
        os.close(descriptor)
    return path
