"""The points of a team: its first rank takes them from a schedule, and says so to the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ranks.team import Team
from .base import Schedule

NONE = np.empty(0, dtype=np.int64)


class Led(Schedule):
    """What the schedule of the first rank gives, the same on all ranks of the team, which are in step.

    stops: says, by its code, that no more points are to be begun; asked of the first rank alone.
    """

    def __init__(self, team: Team, schedule: Schedule, stops: Callable[[], int] = lambda: 0):
        self.team, self.schedule, self.stops = team, schedule, stops

    def next(self, count: int) -> np.ndarray:
        mine = self.schedule.next(count) if self.team.leads and not self.stops() else NONE
        return self.team.comm.bcast(mine)

    def tell(self, points: np.ndarray, values: Sequence[Any]) -> None:
        if self.team.leads:
            self.schedule.tell(points, values)
