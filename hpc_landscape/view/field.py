"""One number at every point of a stored file, and what the file says of it."""

from __future__ import annotations

import functools
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

import h5py
import numpy as np

from ..errors import UserError
from ..store import layout
from ..store.layout import Quantity, Stored
from ..store.probe import opened
from ..store.refinement import estimates
from ..store.refinement import names as names_of_estimate
from .scale import number

# A larger value is the better one: the picture marks the maximum.
_LARGER_IS_BETTER = ("accuracy", "return", "reward", "score", "auc", "f1")


QUANTILES = (5, 25, 50, 75, 95)  # in percent
# Of an ensemble, what each point of the plane has of all sets of directions, and how it reads.
SUMMARIES = {
    "mean": "mean {}",
    "spread": "spread of {} (std. dev.)",
    **{f"q{share}": f"{share}% quantile of {{}}" for share in QUANTILES},
}


@dataclass(frozen=True)
class Field:
    """One scalar over the grid. values: float64, ``[i, j, k]`` at ``(x[i], y[j], z[k])``, NaN at every gap.

    estimated: in words how the values are known where points are not done; empty where these are gaps. Of an ensemble a
    summary of all sets of directions, by default the mean. summaries: then all of them, by name, where the values are
    the mean. done, nans, infinities: of all sets.
    """

    name: str
    coordinates: tuple[np.ndarray, ...]
    values: np.ndarray
    done: np.ndarray  # bool
    nans: int  # points that are done and NaN
    infinities: int
    estimated: str = ""
    summary: str = ""
    summaries: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def there(self) -> np.ndarray:
        """Whether a point of the plane is done, of an ensemble in one set at least."""
        return self.done if self.done.ndim == self.values.ndim else np.asarray(self.done.any(axis=0))

    @property
    def finite(self) -> np.ndarray:
        """The values that there are, 1-D."""
        return self.values[np.isfinite(self.values)]

    @property
    def label(self) -> str:
        """The metric's name as a reader sees it."""
        base = self.name.removesuffix(f".{self.summary}")
        name = "time per point (s)" if base == layout.WALL_TIME else base.replace("_", " ")
        return SUMMARIES[self.summary].format(name) if self.summary else name

    @property
    def larger_is_better(self) -> bool:
        return not {*_LARGER_IS_BETTER}.isdisjoint(re.split(r"[\W_]+", self.name.lower()))

    @property
    def best(self) -> tuple[int, ...] | None:
        """The index of the minimum, or of the maximum where larger is better."""
        return self.extreme(self.larger_is_better)

    def extreme(self, largest: bool) -> tuple[int, ...] | None:
        """The index of the smallest or largest value, of several the nearest to the origin; None for no value.

        Of points that are done: an estimate is none.
        """
        values = np.where(self.there, self.values, np.nan)
        if not np.isfinite(values).any():
            return None
        same = np.argwhere(values == (np.nanmax(values) if largest else np.nanmin(values)))
        places = np.stack([c[same[:, k]] for k, c in enumerate(self.coordinates)], axis=1)
        with np.errstate(over="ignore"):
            return tuple(int(i) for i in same[np.square(places).sum(axis=1).argmin()])

    def at(self, index: Iterable[int]) -> tuple[float, ...]:
        """The coordinates of the point with this index."""
        return tuple(float(c[i]) for c, i in zip(self.coordinates, index, strict=True))

    def place(self, index: tuple[int, ...], digits: int = 3) -> str:
        """The coordinates of the point with this index, as text."""
        text = ", ".join(number(at, digits) for at in self.at(index))
        return f"({text})" if len(index) > 1 else text

    @property
    def gaps(self) -> str:
        """What is missing, in words; empty where nothing is."""
        done, total = int(self.done.sum()), self.done.size
        what = f"evaluated, the others {self.estimated}" if self.estimated else "done"
        parts = [] if done == total else [f"{done} of {total} points {what}"]
        parts += [f"{self.nans} NaN"] if self.nans else []
        parts += [f"{self.infinities} infinite"] if self.infinities else []
        return ", ".join(parts)


