"""What every picture goes through: its files are read, it gets a title, and it is written."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError, printable
from ..store import layout
from ..store.layout import Stored
from .barrier import barrier
from .base import NO, Picture, Shown
from .draw import Look
from .field import Field, default_metric, read_field, read_trajectories, split_metrics
from .frame import marks_of
from .output import checked, write_whole
from .registry import picture_of
from .scale import Scale, choose

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


@dataclass(frozen=True)
class Options:
    """How pictures look; as the arguments of ``plot``."""

    metric: str | None = None
    kind: str | None = None
    log: bool | None = None
    levels: int | Sequence[float] = 12
    title: str | None = None
    vmin: float | None = None
    vmax: float | None = None
    cmap: str | None = None
    dpi: int | None = None
    elevation: float = 35.0
    azimuth: float = -60.0

    def check_page(self) -> None:
        """Raise UserError for what a page does not take."""
        usual = Options()
        for name in ("kind", "levels", "dpi", "elevation", "azimuth"):
            if not np.array_equal(getattr(self, name), getattr(usual, name)):
                raise UserError(f"--{name} is of pictures: leave it out with --html, whose page is turned by hand")

    def check(self) -> None:
        """Raise UserError for what no picture can be drawn with; matplotlib is needed."""
        import matplotlib
        from matplotlib.mathtext import MathTextParser

        if self.cmap is not None and self.cmap not in matplotlib.colormaps:
            raise UserError(
                f"unknown colour map '{self.cmap}'; matplotlib has viridis, cividis, magma, Blues and others"
            )
        if self.dpi is not None and not 20 <= self.dpi <= 1200:
            raise UserError(f"dpi {self.dpi}: expected 20 to 1200")
        for name in ("elevation", "azimuth"):
            if not abs(angle := getattr(self, name)) <= 360:
                raise UserError(f"{name} {angle:g}: expected degrees from -360 to 360")
        try:
            MathTextParser("path").parse(printable(self.title or ""))
        except ValueError:
            raise UserError(
                f"title '{self.title}': what is between $ signs is not a formula; write \\$ for the sign"
            ) from None


@dataclass(frozen=True)
class Source:
    """A file that is drawn. fields: the metrics asked for."""

    path: str
    stored: Stored
    fields: list[Field]


def need_matplotlib() -> None:
    """Raise UserError where it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("plot needs matplotlib: pip install 'hpc_landscape[plot]'") from None


def read(path: str, stored: Stored, metric: str, picture: Picture) -> Source:
    """What is drawn of a file; UserError where there is no such metric, or not a point yet."""
    if not stored.done.any():
        raise UserError(f"{path}: no point is done yet, so there is nothing to plot")
    asked = split_metrics(metric)
    if len(asked) > picture.most:
        most = {1: "one metric", 2: "one metric or two"}.get(picture.most, f"at most {picture.most} metrics")
        raise UserError(f"metric '{metric}': a {picture.name} shows {most}")
    return Source(path, stored, [read_field(path, stored, name) for name in asked])


def read_all(
    paths: Sequence[str], output: str, suffixes: Sequence[str], options: Options
) -> tuple[str, Picture, list[Source]]:
    """output's suffix, the kind of picture, and what is drawn of each file; UserError where they do not go together."""
    stored = [layout.read(path) for path in paths]
    suffix = [checked(path, output, suffixes) for path in paths][0]
    counts = [len(one.grid.axes) for one in stored]
    for path, n in zip(paths, counts, strict=True):
        if n != counts[0]:
            raise UserError(
                f"{path} has {_axes(n)} and {paths[0]} {_axes(counts[0])}; files in one picture have the same number"
            )
    picture = picture_of(stored[0].grid.plane.shape, options.kind, paths[0])
    for path, one in zip(paths[1:], stored[1:], strict=True):
        if picture.suits(one.grid.plane.shape) == NO:
            picture_of(one.grid.plane.shape, options.kind or picture.name, path)  # which says what suits
    options.check()
    metric = options.metric or default_metric(stored[0])
    sources = [read(path, one, metric, picture) for path, one in zip(paths, stored, strict=True)]
    if len(paths) > 1 and len(sources[0].fields) > 1:
        raise UserError(f"metric '{metric}': several files show one metric; give one")
    return suffix, picture, sources


def _axes(n: int) -> str:
    return f"{n} axis" if n == 1 else f"{n} axes"


def shown_of(sources: Sequence[Source], scales: list[Scale], options: Options) -> list[Shown]:
    """What pictures of these files are drawn from: all on the same scales, and with circles of the same sizes."""
    ways = [read_trajectories(source.path) for source in sources]
    farthest = max((way.farthest for some in ways for way in some), default=0.0)
    return [
        Shown(
            *(source.path, source.stored, source.fields, scales, options.cmap or "viridis"),
            *((options.vmin, options.vmax), (options.elevation, options.azimuth)),
            marks=marks_of(source.stored, source.fields[0]) if len(source.fields) == 1 else [],
            barrier=barrier(source.stored, source.fields[0]) if len(source.fields) == 1 else None,
            trajectories=trajectories,
            farthest=farthest,
        )
        for source, trajectories in zip(sources, ways, strict=True)
    ]


def common_scale(sources: Sequence[Source], options: Options) -> Scale:
    """The scale on which the files' metric is shown in all of them."""
    values = np.concatenate([source.fields[0].finite for source in sources])
    return choose(values, options.log, options.levels, options.vmin, options.vmax)


def look() -> AbstractContextManager[None]:
    """matplotlib's settings of our pictures, for as long as it is open; the user's are left alone."""
    import matplotlib

    return matplotlib.rc_context(_LOOK)


def save(figure: Figure, output: str, suffix: str, dpi: int | None) -> None:
    """Write a figure, whole or not at all; the same picture has the same bytes."""
    dates = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    options: Look = {"format": suffix[1:], "dpi": dpi or 200, "metadata": dates.get(suffix)}
    write_whole(output, lambda name: figure.savefig(name, **options))


def head(figure: Any, title: str | None, of: str, small: Sequence[str]) -> None:
    """The title, and in small letters how the landscape was made and what is missing in it.

    title: the user's, with formulas, in place of ``of`` and of small's first line.
    """
    width, height = figure.get_size_inches()
    lines = list(small[1:] if title is not None else small)
    large = textwrap.wrap(printable(of if title is None else title), int(12 * width), max_lines=4)
    below = [line for text in lines for line in textwrap.wrap(printable(text), int(15 * width), max_lines=4)]
    begin, middle = 0.1, 0.1 + 0.24 * len(large)  # inches from the top; the picture begins below
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - (middle + 0.165 * len(below)) / height))
    style: Look = {"ha": "center", "va": "top", "linespacing": 1.35}
    figure.text(0.5, 1 - begin / height, "\n".join(large), fontsize=11, parse_math=title is not None, **style)
    small_style: Look = {"fontsize": 8, "color": "0.35", "parse_math": False, **style}
    figure.text(0.5, 1 - middle / height, "\n".join(below), **small_style)
