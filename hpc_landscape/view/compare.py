"""Two landscapes on one grid: how alike they are, and what was different when they were made."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..directions.registry import kind_in_file
from ..errors import UserError, printable
from ..store import layout
from ..store.layout import Stored
from .field import Field, default_metric, read_field, setting
from .numbers import Numbers, Options, choose, measured
from .scale import number
from .tables import Number, aligned, finite, text, to_csv, to_json

# What must be the same for values to be compared, and the attributes that tell: the first that differs is shown.
MUST_BE_SAME = {
    "BN policy": ("bn", "bn_kept", "sha256_bn"),
    "data": ("sha256_data",),
    "loss": ("loss_function", "sha256_loss", "problem_reduction"),
    "model's output": ("sha256_forward", "sha256_count"),
    "mode of the model": ("mode", "problem_mode"),
    "precision": ("precision", "compute_dtype"),
    "arguments of metrics": ("metric_arguments",),
}
WARM_UP = {"warm-up data": ("sha256_warmup_data",), "warm-up batch size": ("warmup_batch_size",)}
BATCH = {"batch size": ("batch_size",)}
# What may be what one wants to see, or changes values by rounding alone.
MAY_DIFFER = {
    "architecture": ("sha256_architecture",),
    "model": ("sha256_model",),
    "problem": ("problem_name", "problem_arguments", "problem"),
    "execution": ("execution", "device_kind", "channels_last", "compile"),
    "PyTorch": ("torch_version",),
}
RECIPE = ("direction_recipe", "directions", "distribution", "normalization")


@dataclass(frozen=True)
class Row:
    """A number of both files, and the second's less the first's; None with the reason."""

    name: str
    a: float | None
    b: float | None
    difference: float | None
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """a, b: the files. warnings: why their values cannot be compared; differences: what else is not the same.

    pointwise: how alike the values are; rows: the numbers of each.
    """

    a: str
    b: str
    metric: str
    shape: tuple[int, ...]
    options: Options
    warnings: tuple[str, ...]
    differences: tuple[str, ...]
    pointwise: tuple[Number, ...]
    rows: tuple[Row, ...]

    def __getitem__(self, name: str) -> float | None:
        """A pointwise value, or the difference of the two numbers of this name; KeyError where there is none such."""
        return ({row.name: row.difference for row in self.rows} | {n.name: n.value for n in self.pointwise})[name]

    def table(self) -> str:
        """A page of text."""
        grid = " x ".join(map(str, self.shape))
        head = [("a", self.a), ("b", self.b), ("metric", f"{self.metric}, {grid} points")]
        used = [f"{name} {number(value, 6)}" for name, value in vars(self.options).items() if value is not None]
        head += [("options", ", ".join(used))]
        head += [("warning", warning) for warning in self.warnings]
        head += [("differs", difference) for difference in self.differences]
        alike = [(n.name.replace("_", " "), text(n.value), n.note) for n in self.pointwise]
        both = [(r.name.replace("_", " "), text(r.a), text(r.b), text(r.difference), r.note) for r in self.rows]
        lines = [printable(f"{word:<9}{words}") for word, words in head]
        return "\n".join([*lines, "", *aligned(alike), "", *aligned([("", "a", "b", "b - a", ""), *both])])

    def json(self) -> str:
        """An object; null is what cannot be had."""
        pointwise = {n.name: {"value": n.value, "at": n.at, "note": n.note} for n in self.pointwise}
        rows = {r.name: {"a": r.a, "b": r.b, "difference": r.difference, "note": r.note} for r in self.rows}
        head = {"a": self.a, "b": self.b, "metric": self.metric, "options": vars(self.options)}
        told = {"warnings": self.warnings, "differences": self.differences}
        return to_json({**head, **told, "pointwise": pointwise, "numbers": rows})

    def csv(self) -> str:
        """Rows of name, a, b, difference, note; a pointwise number is a difference."""
        pointwise = [(n.name, None, None, n.value, n.note) for n in self.pointwise]
        rows = [(r.name, r.a, r.b, r.difference, r.note) for r in self.rows]
        return to_csv([("name", "a", "b", "difference", "note"), *pointwise, *rows])


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    metric: str | None = None,
    radius: float | None = None,
    level: float | None = None,
    factor: float = 2.0,
    persistence: float | None = None,
) -> Comparison:
    """Compare one metric of the landscapes at a and b, which are on one grid.

    The options are those of ``numbers``; what is not given is chosen by a, and taken for b too.

    Raises:
        UserError: where a file is none of ours, has no value of the metric or one point, or where the grids differ.
    """
    a, b = os.fspath(a), os.fspath(b)
    stored = layout.read(a), layout.read(b)
    _check_grids(a, b, *stored)
    metric = metric or default_metric(stored[0])
    fields = read_field(a, stored[0], metric), read_field(b, stored[1], metric)
    chosen = choose(a, stored[0], fields[0], radius, level, factor, persistence)
    first, second = (measured(*one, chosen) for one in zip((a, b), stored, fields, strict=True))
    attributes = stored[0].attributes, stored[1].attributes
    return Comparison(
        a,
        b,
        metric,
        fields[0].values.shape,
        chosen,
        tuple(_warnings(a, b, *attributes, metric)),
        tuple([*_differing(*attributes, MAY_DIFFER), *_gaps(*fields)]),
        tuple(_pointwise(*fields)),
        tuple(_rows(first, second)),
    )


def _check_grids(a: str, b: str, first: Stored, second: Stored) -> None:
    """UserError where the points of the one are not those of the other."""
    if words := first.grid.apart(second.grid):
        raise UserError(f"{a} and {b} are not on one grid: {words}; compute both with the same axes")


def _pointwise(a: Field, b: Field) -> Iterator[Number]:
    """How alike the values are, over the points that have one in both."""
    both = np.isfinite(a.values) & np.isfinite(b.values)
    x, y = a.values[both], b.values[both]
    yield Number("points_in_both", int(both.sum()), "with a finite value in each")
    names = "correlation", "rank_correlation", "largest_difference", "mean_difference"
    if not x.size:
        yield from (Number(name, None, "no point has a value in both") for name in names)
        return
    why = "fewer than two different values"
    yield finite(names[0], pearson(x, y), "Pearson's", why)
    yield finite(names[1], pearson(ranks(x), ranks(y)), "Spearman's", why)
    with np.errstate(over="ignore"):
        apart = np.abs(b.values - a.values)
        index = np.unravel_index(int(np.nanargmax(np.where(both, apart, np.nan))), apart.shape)
        place = tuple(int(i) for i in index)
        at = a.at(place)
        yield finite(names[2], float(apart[index]), f"|b - a| at {a.place(place)}", at=at)
        yield finite(names[3], float(apart[both].mean()), "of |b - a|")


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """The correlation of two samples, 1-D: the cosine of their deviations from the mean; NaN for a constant one."""
    units = []
    for sample in (x, y):
        if np.ptp(sample / 2) == 0:
            return np.nan
        scaled = sample / np.abs(sample).max()  # squares stay finite
        centred = scaled - scaled.mean()
        units.append(centred / np.linalg.norm(centred))
    return float(np.clip(units[0] @ units[1], -1, 1))


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value from 1 up, equal ones sharing the mean of theirs; Pearson's of these is Spearman's."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _rows(a: Numbers, b: Numbers) -> Iterator[Row]:
    """Each number of the one beside that of the other, in their order."""
    of_a, of_b = ({n.name: n for n in found.numbers} for found in (a, b))
    absent = Number("", None, "there is none")
    for name in dict.fromkeys([*of_a, *of_b]):
        x, y = of_a.get(name, absent), of_b.get(name, absent)
        reasons = [f"{word}: {n.note}" for word, n in (("a", x), ("b", y)) if n.value is None]
        if len(reasons) == 2 and x.note == y.note:
            reasons = [x.note]
        difference = None if x.value is None or y.value is None else finite(name, y.value - x.value).value
        yield Row(name, x.value, y.value, difference, "; ".join(reasons))


def _warnings(a: str, b: str, first: Mapping[str, Any], second: Mapping[str, Any], metric: str) -> Iterator[str]:
    """What makes the values of two files no values of the same thing; and what the files do not say."""
    yield from _directions(first, second)
    base = metric.partition("[")[0]
    must = {**MUST_BE_SAME, "code of the metric": (f"sha256_metric_{base}",)}
    policies = {setting(first, "bn"), setting(second, "bn")}
    must |= WARM_UP if policies == {"warmup"} else BATCH if policies == {"batch"} else {}
    yield from _differing(first, second, must)
    must = {"directions": ("sha256_directions",), **must}
    unsaid = [words for words, names in must.items() if not (_says(first, names) and _says(second, names))]
    if unsaid:
        yield f"not said in both files, and so not compared: {', '.join(unsaid)}"


def _says(attributes: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return any(setting(attributes, name) is not None for name in names)


def _directions(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """Whether a coordinate means the same vector in both."""
    sums = [setting(attributes, "sha256_directions") for attributes in (first, second)]
    if sums[0] == sums[1] is not None:
        return
    recipes = [_recipe(attributes) for attributes in (first, second)]
    common = "for the same ones: --directions file --direction_files, and the first file"
    if recipes[0] != recipes[1]:
        yield f"directions: {recipes[0]} in a, {recipes[1]} in b; {common}"
    elif None not in sums:
        yield (
            f"directions: made alike ({recipes[0]}), but each for its own model, so that a coordinate is another "
            f"change of weights: shapes can be compared, values at a point cannot; {common}"
        )


def _recipe(attributes: Mapping[str, Any]) -> str:
    """How the directions were made, in words."""
    recipe = setting(attributes, RECIPE[0])
    parts = [recipe] if recipe is not None else [setting(attributes, name) for name in RECIPE[1:]]
    if kind_in_file(setting(attributes, "directions")).seeded and (seed := setting(attributes, "seed")) is not None:
        parts.append(f"seed {seed}")
    return _short(" ".join(str(part) for part in parts if part is not None) or None)


def _differing(
    first: Mapping[str, Any], second: Mapping[str, Any], groups: Mapping[str, tuple[str, ...]]
) -> Iterator[str]:
    """A line for each group in which an attribute differs that both have."""
    for words, names in groups.items():
        pairs = [(setting(first, name), setting(second, name)) for name in names]
        differing = [pair for pair in pairs if None not in pair and pair[0] != pair[1]]
        if differing:
            sums = names[pairs.index(differing[0])].startswith("sha256")
            shown = ["sha256 " + str(value)[:8] if sums else _short(value) for value in differing[0]]
            yield f"{words}: {shown[0]} in a, {shown[1]} in b"


def _short(value: object) -> str:
    return "not said" if value is None else textwrap.shorten(str(value), 80, placeholder=" ...") or "..."


def _gaps(a: Field, b: Field) -> Iterator[str]:
    for name, field in (("a", a), ("b", b)):
        if field.gaps:
            yield f"points: {field.gaps} in {name}"
