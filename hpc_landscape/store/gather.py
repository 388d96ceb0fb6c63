"""GatherStore: ranks send finished points to rank 0, which writes them; no other rank needs to see the file."""

from __future__ import annotations

import os
from collections import Counter, deque
from contextlib import suppress
from typing import Any

from .batch import LARGE, Block, merged
from .raw import RawFile
from .writer import Writer


class GatherStore(Writer):
    """Rank 0's thread receives and writes, also while its main thread computes, and says so to whom has sent."""

    _file: RawFile | None = None

    def _open(self) -> Any:
        self._received: list[tuple[int, Block]] = []
        self._bytes = 0  # of these
        self._sent: deque[Block] = deque()  # and not known to be written
        if not self.comm.is_root:
            return None
        self._file = RawFile(self.path)
        self._opened = os.stat(self.path)
        return self._file.created

    def _deliver(self, block: Block) -> None:
        if self.comm.is_root:
            self._take(0, block)
        else:
            self._sent.append(block)
            self.control.send(0, "points", block)

    def _receive(self, sender: int, kind: str, content: Any) -> None:
        if kind == "points":
            self._take(sender, content)
        else:
            for _ in range(content):
                self._arrived(self._sent.popleft().nbytes)

    def _take(self, sender: int, block: Block) -> None:
        self._received.append((sender, block))
        self._bytes += block.nbytes
        if self._bytes >= LARGE:  # before there are more: what other ranks have waits where it is
            self._written()

    def _written(self) -> None:
        if self._file is None or not self._received:
            return
        received, self._received, self._bytes = self._received, [], 0
        for block in merged([block for _, block in received]):
            self._file.write_block(block)
        self._unsynced = True
        self.on_progress(sum(len(block.points) for _, block in received))
        self._arrived(sum(block.nbytes for sender, block in received if sender == 0))
        for sender, count in Counter(sender for sender, _ in received).items():
            self.control.send(sender, "written", count)

    def _rescue(self) -> None:
        """Where this rank can see the file: what it has sent, past rank 0. Written twice it is the same."""
        self._deliver_queue()
        with suppress(Exception):
            file = RawFile(self.path)
            if file.created == self._created:
                for block in self._sent:
                    file.write_block(block)

    def _close(self) -> None:
        if self._file is not None:
            self._sync()
            self._file.close()
