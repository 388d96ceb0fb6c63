"""Finished points on their way to the file: many small ones together, large ones alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from .layout import DONE, FAILED, WALL_TIME

LARGE = 2**22  # bytes that are written, or sent, at once: of one point it may be more
Thing = TypeVar("Thing")
BESIDE = 100  # bytes that a point takes beside its values


class Point(NamedTuple):
    """A finished point: its flat index, wall time in seconds, values by metric name, and whether a metric raised."""

    point: int
    wall_time: float
    values: dict[str, np.ndarray]
    failed: bool


class Block(NamedTuple):
    """Finished points: flat indices (n,), wall times (n,) in seconds, values by metric name (n, ...), failed (n,)."""

    points: np.ndarray
    wall_times: np.ndarray
    values: dict[str, np.ndarray]
    failed: np.ndarray  # bool: a metric raised there

    @property
    def nbytes(self) -> int:
        """What ``nbytes`` says of its points, together."""
        return nbytes(self.values) + BESIDE * (len(self.points) - 1)

    def columns(self) -> Iterator[tuple[str, np.ndarray]]:
        """(dataset, values of all points), as they are to be written: a flag that is there means that its values are.

        Whether a point has failed is written where none has, too: it may have been marked before.
        """
        yield from self.values.items()
        yield WALL_TIME, self.wall_times
        yield FAILED, self.failed
        yield DONE, np.ones(len(self.points))


def nbytes(values: Mapping[str, np.ndarray]) -> int:
    """Bytes that count for a point with these values."""
    return sum(value.nbytes for value in values.values()) + BESIDE


def blocks(points: Sequence[Point]) -> Iterator[Block]:
    """Of points: in their order, none larger than LARGE but for a single one's."""
    for part in _parts(points, lambda point: nbytes(point.values)):
        indices, wall_times, values, failed = zip(*part, strict=True)
        yield Block(
            np.array(indices, dtype=np.int64),
            np.array(wall_times),
            {name: _stack([value[name] for value in values]) for name in values[0]},
            np.array(failed),
        )


def merged(given: Sequence[Block]) -> Iterator[Block]:
    """Small blocks as one, large ones as they are."""
    for part in _parts(given, lambda block: block.nbytes):
        yield (
            part[0]
            if len(part) == 1
            else Block(
                np.concatenate([block.points for block in part]),
                np.concatenate([block.wall_times for block in part]),
                {name: np.concatenate([block.values[name] for block in part]) for name in part[0].values},
                np.concatenate([block.failed for block in part]),
            )
        )


def _parts(things: Iterable[Thing], size: Callable[[Thing], int]) -> Iterator[list[Thing]]:
    part: list[Thing] = []
    total = 0
    for thing in things:
        if part and total + size(thing) > LARGE:
            yield part
            part, total = [], 0
        part.append(thing)
        total += size(thing)
    if part:
        yield part


def _stack(values: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(values[0])[None] if len(values) == 1 else np.stack(values)
