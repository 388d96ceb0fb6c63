"""ParallelStore: each rank writes its own points, through an h5py that is built with MPI."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from ..errors import UserError
from ..parallel.comm import Comm
from .layout import DONE, FAILED, LIBVER, WALL_TIME, write
from .writer import Block, Writer


class ParallelStore(Writer):
    """Independent writes, which go out at once; flush and close are collective and wait for the slowest rank.

    So nothing is flushed before the end, and the file is closed by all ranks together.
    """

    _file: h5py.File

    def _open(self) -> None:
        self._file = _open_together(self.path, self.comm)
        self._shape = self._file[DONE].shape

    def _deliver(self, block: Block) -> None:
        for name, values in block.values.items():
            write(self._file[name], self._shape, block.points, values)
        write(self._file[WALL_TIME], self._shape, block.points, block.wall_times)
        if (marked := block.failed | self.retries).any():
            write(self._file[FAILED], self._shape, block.points[marked], block.failed[marked])
        write(self._file[DONE], self._shape, block.points, np.ones(len(block.points)))
        self._unsynced = True
        if self.comm.is_root:
            self.on_progress(len(block.points))
        else:
            self._send(0, "count", len(block.points))

    def _receive(self, kind: str, content: Any) -> None:
        self.on_progress(content)

    def _close(self) -> None:
        self._file.close()
        self._sync()  # on every rank: each node has pages of its own


def _open_together(path: str, comm: Comm) -> h5py.File:
    return h5py.File(path, "r+", driver="mpio", comm=comm.mpi, libver=LIBVER, locking=False)


def available() -> bool:
    """Whether this h5py is built with MPI."""
    return bool(h5py.get_config().mpi)


def require(comm: Comm) -> None:
    """Raise UserError where this h5py cannot write in parallel; say how to get one that can."""
    if not available():
        raise UserError(
            "--writer parallel: this h5py is built without MPI; build one with "
            "CC=mpicc HDF5_MPI=ON pip install --no-binary=h5py h5py (see jobs/README.md), or use --writer gather"
        )


def works(path: str, comm: Comm) -> bool:
    """Whether the file system takes independent writes: some ROMIO ones (NFS) refuse them.

    Every rank rewrites a value as it is; nothing of the file changes.
    """
    fault = None
    file = _open_together(path, comm)
    try:
        where = np.array([comm.rank % file[DONE].size])
        write(file[DONE], file[DONE].shape, where, file[DONE][()].reshape(-1)[where])
    except OSError as error:
        fault = str(error)
    file.close()
    return not any(comm.allgather(fault))
