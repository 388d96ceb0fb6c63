"""ParallelStore: each rank writes its own points, through an h5py that is built with MPI."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

import h5py
import numpy as np

from ..errors import UserError, reason
from ..ranks.base import Comm
from .batch import Block
from .layout import DONE, FAILED, LIBVER, write
from .probe import opened
from .writer import Writer

SEEN = 5.0  # seconds in which every node sees a file that has just been made


class ParallelStore(Writer):
    """Independent writes, which go out at once; flush and close are collective and wait for the slowest rank.

    So nothing is flushed before the end, and the file is closed by all ranks together.
    """

    _file: h5py.File

    def _open(self) -> Any:
        self._file = _open_together(self.path, self.comm)
        self._shape = self._file[DONE].shape
        self._opened = os.stat(self.path)

    def _deliver(self, block: Block) -> None:
        for name, values in block.columns():
            if name in self._file or name != FAILED:  # which an older file has not
                write(self._file[name], self._shape, block.points, values)
        self._arrived(block.nbytes)
        if self.comm.is_root:
            self.on_progress(len(block.points))
        else:
            self.control.send(0, "count", len(block.points))

    def _receive(self, sender: int, kind: str, content: Any) -> None:
        self.on_progress(content)

    def _tick(self) -> None:
        self._unsynced = self.comm.local_rank == 0  # by one rank of a node, for what all of them write
        super()._tick()

    def _close(self) -> None:
        self._file.close()
        if self.comm.local_rank == 0:  # each node has pages of its own, which all of its ranks have written
            self._sync()


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


def try_open(path: str, comm: Comm) -> h5py.File | str:
    """The file, opened by all ranks; why it cannot be, where the file system (ROMIO's of NFS) refuses to do so."""
    try:
        return _open_together(path, comm)
    except OSError as error:
        return reason(error)


def try_write(file: h5py.File, rank: int) -> str:
    """Why independent writes cannot be had here; empty where they can.

    A value is written as it is: nothing of the file changes. All ranks close it.
    """
    fault = ""
    try:
        where = np.array([rank % file[DONE].size])
        write(file[DONE], file[DONE].shape, where, file[DONE][()].reshape(-1)[where])
    except OSError as error:
        fault = reason(error)
    file.close()
    return fault


def sees(path: str, known: object) -> bool:
    """Whether this rank finds the same file; a node may learn of a new one a little later."""
    end = time.monotonic() + SEEN
    while created(path) != known:
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def created(path: str) -> Any:
    with suppress(OSError), opened(path) as file:
        return file.attrs.get("created", "")
