"""What a page holds: the numbers of a stored landscape to the bit, its scales, its marks, and what the file says."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import numpy as np

from ...errors import UserError, printable
from ...store import layout
from ...store.layout import Quantity, Stored
from ..barrier import barrier
from ..base import long_axes
from ..draw import Mark
from ..field import SUMMARIES, Field, components, default_metric, ordered, read_field, read_trajectories, split_metrics
from ..frame import axis_label, marks_of, short
from ..info import info
from ..scale import Scale, choose
from ..titles import description, model_of

MOST_POINTS = {1: 20_000, 2: 90_000, 3: 60_000}  # that a browser turns smoothly, by the number of axes
MOST_NUMBERS = 500_000  # about 10 MB
LONGEST = 200  # characters of the heading
COLOR_MAPS = ("viridis", "cividis", "magma", "inferno", "greys")  # each readable by the colour-blind, and in grey
_OF_THE_MOMENT = ("file", "run", "next")  # what info says that is true on this machine, now


def content(
    path: str,
    stored: Stored,
    metric: str | None,
    log: bool | None,
    limits: tuple[float | None, float | None],
    cmap: str,
    title: str | None,
) -> dict[str, Any]:
    """The page's data, ready for JSON. Raises UserError."""
    maps = _color_maps(cmap)
    first = _asked(path, stored, metric)
    scale = choose(read_field(path, stored, first[0]).finite, log, 12, *limits)
    timed = [Quantity(layout.WALL_TIME)] if read_field(path, stored, layout.WALL_TIME).finite.size else []
    scalars = [scalar for quantity in [*ordered(stored), *timed] for scalar in _scalars(stored, quantity)]
    grid = stored.grid.plane
    dimensions = len(long_axes(grid.shape))
    most = MOST_POINTS.get(dimensions, 1)
    shown = _within(scalars, first, MOST_NUMBERS // min(grid.size, most))
    fields = [read_field(path, stored, name) for name, _, _ in shown]
    kept = _kept(stored, fields, most)
    heading = title if title is not None else model_of(stored) or os.path.basename(path)
    return {
        "title": short(printable(heading), LONGEST),
        "description": printable(", ".join(description(stored))) if title is None else "",
        "file": printable(os.path.basename(path)),
        "notes": _notes(stored, kept, len(shown), len(scalars)),
        "done": int(stored.done.sum()),
        "points": stored.grid.size,
        "axes": [
            {"name": name, "label": axis_label(stored, k), "values": stored.grid.coordinates[k][kept[k]].tolist()}
            for k, name in enumerate(stored.grid.names)
        ],
        "refined": bool(stored.refined),
        "metrics": [_metric(path, stored, field, scalar, kept) for field, scalar in zip(fields, shown, strict=True)],
        "summaries": _summaries([field.name for field in fields]) if stored.grid.sets is not None else [],
        "trajectories": _trajectories(path) if len(stored.grid.axes) == 2 else [],
        "shown": [[field.name for field in fields].index(name) for name in first],
        "start": {"log": scale.log, "low": limits[0], "high": limits[1], "colors": cmap.lower()},
        "maps": maps,
        "info": _info(path, stored),
    }


Scalar = tuple[str, str, tuple[int, ...]]  # its name, the dataset, the index after the grid's axes


def _scalars(stored: Stored, quantity: Quantity) -> list[Scalar]:
    """A quantity's scalars; of an ensemble the mean of each, by its own name, and the other summaries."""
    one = stored.grid.sets is None or quantity.name == layout.WALL_TIME
    others = [""] if one else ["", *(f".{name}" for name in SUMMARIES if name != "mean")]
    return [(name + other, quantity.name, index) for name, index in components(quantity) for other in others]


def _summaries(names: list[str]) -> list[dict[str, Any]]:
    """Of each of an ensemble's metrics, the numbers of its spread, and of the quantiles that its bands are between."""
    number = {name: i for i, name in enumerate(names)}
    found = []
    for name in names:
        base = name.rpartition(".")[0] if name.rpartition(".")[2] in SUMMARIES else name
        bands = [(f"{base}.q{low}", f"{base}.q{high}") for low, high in ((5, 95), (25, 75))] if name == base else []
        there = [[number[a], number[b]] for a, b in bands if a in number and b in number]
        found.append({"spread": number.get(f"{base}.spread"), "bands": there})
    return found


def _asked(path: str, stored: Stored, metric: str | None) -> list[str]:
    """The metrics to begin with: one, or on a line several."""
    names = split_metrics(metric or default_metric(stored))
    if len(names) > 1 and len(long_axes(stored.grid.plane.shape)) != 1:
        raise UserError(f"metric '{metric}': the page of a plane or a volume begins with one metric")
    return [read_field(path, stored, name).name for name in names]


def _within(scalars: list[Scalar], first: list[str], most: int) -> list[Scalar]:
    """As many as there is room for, in their order, those asked for among them."""
    some = sorted(range(len(scalars)), key=lambda i: (scalars[i][0] not in first, i))[: max(most, len(first))]
    return [scalars[i] for i in sorted(some)]


def _kept(stored: Stored, fields: list[Field], most: int) -> list[np.ndarray]:
    """The indices along each axis of the points that the page has: evenly spaced, and the ends, model and minima."""
    shape = stored.grid.plane.shape
    sides = range(1, max(shape) + 1)  # how many points an axis may have
    side = bisect_right(sides, most, key=lambda side: math.prod(min(n, side) for n in shape))
    model = tuple(int(i) for i in np.unravel_index(stored.grid.nearest((0.0,) * len(shape)), shape))
    extra = [model, *(field.best for field in fields if field.best is not None)]
    kept = [{*range(0, n, -(-n // side)), n - 1, *(index[k] for index in extra)} for k, n in enumerate(shape)]
    return [np.array(sorted(indices)) for indices in kept]


def _notes(stored: Stored, kept: list[np.ndarray], shown: int, scalars: int) -> list[str]:
    """What the page does not show."""
    notes = []
    if stored.refined:
        told = "; ".join(f"{metric} {summary}" for metric, summary in stored.refined.items())
        notes.append(f"{int(stored.done.sum())} of {stored.grid.size} points are evaluated. The others: {told}.")
    sizes, grid = [len(indices) for indices in kept], stored.grid.plane
    if math.prod(sizes) < grid.size:
        notes.append(
            f"Thinned: this page has {' x '.join(map(str, sizes))} of the {' x '.join(map(str, grid.shape))} "
            "points; the ends, the model's point and each extremum are among them. Counts and limits are the whole "
            "file's."
        )
    if shown < scalars:
        notes.append(f"This page has {shown} of the {scalars} numbers of a point; --metric NAME adds another.")
    return notes


def _metric(path: str, stored: Stored, field: Field, scalar: Scalar, kept: list[np.ndarray]) -> dict[str, Any]:
    """One metric: its values in C order, how they are drawn, and what is worth pointing out."""
    _, dataset, index = scalar
    place: tuple[EllipsisType | int, ...] = (..., *index)
    raw = np.asarray(layout.read_values(path, dataset)[place], dtype=np.float64)
    infinite, known = raw[stored.done & np.isinf(raw)], stored.plane.done
    finite = field.finite
    if stored.grid.sets is not None:
        raw = field.values
    elif field.estimated:
        raw = np.where(known, raw, field.values)
        known = known | np.isfinite(raw)
    drawn = np.concatenate([finite, *(field.summaries[q].reshape(-1) for q in ("q5", "q95") if field.summaries)])
    drawn = drawn[np.isfinite(drawn)] if len(long_axes(known.shape)) == 1 else finite  # on a line with its bands
    return {
        "name": printable(field.name),
        "label": printable(field.label),
        "values": encoded(raw[np.ix_(*kept)], known[np.ix_(*kept)]),
        "evaluated": stored.done[np.ix_(*kept)].reshape(-1).tolist() if field.estimated else None,
        "missing": int((~known).sum()),
        "linear": _scale(choose(drawn, False)),
        "log": _scale(choose(drawn, True)) if finite.size and finite.max() > 0 else None,
        "prefersLog": choose(drawn).log,
        "finite": int(finite.size),
        "notPositive": int((finite <= 0).sum()),
        "nan": field.nans,
        "plus": int((infinite > 0).sum()),
        "minus": int((infinite < 0).sum()),
        "marks": [_mark(mark) for mark in marks_of(stored, field)],
        "barrier": _barrier(stored, field),
    }


def encoded(values: np.ndarray, done: np.ndarray | None = None) -> list[float | str | None]:
    """For JSON: a number, its own to the bit; "NaN", "Infinity" or "-Infinity"; null where the point is not done."""
    flat: list[float | str | None] = values.reshape(-1).tolist()
    names = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    for i in np.flatnonzero(~np.isfinite(values.reshape(-1))):
        flat[i] = names[repr(flat[i])]
    for i in () if done is None else np.flatnonzero(~done.reshape(-1)):
        flat[i] = None
    return flat


def _scale(scale: Scale) -> dict[str, Any]:
    return {"levels": scale.levels.tolist(), "texts": scale.texts}


def _mark(mark: Mark) -> dict[str, Any]:
    value = mark.value if np.isfinite(mark.value) else None
    return {"label": printable(mark.label), "where": list(mark.where), "value": value, "style": mark.style}


def _barrier(stored: Stored, field: Field) -> dict[str, Any] | None:
    """The barrier between two models, where the axes lead from one to the other."""
    found = barrier(stored, field)
    if found is None or not math.isfinite(found.height):
        return None
    return {"height": found.height, "where": list(found.where), "between": list(found.between)}


def _trajectories(path: str) -> list[dict[str, Any]]:
    """The checkpoints' ways, those of their points that have a place."""
    ways = []
    for way in read_trajectories(path):
        there = np.flatnonzero(np.isfinite(way.x) & np.isfinite(way.y))
        labels = [printable(way.labels[i]) if i < len(way.labels) else "" for i in there]
        distance = np.full(len(way.x), np.nan) if way.distance is None else way.distance
        columns = {"x": way.x, "y": way.y, "distance": distance}
        numbers = {name: encoded(np.float64(column[there])) for name, column in columns.items()}
        ways.append({"name": printable(way.name), "labels": labels, **numbers})
    return ways


def _color_maps(cmap: str) -> dict[str, list[str]]:
    """Colours from low to high, by name: those that all can read, and the one that is asked for."""
    from plotly.colors import get_colorscale
    from plotly.exceptions import PlotlyError

    names: Sequence[str] = (*COLOR_MAPS, *([] if cmap.lower() in COLOR_MAPS else [cmap.lower()]))
    try:
        return {name: [color for _, color in get_colorscale(name)] for name in names}
    except PlotlyError:
        known = f"{', '.join(COLOR_MAPS)}, blues, rdbu and others"
        raise UserError(f"unknown colour map '{cmap}'; the page has {known}") from None


def _info(path: str, stored: Stored) -> str:
    """What ``info`` says of the file, wherever it may be."""
    return "\n".join(line for line in info(path, stored).splitlines() if line[:11].strip() not in _OF_THE_MOMENT)