def read_field(path: str, stored: Stored, name: str) -> Field:
    """The scalar ``loss``, or ``eigenvalues[2]`` of a metric with trailing axes; UserError where there is none such.

    Of an ensemble ``loss`` is the mean over its sets of directions, and ``loss.q5``, say, another of the summaries.
    """
    scalar, summary = _summary(name, stored)
    values = read_sets(path, stored, scalar)
    nans = int(np.isnan(values[stored.done]).sum())
    infinities = int(np.isinf(values[stored.done]).sum())
    values, estimated = _estimated(path, stored, scalar, np.where(np.isfinite(values), values, np.nan))
    about = stored.done, nans, infinities, estimated, summary
    if not summary:
        return Field(name, stored.grid.coordinates, values, *about)
    found = summarized(values)
    if summary == "mean":
        return Field(scalar, stored.grid.coordinates, found[summary], *about, found)
    return Field(name, stored.grid.coordinates, found[summary], *about)


def _estimated(path: str, stored: Stored, name: str, values: np.ndarray) -> tuple[np.ndarray, str]:
    """The values, and where points are not done what a refinement estimates; and how good that is, in words."""
    base, component = _split(name, stored, path)
    if base in stored.refined:
        there = layout.read_values(path, names_of_estimate(base)[0])
        return np.where(stored.done, values, np.where(np.isfinite(there), there, np.nan)), str(stored.refined[base])
    if base in estimates(stored.refined):
        place: tuple[EllipsisType | int, ...] = (..., *component)
        whole = np.array(layout.read_values(path, base), dtype=np.float64)[place]
        return np.where(np.isfinite(whole), whole, np.nan), ""
    return values, ""


def read_sets(path: str, stored: Stored, name: str) -> np.ndarray:
    """A scalar's values as the file has them, of an ensemble those of every set; NaN where a point is not done."""
    base, component = _split(name, stored, path)
    place: tuple[EllipsisType | int, ...] = (..., *component)
    values = np.array(layout.read_values(path, base), dtype=np.float64)[place]
    return np.where(stored.done, values, np.nan)


def summarized(values: np.ndarray) -> dict[str, np.ndarray]:
    """What each point has of its values in all sets, axis 0, those that are not NaN: float64, NaN where there are none.

    Quantiles are interpolated linearly, as NumPy's; the spread is the standard deviation of a sample, with n - 1.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a point without values, or with one
        quantiles = np.nanquantile(values, np.array(QUANTILES) / 100, axis=0)
        found = {f"q{share}": quantile for share, quantile in zip(QUANTILES, quantiles, strict=True)}
        return {"mean": np.nanmean(values, axis=0), "spread": np.nanstd(values, axis=0, ddof=1), **found}


def _summary(name: str, stored: Stored) -> tuple[str, str]:
    """``loss.q25`` of an ensemble -> ("loss", "q25"), ``loss`` -> ("loss", "mean"); of another file the name and ""."""
    scalar, _, summary = name.rpartition(".")
    if stored.grid.sets is None:
        return name, ""
    return (scalar, summary) if summary in SUMMARIES else (name, "mean")


def split_metrics(text: str) -> list[str]:
    """``loss, eigenvalues[0,1]`` -> two names."""
    return re.split(r"\s*,\s*(?![^\[]*\])", text.strip())


def _split(name: str, stored: Stored, path: str) -> tuple[str, tuple[int, ...]]:
    """``eigenvalues[2]`` -> ``("eigenvalues", (2,))``."""
    shapes = {q.name: q.shape for q in stored.quantities} | dict.fromkeys(
        [layout.WALL_TIME, *estimates(stored.refined)], ()
    )
    if name in shapes and not shapes[name]:
        return name, ()
    have = ", ".join(component for q in ordered(stored) for component in _some_components(q))
    if name in shapes:
        raise UserError(f"{path}: '{name}' has several values a point; choose one of {have}")
    match = re.fullmatch(r"(.+)\[((?:\d{1,9}[, ]*)+)\]", name)
    if match and match[1] in shapes:
        shape = shapes[match[1]]
        index = tuple(int(i) for i in match[2].replace(",", " ").split())
        if len(index) == len(shape) and all(i < n for i, n in zip(index, shape, strict=True)):
            return match[1], index
    sets = f"; of each {', '.join(f'.{name}' for name in SUMMARIES)}" if stored.grid.sets is not None else ""
    raise UserError(f"{path} has no metric '{name}'; it has {have}, {layout.WALL_TIME}{sets}")


def components(quantity: Quantity) -> list[tuple[str, tuple[int, ...]]]:
    """The scalars of a quantity: ``loss``; ``eigenvalues[0]``, ``eigenvalues[1]``; each with its trailing index."""
    if not quantity.shape:
        return [(quantity.name, ())]
    return [(f"{quantity.name}[{','.join(map(str, i))}]", tuple(i)) for i in np.ndindex(*quantity.shape)]


def _some_components(quantity: Quantity) -> list[str]:
    """The names of a quantity's scalars, short where there are many."""
    names = [name for name, _ in components(quantity)]
    return names if len(names) <= 4 else [names[0], "...", names[-1]]


