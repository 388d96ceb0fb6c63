"""A picture of a stored landscape."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from ..errors import UserError, printable
from ..store import layout
from ..store.layout import Stored
from .base import Picture, Shown
from .draw import Look
from .field import Field, default_metric, read_field, setting
from .frame import kind_of, normalized
from .output import checked, write_whole
from .registry import picture_of
from .scale import choose

SUFFIXES = (".png", ".pdf", ".svg")
_LOOK: dict[Any, Any] = {
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
    picture = picture_of(stored.grid.shape, kind, path)
    _check_look(cmap, dpi, title)
    if not stored.done.any():
        raise UserError(f"{path}: no point is done yet, so there is nothing to plot")
    fields = _fields(path, stored, metric, picture)
    scales = [choose(field.finite, log, levels, vmin, vmax) for field in fields]
    with matplotlib.rc_context(_LOOK):
        figure = picture.draw(Shown(path, stored, fields, scales, cmap, (vmin, vmax), (elevation, azimuth)))
        _head(figure, stored, fields, title)
        dates = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
        options: Look = {"format": suffix[1:], "dpi": dpi, "metadata": dates.get(suffix)}
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


def _fields(path: str, stored: Stored, metric: str | None, picture: Picture) -> list[Field]:
    names = re.split(r"\s*,\s*(?![^\[]*\])", (metric or default_metric(stored)).strip())  # not in eigenvalues[0,1]
    if len(names) > picture.most:
        most = {1: "one metric", 2: "one metric or two"}.get(picture.most, f"at most {picture.most} metrics")
        raise UserError(f"metric '{metric}': a {picture.name} shows {most}")
    return [read_field(path, stored, name) for name in names]


def _head(figure: Any, stored: Stored, fields: list[Field], title: str | None) -> None:
    """The title, how the landscape was made, and what is missing in it."""
    gaps = [field.gaps if len(fields) == 1 else f"{field.label}: {field.gaps}" for field in fields if field.gaps]
    lines = ["; ".join(gaps) + ("; gaps in grey" if figure.axes[0].get_facecolor()[0] < 1 else "")] if gaps else []
    given = title is not None
    if title is None:
        problem = setting(stored.attributes, "title") or setting(stored.attributes, "problem")
        title = " and ".join(field.label for field in fields) + (f" of {problem}" if isinstance(problem, str) else "")
        lines.insert(0, description(stored))
    width, height = figure.get_size_inches()
    large = textwrap.wrap(printable(title), int(12 * width), max_lines=4)
    small = [line for text in lines for line in textwrap.wrap(printable(text), int(15 * width), max_lines=4)]
    begin, middle = 0.1, 0.1 + 0.24 * len(large)  # inches from the top; the picture begins below
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - (middle + 0.165 * len(small)) / height))
    style = {"ha": "center", "va": "top", "linespacing": 1.35}
    figure.text(0.5, 1 - begin / height, "\n".join(large), fontsize=11, parse_math=given, **style)
    small_style = {"fontsize": 8, "color": "0.35", "parse_math": False, **style}
    figure.text(0.5, 1 - middle / height, "\n".join(small), **small_style)


def description(stored: Stored) -> str:
    """How the landscape was made, in a line."""
    parts = [" x ".join(str(n) for n in stored.grid.shape) + (" points" if stored.grid.size > 1 else " point")]
    kind = kind_of(stored)
    if isinstance(setting(stored.attributes, "directions"), str):
        parts.append(f"{kind.title} directions")
    parts += [normalized(stored)] if normalized(stored) else []
    drawn = {"seed": "seed {}"} if kind.seeded else {}
    for key, words in {**drawn, "bn": "BN {}", "precision": "{}"}.items():
        value = setting(stored.attributes, key)
        if isinstance(value, (str, int)) and value != "none":
            parts.append(words.format(value))
    return ", ".join(parts)
