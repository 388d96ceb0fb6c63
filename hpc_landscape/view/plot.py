"""A picture of a stored landscape."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..directions.base import OTHERS, DirectionKind
from ..directions.registry import kind_in_file
from ..errors import UserError, printable
from ..store import layout
from ..store.layout import Stored
from . import draw
from .draw import Mark
from .field import Field, default_metric, read_field, read_trajectories, setting
from .output import checked, write_whole
from .scale import Scale, choose, number

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")
KINDS = ("contour", "surface", "heatmap", "line")
_KINDS_FOR = {1: ("line",), 2: ("contour", "surface", "heatmap"), 3: ("contour", "heatmap")}
LONGEST = 48  # characters of a name in a legend
_LOOK: dict[Any, object] = {
    "font.size": 9,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,  # text that an editor can edit, and that publishers accept
    "svg.hashsalt": "hpc_landscape",  # the same picture, the same bytes
    "text.usetex": False,
}


def plot(
    path: str,
    output: str | None = None,
    metric: str | None = None,
    kind: str | None = None,
    log: bool | None = None,
    levels: int | Sequence[float] = 12,
    title: str | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "viridis",
    dpi: int = 200,
    elevation: float = 35.0,
    azimuth: float = -60.0,
) -> str:
    """Draw one metric of the file at path; returns the picture's path (default: path with .png).

    metric: the loss where there is one, else the first; ``eigenvalues[0]``; in 1-D two, ``loss,accuracy``, share x.
    kind: line in 1-D; contour (default), heatmap or surface in 2-D; contour or heatmap of three slices in 3-D.
    log: None takes a log scale where a linear one would hide most of the values. levels: about how many, or which.
    title: replaces title and description; "" leaves them out. elevation, azimuth: where a surface is seen from.
    Raises UserError.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("plot needs matplotlib: pip install 'hpc_landscape[plot]'") from None
    stored = layout.read(path)
    output = output or _picture_name(path)
    suffix = checked(path, output, SUFFIXES)
    kind = _kind(stored, kind, path)
    _check_look(cmap, dpi, title)
    if not stored.done.any():
        raise UserError(f"{path}: no point is done yet, so there is nothing to plot")
    fields = _fields(path, stored, metric, kind)
    scales = [choose(field.finite, log, levels, vmin, vmax) for field in fields]
    with matplotlib.rc_context(_LOOK):
        if kind == "line":
            figure = _line(stored, fields, scales, (vmin, vmax))
        elif len(stored.grid.axes) == 3:
            figure = _slices(stored, fields[0], scales[0], kind, cmap)
        elif kind == "surface":
            figure = _surface(stored, fields[0], scales[0], cmap, (elevation, azimuth))
        else:
            figure = _plane(path, stored, fields[0], scales[0], kind, cmap)
        _head(figure, stored, fields, title)
        dates = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
        options: draw.Look = {"format": suffix[1:], "dpi": dpi, "metadata": dates.get(suffix)}
        write_whole(output, lambda name: figure.savefig(name, **options))
    return output


def _picture_name(path: str) -> str:
    stem, suffix = os.path.splitext(path)
    return (stem if suffix.lower() in (".h5", ".hdf5", ".nc") else path) + ".png"


def _check_look(cmap: str, dpi: int, title: str | None) -> None:
    import matplotlib
    from matplotlib.mathtext import MathTextParser

    if cmap not in matplotlib.colormaps:
        raise UserError(f"unknown colour map '{cmap}'; matplotlib has viridis, cividis, magma, Blues and others")
    if not 20 <= dpi <= 1200:
        raise UserError(f"dpi {dpi}: expected 20 to 1200")
    try:
        MathTextParser("path").parse(title or "")
    except ValueError:
        raise UserError(f"title '{title}': what is between $ signs is not a formula; write \\$ for the sign") from None


def _kind(stored: Stored, kind: str | None, path: str) -> str:
    """The kind of picture; an axis of one point leaves a plane that is a line, or a strip of cells."""
    long = _long_axes(stored)
    n = len(stored.grid.axes)
    kinds = ("line", "heatmap", "contour") if n == 2 and len(long) < 2 else _KINDS_FOR[n]
    if kind is None:
        return kinds[0]
    if kind not in KINDS:
        raise UserError(f"unknown kind '{kind}'; it is one of {', '.join(KINDS)}")
    if kind not in kinds:
        shape = " x ".join(str(k) for k in stored.grid.shape)
        raise UserError(f"{path} holds {shape} points, which cannot be drawn as {kind}; take {' or '.join(kinds)}")
    return "heatmap" if kind == "contour" and n == 2 and len(long) < n else kind


def _long_axes(stored: Stored) -> list[int]:
    return [k for k, n in enumerate(stored.grid.shape) if n > 1]


