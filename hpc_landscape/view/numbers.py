"""The numbers of one landscape; docs/concepts/numbers.md defines each."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from ..directions.base import OTHERS
from ..errors import UserError, printable
from ..store import layout
from ..store.layout import Stored
from .barrier import Index, between, index_of
from .ensemble import ensemble_numbers
from .field import Field, default_metric, read_field
from .frame import Model, models
from .measure import convexity, rise, share_at_most, within
from .persistence import Minimum, SublevelSets
from .scale import number
from .tables import Number, aligned, finite, text, to_csv, to_json

SHARE = 0.01  # of the values' range: how deep a minimum must be to count
MOST_PITS = 10  # that are listed
OFF = "the model is not on the grid"
WAY = "a model is off the grid, a value on the way is missing, or the grid has no point on it"


@dataclass(frozen=True)
class Options:
    """What the numbers are asked of, in units of coordinates and metric; None where nothing could be chosen."""

    radius: float | None
    level: float | None
    factor: float
    persistence: float


@dataclass(frozen=True)
class Pit:
    """A minimum that is deep enough to count. depth: its persistence; None for the lowest of all that are joined."""

    value: float
    depth: float | None
    at: tuple[float, ...]

    @property
    def note(self) -> str:
        depth = "the lowest" if self.depth is None else f"depth {number(self.depth, 6)}"
        return f"at {_text(self.at)}, {depth}"


@dataclass(frozen=True)
class Numbers:
    """All numbers of one metric, in their order. pits: the deepest minima."""

    path: str
    metric: str
    shape: tuple[int, ...]
    larger_is_better: bool
    options: Options
    numbers: tuple[Number, ...]
    pits: tuple[Pit, ...]

    def __getitem__(self, name: str) -> float | None:
        """The value of this name; KeyError where there is none such."""
        return {n.name: n.value for n in self.numbers}[name]

    def table(self) -> str:
        """A page of text."""
        grid = " x ".join(map(str, self.shape))
        better = "; larger is better, so minima are maxima" if self.larger_is_better else ""
        rows = [(n.name.replace("_", " "), text(n.value), n.note) for n in self.numbers]
        rows += [(f"minimum {i}", text(pit.value), pit.note) for i, pit in enumerate(self.pits, start=1)]
        return "\n".join([printable(f"{self.path}: {self.metric}, {grid} points{better}"), *aligned(rows)])

    def json(self) -> str:
        """An object: file, metric, options; of each number the value (null: none), the note and the place."""
        return to_json(
            {
                "file": self.path,
                "metric": self.metric,
                "larger_is_better": self.larger_is_better,
                "options": vars(self.options),
                "numbers": {n.name: {"value": n.value, "at": n.at, "note": n.note} for n in self.numbers},
                "minima": [vars(pit) for pit in self.pits],
            }
        )

    def csv(self) -> str:
        """Rows of name, value (empty: none) and note."""
        return to_csv([("name", "value", "note"), *((n.name, n.value, n.note) for n in self.numbers)])


def numbers(
    path: str | os.PathLike[str],
    metric: str | None = None,
    radius: float | None = None,
    level: float | None = None,
    factor: float = 2.0,
    persistence: float | None = None,
) -> Numbers:
    """The numbers of the landscape at path.

    Args:
        path: a landscape file; of an unfinished one, the points that are done count.
        metric: the loss where there is one, else the first; ``eigenvalues[0]``. Of an ensemble its mean is measured,
            and then all sets of directions together.
        radius: what is near the model, in units of the coordinates. Default: half the way to the grid's nearest end.
        level: under which points are counted. Default: the value at the model times the factor. Where larger is
            better: over which; and that value divided by it.
        factor: by how much the metric is worse at the radii of rise; above 1.
        persistence: how deep a minimum must be to count, in units of the metric. Default: a hundredth of the range.

    Raises:
        UserError: where the file is none of ours, has one point or no finite value of the metric, or where an option
            makes no sense.
    """
    path = os.fspath(path)
    stored = layout.read(path)
    field = read_field(path, stored, metric or default_metric(stored))
    options = choose(path, stored, field, radius, level, factor, persistence)
    found = measured(path, stored, field, options)
    of_sets = ensemble_numbers(path, stored, field, options.radius, options.level)
    return replace(found, numbers=(*found.numbers, *of_sets))


def choose(
    path: str,
    stored: Stored,
    field: Field,
    radius: float | None = None,
    level: float | None = None,
    factor: float = 2.0,
    persistence: float | None = None,
) -> Options:
    """What a field is asked of; as ``numbers``, for a field that has been read."""
    _check(path, field)
    if radius is not None and not 0 < radius < math.inf:
        raise UserError(f"radius {radius:g}: expected a number above 0, in units of the coordinates")
    if level is not None and not math.isfinite(level):
        raise UserError(f"level {level:g}: expected a finite number, in units of the metric")
    if not 1 < factor < math.inf:
        raise UserError(f"factor {factor:g}: expected a number above 1")
    if persistence is not None and not 0 <= persistence < math.inf:
        raise UserError(f"persistence {persistence:g}: expected a number from 0 on, in units of the metric")
    scene = _Scene(stored, field)
    return Options(
        scene.half_way() if radius is None else radius,
        scene.risen(factor) if level is None else level,
        factor,
        SHARE * float(field.finite.max()) - SHARE * float(field.finite.min()) if persistence is None else persistence,
    )


def measured(path: str, stored: Stored, field: Field, options: Options) -> Numbers:
    """The numbers of a field that has been read."""
    _check(path, field)
    scene = _Scene(stored, field)
    with np.errstate(over="ignore", invalid="ignore"):  # what is no finite number then is told as none
        found = scene.sets.minima()
        rows = (
            *_counts(field), *_at_models(scene), *_extremes(field), *_barriers(scene), *_near(scene, options.radius),
            _share(scene, options.level), *_rise(scene, options.factor), _convexity(scene),
            *_minima(found, options.persistence), *_smad(found, float(field.finite.max()) - float(field.finite.min())),
        )  # fmt: skip
        pits = tuple(_pits(scene, found, options.persistence))
    return Numbers(path, field.name, field.values.shape, field.larger_is_better, options, rows, pits)


def _check(path: str, field: Field) -> None:
    """UserError where there is nothing to measure."""
    if field.values.size == 1:
        raise UserError(
            f"{path} has one point: that is no landscape to measure; info without --numbers tells its values"
        )
    if not field.finite.size:
        raise UserError(f"{path}: {field.name} has no finite value: {field.gaps}")


class _Scene:
    """A field as the functions of measure and persistence take it: no axes of one point, and larger is worse.

    Attributes:
        worse: the values, negated where larger is better; flat: the same without axes of one point.
        sets: the sublevel sets of worse.
        coordinates: of the axes that have more than one.
        model: the index of the model, or of the point nearest to it; None where it is not on the grid.
        centre: its coordinates along these axes.
    """

    def __init__(self, stored: Stored, field: Field):
        self.stored, self.field = stored, field
        self.sign = -1.0 if field.larger_is_better else 1.0
        self.worse = self.sign * field.values
        self.sets = SublevelSets(self.worse)
        long = [k for k, n in enumerate(field.values.shape) if n > 1]
        self.flat = self.worse.reshape([field.values.shape[k] for k in long])
        self.coordinates = [field.coordinates[k] for k in long]
        self.models = models(stored)
        self.model = self._nearest(self.models[0][1])
        self.centre = [] if self.model is None else [field.at(self.model)[k] for k in long]

    def _nearest(self, where: tuple[float, ...]) -> Index | None:
        """The point nearest to these coordinates; None where they are more than half a step beyond the grid."""
        index = np.unravel_index(self.stored.grid.nearest(where), self.worse.shape)
        for c, i, at in zip(self.field.coordinates, index, where, strict=True):
            step = (c[-1] - c[0]) / (len(c) - 1) if len(c) > 1 else 0.0
            if abs(c[i] - at) > (0.5 + 1e-9) * step + 1e-12:
                return None
        return tuple(map(int, index))

    def half_way(self) -> float | None:
        """Half of the way from the model to the nearest end of an axis."""
        ways = [
            abs(float(end) - at) for c, at in zip(self.coordinates, self.centre, strict=False) for end in (c[0], c[-1])
        ]
        return min((way for way in ways if way > 0), default=0.0) / 2 or None

    def risen(self, factor: float) -> float | None:
        """The value at the model, made worse by the factor; None where it is not above 0."""
        value = float("nan") if self.model is None else float(self.field.values[self.model])
        level = value / factor if self.field.larger_is_better else value * factor
        return level if value > 0 and math.isfinite(level) else None


def _counts(field: Field) -> Iterator[Number]:
    yield Number("points", field.finite.size, "with a finite value")
    yield Number("unfinished", int((~field.done).sum()), field.estimated)
    yield Number("nan", field.nans)
    yield Number("infinite", field.infinities)


def _at_models(scene: _Scene) -> Iterator[Number]:
    """At the model, or at the point nearest to it; at the others, where the axes lead to some."""
    for (label, where), other in zip(scene.models, ("", *OTHERS), strict=False):
        exact = index_of(scene.field, where)
        index = exact if other else scene.model
        name = f"value_at_{other}_model" if other else "value_at_model"
        if index is None:
            yield Number(name, None, f"the {label} is not on the grid" if other else OFF)
            continue
        near = "" if exact else f"at {scene.field.place(index)}, the point nearest to the model"
        yield finite(name, float(scene.field.values[index]), near, "no value there", scene.field.at(index))


def _extremes(field: Field) -> Iterator[Number]:
    for name, largest in (("minimum", False), ("maximum", True)):
        if (index := field.extreme(largest)) is not None:
            at = field.at(index)
            yield Number(name, float(field.values[index]), f"at {field.place(index)}", at)


def _barriers(scene: _Scene) -> Iterator[Number]:
    """Between every two models: on the straight line, and on the way through the grid that is best at its worst."""
    if len(scene.models) < 2:
        yield Number("barrier", None, "there is one model on these axes")
    for (i, a), (j, z) in combinations(enumerate(scene.models, start=1), 2):
        suffix = f"_{i}_{j}" if len(scene.models) > 2 else ""
        names = f"{a[0]} to {z[0]}"
        if (found := between(scene.field, a, z)) is None:
            yield Number(f"barrier{suffix}", None, WAY)
            yield Number(f"barrier_above_mean{suffix}", None, WAY)
        else:
            at = f"{names}, at {_text(found.where)}"
            yield finite(f"barrier{suffix}", found.height, at, at=found.where)
            yield finite(f"barrier_above_mean{suffix}", found.above_mean, names)
        if len(scene.coordinates) > 1:
            yield _pass(scene, f"pass{suffix}", a, z)


def _pass(scene: _Scene, name: str, a: Model, z: Model) -> Number:
    start, end = index_of(scene.field, a[1]), index_of(scene.field, z[1])
    if start is None or end is None:
        return Number(name, None, "a model is off the grid")
    height = scene.sets.lowest_pass(start, end) - max(scene.worse[start], scene.worse[end])
    return finite(name, float(height), f"{a[0]} to {z[0]}, above the worse of the two", "gaps part the models")


def _near(scene: _Scene, radius: float | None) -> Iterator[Number]:
    """Mean and worst value within the radius."""
    names = "mean_within_radius", f"{'minimum' if scene.sign < 0 else 'maximum'}_within_radius"
    if radius is None or scene.model is None:
        yield from (Number(name, None, OFF) for name in names)
        return
    inside = within(scene.coordinates, scene.flat, scene.centre, radius)
    note = f"radius {number(radius, 6)}, {inside.size} point{'s' * (inside.size != 1)}"
    mean, worst = (inside.mean(), inside.max()) if inside.size else (np.nan, np.nan)
    for name, value in zip(names, (mean, worst), strict=True):
        yield finite(name, scene.sign * float(value), note, "no value within the radius" if not inside.size else "")


def _share(scene: _Scene, level: float | None) -> Number:
    name = f"share_{'over' if scene.sign < 0 else 'under'}_level"
    if level is None:
        return Number(name, None, "no value above 0 at the model to take the level from; give --level")
    return finite(name, share_at_most(scene.worse, scene.sign * level), f"level {number(level, 6)}")


def _rise(scene: _Scene, factor: float) -> Iterator[Number]:
    """How far away the metric is worse by the factor: in the direction where that is nearest, and the median."""
    names = "smallest_radius_of_rise", "median_radius_of_rise"
    level = scene.risen(factor)
    if level is None:
        yield from (Number(name, None, "no value above 0 at the model") for name in names)
        return
    found = rise(scene.coordinates, scene.flat, scene.centre, scene.sign * level)
    note = f"to {number(level, 6)}, reached in {np.isfinite(found).mean():.0%} of the directions"
    step = max(float(np.diff(c).max()) for c in scene.coordinates)
    coarse = f"less than a step of the grid, {number(step, 3)}: too coarse to say; take a smaller or a finer one"
    for name, value in zip(names, (found.min(), np.median(found)), strict=True):
        yield Number(name, None, coarse) if value < step * (1 - 1e-9) else finite(name, float(value), note, note)


def _convexity(scene: _Scene) -> Number:
    convex = convexity(scene.coordinates, scene.flat)
    if not convex.size:
        why = (
            "an axis has fewer than 3 points" if min(scene.flat.shape) < 3 else "no inner point has all its neighbours"
        )
        return Number("convexity_share", None, why)
    return Number("convexity_share", float(convex.mean()), f"of {convex.size} inner point{'s' * (convex.size != 1)}")


def _minima(found: Sequence[Minimum], persistence: float) -> Iterator[Number]:
    """How many there are that are deep enough, and how deep those are that end at a saddle."""
    deep = [m for m in found if m.persistence >= persistence]
    ending = [m.persistence for m in deep if math.isfinite(m.persistence)]
    note = f"{number(persistence, 6)} deep or more"
    yield Number("minima", len(deep), note)
    why = "there is one minimum" if len(deep) == 1 else "no two of the minima are joined"
    yield finite("depth_of_second_minimum", max(ending, default=None), note, why)
    yield finite("mean_depth_of_minima", float(np.mean(ending)) if ending else None, f"of {len(ending)}", why)


def _smad(found: Sequence[Minimum], spread: float) -> Iterator[Number]:
    """The mean height of the first saddle above each minimum, of all of them; 0 for a single one (as in Landscaper)."""
    gaps = [m.saddle - m.value for m in found if math.isfinite(m.saddle)]
    if not gaps and len(found) > 1:
        yield from (Number(name, None, "gaps part the minima") for name in ("smad", "smad_of_range"))
        return
    smad = float(np.mean(gaps)) if gaps else 0.0
    note = f"over {len(gaps)} minima" if gaps else "there is one minimum"
    yield finite("smad", smad, note)
    yield finite("smad_of_range", smad / spread if 0 < spread < math.inf else smad * spread, note)


def _pits(scene: _Scene, found: Sequence[Minimum], persistence: float) -> Iterator[Pit]:
    for m in [m for m in found if m.persistence >= persistence][:MOST_PITS]:
        depth = m.persistence if math.isfinite(m.persistence) else None
        yield Pit(scene.sign * m.value, depth, scene.field.at(m.index))


def _text(where: tuple[float, ...]) -> str:
    words = ", ".join(number(at, 3) for at in where)
    return f"({words})" if len(where) > 1 else words