def ordered(stored: Stored) -> list[Quantity]:
    """The quantities in the order in which they were asked for."""
    asked = stored.attributes.get("metrics", ())
    asked = re.split(r"[,\s]+", asked) if isinstance(asked, str) else [str(name) for name in np.ravel(asked)]
    rank = {name: i for i, name in reversed(list(enumerate(asked)))}
    return sorted(stored.quantities, key=lambda q: (rank.get(q.name, math.inf), q.name))


def default_metric(stored: Stored) -> str:
    """The loss where there is one, else the first scalar."""
    names = [name for q in ordered(stored) for name, _ in components(q)]
    return "loss" if "loss" in names or not names else names[0]


def setting(attributes: Mapping[str, Any], name: str) -> Any:
    """What the file says of a setting: its own attribute, else its entry in the settings; None where neither is.

    A text or a number: what else a file of unknown origin holds there says nothing.
    """
    value = attributes[name] if name in attributes else _settings(attributes.get("settings")).get(name)
    return value if isinstance(value, (str, int, float)) else None


def _settings(text: object) -> Mapping[Any, Any]:
    return _parsed(text) if isinstance(text, str) else {}


@functools.lru_cache(4)
def _parsed(text: str) -> Mapping[Any, Any]:
    """The settings in a file: data, whatever tags are in it."""
    import yaml

    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


@dataclass(frozen=True)
class Trajectory:
    """Checkpoints of one path projected onto the plane, in their order.

    name: of the path, where there are several. distance: of each from the plane, the Euclidean norm over the
    parameters that move; None in a file that does not say.
    """

    x: np.ndarray
    y: np.ndarray
    labels: list[str]
    name: str = ""
    distance: np.ndarray | None = None

    @property
    def farthest(self) -> float:
        """The largest of the distances that are known; 0 for none."""
        known = [] if self.distance is None else self.distance[np.isfinite(self.distance)]
        return float(np.max(known, initial=0.0))


def read_trajectories(path: str) -> list[Trajectory]:
    """The file's trajectory, a part for each of its paths; none where it has none."""
    with opened(path) as file:
        columns = [file.get(f"trajectory/{name}") for name in ("x", "y")]
        if not all(map(_numbers, columns)):
            return []
        x, y = (column[()] for column in columns)
        if len(x) != len(y):
            return []
        said = file.get("trajectory/label")
        labels: Iterable[object] = np.atleast_1d(said[()]) if isinstance(said, h5py.Dataset) else []
        text = [label.decode(errors="replace") if isinstance(label, bytes) else str(label) for label in labels]
        distance = file.get("trajectory/distance")
        distance = distance[()] if _numbers(distance) and len(distance) == len(x) else None
        numbers = file.get("trajectory/path")
        numbers = numbers[()] if _numbers(numbers) and len(numbers) == len(x) else np.zeros(len(x))
    parts = [np.flatnonzero(numbers == number) for number in np.unique(numbers)]
    if len(parts) < 2 or len(text) != len(x):
        return [Trajectory(x, y, text, distance=distance)]
    texts = [[text[i] for i in part] for part in parts]
    return [
        Trajectory(x[part], y[part], labels, name, None if distance is None else distance[part])
        for part, labels, name in zip(parts, texts, _names(texts), strict=True)
    ]


def _numbers(thing: object) -> bool:
    return isinstance(thing, h5py.Dataset) and thing.dtype.kind in "fiu" and thing.ndim == 1


def _names(texts: list[list[str]]) -> list[str]:
    """A name for each path: the folders that its labels share, where these tell the paths apart."""
    shared = ["/".join(os.path.commonprefix([label.split("/")[:-1] for label in labels])) for labels in texts]
    told = all(shared) and len(set(shared)) == len(shared)
    return [f"path {shared[i] if told else i + 1}" for i in range(len(texts))]