def _fields(path: str, stored: Stored, metric: str | None, kind: str) -> list[Field]:
    names = re.split(r"\s*,\s*(?![^\[]*\])", (metric or default_metric(stored)).strip())  # not in eigenvalues[0,1]
    if len(names) > (2 if kind == "line" else 1):
        most = "a line shows one metric or two" if kind == "line" else f"a {kind} shows one metric"
        raise UserError(f"metric '{metric}': {most}")
    return [read_field(path, stored, name) for name in names]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _plane(path: str, stored: Stored, field: Field, scale: Scale, kind: str, cmap: str) -> Figure:
    x, y = field.coordinates
    figure = _figure(5.6, 5.2)
    axes = figure.add_subplot()
    drawn = _panel(axes, x, y, field.values, scale, kind, cmap)
    axes.set(xlabel=axis_label(stored, 0), ylabel=axis_label(stored, 1))
    _bar(figure, axes, [drawn], field, scale, cmap)
    draw.trajectories(axes, read_trajectories(path))
    draw.marks(axes, _marks(stored, field), (0, 1))
    _legend(figure, axes)
    return figure


def _panel(
    axes: Axes, x: np.ndarray, y: np.ndarray, values: np.ndarray, scale: Scale, kind: str, cmap: str
) -> draw.Drawn | None:
    """One plane of values, its gaps grey, its axes equal where their ranges are."""
    axes.set_facecolor(draw.GAP)
    by_cells = kind == "heatmap" or min(len(x), len(y)) < 2
    drawn = (draw.heatmap if by_cells else draw.contour)(axes, x, y, values, scale, cmap)
    x_ends, y_ends = (draw.edges(x), draw.edges(y)) if by_cells else (x, y)
    axes.set(xlim=x_ends[[0, -1]], ylim=y_ends[[0, -1]])
    axes.locator_params(nbins=5)
    ranges = np.ptp(x), np.ptp(y)
    if ranges[0] and np.isclose(*ranges, rtol=0.01):
        axes.set_aspect("equal")
    return drawn


