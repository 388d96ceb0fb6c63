"""Picks the writer."""

from __future__ import annotations

from ..ranks.base import Comm
from . import parallel
from .gather import GatherStore
from .parallel import ParallelStore
from .writer import Writer


def choose_writer(wanted: str, comm: Comm) -> type[Writer]:
    """The writer for ``auto``, ``gather`` or ``parallel``; UserError where parallel is asked for and cannot be had.

    auto: parallel where h5py has it and there are several ranks.
    """
    if wanted == "parallel":
        parallel.require(comm)
    use_parallel = wanted == "parallel" or (wanted == "auto" and comm.size > 1 and parallel.available())
    return ParallelStore if use_parallel else GatherStore
