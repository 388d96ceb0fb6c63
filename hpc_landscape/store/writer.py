"""Brings finished points to the file, beside the computation.

What is safe, and when. A point is finished once its values have been put. Within two seconds the operating system has
it, values before flag: a process that dies, however it dies, loses the finished points of two seconds at most, and
leaves no flag without its values. The system is made to bring them to the disk (fsync) every 30 seconds: a node that
loses power loses the finished points of 30 seconds at most. Of those it may keep any part, in any order.

Each rank has a thread that writes or sends what the main thread has put, hears the other ranks, and counts. While
points are computed it is the only thread that talks to MPI and HDF5; the main thread only computes. So a point reaches
the disk within two seconds whatever rank 0 computes, and no rank waits for another.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np

from ..errors import STOPPED, UserError, reason
from ..parallel.comm import LEAVE, Comm, leave, orphaned
from .layout import sync

POLL = 0.01  # seconds between looks at the queue and at messages
WRITE_EVERY = 0.5  # seconds, so that values, flags and two hops stay under the promised 2 s
SYNC_EVERY = 30.0  # seconds
LOOK_EVERY = 2.0  # seconds between rank 0's looks whether the file still has its name
ORPHAN_GRACE = 25.0  # seconds that a point in hand may still take when the launcher has died
GIVE_UP = 10.0  # seconds that a failing rank waits for its messages to leave
RESERVE = 10.0  # seconds of a stop's grace, a quarter of it at most, that are kept for leaving


def time_to_finish(grace: float) -> float:
    """Seconds that a point in hand has after a stop."""
    return grace - min(RESERVE, grace / 4)


class Block(NamedTuple):
    """Finished points: flat indices (n,), wall times (n,) in seconds, values by metric name (n, ...), failed (n,)."""

    points: np.ndarray
    wall_times: np.ndarray
    values: dict[str, np.ndarray]
    failed: np.ndarray  # bool: a metric raised there


class Writer:
    """Takes finished points from the main thread: ``with writer: writer.put(...)``.

    Called on rank 0, from the thread: on_progress(n) when n points more have been written, over all ranks;
    on_report(rank, what) with what a rank has reported.

    A stop waits for the points in hand; with a grace (seconds) at most so long: then all that is finished is written,
    on_abandon() on rank 0 says so and gives the exit code, and every rank leaves, whatever its main thread is in.
    """

    retries = False  # whether points may be marked as failed, and no more once they are written again
    grace = math.inf
    on_abandon: Callable[[], int] = staticmethod(lambda: STOPPED)
    hear_signals: Callable[[], int] = staticmethod(lambda: 0)  # the stop code of a signal that has come, or 0

    def __init__(
        self,
        path: str,
        comm: Comm,
        on_progress: Callable[[int], None] = lambda n: None,
        on_report: Callable[[int, Any], None] = lambda rank, what: None,
    ):
        self.path, self.comm, self.on_progress, self.on_report = path, comm, on_progress, on_report
        self.stop_code = 0  # why all ranks stop early; set by a signal, or by another rank's
        self._announced = 0
        self._stopped = math.inf  # when, by this rank's clock
        self._late, self._late_ranks = False, 0
        self._lock = threading.Lock()
        self._queue: list[tuple[int, float, dict[str, np.ndarray], bool]] = []
        self._reports: list[Any] = []
        self._closing = self._failed = False
        self._error: BaseException | None = None
        self._ended_ranks = 0
        self._all_ended = comm.size == 1
        self._requests: list[Any] = []
        self._last_sync = self._last_look = time.monotonic()
        self._unsynced = False
        self._opened: os.stat_result | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    # What the main thread calls

    def put(self, point: int, wall_time: float, values: dict[str, np.ndarray], failed: bool = False) -> None:
        """Take a finished point; returns at once. Raises here what went wrong in writing earlier ones.

        failed: a metric raised there, and the values are to stand for none.
        """
        self.check()
        with self._lock:
            self._queue.append((point, wall_time, values, failed))

    def report(self, what: Any) -> None:
        """Have rank 0 told of something, soon."""
        with self._lock:
            self._reports.append(what)

    def check(self) -> None:
        """Raise what went wrong in writing."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Writer:
        with self._told():
            self._open()
            self._opened = os.stat(self.path)
        self._thread.start()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Write what is left. Without an error, wait for all ranks, and close the file together."""
        self._failed = kind is not None
        self._closing = True
        self._thread.join(GIVE_UP if self._failed else None)
        if self._failed:
            return
        self.check()
        self.stop_code = max(self.comm.allgather(self.stop_code))
        with self.comm.together(), self._told():
            self._close()

    @contextmanager
    def _told(self) -> Iterator[None]:
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
            with self._told():
                self._work()
        except BaseException as error:
            self._error = error
            if not self._closing:
                _interrupt_main()

    def _work(self) -> None:
        last_write = 0.0
        while True:
            closing = self._closing  # before the queue is read: what was put before closing is seen
            now = time.monotonic()
            if closing or now - last_write >= WRITE_EVERY:
                last_write = now
                self._deliver_queue()
            self.stop_code = self.stop_code or self.hear_signals()
            if not self.stop_code and orphaned():  # nobody would ever stop it, and it holds the output
                self.stop_code, self.grace = STOPPED, min(self.grace, ORPHAN_GRACE)
            self._announce_stop()
            for sender, message in self.comm.received():
                self._hear(sender, *message)
            self._requests = [request for request in self._requests if not request.Test()]
            if closing and self._finish():
                return
            self._abandon_if_late()
            time.sleep(POLL)

    def _deliver_queue(self) -> None:
        with self._lock:
            taken, self._queue = self._queue, []
            reports, self._reports = self._reports, []
        if taken:
            points, wall_times, values, failed = zip(*taken, strict=True)
            names = values[0]
            self._deliver(
                Block(
                    np.array(points, dtype=np.int64),
                    np.array(wall_times),
                    {name: np.stack([value[name] for value in values]) for name in names},
                    np.array(failed),
                )
            )
        for what in reports:
            if self.comm.is_root:
                self.on_report(0, what)
            else:
                self._send(0, "report", what)
        self._tick()

    def _announce_stop(self) -> None:
        """Tell rank 0 of a signal to this rank; rank 0 tells all."""
        if self.stop_code and self._stopped == math.inf:
            self._stopped = time.monotonic()
        if self.stop_code != self._announced:
            self._announced = self.stop_code
            for rank in range(1, self.comm.size) if self.comm.is_root else [0]:
                self._send(rank, "stop", self.stop_code)

    def _hear(self, sender: int, kind: str, content: Any) -> None:
        if kind == "stop":
            self.stop_code = self.stop_code or content
            if not self.comm.is_root:
                self._announced = self.stop_code  # rank 0 knows: it may have ended when an echo arrives
        elif kind == "end":
            self._ended_ranks += 1
        elif kind == "all ended":
            self._all_ended = True
        elif kind == "report":
            self.on_report(sender, content)
        elif kind == "late":
            self._late_ranks += 1
        elif kind == LEAVE:
            leave(content)
        else:
            self._receive(kind, content)

    def _finish(self) -> bool:
        """Whether this thread may end: all is written, and (without an error) every rank has said that it has ended."""
        if self._failed:
            return not self._requests
        if self.comm.is_root:
            if self._ended_ranks < self.comm.size - 1:
                return False
            self._deliver_queue()
            for rank in range(1, self.comm.size):
                if not self._all_ended:
                    self._send(rank, "all ended", None)
            self._all_ended = True
        elif not self._ended_ranks:
            self._ended_ranks = 1
            self._send(0, "end", None)
        return self._all_ended and not self._requests

    def _abandon_if_late(self) -> None:
        """Once a stop's grace is over: write what is finished, and leave together, without closing the file.

        Each rank says that it has written; rank 0 then tells all to go. None waits long for one that cannot answer.
        """
        late = time.monotonic() - self._stopped - time_to_finish(self.grace)
        if not late >= 0:
            return
        reserve = self.grace - time_to_finish(self.grace)
        if not self._late:
            self._late = True
            self._deliver_queue()
            self._sync()
            self._send(0, "late", None)
        elif self.comm.is_root and (self._late_ranks == self.comm.size - 1 or late > reserve / 4):
            self._deliver_queue()
            self._sync()
            code = self.on_abandon()
            for rank in range(1, self.comm.size):
                self._send(rank, LEAVE, code)
            end = time.monotonic() + reserve / 4
            while not all(request.Test() for request in self._requests) and time.monotonic() < end:
                time.sleep(POLL)
            leave(code)
        elif late > reserve * 3 / 4:
            self.comm.abort(self.stop_code)

    def _send(self, rank: int, kind: str, content: Any) -> None:
        if rank != self.comm.rank:
            self._requests.append(self.comm.isend((kind, content), rank))

    def _tick(self) -> None:
        """Called at least as often as points are delivered: bring the file to the disk now and then."""
        now = time.monotonic()
        if self._unsynced and now - self._last_sync >= SYNC_EVERY:
            self._sync()
        elif self.comm.is_root and now - self._last_look >= LOOK_EVERY:
            self._last_look = now
            self._look()

    def _sync(self) -> None:
        self._look()
        sync(self.path)
        self._last_sync, self._unsynced = time.monotonic(), False

    def _look(self) -> None:
        """Refuse to go on with a file that nobody can find: written on, it would vanish when it is closed."""
        with suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(os.stat(self.path), self._opened):
                return
        raise UserError(
            f"--output {self.path}: was removed, renamed or replaced while it was being written. Its points are where "
            "it was moved to, if it was; moved back, the same command goes on with it, and else starts again"
        )

    # What the two writers do differently

    def _open(self) -> None:
        raise NotImplementedError

    def _deliver(self, block: Block) -> None:
        """Write points of this rank, or send them to whom writes."""
        raise NotImplementedError

    def _receive(self, kind: str, content: Any) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError


def merge(blocks: Sequence[Block]) -> Block:
    """Several blocks as one."""
    return Block(
        np.concatenate([block.points for block in blocks]),
        np.concatenate([block.wall_times for block in blocks]),
        {name: np.concatenate([block.values[name] for block in blocks]) for name in blocks[0].values},
        np.concatenate([block.failed for block in blocks]),
    )


def _interrupt_main() -> None:
    """Let the main thread not finish a long point first: the handler of this signal, where a run has one, checks."""
    if callable(signal.getsignal(signal.SIGUSR1)):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
