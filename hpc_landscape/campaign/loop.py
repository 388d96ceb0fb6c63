"""The one loop: schedule -> evaluator -> writer, of the batch program and of the library."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import Stopped
from ..schedule.base import Schedule
from ..schedule.stealing import Stealing
from ..schedule.strided import Strided
from ..store.writer import Writer
from .failures import Attempts, Failure


def shared(points: np.ndarray, writer: Writer, block: int, stealing: bool = True) -> Schedule:
    """This rank's part of all points, which are brought to the writer, so many evaluated together.

    stealing: whether ranks that are done take over from others; the writer's thread speaks with them.
    """
    control = writer.control
    rank, size = control.comm.rank, control.comm.size
    if size == 1 or not stealing:
        return Strided(points, rank, size)
    schedule = Stealing(points, rank, size, control.send, block, lambda: control.stops, writer.check)
    control.schedule = schedule
    return schedule


class PointWriter(Protocol):
    """Takes finished points."""

    def put(self, point: int, wall_time: float, values: Any, failed: bool = False) -> None:
        """Take one."""


@dataclass
class Campaign:
    """One rank's points, evaluated and brought to the writer.

    nan_values: what is stored of a point that has failed. on_failure(point, failure): tells of one. stops: says, by its
    code, that no more points are to be begun. on_points(points, seconds): after each evaluation.
    """

    schedule: Schedule
    attempts: Attempts
    writer: PointWriter
    nan_values: Callable[[], Any] = dict
    on_failure: Callable[[int, Failure], None] = lambda point, failure: None
    stops: Callable[[], int] = lambda: 0
    on_points: Callable[[np.ndarray, float], None] = lambda points, seconds: None

    def run(self) -> None:
        """Evaluate until there are no more points, or a stop. Use while the writer is open."""
        evaluator = self.attempts.evaluator
        with evaluator.attached():
            while not self.stops() and len(points := self.schedule.next(evaluator.execution.points)):
                start = time.perf_counter()
                try:
                    found = self.attempts.evaluate(points)
                except Stopped:  # in a stream that may have no end
                    return
                seconds = time.perf_counter() - start
                self.on_points(points, seconds)
                for point, values in zip(points, found, strict=True):
                    self._put(int(point), seconds / len(points), values)
                self.schedule.tell(points, found)

    def _put(self, point: int, seconds: float, values: Any) -> None:
        if isinstance(values, Failure):
            self.on_failure(point, values)
            self.writer.put(point, seconds, self.nan_values(), failed=True)
        else:
            self.writer.put(point, seconds, values)
