"""A pass over data by the ranks of a team: each takes some of the batches, and all have what every batch gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from typing import TypeVar

from ..data.data import Data
from ..errors import UserError
from ..ranks.team import ALONE, Team

Value = TypeVar("Value")


class Undivided(Exception):
    """What is called in a pass leaves something behind, random numbers drawn, say: a batch depends on those before."""


class Share:
    """This rank's batches of a pass, and what the team's gave, in the order of the batches.

    So that sums are added up in that order, and are the same to the bit for a team of any size. A rank that is alone
    has all of the batches, and so has each rank where ``divided`` is false. in_step: whether a model is called by all
    ranks or by none, as one that is sharded has to be: a rank that has no batch left calls it for nothing.
    """

    def __init__(self, team: Team = ALONE, divided: bool = True, in_step: bool = False):
        self.team = team
        self.divided = divided and team.size > 1
        self.in_step = in_step and self.divided
        self._numbers: list[int] = []  # of the batches that this rank has taken, among all

    def begin(self, left: Callable[[], object]) -> None:
        """A pass begins. left: what batches leave for those after them, as it can be compared."""
        self._numbers = []
        if self.divided:
            self._left, self._before = left, left()

    def of(self, data: Data) -> Data:
        """This rank's part of the data."""
        return data.part(self.team.rank, self.team.size) if self.divided else data

    def taken(self, numbered: Iterable[tuple[int, Value]]) -> Iterator[Value]:
        """What is numbered within this rank's part; it is known from then on which batches were taken."""
        for number, value in self._in_step(numbered) if self.in_step else numbered:
            self._numbers.append(self.team.rank + number * self.team.size if self.divided else number)
            yield value

    def _in_step(self, numbered: Iterable[tuple[int, Value]]) -> Iterator[tuple[int, Value]]:
        """The same, as many times as the rank that has most; what comes beside has a number below any."""
        mine, last = iter(numbered), None
        while any(self.team.exchange((now := next(mine, None)) is not None)):
            last = now or last
            if last is None:
                raise UserError("--shard fsdp: a rank of the team has no batch: take fewer ranks, or smaller batches")
            yield last if now is not None else (-self.team.size, last[1])

    def together(self, mine: list[list[Value]]) -> list[list[Value]]:
        """Of each point, what every batch of the pass gave. mine: what this rank's gave, in the order taken.

        Undivided, on all ranks, where the batches of one have left something behind.
        """
        if not self.divided:
            return mine
        found = self.team.exchange((self._left() != self._before, self._numbers, mine))
        if any(left for left, _, _ in found):
            raise Undivided
        everyone = [[zip(numbers, point, strict=True) for point in points] for _, numbers, points in found]
        merged = [sum(map(list, of_a_point), []) for of_a_point in zip_longest(*everyone, fillvalue=())]
        return [[v for number, v in sorted(point, key=lambda one: one[0]) if number >= 0] for point in merged]
