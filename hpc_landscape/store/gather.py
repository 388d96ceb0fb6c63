"""GatherStore: ranks send finished points to rank 0, which writes them with any h5py."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from .layout import DONE, LIBVER, WALL_TIME, write
from .writer import Block, Writer, merge


class GatherStore(Writer):
    """Rank 0's thread receives and writes, also while its main thread computes."""

    _file: h5py.File | None = None
    _received: list[Block]

    def _open(self) -> None:
        self._received = []
        if self.comm.is_root:
            self._file = h5py.File(self.path, "r+", libver=LIBVER, locking=False)
            self._shape = self._file[DONE].shape

    def _deliver(self, block: Block) -> None:
        if self.comm.is_root:
            self._received.append(block)
        else:
            self._send(0, "points", block)

    def _receive(self, kind: str, content: Any) -> None:
        self._received.append(content)

    def _tick(self) -> None:
        """Values, flush, flags, flush: a flag on the disk means that its values are there too."""
        if self._file is not None and self._received:
            block, self._received = merge(self._received), []
            for name, values in block.values.items():
                write(self._file[name], self._shape, block.points, values)
            write(self._file[WALL_TIME], self._shape, block.points, block.wall_times)
            self._file.flush()
            write(self._file[DONE], self._shape, block.points, np.ones(len(block.points)))
            self._file.flush()
            self._unsynced = True
            self.on_progress(len(block.points))
        super()._tick()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._sync()
