"""Work stealing over a simulated network: ranks of any speed, messages that take their time, a clock of its own."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hpc_landscape.errors import UserError
from hpc_landscape.schedule.stealing import Stealing
from hpc_landscape.schedule.strided import strided

Cost = Callable[[int, int], float]  # seconds of a point on a rank: rank, point


class Network:
    """Ranks, and messages between them, which take a random time; those of one rank to another arrive in order.

    No rank ends before all points have been begun, unless by a stop; and then no points are on their way.

    stop_at: when all ranks stop, each a little later than another.
    """

    def __init__(self, points: int, size: int, cost: Cost, block: int = 1, delay: float = 0.03, seed: int = 0,
                 stop_at: float = math.inf):  # fmt: skip
        self.now, self.messages, self.makespan = 0.0, 0, 0.0
        self.computed: list[list[int]] = [[] for _ in range(size)]
        self.over = [False] * size
        self._points, self._ended = points, 0
        self._cost, self._block, self._delay, self._stop_at = cost, block, delay, stop_at
        self._draw, self._number, self._arrival = random.Random(seed), itertools.count(), {}
        self._events: list[Any] = []
        self._waits = [True] * size
        self.ranks = [self._rank(np.arange(points), rank, size) for rank in range(size)]

    def _rank(self, points: np.ndarray, rank: int, size: int) -> Stealing:
        def send(to: int, kind: str, content: Any) -> None:
            assert to != rank
            points = {"given": lambda: content[1], "take": lambda: content}.get(kind, list)()
            # A large one that nobody receives would keep its sender from ending
            assert not len(points) or self._ended < len(self.ranks), "points on their way when all have ended"
            self.messages += 1
            self._send(rank, to, lambda: self.ranks[to].receive(rank, kind, content))

        return Stealing(points, rank, size, send, self._block, lambda: self._stops(rank), clock=lambda: self.now)

    def _stops(self, rank: int) -> bool:
        return self.now >= self._stop_at + 0.1 * rank

    def _at(self, when: float, rank: int, action: Callable[[], object]) -> None:
        heapq.heappush(self._events, (when, next(self._number), rank, action))

    def _send(self, rank: int, to: int, action: Callable[[], object]) -> None:
        arrives = max(self.now + self._draw.uniform(0, 2 * self._delay), self._arrival.get((rank, to), 0))
        self._arrival[rank, to] = arrives
        self._at(arrives, to, action)

    def _end(self) -> None:
        """Rank 0 hears that a rank has ended."""
        self._ended += 1

    def run(self) -> None:
        """Until nothing happens any more."""
        for rank in range(len(self.ranks)):
            self._go_on(rank)
            if self._stop_at < math.inf:
                self._at(self._stop_at + 0.1 * rank, rank, lambda: None)
        while self._events:
            self.now, _, rank, action = heapq.heappop(self._events)
            action()
            self._go_on(rank)

    def _go_on(self, rank: int) -> None:
        """What the main thread of a rank does, its other one, and the main one, where rank 0 has had its own answer."""
        self._main(rank)
        self.ranks[rank].look()
        self._main(rank)

    def _main(self, rank: int) -> None:
        if self._waits[rank] and not self.over[rank]:
            points = np.empty(0) if self._stops(rank) else self.ranks[rank].begin(self._block)
            if points is None:
                return
            self._waits[rank] = False
            self.makespan = max(self.makespan, self.now)
            if len(points):
                self.computed[rank] += points.tolist()
                seconds = sum(self._cost(rank, int(point)) for point in points)
                self._at(self.now + seconds, rank, lambda: self._waits.__setitem__(rank, True))
            else:
                self.over[rank] = True
                self._send(rank, 0, self._end)
                all_begun = sum(map(len, self.computed)) == self._points
                assert all_begun or self._stops(rank), "a rank has ended too early"


def ideal(points: int, seconds: list[float]) -> float:
    return points / sum(1 / s for s in seconds)


@pytest.mark.parametrize("slow", range(4))
@pytest.mark.parametrize("from_when", [0, 100])
def test_a_slow_rank_gives_away_its_tail(slow: int, from_when: int) -> None:
    """Five times slower than its three neighbours: within 10% of the ideal, where plain slices take 4 times it.

    from_when: the point from which it is so slow: it need not be so from the beginning.
    """
    points, seconds = 800, [5.0 if rank == slow else 1.0 for rank in range(4)]

    def cost(rank: int, point: int) -> float:
        return seconds[rank] if point >= from_when else 1.0

    network = Network(points, 4, cost)
    network.run()
    assert sorted(sum(network.computed, [])) == list(range(points))
    plain = max(sum(cost(rank, int(p)) for p in strided(np.arange(points), rank, 4)) for rank in range(4))
    bound = ideal(points - from_when, seconds) + from_when / 4
    assert bound - 1 <= network.makespan <= 1.1 * bound
    assert plain > 3.4 * bound and (from_when or plain == 4 * bound)


@pytest.mark.parametrize("seed", range(150))
def test_every_point_once(seed: int) -> None:
    """Whatever the numbers of points and ranks, the block, the speeds, and the delays, some longer than points."""
    draw = random.Random(seed)
    size, points, block = draw.randint(2, 9), draw.choice([0, 1, 2, 3, 7, 40, 300]), draw.choice([1, 1, 2, 4, 8])
    speeds = [draw.choice([0.01, 0.1, 1, 5]) for _ in range(size)]
    dear = set(draw.sample(range(points), points // 10))
    network = Network(
        points, size, lambda rank, point: speeds[rank] * (20 if point in dear else draw.uniform(0.5, 1.5)),
        block, draw.choice([0.0, 0.01, 0.5]), seed,
    )  # fmt: skip
    network.run()
    assert sorted(sum(network.computed, [])) == list(range(points))
    assert all(network.over)


@pytest.mark.parametrize("seed", range(40))
def test_a_stop_in_the_middle(seed: int) -> None:
    """Ranks that see it at different times: no point twice, and a message more keeps nobody from ending."""
    draw = random.Random(seed)
    speeds = [draw.choice([0.05, 0.3, 1]) for _ in range(5)]
    network = Network(200, 5, lambda rank, point: speeds[rank], seed=seed, delay=1.0, stop_at=draw.uniform(0, 12))
    network.run()
    computed = sum(network.computed, [])
    assert len(set(computed)) == len(computed) <= 200 and all(network.over)


def test_points_that_cost_unequally() -> None:
    """A corner of the grid is a hundred times dearer, and it is one rank's: the others help."""
    points, size = 640, 4
    dear = set(range(3, 160, 4))  # of rank 3's slice
    network = Network(points, size, lambda rank, point: 10.0 if point in dear else 0.1)
    network.run()
    assert sorted(sum(network.computed, [])) == list(range(points))
    total = len(dear) * 10 + (points - len(dear)) * 0.1
    assert network.makespan < 1.1 * total / size + 10  # nobody divides a point


