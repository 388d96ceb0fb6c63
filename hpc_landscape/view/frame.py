"""What is around a picture: figure, labels of axes, marks, colour bar, legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..directions.base import OTHERS, DirectionKind
from ..directions.registry import kind_in_file
from ..errors import printable
from ..store.layout import Stored
from . import draw
from .draw import Mark
from .field import Field, setting
from .scale import Scale, number

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .draw import Drawn

LONGEST = 48  # characters of a name in a legend
Model = tuple[str, tuple[float, ...]]  # its name, and its coordinates


def make_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def marks_of(stored: Stored, field: Field) -> list[Mark]:
    """The trained model (or the models between which the axes go), and the best point."""
    return models_of(stored, field) + extremes_of(field, {"maximum" if field.larger_is_better else "minimum": "best"})


def models_of(stored: Stored, field: Field) -> list[Mark]:
    """The models that are in the grid."""
    points = []
    for (name, where), style in zip(models(stored), ("model", *OTHERS), strict=False):
        if all(c[0] <= at <= c[-1] for c, at in zip(field.coordinates, where, strict=True)):
            index = stored.grid.nearest(where)
            value = float(field.values.reshape(-1)[index]) if np.allclose(stored.grid.point(index), where) else np.nan
            label = f"{name}: {number(value)}" if np.isfinite(value) else name
            points.append(Mark(name, label, where, value, style))
    return points


def extremes_of(field: Field, styles: Mapping[str, str]) -> list[Mark]:
    """The minimum, the maximum, or both, each in its style; none where all values are the same."""
    points = []
    for name, style in styles.items():
        index = field.extreme(name == "maximum")
        if index is not None and field.finite.min() < field.finite.max():
            where = field.at(index)
            value = float(field.values[index])
            points.append(Mark(name, f"{name}: {number(value)} at {field.place(index)}", where, value, style))
    return points


def models(stored: Stored) -> list[Model]:
    """The models and their coordinates: one at the origin, and at 1 along each axis that leads to another."""
    n = len(stored.grid.axes)
    places = [(0.0,) * n, *(tuple(map(float, unit)) for unit in np.eye(n))]
    return list(zip(kind_of(stored).models, places, strict=False))


def kind_of(stored: Stored) -> DirectionKind:
    """The kind of its directions."""
    return kind_in_file(setting(stored.attributes, "directions"))


def axis_label(stored: Stored, axis: int) -> str:
    """What a coordinate of this axis means."""
    scaled = f" ({words})" if (words := normalized(stored)) else ""
    return kind_of(stored).label(axis) + _share(stored, axis) + scaled


def _share(stored: Stored, axis: int) -> str:
    """How much of a trajectory's variance a principal component holds."""
    ratios = np.atleast_1d(stored.attributes.get("explained_variance_ratio", ()))
    known = ratios.ndim == 1 and ratios.dtype.kind in "fiu" and axis < len(ratios)
    return f" ({ratios[axis]:.1%} of the variance)" if known else ""


def normalized(stored: Stored) -> str:
    """How random directions are normalized; others are not."""
    normalization = setting(stored.attributes, "normalization")
    known = kind_of(stored).normalization != "none" and normalization in ("filter", "layer", "model")
    return f"{normalization}-normalized" if known else ""


def scale_label(field: Field, scale: Scale) -> str:
    label = printable(field.label).replace("$", r"\$")  # a text, no formula
    return f"{label} (log scale)" if scale.log else label


def add_bar(
    figure: Figure,
    axes: Axes,
    drawn: Sequence[Drawn | None],
    field: Field,
    scale: Scale,
    cmap: str,
    where: tuple[float, float, float, float] = (1.04, 0, 0.045, 1),
) -> None:
    """A colour bar for what was drawn first; where: its place in units of the axes, beside which it is as high."""
    cax = axes.inset_axes(where)
    draw.color_bar(figure, any_drawn(drawn, scale, cmap), scale, scale_label(field, scale), cax=cax)


def any_drawn(drawn: Sequence[Drawn | None], scale: Scale, cmap: str) -> Drawn:
    """What a colour bar is of: what was drawn first; the scale alone where nothing was."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return next((thing for thing in drawn if thing is not None), ScalarMappable(Normalize(*scale.ends), cmap))


def short(name: str, most: int = LONGEST) -> str:
    """The name, cut where it is longer than so many characters."""
    return name if len(name) <= most else f"{name[: most - 3]}..."


def add_legend(figure: Figure, *panels: Axes) -> None:
    """The marks' meaning, once, below the picture."""
    handles: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        names = [short(printable(name)) for name in handles]
        length = sum(len(name) + 7 for name in names)  # in letters, of which an inch has 16
        rows = 1 + int(length / (16 * figure.get_figwidth()))
        columns = -(-len(handles) // rows)
        legend = figure.legend(
            handles.values(), names, loc="outside lower center", ncols=columns, frameon=False,
            fontsize=8, markerscale=draw.IN_LEGEND, handletextpad=0.3, columnspacing=1.5,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
