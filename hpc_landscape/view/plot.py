"""A picture of stored landscapes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..errors import UserError
from . import sheet
from .animation import SUFFIXES as ANIMATIONS
from .animation import animation
from .scale import choose
from .several import several, subtract
from .sheet import SUFFIXES, Options
from .titles import description, gaps, title_of

Path = str | os.PathLike[str]


def plot(
    path: Path | Sequence[Path],
    output: str | None = None,
    metric: str | None = None,
    kind: str | None = None,
    log: bool | None = None,
    levels: int | Sequence[float] = 12,
    title: str | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str | None = None,
    dpi: int | None = None,
    elevation: float = 35.0,
    azimuth: float = -60.0,
    *,
    html: bool = False,
    difference: bool = False,
    animate: bool = False,
    fps: float = 4.0,
) -> str:
    """Draw one metric of the file at path, or of several; returns the picture's path (default: path with .png).

    Args:
        path: a landscape file; or several: planes stand side by side on one scale, lines share an axis.
        output: .png, .pdf or .svg; .html; of an animation .gif or .mp4. Default: beside the first file.
        metric: the loss where there is one, else the first; ``eigenvalues[0]``; in 1-D two, ``loss,accuracy``, share x.
        kind: line in 1-D; contour (default), heatmap or surface in 2-D; contour or heatmap of three slices in 3-D.
        log: None takes a log scale where a linear one would hide most of the values.
        levels: about how many, or which. vmin, vmax: the ends of the scale.
        title: replaces title and description; "" leaves them out.
        cmap: matplotlib's colour map; default viridis, and of a difference RdBu_r.
        dpi: dots per inch; default 200, of an animation 120.
        elevation, azimuth: where a surface is seen from, in degrees.
        html: a page for the browser instead of a picture.
        difference: of two files on one grid, the second less the first.
        animate: the files one after the other, in their order, on one scale, fps of them in a second.

    Raises:
        UserError: where something cannot be drawn as asked; nothing is written then.
    """
    paths = [os.fspath(path)] if isinstance(path, (str, os.PathLike)) else [os.fspath(one) for one in path]
    suffix = os.path.splitext(output or "")[1].lower()
    html, animate = html or suffix == ".html", animate or (suffix in ANIMATIONS and len(paths) > 1)
    _check_together(len(paths), html, difference, animate)
    output = output or picture_name(paths[0], ".html" if html else ".gif" if animate else ".png")
    options = Options(metric, kind, log, levels, title, vmin, vmax, cmap, dpi, elevation, azimuth)
    if html:
        from .page.build import page

        options.check_page()
        return page(paths[0], output, metric, log, vmin, vmax, cmap or "viridis", title)
    sheet.need_matplotlib()
    if animate:
        return animation(paths, output, options, fps)
    if difference:
        return subtract(paths, output, options)
    return several(paths, output, options) if len(paths) > 1 else _one(paths[0], output, options)


def _check_together(files: int, html: bool, difference: bool, animate: bool) -> None:
    """Raise UserError where what is asked for does not go together."""
    if not files:
        raise UserError("plot: no file is given")
    if html and (files > 1 or difference or animate):
        raise UserError("--html makes a page of one file, without --difference and --animate; call it once for each")
    if difference and animate:
        raise UserError("--difference and --animate are two pictures; take one of them")
    if difference and files != 2:
        raise UserError(f"--difference is of two files, and {files} {'is' if files == 1 else 'are'} given")
    if animate and files == 1:
        raise UserError("--animate shows several files one after the other, and one is given")


def picture_name(path: str, suffix: str) -> str:
    """Where a picture of this file goes by default: beside it."""
    stem, ending = os.path.splitext(path)
    return (stem if ending.lower() in (".h5", ".hdf5", ".nc") else path) + suffix


def _one(path: str, output: str, options: Options) -> str:
    """Draw one file."""
    suffix, picture, (source,) = sheet.read_all([path], output, SUFFIXES, options)
    stored, fields = source.stored, source.fields
    scales = [choose(field.finite, options.log, options.levels, options.vmin, options.vmax) for field in fields]
    with sheet.look():
        figure = picture.draw(*sheet.shown_of([source], scales, options))
        missing = gaps(fields, [field.label for field in fields], figure)
        sheet.head(figure, options.title, title_of(stored, fields), [", ".join(description(stored)), *missing])
        sheet.save(figure, output, suffix, options.dpi)
    return output
