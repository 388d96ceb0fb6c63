"""How the ranks are put together, so that several evaluate a point, and in step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from ..data.batches import LoaderBatches
from ..data.sets import Sets
from ..errors import UserError
from ..ranks.base import Comm, SerialComm
from ..ranks.control import Control
from ..ranks.team import Team
from ..schedule.base import Schedule
from ..schedule.stealing import NOTHING, Stealing
from ..schedule.strided import Strided
from ..store.writer import Writer


def number_of_teams(
    asked: int | Literal["auto"], points: int, ranks: int, batches: list[int] | None = None
) -> tuple[int, str]:
    """How many teams there are, and where that is not what was asked for, what there is instead.

    asked: ranks that evaluate a point together; auto: one, but where there are fewer points than ranks, all of them.
    batches: of each set, where that is known: a rank of a team has one at least of the largest.
    """
    most = max(1, min(ranks, max(batches))) if batches else ranks  # in a team
    least = -(-ranks // most)
    if asked == "auto":
        return max(least, min(points, ranks)), ""
    count = max(1, ranks // asked)
    if count < least:
        return least, f"--ranks_per_point {asked}: there are {most} batches, and a rank has one at least"
    return count, f"--ranks_per_point {asked}: {ranks} ranks are no multiple of it" if ranks % asked else ""


def describe_teams(count: int, ranks: int) -> str:
    """So many teams in words."""
    sizes = sorted({ranks // count, -(-ranks // count)})
    return f"{count} of {' or '.join(map(str, sizes))} ranks, which evaluate a point together"


def known_batches(sets: Sets) -> list[int]:
    """How many batches each set has, of those that are no streams, which tell only when they are read."""
    return [batches.count() for batches in sets.all if not batches.streamed or isinstance(batches, LoaderBatches)]


def check_batches(batches: list[int], ranks: int) -> None:
    """UserError where a rank of a team of so many would have no batch, and a sharded model needs all of them."""
    if batches and min(batches) < ranks:
        raise UserError(
            f"--shard fsdp: a set has {min(batches)} batches, and the team {ranks} ranks, each of which needs one: "
            "take fewer ranks, or a smaller --batch_size"
        )


def team_of(comm: Comm, count: int) -> Team:
    """This rank's, of so many of neighbouring ranks, of equal size but for one; all ranks call it."""
    number = comm.rank * count // comm.size
    return Team(SerialComm() if count == comm.size else comm.split(number), number, count)


class Led(Schedule):
    """What the schedule of a team's first rank gives, on all of its ranks, which are in step.

    stops: says, by its code, that no more points are to be begun; asked of the first rank alone.
    """

    def __init__(self, team: Team, schedule: Schedule, stops: Callable[[], int] = lambda: 0):
        self.team, self.schedule, self.stops = team, schedule, stops

    def next(self, count: int) -> np.ndarray:
        mine = self.schedule.next(count) if self.team.leads and not self.stops() else NOTHING
        return self.team.of_first(mine)

    def tell(self, points: np.ndarray, values: Sequence[Any]) -> None:
        if self.team.leads:
            self.schedule.tell(points, values)


def shared(points: np.ndarray, team: Team, writer: Writer, block: int, stealing: bool = True) -> Schedule:
    """This rank's part of all points, which are brought to the writer, so many evaluated together.

    stealing: whether teams that are done take over from others; the writer's thread of their first ranks speaks.
    """
    control = writer.control
    schedule: Schedule = Strided(points, team.number, team.count)
    if stealing and team.count > 1 and team.leads:
        first = _Firsts(control, team.count)
        schedule = Stealing(points, team.number, team.count, first.send, block, lambda: control.stops, writer.check)
        first.schedule, control.schedule = schedule, first
    return Led(team, schedule, lambda: control.stops) if team.size > 1 else schedule


class _Firsts:
    """Messages between teams go between their first ranks."""

    schedule: Stealing

    def __init__(self, control: Control, teams: int):
        self.control, self.teams, self.ranks = control, teams, control.comm.size

    def send(self, team: int, kind: str, content: Any) -> None:
        self.control.send(-(-team * self.ranks // self.teams), kind, content)

    def look(self) -> None:
        self.schedule.look()

    def receive(self, sender: int, kind: str, content: Any) -> bool:
        return self.schedule.receive(sender * self.teams // self.ranks, kind, content)
