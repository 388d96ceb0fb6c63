"""Random directions: an independent stream for each direction and parameter, from one seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from .base import DirectionKind, Directions, Origin

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Random(DirectionKind):
    """Random directions, each part scaled to the weights' norm (Li et al. 2018, section 4)."""

    options = ("seed", "distribution", "normalization", "ignore", "orthogonalize", "ensemble")
    only = ("ensemble",)
    normalization = "filter"
    drawn_again = True

    def check(self, settings: Any, axes: Mapping[str, str]) -> None:
        """What is orthogonal is no longer after each part was scaled by its own factor."""
        if settings.ensemble is not None and settings.trajectory is not None:
            raise UserError(
                "--ensemble and --trajectory: checkpoints are projected onto one plane, and an ensemble has many; "
                "leave one of them out"
            )
        if settings.orthogonalize and settings.normalized in ("filter", "layer"):
            raise UserError(
                f"--orthogonalize does not survive --normalization {settings.normalized}: it scales each "
                f"{settings.normalized} by its own factor afterwards; use --normalization model or none"
            )

    def make(self, settings: Any, origin: Origin) -> Directions:
        """Drawn, made orthogonal to those before where asked, and normalized."""
        from .normalize import normalize, orthogonalize

        weights = origin.weights
        numbers = range(origin.first, origin.first + origin.count)
        drawn = _each(weights, numbers, settings.seed, settings.distribution)
        if not settings.orthogonalize:  # one at a time is in memory beside those that are made
            return Directions([normalize(d, weights, settings.normalized, settings.ignore) for d in drawn])
        made: list[dict[str, Tensor]] = []
        for direction in drawn:
            direction = normalize(direction, weights, "none", settings.ignore)
            for earlier in made:
                direction = orthogonalize(direction, earlier)
            made.append(direction)
        return Directions([normalize(direction, weights, settings.normalized, settings.ignore) for direction in made])


@dataclass(frozen=True)
class Drawn:
    """A random direction by what it is made of: each part can be drawn again, wherever it is wanted, and scaled.

    factors: what each part is multiplied by, by the parameter's name, as ``normalize.factors`` gives them.
    """

    seed: int
    number: int
    distribution: str
    factors: Mapping[str, Tensor | None]

    def tensors(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The direction, each part of it drawn when it is used. weights: of which shapes and dtypes are taken."""
        from ..model.lazy import Lazy

        kinds = {name: (tuple(w.shape), w.dtype) for name, w in weights.items()}
        return {name: Lazy(*kind, partial(self._part, name, *kind)) for name, kind in kinds.items()}

    def _part(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        import torch

        from .normalize import scaled

        like = torch.empty(tuple(shape), dtype=dtype, device="meta")
        return scaled(_drawn(self.seed, self.number, name, like, self.distribution), self.factors[name], dtype)


def drawn_directions(settings: Any, weights: Mapping[str, Tensor], count: int) -> list[Drawn]:
    """The same directions as ``Random`` makes of these settings, by what they are made of: one part at a time is drawn.

    On one thread, as ``make_directions``. Not orthogonalized.
    """
    import torch

    from ..ranks.device import one_thread
    from .normalize import factors

    found = []
    with one_thread():
        for number in range(count):
            same = {name: torch.ones((), dtype=torch.float64, device="cpu") for name in weights}
            raw = Drawn(settings.seed, number, settings.distribution, same)
            scale = factors(raw.tensors(weights), weights, settings.normalized, settings.ignore)
            found.append(replace(raw, factors=scale))
    return found


def random_directions(
    parameters: Mapping[str, Tensor], count: int, seed: int, distribution: str = "normal", first: int = 0
) -> list[dict[str, Tensor]]:
    """count directions by the parameters' names, on the CPU, in float32; of complex ones both parts are drawn.

    first: the number of the first of them.
    """
    return list(_each(parameters, range(first, first + count), seed, distribution))


def _each(
    parameters: Mapping[str, Tensor], numbers: range, seed: int, distribution: str
) -> Iterator[dict[str, Tensor]]:
    for number in numbers:
        yield {name: _drawn(seed, number, name, p, distribution) for name, p in parameters.items()}


def _drawn(seed: int, number: int, name: str, like: Tensor, distribution: str) -> Tensor:
    """One part, with the shape of this parameter."""
    import torch

    from ..model.numbers import numbers_of, reals

    return numbers_of(torch.from_numpy(draw(seed, number, name, reals(like).shape, distribution)), like)


def draw(seed: int, direction: int, name: str, shape: Sequence[int], distribution: str = "normal") -> np.ndarray:
    """One parameter's part of a random direction, whatever else moves: any rank can draw any part alone.

    The stream is NumPy's ``PCG64(SeedSequence(seed, spawn_key=(direction, *words)))``, where the words are those of the
    name's SHA-256: 8 of 32 bits, little-endian, of its UTF-8.

    Args:
        seed: not negative.
        direction: the direction's number, from 0.
        name: of the parameter.
        shape: of the array; its elements are drawn in C order.
        distribution: "normal", of mean 0 and variance 1; or "uniform", on [-1, 1).

    Returns:
        float32, of that shape.
    """
    words = np.frombuffer(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest(), dtype="<u4")
    key = (direction, *map(int, words))
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
    if distribution == "normal":
        values = stream.standard_normal(tuple(shape), dtype=np.float32)
    else:
        values = 2 * stream.random(tuple(shape), dtype=np.float32) - 1
    return np.asarray(values, dtype=np.float32)
