"""What a kind of picture is. Values ``[i, j]`` lie at ``(x[i], y[j])``: axis 0 is horizontal."""

from __future__ import annotations

import abc
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..store.layout import Stored
from .barrier import Barrier
from .draw import Mark
from .field import Field, Trajectory
from .scale import Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO, YES, BEST = range(3)  # how well a kind of picture suits a grid


@dataclass(frozen=True)
class Shown:
    """What a picture shows, and how.

    Attributes:
        path: the file.
        stored: what it says of itself.
        fields: the metrics, with values of the grid's shape.
        scales: one for each.
        cmap: the colour map's name.
        limits: the lowest and the highest value asked for.
        view: elevation and azimuth of the eye, in degrees.
        marks: the models and the best point, of a single metric.
        barrier: between two of the models.
        trajectories: checkpoints projected onto the plane.
        farthest: the largest of their distances from it.
    """

    path: str
    stored: Stored
    fields: list[Field]
    scales: list[Scale]
    cmap: str
    limits: tuple[float | None, float | None]
    view: tuple[float, float]
    marks: list[Mark] = field(default_factory=list)
    barrier: Barrier | None = None
    trajectories: list[Trajectory] = field(default_factory=list)
    farthest: float = 0.0


class Picture(abc.ABC):
    """A kind of picture. The docstring's first paragraph, or ``help``, is its help text.

    Attributes:
        name: what it is called, by default the class's name in lower case.
        most: how many metrics it shows.
    """

    name: str
    help: str = ""
    most: int = 1

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @abc.abstractmethod
    def suits(self, shape: tuple[int, ...]) -> int:
        """NO, YES or BEST: whether it can be drawn of a grid of this shape; of several best, the first is taken."""

    @abc.abstractmethod
    def draw(self, shown: Shown) -> Figure:
        """The figure, without its title."""


class Comparing(Picture):
    """A kind of picture that shows several files on one scale, too."""

    @abc.abstractmethod
    def draw_several(self, shown: Sequence[Shown], names: Sequence[str]) -> Figure:
        """The figure of one metric of several files, without its title. names: what tells the files apart."""


def long_axes(shape: tuple[int, ...]) -> list[int]:
    """The axes along which there are several points."""
    return [k for k, n in enumerate(shape) if n > 1]
