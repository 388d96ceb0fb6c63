"""Pictures of several files: all of them on one scale, or the difference of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from . import sheet
from .base import Comparing
from .field import Field
from .frame import extremes_of, models_of
from .scale import Scale, choose
from .sheet import SUFFIXES, Options, Source
from .titles import gaps, labels, model_of, shared

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def several(paths: Sequence[str], output: str, options: Options) -> str:
    """Draw one metric of several files side by side, or as lines in one axis; returns output.

    Raises UserError where they cannot be drawn so, and nothing is written.
    """
    suffix, picture, sources = sheet.read_all(paths, output, SUFFIXES, options)
    if not isinstance(picture, Comparing):
        raise UserError(f"a {picture.name} shows one file; give one, or --animate")
    names = labels(paths, [source.stored for source in sources])
    scale = sheet.common_scale(sources, options)
    with sheet.look():
        figure = picture.draw_several(sheet.shown_of(sources, [scale], options), names)
        sheet.head(figure, options.title, title(sources), about(sources, names, figure))
        sheet.save(figure, output, suffix, options.dpi)
    return output


def title(sources: Sequence[Source]) -> str:
    """The metric, and the model where it is the same in all."""
    models = {model_of(source.stored) for source in sources}
    return sources[0].fields[0].label + (f" of {models.pop()}" if len(models) == 1 and any(models) else "")


def about(sources: Sequence[Source], names: Sequence[str], figure: Figure) -> list[str]:
    """How all in the figure were made, and what is missing in which."""
    made = ", ".join(shared([source.stored for source in sources]))
    return [made, *gaps([source.fields[0] for source in sources], names, figure)]


def subtract(paths: Sequence[str], output: str, options: Options) -> str:
    """Draw the second file's metric less the first's, colours centred at 0; returns output.

    Raises UserError where the grids do not coincide, and nothing is written.
    """
    if options.log:
        raise UserError("--difference has values below 0: leave out --log")
    suffix, picture, sources = sheet.read_all(paths, output, SUFFIXES, options)
    first, second = sources
    if words := first.stored.grid.apart(second.stored.grid):
        raise UserError(f"{paths[0]} and {paths[1]} are not on one grid: {words}; --difference needs the same points")
    field = subtracted(first.fields[0], second.fields[0])
    scale = centred(field.finite, options)
    source = Source(first.path, first.stored, [field])
    (shown,) = sheet.shown_of([source], [scale], replace(options, cmap=options.cmap or "RdBu_r"))
    marks = models_of(first.stored, field) + extremes_of(field, {"minimum": "minimum", "maximum": "maximum"})
    names = labels(paths, [first.stored, second.stored])
    with sheet.look():
        figure = picture.draw(replace(shown, marks=marks, barrier=None, trajectories=[], farthest=0.0))
        of = f"{title(sources)}: {names[1]} \u2212 {names[0]}"
        sheet.head(figure, options.title, of, about(sources, names, figure))
        sheet.save(figure, output, suffix, options.dpi)
    return output


def subtracted(first: Field, second: Field) -> Field:
    """second - first; a gap where either has one."""
    values, done = second.values - first.values, first.there & second.there
    nans, estimated = int(np.isnan(values[done]).sum()), first.estimated or second.estimated
    return Field(f"difference of {first.label}", first.coordinates, values, done, nans, 0, estimated)


def centred(values: np.ndarray, options: Options) -> Scale:
    """A linear scale of these finite values that is as long below 0 as above."""
    ends = [abs(end) for end in (options.vmin, options.vmax) if end is not None]
    end = max(ends, default=None)
    levels = options.levels
    if not isinstance(levels, (int, np.integer)):
        levels = [sign * level for sign in (-1, 1) for level in levels]
    return choose(np.concatenate([values, -values]), False, levels, None if end is None else -end, end)
