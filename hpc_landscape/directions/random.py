"""Random directions: an independent stream for each direction and parameter, from one seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from .base import DirectionKind, Directions, Origin

if TYPE_CHECKING:
    from torch import Tensor


class Random(DirectionKind):
    """Random directions, each part scaled to the weights' norm (Li et al. 2018, section 4)."""

    options = ("seed", "distribution", "normalization", "ignore", "orthogonalize", "ensemble")
    only = ("ensemble",)
    normalization = "filter"

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
        made: list[dict[str, Tensor]] = []
        asked = settings.seed, settings.distribution
        for direction in random_directions(weights, origin.count, *asked, origin.first):
            direction = normalize(direction, weights, "none", settings.ignore)
            for earlier in made if settings.orthogonalize else ():
                direction = orthogonalize(direction, earlier)
            made.append(direction)
        return Directions([normalize(direction, weights, settings.normalized, settings.ignore) for direction in made])


def random_directions(
    parameters: Mapping[str, Tensor], count: int, seed: int, distribution: str = "normal", first: int = 0
) -> list[dict[str, Tensor]]:
    """count directions by the parameters' names, on the CPU, in float32; of complex ones both parts are drawn.

    first: the number of the first of them.
    """
    import torch

    from ..model.numbers import numbers_of, reals

    return [
        {
            name: numbers_of(torch.from_numpy(draw(seed, number, name, reals(p).shape, distribution)), p)
            for name, p in parameters.items()
        }
        for number in range(first, first + count)
    ]


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
