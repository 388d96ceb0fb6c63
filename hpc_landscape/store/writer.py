"""Brings finished points to the file, beside the computation.

What is safe, and when. A point is finished once its values have been put. Within two seconds the operating system has
it, values before flag: a process that dies, however it dies, loses the finished points of two seconds at most, and
leaves no flag without its values. That holds where the file system takes within 1.5 s what may be under way to it:
WINDOW bytes of each rank, and TOGETHER of all, or two points of a rank where those are larger. A rank that is ahead of
that waits: nothing grows, and a kill costs no more than what is under way. The system is made to bring all to the disk
(fsync) every 30 seconds: a node that loses power loses the finished points of 30 seconds at most. Of those it may keep
any part, in any order.

Each rank has a thread that writes or sends what the main thread has put, receives what other ranks send, and counts.
While points are computed it is the only thread that talks to MPI and HDF5; the main thread only computes. So a point
reaches the file within two seconds whatever rank 0 computes, and no rank waits for another.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from ..errors import UserError, reason
from ..ranks.base import LEAVE, Comm, leave
from ..ranks.control import POLL, Control
from .batch import Block, Point, blocks, nbytes
from .layout import sync

WINDOW = 2**18  # bytes of a rank's finished points that may be under way to the file
TOGETHER = 2**24  # bytes of all ranks' points that may be
WRITE_EVERY = 0.5  # seconds, so that values, flags and two hops stay under the promised 2 s
SYNC_EVERY = 30.0  # seconds
LOOK_EVERY = 2.0  # seconds between rank 0's looks whether the file still has its name
GIVE_UP = 10.0  # seconds that a failing rank waits for its messages to leave


class Writer:
    """Takes finished points from the main thread: ``with writing(writer): writer.put(...)``.

    Called on rank 0, from the thread: on_progress(n) when n points more have been written, over all ranks;
    on_report(rank, what) with what a rank has reported. control says how the computation ends.
    """

    def __init__(
        self,
        path: str,
        comm: Comm,
        on_progress: Callable[[int], None] = lambda n: None,
        on_report: Callable[[int, Any], None] = lambda rank, what: None,
        control: Control | None = None,
    ):
        self.path, self.comm, self.on_progress, self.on_report = path, comm, on_progress, on_report
        self.control = control or Control(comm)
        self._window = min(WINDOW, TOGETHER // comm.size)
        self._room = threading.Condition()
        self._queue: list[Point] = []
        self._queued = self._under_way = 0  # bytes: not yet delivered; not yet known to be written
        self._wake = threading.Event()
        self._reports: list[object] = []
        self._closing = self._failed = False
        self._error: BaseException | None = None
        self._last_sync = self._last_look = time.monotonic()
        self._unsynced = False
        self._syncing: threading.Thread | None = None
        self._opened: os.stat_result | None = None  # of the file, where this rank writes it
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    @property
    def stop_code(self) -> int:
        """Why all ranks stop early; 0 while they do not."""
        return self.control.stops

    # What the main thread calls

    def put(self, point: int, wall_time: float, values: dict[str, np.ndarray], failed: bool = False) -> None:
        """Take a finished point; waits while too much is under way. Raises here what went wrong in writing.

        failed: a metric raised there, and the values are to stand for none.
        """
        size = nbytes(values)
        with self._room:
            self.check()
            while self._under_way and self._under_way + size > self._window:
                self._wake.set()
                self._room.wait(0.1)
                self.check()
            self._queue.append(Point(point, wall_time, values, failed))
            self._queued += size
            self._under_way += size

    def report(self, what: object) -> None:
        """Have rank 0 told of something, soon."""
        with self._room:
            self._reports.append(what)

    def check(self) -> None:
        """Raise what went wrong in writing."""
        if self._error is not None:
            raise self._error

    # How it is opened and closed: by all ranks together, see campaign/writing.py

    def open(self) -> Any:
        """Open the file; gives, on rank 0, what it is known by. UserError where it cannot be opened."""
        with self._as_user_error():
            return self._open()

    def start(self, created: Any) -> None:
        """Begin to write. created: what rank 0 knows the file by."""
        self._created = created
        self._thread.start()

    def stop(self, failed: bool) -> None:
        """Write what is left. Unless the computation has failed, wait for all ranks, and raise what went wrong."""
        self._failed, self._closing = failed, True
        self._wake.set()
        self._thread.join(GIVE_UP if failed else None)
        if not failed:
            self.check()

    def close(self) -> None:
        """Close the file, after all ranks have stopped."""
        with self._as_user_error():
            self._close()

    @contextmanager
    def _as_user_error(self) -> Iterator[None]:
        """What the system refuses is for the user to mend: a full disk, a quota, a file system gone."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"--output {self.path}: cannot be written: {reason(error)}. The points written before are in it; mend "
                "this, and the same command goes on from there"
            ) from error

    # What the thread does

    def _run(self) -> None:
        try:
            with self._as_user_error():
                self._work()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        if not self._closing:
            self.control.signals.fail(self._error)

    def _work(self) -> None:
        last_write = 0.0
        while True:
            closing = self._closing  # before the queue is read: what was put before closing is seen
            now = time.monotonic()
            if closing or 2 * self._queued >= self._window or now - last_write >= WRITE_EVERY:
                last_write = now
                self._deliver_queue()
            self.control.look()
            for sender, message in self.comm.received():
                self._on_message(sender, *message)
            self._written()
            self._tick()
            if closing and self._finish():
                return
            self.control.abandon_if_late(self._flush, self._rescue)
            self._wake.wait(POLL)
            self._wake.clear()

    def _deliver_queue(self) -> None:
        with self._room:
            taken, self._queue, self._queued = self._queue, [], 0
            reports, self._reports = self._reports, []
        for block in blocks(taken):
            self._deliver(block)
        for what in reports:
            if self.comm.is_root:
                self.on_report(0, what)
            else:
                self.control.send(0, "report", what)

    def _arrived(self, size: int) -> None:
        """So many bytes of this rank's are written."""
        with self._room:
            self._under_way -= size
            self._room.notify()

    def _on_message(self, sender: int, kind: str, content: Any) -> None:
        if kind == "report":
            self.on_report(sender, content)
        elif kind == LEAVE:
            with suppress(Exception):
                self._deliver_queue()
                self._written()
            leave(content)
        elif not self.control.receive(sender, kind, content):
            self._receive(sender, kind, content)

    def _finish(self) -> bool:
        """Whether this thread may end: all is written, and (without an error) every rank has said that it has ended."""
        return self.control.all_sent() if self._failed else self.control.over(self._written)

    def _flush(self) -> None:
        """What is finished, for a rank that is about to leave; the disk may be slow."""
        self._deliver_queue()
        self._written()
        self._sync_beside()
        if self._syncing is not None:
            self._syncing.join(self.control.reserve / 8)

    def _tick(self) -> None:
        """Bring the file to the disk now and then, beside the writing: a disk may take long."""
        now = time.monotonic()
        if self._unsynced and now - self._last_sync >= SYNC_EVERY:
            self._sync_beside()
        elif self.comm.is_root and now - self._last_look >= LOOK_EVERY:
            self._last_look = now
            self._look()

    def _sync_beside(self) -> None:
        if self._opened is None or (self._syncing is not None and self._syncing.is_alive()):
            return

        def work() -> None:
            try:
                with self._as_user_error():
                    self._sync()
            except BaseException as error:
                self._fail(error)

        self._last_sync, self._unsynced = time.monotonic(), False
        self._syncing = threading.Thread(target=work, name="sync", daemon=True)
        self._syncing.start()

    def _sync(self) -> None:
        self._look()
        sync(self.path)

    def _look(self) -> None:
        """Refuse to go on with a file that nobody can find: written on, it would vanish when it is closed."""
        with suppress(FileNotFoundError, NotADirectoryError):
            if self._opened is None or os.path.samestat(os.stat(self.path), self._opened):
                return
        raise UserError(
            f"--output {self.path}: was removed, renamed or replaced while it was being written. Its points are where "
            "it was moved to, if it was; moved back, the same command goes on with it, and else starts again"
        )

    # What the two writers do differently

    def _open(self) -> Any:
        """Gives, on rank 0, what the file is known by."""
        raise NotImplementedError

    def _deliver(self, block: Block) -> None:
        """Write points of this rank, or send them to whom writes."""
        raise NotImplementedError

    def _receive(self, sender: int, kind: str, content: object) -> None:
        raise NotImplementedError

    def _written(self) -> None:
        """Write what has been received."""

    def _rescue(self) -> None:
        """Write what rank 0 has not, which does not answer."""

    def _close(self) -> None:
        raise NotImplementedError