def _slices(stored: Stored, field: Field, scale: Scale, kind: str, cmap: str) -> Figure:
    """Three planes through the origin, or through the middle where the origin is outside."""
    middle = [int(np.abs(c).argmin()) if c[0] <= 0 <= c[-1] else len(c) // 2 for c in field.coordinates]
    figure = _figure(11.5, 4.3)
    panels = figure.subplots(1, 3)
    drawn = []
    at = [field.coordinates[k][middle[k]] for k in range(3)]
    for axes, (across, up, through) in zip(panels, ((0, 1, 2), (0, 2, 1), (1, 2, 0)), strict=True):
        values = np.take(field.values, middle[through], axis=through)
        x, y = field.coordinates[across], field.coordinates[up]
        drawn.append(_panel(axes, x, y, values, scale, kind, cmap))
        axes.set(xlabel=axis_label(stored, across), ylabel=axis_label(stored, up))
        axes.set_title(f"direction {through + 1} = {number(at[through])}", fontsize=8)
        inside = [m for m in _marks(stored, field) if np.isclose(m.where[through], at[through])]
        draw.marks(axes, inside, (across, up))
    _bar(figure, panels[-1], drawn, field, scale, cmap)
    _legend(figure, *panels)
    return figure


def _surface(stored: Stored, field: Field, scale: Scale, cmap: str, view: tuple[float, float]) -> Figure:
    x, y = field.coordinates
    figure = _figure(6.6, 5.4)
    axes = figure.add_subplot(projection="3d", computed_zorder=False)
    drawn = draw.surface(axes, x, y, field.values, scale, cmap)
    axes.set(xlabel=axis_label(stored, 0), ylabel=axis_label(stored, 1))
    axes.locator_params(nbins=5)
    step = -(-len(scale.levels) // 6)
    axes.set_zticks(scale.transform(scale.levels[::step]), labels=scale.texts[::step])
    axes.tick_params(labelsize=7, pad=1)
    axes.view_init(*view)
    ratio = np.ptp(x) / np.ptp(y)
    axes.set_box_aspect((min(max(ratio, 0.4), 2.5), 1, 0.75), zoom=1.05)
    draw.marks_at_value(axes, _marks(stored, field), scale)
    _bar(figure, axes, [drawn], field, scale, cmap, (1.12, 0.15, 0.035, 0.7))
    _legend(figure, axes)
    return figure


def _line(
    stored: Stored, fields: list[Field], scales: list[Scale], limits: tuple[float | None, float | None]
) -> Figure:
    """One metric along the axis that has points, or two with a scale each; limits: of the first."""
    along = (_long_axes(stored) or [0])[0]
    figure = _figure(5.8, 4.0)
    left = figure.add_subplot()
    x = fields[0].coordinates[along]
    for axes, field, scale, color in zip((left, None), fields, scales, draw.COLORS, strict=False):
        axes = axes or left.twinx()
        draw.line(axes, x, field.values.reshape(-1), scale.log, color)
        axes.set_ylabel(_scale_label(field, scale))
        if len(fields) == 2:
            axes.yaxis.label.set_color(color)
            axes.tick_params(axis="y", colors=color)
        else:
            one_axis = [Mark(m.label, (m.where[along],), m.value, m.style) for m in _marks(stored, field)]
            draw.marks_at_value(axes, one_axis)
    left.set(xlabel=axis_label(stored, along), ylim=limits)
    left.grid(color="0.9", linewidth=0.5)
    left.set_axisbelow(True)
    _legend(figure, left)
    return figure


def _marks(stored: Stored, field: Field) -> list[Mark]:
    """The trained model (or the models between which the axes go), and the best point."""
    points = []
    n = len(field.coordinates)
    places = [(0.0,) * n, *map(tuple, np.eye(n))]
    models = zip(_kind_of(stored).models, places, ("model", *OTHERS), strict=False)
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


def _kind_of(stored: Stored) -> DirectionKind:
    return kind_in_file(setting(stored.attributes, "directions"))


def axis_label(stored: Stored, axis: int) -> str:
    """What a coordinate of this axis means."""
    normalized = f" ({words})" if (words := _normalized(stored)) else ""
    return _kind_of(stored).label(axis) + _share(stored, axis) + normalized


def _share(stored: Stored, axis: int) -> str:
    """How much of a trajectory's variance a principal component holds."""
    ratios = np.atleast_1d(stored.attributes.get("explained_variance_ratio", ()))
    known = ratios.ndim == 1 and ratios.dtype.kind in "fiu" and axis < len(ratios)
    return f" ({ratios[axis]:.1%} of the variance)" if known else ""


def _normalized(stored: Stored) -> str:
    """How random directions are normalized; others are not."""
    normalization = setting(stored.attributes, "normalization")
    known = _kind_of(stored).normalization != "none" and normalization in ("filter", "layer", "model")
    return f"{normalization}-normalized" if known else ""


def _scale_label(field: Field, scale: Scale) -> str:
    return f"{field.label} (log scale)" if scale.log else field.label


def _bar(
    figure: Figure,
    axes: Axes,
    drawn: Sequence[draw.Drawn | None],
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
    draw.color_bar(figure, axes.inset_axes(where), shown[0], scale, _scale_label(field, scale), **options)


def _legend(figure: Figure, *panels: Axes) -> None:
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


def _head(figure: Figure, stored: Stored, fields: list[Field], title: str | None) -> None:
    """The title, how the landscape was made, and what is missing in it."""
    from matplotlib.colors import same_color

    gaps = [field.gaps if len(fields) == 1 else f"{field.label}: {field.gaps}" for field in fields if field.gaps]
    grey = same_color(figure.axes[0].get_facecolor(), draw.GAP)
    lines = ["; ".join(gaps) + ("; gaps in grey" if grey else "")] if gaps else []
    given = title is not None
    if title is None:
        problem = setting(stored.attributes, "title") or setting(stored.attributes, "problem")
        title = " and ".join(field.label for field in fields) + (f" of {problem}" if isinstance(problem, str) else "")
        lines.insert(0, description(stored))
    width, height = figure.get_size_inches()
    large = textwrap.wrap(printable(title), int(12 * width), max_lines=4)
    small = [line for text in lines for line in textwrap.wrap(printable(text), int(15 * width), max_lines=4)]
    begin, middle = 0.1, 0.1 + 0.24 * len(large)  # inches from the top; the picture begins below
    layout: Any = figure.get_layout_engine()
    layout.set(rect=(0, 0, 1, 1 - (middle + 0.165 * len(small)) / height))
    style: draw.Look = {"ha": "center", "va": "top", "linespacing": 1.35}
    figure.text(0.5, 1 - begin / height, "\n".join(large), fontsize=11, parse_math=given, **style)
    small_style: draw.Look = {"fontsize": 8, "color": "0.35", "parse_math": False, **style}
    figure.text(0.5, 1 - middle / height, "\n".join(small), **small_style)


def description(stored: Stored) -> str:
    """How the landscape was made, in a line."""
    parts = [" x ".join(str(n) for n in stored.grid.shape) + (" points" if stored.grid.size > 1 else " point")]
    kind = _kind_of(stored)
    if isinstance(setting(stored.attributes, "directions"), str):
        parts.append(f"{kind.title} directions")
    parts += [_normalized(stored)] if _normalized(stored) else []
    drawn = {"seed": "seed {}"} if kind.seeded else {}
    for key, words in {**drawn, "bn": "BN {}", "precision": "{}"}.items():
        value = setting(stored.attributes, key)
        if isinstance(value, (str, int)) and value != "none":
            parts.append(words.format(value))
    return ", ".join(parts)
