"""Picks how directions are made: one entry for each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import UserError
from ..ranks.device import one_thread
from ..settings import Settings, split
from .file import read_directions
from .interpolation import differences
from .normalize import normalize, orthogonalize
from .pca import principal_directions
from .projection import project
from .random import random_directions

Read = Callable[[str, str], Mapping[str, Tensor]]  # (path of a checkpoint, the option that named it) -> parameters
Eigenvectors = Callable[[int], tuple[list[dict[str, Tensor]], np.ndarray]]  # how many -> they, and the eigenvalues
MARGIN = 0.25  # of a trajectory's extent, around it
STEPS = 40  # at most about so many along an axis that is made for it


@dataclass
class Directions:
    """What coordinates mean. vectors: a mapping by parameter name for each axis, on the CPU.

    ends: the models that the vectors lead to, where they do. rest: what else they have otherwise, and what of it goes
    along, by name, for each. stays: names of what does not. axes: a MIN:MAX:N for each axis, where the kind of
    direction knows better than the problem. notes: what else the file is to say.
    """

    vectors: list[dict[str, Tensor]]
    ends: list[dict[str, Tensor]] | None = None
    axes: list[str] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    rest: list[dict[str, Tensor]] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)

    @property
    def moves(self) -> list[dict[str, Tensor]]:
        """What a Placement takes: the ends where there are some."""
        if self.ends is None:
            return self.vectors
        return [{**end, **rest} for end, rest in zip(self.ends, self.rest or [{}] * len(self.ends), strict=True)]


def make_directions(
    settings: Settings,
    weights: Mapping[str, Tensor],
    read: Read | None = None,
    trajectory: Sequence[str] = (),
    eigenvectors: Eigenvectors | None = None,
) -> Directions:
    """Directions of the kind that the settings name, normalized, on the CPU. trajectory: paths of checkpoints.

    eigenvectors: of the Hessian at the model. On one thread, so that the norms do not depend on how many ranks share
    the machine.
    """
    with one_thread():
        return RECIPES[settings.directions](settings, weights, read, trajectory, eigenvectors)


def _random(settings: Settings, weights: Mapping[str, Tensor], *_: Any) -> Directions:
    """Random directions; the second and third made orthogonal to those before them when asked."""
    if settings.orthogonalize and settings.normalized in ("filter", "layer"):
        raise UserError(
            f"--orthogonalize does not survive --normalization {settings.normalized}: it scales each "
            f"{settings.normalized} by its own factor afterwards; use --normalization model or none"
        )
    made: list[dict[str, Tensor]] = []
    for direction in random_directions(weights, settings.dimensions, settings.seed, settings.distribution):
        direction = normalize(direction, weights, "none", settings.ignore)
        if settings.orthogonalize:
            for earlier in made:
                direction = orthogonalize(direction, earlier)
        made.append(direction)
    return Directions([normalize(direction, weights, settings.normalized, settings.ignore) for direction in made])


def _interpolation(settings: Settings, weights: Mapping[str, Tensor], read: Read, *_: Any) -> Directions:
    """From the model to one, two or three others."""
    if settings.normalized != "none" or settings.orthogonalize:
        raise UserError("--directions interpolation leads to other models: no --normalization, no --orthogonalize")
    models = [dict(read(path, "--to")) for path in split(settings.to)]
    ends = [{name: model[name].to(w.dtype) for name, w in weights.items()} for model in models]
    with _said_of(f"--to {settings.to}"):
        vectors = differences(weights, ends)
    rest = [{name: t for name, t in model.items() if name not in weights} for model in models]
    return Directions(vectors, ends, ["-0.5:1.5:41"] * len(ends), rest=rest)


def _pca(
    settings: Settings, weights: Mapping[str, Tensor], read: Read, trajectory: Sequence[str], *_: Any
) -> Directions:
    """The principal directions of the trajectory, of unit length unless normalized; axes that show all of it."""
    points = [partial(read, path, "--trajectory") for path in trajectory]
    with _said_of(f"--trajectory {settings.trajectory}"):
        vectors, ratios = principal_directions(points, weights, settings.dimensions)
    vectors = _normalized(settings, weights, vectors)
    coordinates, _ = project(points, weights, vectors)
    axes = ["{:.6g}:{:.6g}:{}".format(*around(c, MARGIN)) for c in coordinates.T]
    return Directions(vectors, None, axes, {"explained_variance_ratio": ratios[:1000]})


def _hessian(
    settings: Settings, weights: Mapping[str, Tensor], read: Any, trajectory: Any, eigenvectors: Eigenvectors
) -> Directions:
    """The directions of largest curvature, of unit length unless normalized."""
    vectors, values = eigenvectors(settings.dimensions)
    vectors = [{name: d.to(weights[name].dtype) for name, d in vector.items()} for vector in vectors]
    return Directions(_normalized(settings, weights, vectors), notes={"hessian_eigenvalues": values})


def _file(settings: Settings, weights: Mapping[str, Tensor], *_: Any) -> Directions:
    """Directions from files."""
    vectors = read_directions(split(settings.direction_files), weights, settings.dimensions)
    return Directions(_normalized(settings, weights, vectors))


def _normalized(
    settings: Settings, weights: Mapping[str, Tensor], vectors: list[dict[str, Tensor]]
) -> list[dict[str, Tensor]]:
    if settings.orthogonalize:
        raise UserError(f"--orthogonalize is for random directions, not for --directions {settings.directions}")
    if settings.normalized == "none":
        return vectors
    return [normalize(vector, weights, settings.normalized, settings.ignore) for vector in vectors]


@contextmanager
def _said_of(option: str) -> Iterator[None]:
    """A mistake that names no option yet is this one's."""
    try:
        yield
    except UserError as error:
        raise error if str(error).startswith("--") else UserError(f"{option}: {error}") from None


def around(coordinates: np.ndarray, margin: float) -> tuple[float, float, int]:
    """(low, high, points) of an axis that shows these coordinates with a margin, in round steps, the origin on one."""
    low, high = min(coordinates.min(), 0.0), max(coordinates.max(), 0.0)
    margin = margin * (high - low) or 1.0
    rough = (high - low + 2 * margin) / STEPS
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * round_ for round_ in (1, 2, 5, 10) if power * round_ >= rough)
    first, last = np.floor((low - margin) / step), np.ceil((high + margin) / step)
    return float(f"{first * step:.6g}"), float(f"{last * step:.6g}"), int(last - first) + 1


RECIPES = {"random": _random, "interpolation": _interpolation, "pca": _pca, "hessian": _hessian, "file": _file}
