"""Memory that the ranks of a node share: one copy of the data for all of them."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Hashable, Mapping
from contextlib import suppress
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from .base import Comm
from .memory import free_memory

FOLDER = "/dev/shm"
ALIGNMENT = 64  # bytes: vector kernels take other paths on unaligned data
LEAST = 2**20  # bytes: less is not worth it
MARGIN = 1.1  # times what is needed has to be free
F_ADD_SEALS, F_SEAL_SHRINK = 1033, 2  # linux/fcntl.h

Key = TypeVar("Key", bound=Hashable)


def pool(mine: Mapping[Key, Tensor], comm: Comm) -> dict[Key, Tensor] | None:
    """All tensors of all ranks of this node, by their keys: one copy that they share; None where that cannot be.

    Every rank of the node calls it, with CPU tensors under keys that no other rank has. Their order of dimensions
    (channels last, say) is kept. A job that is killed leaves nothing, whenever that is.
    """
    views = blank_pool(mine, comm)
    if views is None:
        return None
    for key, tensor in mine.items():
        views[key].copy_(tensor)
    comm.node_allgather(None)  # all is there
    return views


def blank_pool(mine: Mapping[Key, Tensor], comm: Comm) -> dict[Key, Tensor] | None:
    """The same with zeros: of the tensors only shapes, dtypes and orders are looked at."""
    kinds = {key: (t.dtype, tuple(t.shape), torch.empty_like(t, device="meta").stride()) for key, t in mine.items()}
    everyone = comm.node_allgather(kinds)
    where: dict[Key, tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...]]] = {}
    end = 0
    for key, (dtype, shape, stride) in (item for theirs in everyone for item in theirs.items()):
        where[key] = (end // dtype.itemsize, dtype, shape, stride)
        end += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
    whole = _map(end, comm)
    if whole is None:
        return None
    return {
        key: torch.empty(0, dtype=dtype, device="cpu").set_(whole, start, shape, stride)
        for key, (start, dtype, shape, stride) in where.items()
    }


class File(NamedTuple):
    """A file in memory, open here. path: where others open it; name: to be unlinked then, where it has one."""

    descriptor: int
    path: str
    name: str | None = None


def _map(size: int, comm: Comm) -> torch.UntypedStorage | None:
    """So many bytes, the same on all ranks of this node, which agree on whether there are any."""
    if size < LEAST or comm.node_allgather(free_memory() < MARGIN * size)[0]:
        return None
    for create in (_nameless, _named):
        file = create(size) if comm.local_rank == 0 else None
        path = comm.node_allgather(file and file.path)[0]
        if path is None:
            continue
        descriptor = _open(path)
        try:
            seen = comm.node_allgather(None if descriptor is None else _identity(descriptor))
            if file is not None and file.name is not None:
                os.unlink(file.name)  # all have it, or it is not used; and nothing is in it yet
            one = len(set(seen)) == 1 and None not in seen
            if comm.node_allgather(one and file is not None and _take(file.descriptor, size))[0]:
                whole = None if descriptor is None else _storage(descriptor, size)
                if None not in comm.node_allgather(whole and True):
                    return whole
        finally:
            for mine in {descriptor, None if file is None else file.descriptor}:
                if mine is not None:
                    os.close(mine)
    return None


def _storage(descriptor: int, size: int) -> torch.UntypedStorage | None:
    """The file as memory; None where that cannot be, or it has not that size: beyond its end is a SIGBUS."""
    if os.fstat(descriptor).st_size != size:
        return None
    try:
        storage = torch.UntypedStorage.from_file(f"/proc/self/fd/{descriptor}", True, size)
        return cast(torch.UntypedStorage, storage)
    except RuntimeError:  # a limit on the address space
        return None


def _nameless(_: int) -> File | None:
    """Memory that other processes of this user open by way of this one; None where the system has none to give."""
    try:
        descriptor = os.memfd_create("hpc_landscape", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (OSError, AttributeError):  # no such call
        return None
    return File(descriptor, f"/proc/{os.getpid()}/fd/{descriptor}")


def _named(size: int) -> File | None:
    """An empty file in FOLDER; None where there is no room."""
    if not os.path.isdir(FOLDER) or shutil.disk_usage(FOLDER).free < MARGIN * size:
        return None
    try:
        descriptor, path = tempfile.mkstemp(prefix=f"hpc_landscape-{os.getpid()}-", dir=FOLDER)
    except OSError:
        return None
    return File(descriptor, path, path)


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # of a process that this one does not see, or may not look into
        return None


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _take(descriptor: int, size: int) -> bool:
    """Give the file its size, and take its space: a write that finds no room ends the process."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        return False
    with suppress(ImportError, OSError):  # a named file has no seals
        import fcntl

        fcntl.fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK)
    return True
