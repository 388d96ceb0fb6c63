"""What several kinds of picture have: marks, trajectories, colour bars, drawn into given axes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .field import Field, Trajectory
from .scale import Scale, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorizer import ColorizingArtist
    from matplotlib.figure import Figure

    Drawn: TypeAlias = ScalarMappable | ColorizingArtist  # what a colour bar is of

Look = dict[str, Any]  # keywords for matplotlib
GAP = "0.78"  # the grey where there is no value
IN_LEGEND = 0.8  # of the size in the picture
WAYS = ("#e8384f", "#ff8c1a", "#b43fd6", "#1d1d1d", "#ff8fc0", "#8c5a2b")  # of trajectories, over any colour map


@dataclass(frozen=True)
class Mark:
    """A point worth pointing out, at these coordinates and this value. label: its name, value and place in words."""

    name: str
    label: str
    where: tuple[float, ...]
    value: float
    style: str  # a key of _STYLES


_STYLES: dict[str, Look] = {
    "model": {"marker": "*", "s": 90, "facecolor": "white", "edgecolor": "black", "linewidth": 0.8},
    "second": {"marker": "D", "s": 36, "facecolor": "white", "edgecolor": "black", "linewidth": 0.8},
    "third": {"marker": "s", "s": 40, "facecolor": "white", "edgecolor": "black", "linewidth": 0.8},
    "fourth": {"marker": "^", "s": 46, "facecolor": "white", "edgecolor": "black", "linewidth": 0.8},
    "minimum": {"marker": "v", "s": 46, "facecolor": "white", "edgecolor": "black", "linewidth": 0.8},
    "maximum": {"marker": "^", "s": 46, "facecolor": "white", "edgecolor": "black", "linewidth": 0.8},
    "best": {"marker": "o", "s": 150, "facecolor": "none", "edgecolor": "#e8384f", "linewidth": 1.5},
}


def trajectories(axes: Axes, ways: list[Trajectory], farthest: float) -> None:
    """The checkpoints' ways over the plane, the first and the last of each named; axes have their limits.

    A disc around a checkpoint grows with its distance from the plane. farthest: the distance of the largest disc.
    """
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.6, foreground="white")]
    style: Look = {"textcoords": "offset points", "fontsize": 7, "zorder": 6, "path_effects": halo, "parse_math": False}
    look: Look = {"linewidth": 1.2, "marker": "o", "markersize": 2.8, "path_effects": halo, "zorder": 4}
    disc: Look = {"facecolor": (1, 1, 1, 0.6), "linewidth": 1, "zorder": 3.5}
    for way, color in zip(ways, cycle(WAYS), strict=False):
        axes.plot(way.x, way.y, color=color, label=way.name or None, **look)
        for i in {0, len(way.x) - 1} & set(range(len(way.labels))):
            to_the_right = way.x[i] < np.mean(axes.get_xlim())  # so that it stays inside
            side: Look = {"xytext": (9, 5), "ha": "left"} if to_the_right else {"xytext": (-9, 5), "ha": "right"}
            axes.annotate(way.labels[i], (way.x[i], way.y[i]), annotation_clip=True, **side, **style)
        if way.distance is not None and farthest > 0:
            axes.scatter(way.x, way.y, s=_area(way.distance / farthest), edgecolor=color, **disc)
    for share in (0.5, 1) if farthest > 0 else ():
        label = f"{number(share * farthest, 3)} from the plane (Euclidean)"
        axes.scatter([], [], s=_area(share) / IN_LEGEND**2, label=label, **disc, edgecolor="0.3")


def _area(share: Any) -> Any:
    """Of a disc, in square points, for distances in units of the largest; 0 is a checkpoint's own dot."""
    return (2.8 + 9 * np.nan_to_num(np.clip(share, 0, 1))) ** 2


def marks(axes: Axes, points: list[Mark], keep: tuple[int, ...]) -> None:
    """Draw the marks at these of their coordinates."""
    for mark in points:
        where = [mark.where[k] for k in keep]
        axes.scatter(*where, label=mark.label, clip_on=False, zorder=5, **_STYLES[mark.style])


def evaluated(axes: Any, field: Field, *places: np.ndarray) -> None:
    """A dot at each point that is done, of a field that is estimated elsewhere. places: of these, along each axis."""
    if field.estimated and not field.there.all():
        look: Look = {"linewidth": 0, "s": 3, "color": "black", "alpha": 0.55}
        axes.scatter(*places, label="evaluated", zorder=3, **look)


def marks_at_value(axes: Any, points: list[Mark], scale: Scale | None = None) -> None:
    """Draw the marks at their coordinates and their value, in the space that is drawn; those without a value not."""
    for mark in points:
        if np.isfinite(mark.value):
            height = mark.value if scale is None else float(np.clip(scale.transform(mark.value), *scale.ends))
            axes.scatter(*mark.where, height, label=mark.label, zorder=5, **_STYLES[mark.style])


def color_bar(figure: Figure, drawn: Drawn, scale: Scale, label: str, **place: Any) -> None:
    """The colour bar of what was drawn, with its levels as ticks. place: cax, the axes that it fills; or ax, beside."""
    extend: Look = {} if hasattr(drawn, "levels") else {"extend": scale.extend}  # filled levels know theirs
    bar = figure.colorbar(drawn, label=label, **extend, **place)
    step = -(-len(scale.levels) // 20)  # no more than 20 ticks
    bar.set_ticks(scale.transform(scale.levels[::step]).tolist(), labels=scale.texts[::step])
    bar.ax.tick_params(labelsize=8, width=0.5)
    bar.ax.minorticks_off()
    bar.outline.set_linewidth(0.5)