def test_whole_blocks_are_given() -> None:
    network = Network(512, 4, lambda rank, point: 5.0 if rank == 1 else 1.0, block=8)
    given = []
    take = Stealing._take
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stealing, "_take", lambda self, points: (given.append(len(points)), take(self, points)))
        network.run()
    assert sorted(sum(network.computed, [])) == list(range(512))
    assert sum(map(bool, given)) > 3 and all(length % 8 == 0 for length in given)


def test_messages_of_a_thousand_ranks() -> None:
    """O(ranks x log points): not as many as points, nor as pairs of ranks. A straggler's tail goes to all."""
    size, points = 1000, 100_000
    draw = random.Random(1)
    speeds = [draw.uniform(0.5, 1.5) for _ in range(size)]
    speeds[17] = 1000.0
    network = Network(points, size, lambda rank, point: speeds[rank], delay=0.02)
    network.run()
    assert sorted(itertools.chain(*network.computed)) == list(range(points))
    assert network.messages < 4 * size * math.log2(points / size), network.messages
    assert network.makespan < 1.1 * max(1000, ideal(points, speeds))


def alone(**arguments: Any) -> Stealing:
    """Rank 1 of 2 without points, whose messages go nowhere."""
    return Stealing(np.arange(1), 1, 2, lambda rank, kind, content: None, **arguments)


def test_who_waits_is_woken_by_points() -> None:
    schedule = alone()
    threading.Timer(0.1, schedule.receive, (0, "take", np.array([7]))).start()
    assert schedule.next(1).tolist() == [7]
    threading.Timer(0.1, schedule.receive, (0, "take", np.array([]))).start()
    assert len(schedule.next(1)) == 0


def test_who_waits_ends_at_a_stop() -> None:
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    assert len(alone(stops=stop.is_set).next(1)) == 0


def test_who_waits_raises_what_has_gone_wrong() -> None:
    def check() -> None:
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="the disk is full"):
        alone(check=check).next(1)


def test_who_is_known_to_be_hungry_says_nothing_of_what_it_has() -> None:
    """Points may be on their way to it: that it has none would come later than they are in the book."""
    sent: list[Any] = []
    schedule = Stealing(np.arange(1), 1, 2, lambda rank, kind, content: sent.append((kind, content)))
    for known in (False, True):
        assert schedule.begin(1) is None
        schedule.receive(0, "give", 0)
        kind, (thief, points, left) = sent.pop()
        assert (kind, thief, len(points)) == ("given", 0, 0) and (left is None) == known
        schedule.look()
        assert [kind for kind, _ in sent] == ["hungry"]


def test_other_messages_are_for_others() -> None:
    assert not alone().receive(0, "points", None)
