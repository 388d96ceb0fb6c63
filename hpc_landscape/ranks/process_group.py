"""torch.distributed over the ranks of a team, started from MPI's: NCCL between GPUs, gloo between CPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from ..errors import UserError
from .base import Comm

LIMIT = timedelta(hours=1)  # that a rank waits for the others in a pass: one that has died ends the job before
HERE = "127.0.0.1"


@contextmanager
def process_group(comm: Comm, device: torch.device) -> Iterator[Any]:
    """The mesh of devices of a team's ranks, one each, which all call it; UserError where there can be none."""
    from torch import distributed

    if not distributed.is_available():
        raise UserError("--shard fsdp: this PyTorch is built without torch.distributed")
    if distributed.is_initialized():
        raise UserError("--shard fsdp: the problem has started torch.distributed itself: it is started here")
    nodes = comm.allgather(os.uname().nodename)
    host = HERE if len(set(nodes)) == 1 else nodes[0]
    common: dict[str, Any] = {"world_size": comm.size, "timeout": LIMIT, "wait_for_workers": False}
    store = distributed.TCPStore(host, 0, is_master=True, **common) if comm.is_root else None
    port = comm.bcast(store.port if store is not None else 0)
    store = store or distributed.TCPStore(host, port, is_master=False, **common)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=comm.rank, world_size=comm.size, timeout=LIMIT)
    try:
        yield distributed.device_mesh.init_device_mesh(device.type, (comm.size,))
        comm.barrier()
    finally:
        distributed.destroy_process_group()
