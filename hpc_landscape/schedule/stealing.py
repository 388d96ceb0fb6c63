"""Work stealing: a rank that is done takes over half of what the rank with most left has not begun.

Each rank starts with its strided slice. Rank 0's thread keeps a book of what each one has left; a rank tells it when
that has halved, so that there are O(ranks x log points) messages in all. The messages:

    hungry  rank -> 0     it has no more points; seconds that a block of points takes it
    left    rank -> 0     blocks that it has not begun, and the seconds of one
    give    0 -> victim   the thief
    given   victim -> 0   the thief, points for it, and what the victim has left; None where it is hungry itself
    take    0 -> thief    points; without any the rank has no more to do

Points go by way of rank 0: messages of one sender arrive in their order, so nobody is asked for what is still on its
way to it. Halving the tail of a random victim: Blumofe and Leiserson, Scheduling multithreaded computations by work
stealing, J. ACM 46 (1999); the book takes the place of chance, since points are few and long.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from .base import Schedule
from .strided import strided

Send = Callable[[int, str, Any], None]  # to a rank: kind, content
FOREVER = 1e9  # seconds of a block on a rank that has not finished one yet: it is the first to be helped
POLL = 0.05  # seconds between looks whether a rank that waits is to stop
NOTHING = np.empty(0, dtype=np.int64)


class Stealing(Schedule):
    """A rank's points, which others may take over from their end.

    The main thread asks for the next ones; the thread that speaks with other ranks calls ``look`` and ``receive`` all
    the time, until all ranks have ended.

    Args:
        points: of all ranks; the same on each.
        send: brings a message to another rank.
        block: so many points are evaluated together.
        stops: whether no more points are to be begun.
        check: raises what has gone wrong meanwhile, in ``next``.
        clock: seconds.
    """

    def __init__(
        self,
        points: np.ndarray,
        rank: int,
        size: int,
        send: Send,
        block: int = 1,
        stops: Callable[[], int] = lambda: 0,
        check: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.rank, self._left, self._block = rank, strided(points, rank, size), block
        self._to_others, self._stops, self._check, self._clock = send, stops, check, clock
        self._changed = threading.Condition()
        self._seconds = FOREVER  # of a block
        self._begun: float | None = None  # when the one in hand was
        self._hungry = self._asked = self._over = False  # asked: rank 0 knows of the hunger
        self._told = self._blocks * FOREVER  # seconds left, by rank 0's book
        if rank == 0:
            slices = [len(strided(points, other, size)) for other in range(size)]
            self._book = Book(np.array([-(-length // block) for length in slices]), block, self._send, stops)

    # The main thread

    def next(self, count: int) -> np.ndarray:
        while not self._stops():
            if (points := self.begin(count)) is not None:
                return points
            self._check()
            with self._changed:
                self._changed.wait_for(lambda: not self._hungry, POLL)
        return NOTHING

    def begin(self, count: int) -> np.ndarray | None:
        """What ``next`` gives; None while that is not known: other ranks are asked for points."""
        with self._changed:
            now = self._clock()
            if self._begun is not None:
                seconds, self._begun = now - self._begun, None
                self._seconds = seconds if self._seconds == FOREVER else (self._seconds + seconds) / 2
            if not len(self._left) and not self._over:
                self._hungry = True
                return None
            points, self._left = self._left[:count], self._left[count:]
            self._begun = now if len(points) else None
            return points

    # The thread that speaks with other ranks

    def look(self) -> None:
        """Tell rank 0 what has changed."""
        with self._changed:
            blocks, seconds = self._state()
            hungry = self._hungry and not self._asked
            halved = not self._asked and blocks * seconds < self._told / 2
            if hungry or halved:
                self._asked, self._told = hungry, blocks * seconds
        if hungry:
            self._send(0, "hungry", seconds)
        elif halved:
            self._send(0, "left", (blocks, seconds))

    def receive(self, sender: int, kind: str, content: Any) -> bool:
        """Take a message; false where it is for someone else."""
        if kind == "hungry":
            self._book.ask(sender, content)
        elif kind == "left":
            self._book.note(sender, *content)
        elif kind == "give":
            self._give(content)
        elif kind == "given":
            self._book.given(sender, *content)
        elif kind == "take":
            self._take(content)
        else:
            return False
        return True

    def _send(self, rank: int, kind: str, content: Any) -> None:
        if rank == self.rank:
            self.receive(rank, kind, content)
        else:
            self._to_others(rank, kind, content)

    @property
    def _blocks(self) -> int:
        return -(-len(self._left) // self._block)

    def _state(self) -> tuple[int, float]:
        """Blocks that are not begun, and the seconds of one; the one in hand may last longer than those before it."""
        lasts = 0.0 if self._begun is None else self._clock() - self._begun
        return self._blocks, max(self._seconds, lasts)

    def _give(self, thief: int) -> None:
        """Half of the blocks, rounded up: a last one that is not begun as well. After a stop nobody needs them."""
        with self._changed:
            kept = self._block * (self._blocks // 2)
            given = NOTHING if self._stops() else self._left[kept:]
            self._left = self._left[: len(self._left) - len(given)]
            state = None if self._asked else self._state()
            if state is not None:
                self._told = state[0] * state[1]
        self._send(0, "given", (thief, given, state))

    def _take(self, points: np.ndarray) -> None:
        with self._changed:
            self._left, self._over = points, not len(points)
            self._hungry = self._asked = False
            self._told = self._blocks * self._seconds
            self._changed.notify()


class Book:
    """Rank 0's: what each rank has left, at most, and who waits for some of it."""

    def __init__(self, blocks: np.ndarray, block: int, send: Send, stops: Callable[[], int]):
        self.blocks, self.seconds = blocks, np.full(len(blocks), FOREVER)  # not begun; of one
        self._block, self._send, self._stops = block, send, stops
        self._thieves: deque[int] = deque()
        self._under_way = 0  # victims that have been asked, and have not answered

    def note(self, rank: int, blocks: int, seconds: float) -> None:
        """What a rank has left."""
        self.blocks[rank], self.seconds[rank] = blocks, seconds

    def ask(self, thief: int, seconds: float) -> None:
        """A rank has nothing left."""
        self.note(thief, 0, seconds)
        self._thieves.append(thief)
        self._serve()

    def given(self, victim: int, thief: int, points: np.ndarray, left: tuple[int, float] | None) -> None:
        """What a victim has answered, for the thief; where that is nothing, another one is asked."""
        self._under_way -= 1
        if left is not None:
            self.note(victim, *left)
        if len(points):
            self.blocks[thief] = -(-len(points) // self._block)
            self._send(thief, "take", points)
        else:
            self._thieves.appendleft(thief)
        self._serve()

    def _serve(self) -> None:
        """Ask for all that are hungry; where nobody has spare points any more, none are on their way, and no stop."""
        while self._thieves and not self._stops():
            victim = int(np.argmax(self.blocks * self.seconds))
            if self.blocks[victim]:
                self.blocks[victim] //= 2
                self._under_way += 1
                self._send(victim, "give", self._thieves.popleft())
            elif not self._under_way:
                self._send(self._thieves.popleft(), "take", NOTHING)
            else:
                return  # what is on its way may be shared again
