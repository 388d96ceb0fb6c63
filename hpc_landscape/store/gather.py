"""GatherStore: ranks send finished points to rank 0, which writes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .layout import DONE, FAILED, WALL_TIME
from .raw import RawFile
from .writer import Block, Writer, merge


class GatherStore(Writer):
    """Rank 0's thread receives and writes, also while its main thread computes."""

    _file: RawFile | None = None
    _received: list[Block]

    def _open(self) -> None:
        self._received = []
        if self.comm.is_root:
            self._file = RawFile(self.path)

    def _deliver(self, block: Block) -> None:
        if self.comm.is_root:
            self._received.append(block)
        else:
            self._send(0, "points", block)

    def _receive(self, kind: str, content: Any) -> None:
        self._received.append(content)

    def _tick(self) -> None:
        """Values, then flags: a flag that the system has means that it has its values too."""
        if self._file is not None and self._received:
            block, self._received = merge(self._received), []
            for name, values in block.values.items():
                self._file.write(name, block.points, values)
            self._file.write(WALL_TIME, block.points, block.wall_times)
            if (marked := block.failed | self.retries).any():
                self._file.write(FAILED, block.points[marked], block.failed[marked])
            self._file.write(DONE, block.points, np.ones(len(block.points)))
            self._unsynced = True
            self.on_progress(len(block.points))
        super()._tick()

    def _close(self) -> None:
        if self._file is not None:
            self._sync()
            self._file.close()
