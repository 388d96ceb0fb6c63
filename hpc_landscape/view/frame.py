"""What is around a picture: figure, labels of axes, marks, colour bar, legend."""

from __future__ import annotations

from collections.abc import Sequence
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


def make_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def marks_of(stored: Stored, field: Field) -> list[Mark]:
    """The trained model (or the models between which the axes go), and the best point."""
    points = []
    n = len(field.coordinates)
    places = [(0.0,) * n, *map(tuple, np.eye(n))]
    models = zip(kind_of(stored).models, places, ("model", *OTHERS), strict=False)
    for name, where, style in models:
        if all(c[0] <= at <= c[-1] for c, at in zip(field.coordinates, where, strict=True)):
            index = stored.grid.nearest(where)
            value = float(field.values.reshape(-1)[index]) if np.allclose(stored.grid.point(index), where) else np.nan
            points.append(Mark(f"{name}: {number(value)}" if np.isfinite(value) else name, where, value, style))
    if field.best is not None and field.finite.min() < field.finite.max():
        where = tuple(float(c[i]) for c, i in zip(field.coordinates, field.best, strict=True))
        value = float(field.values[field.best])
        name = "maximum" if field.larger_is_better else "minimum"
        points.append(Mark(f"{name}: {number(value)} at {field.place(field.best)}", where, value, "best"))
    return points


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
    return f"{field.label} (log scale)" if scale.log else field.label


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
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    shown = [thing for thing in drawn if thing is not None] or [ScalarMappable(Normalize(*scale.ends), cmap)]
    options = {} if hasattr(shown[0], "levels") else {"extend": scale.extend}  # filled levels know theirs
    draw.color_bar(figure, axes.inset_axes(where), shown[0], scale, scale_label(field, scale), **options)


def add_legend(figure: Figure, *panels: Axes) -> None:
    """The marks' meaning, once, below the picture."""
    handles: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..." for name in map(printable, handles)]
        rows = 1 + int(sum(map(len, names)) / (15 * figure.get_figwidth()))  # in one they might be cut off
        columns = -(-len(handles) // rows)
        legend = figure.legend(
            handles.values(), names, loc="outside lower center", ncols=columns, frameon=False,
            fontsize=8, markerscale=0.8, handletextpad=0.3, columnspacing=1.5,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
