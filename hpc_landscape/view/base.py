"""What a kind of picture is. Values ``[i, j]`` lie at ``(x[i], y[j])``: axis 0 is horizontal."""

from __future__ import annotations

import abc
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..store.layout import Stored
from .field import Field
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
    """

    path: str
    stored: Stored
    fields: list[Field]
    scales: list[Scale]
    cmap: str
    limits: tuple[float | None, float | None]
    view: tuple[float, float]


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


def long_axes(shape: tuple[int, ...]) -> list[int]:
    """The axes along which there are several points."""
    return [k for k, n in enumerate(shape) if n > 1]
