"""How the ranks of a computation come to an end together: when all is done, after a stop, or without one that is hung.

One thread of each rank has it: it calls ``look`` and ``receive`` all the time, and ``over`` when this rank has no more
to do. A stop, wherever it comes from, goes to rank 0, and from there to all. It waits for the points in hand, but not
for ever: then all that is finished is written, and every rank leaves, whatever its main thread is in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import STOPPED
from .base import LEAVE, Comm, Request, leave
from .launcher import orphaned
from .signals import Signals, reserve, time_to_finish

POLL = 0.01  # seconds between looks at the queue and at messages
ORPHAN_GRACE = 25.0  # seconds in all that a rank may still take when its launcher has died
UNANSWERED = 2.0  # seconds, on the first rank, after which a stop that rank 0 has not passed on goes to all directly


class Speaker(Protocol):
    """What else speaks with other ranks, in the same thread."""

    def look(self) -> None:
        """See whether there is something to tell."""

    def receive(self, sender: int, kind: str, content: Any) -> bool:
        """Take a message; false where it is for someone else."""


class Control:
    """One rank's part: ``stop_code`` says why all ranks stop early, 0 while they do not.

    A stop waits for the points in hand: with a grace, in seconds, so long that it is kept; without, twice as long as
    the longest has taken, and 20 s at least. Another signal does not wait. on_abandon(seconds after the stop), on rank
    0, says that points are given up, and gives the exit code; on_silence, on rank 1, says that rank 0 does not answer.
    schedule: where ranks hand points to each other.
    """

    on_abandon: Callable[[float], int] = staticmethod(lambda seconds: STOPPED)
    on_silence: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, comm: Comm, signals: Signals | None = None, grace: float | None = None):
        self.comm, self.signals, self.grace = comm, signals or Signals(comm), grace
        self.schedule: Speaker | None = None
        self.stop_code = 0
        self.reserve = reserve(grace)
        self.longest = 0.0  # seconds that a point, or a block of them, has taken; on rank 0 of all ranks
        self._stopped = math.inf  # when
        self.leave_at = math.inf  # when the points in hand are given up, by this rank's clock
        self._pressed = False
        self._sent_stop: tuple[int, bool] = (0, False)
        self._alone_at = math.inf
        self._longest_told = 0.0
        self._ended_ranks, self._all_ended = 0, comm.size == 1
        self._late_ranks, self._late, self._rescued = 0, False, False
        self._requests: list[Request] = []

    @property
    def patience(self) -> float:
        """Seconds that a stop waits for the points in hand."""
        return max(time_to_finish(self.grace), 0 if self.grace else 2 * self.longest)

    @property
    def stops(self) -> int:
        """Why this rank is to stop, as far as it knows by itself too; 0 where it is not."""
        return self.stop_code or self.signals.code

    # Messages

    def send(self, rank: int, kind: str, content: object) -> None:
        """Begin to send; nothing to this rank itself."""
        if rank != self.comm.rank:
            self._requests.append(self.comm.isend((kind, content), rank))

    def all_sent(self) -> bool:
        self._requests = [request for request in self._requests if not request.Test()]
        return not self._requests

    def receive(self, sender: int, kind: str, content: Any) -> bool:
        """Take a message; false where it is for someone else."""
        if kind == "longest":
            self.longest = max(self.longest, content)
        elif kind == "signal":
            self._stop(content[0], content[1], self.patience)
            if not self.comm.is_root:  # whose sender has told all
                self._sent_stop, self._alone_at = content, math.inf
        elif kind == "stop":
            code, pressed, seconds = content
            self._stop(code, pressed, seconds)
            self._sent_stop, self._alone_at = (self.stop_code, self._pressed), math.inf
        elif kind == "end":
            self._ended_ranks += 1
        elif kind == "all ended":
            self._all_ended = True
        elif kind == "late":
            self._late_ranks += 1
        else:
            return self.schedule is not None and self.schedule.receive(sender, kind, content)
        return True

    # A stop

    def look(self) -> None:
        """See whether this process has had a signal, or lost its launcher, or needs points, and tell the others."""
        if self.signals.code:
            self._stop(self.signals.code, self.signals.pressed, self.patience)
        elif not self.stop_code and orphaned():  # nobody would ever stop it, and it holds the output
            self._stop(STOPPED, False, min(self.patience, ORPHAN_GRACE - self.reserve))
        if not self.comm.is_root and self.longest > max(1.1 * self._longest_told, time_to_finish(None) / 2):
            self._longest_told = self.longest
            self.send(0, "longest", self.longest)
        if (self.stop_code, self._pressed) != self._sent_stop:
            self._tell()
        elif time.monotonic() > self._alone_at:
            self._alone_at = math.inf
            for rank in range(1, self.comm.size):
                self.send(rank, "signal", self._sent_stop)
        if self.schedule is not None:
            self.schedule.look()

    def _stop(self, code: int, pressed: bool, seconds: float) -> None:
        self.stop_code, self._pressed = self.stop_code or code, self._pressed or pressed
        now = time.monotonic()
        self._stopped = min(self._stopped, now)
        self.leave_at = min(self.leave_at, now + (0 if pressed else seconds))
        self.signals.leave_by(self.leave_at + self.reserve)  # should this thread be stuck itself

    def _tell(self) -> None:
        self._sent_stop = (self.stop_code, self._pressed)
        if not self.comm.is_root:
            own = UNANSWERED * self.comm.rank / self.comm.size  # one tells the others, before they tell all as well
            self._alone_at = time.monotonic() + UNANSWERED + own
            self.send(0, "signal", self._sent_stop)
        for rank in range(1, self.comm.size if self.comm.is_root else 0):
            self.send(rank, "stop", (*self._sent_stop, self.leave_at - time.monotonic()))

    # Leaving

    def over(self, last: Callable[[], None]) -> bool:
        """Whether all ranks have said that they have no more to do, as this one says by calling it.

        last: what rank 0 does when all of them have said so.
        """
        if self.comm.is_root:
            if self._ended_ranks < self.comm.size - 1:
                return False
            last()
            for rank in range(1, self.comm.size):
                if not self._all_ended:
                    self.send(rank, "all ended", None)
            self._all_ended = True
        elif not self._ended_ranks:
            self._ended_ranks = 1
            self.send(0, "end", None)
        return self._all_ended and self.all_sent()

    def abandon_if_late(self, flush: Callable[[], None], rescue: Callable[[], None]) -> None:
        """Where a stop has waited long enough: write what is finished, and leave together, without closing the file.

        Each rank says that it has written; rank 0 then tells all to go. None waits long for one that cannot answer: a
        rank 0 that does not is done without, and the others rescue what it has not written.
        """
        late = time.monotonic() - self.leave_at
        if late < 0:
            return
        if not self._late:
            self._late = True
            flush()
            self.send(0, "late", None)
        elif self.comm.is_root and (self._late_ranks >= self.comm.size - 1 or late > self.reserve / 4):
            flush()
            code = self.on_abandon(self.leave_at - self._stopped)
            for rank in range(1, self.comm.size):
                self.send(rank, LEAVE, code)
            end = time.monotonic() + self.reserve / 4
            while not self.all_sent() and time.monotonic() < end:
                time.sleep(POLL)
            leave(code)
        elif late > self.reserve / 2 and not self._rescued:
            self._rescued = True
            rescue()
        elif late > self.reserve * 3 / 4:
            if self.comm.rank == 1:
                self.on_silence()
            leave(self.stop_code)
