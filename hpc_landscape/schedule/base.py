"""What a schedule is: the campaign asks it for points, and tells it what they gave."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np


class Schedule(abc.ABC):
    """The points that one rank evaluates, as flat indices of the grid."""

    @abc.abstractmethod
    def next(self, count: int) -> np.ndarray:
        """At most so many points to evaluate now, together; none when this rank has no more to do."""

    def tell(self, points: np.ndarray, values: Sequence[Any]) -> None:  # noqa: B027 (few need to know)
        """What these points gave, in their order."""
