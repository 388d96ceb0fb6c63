"""Picks how directions are made: one entry for each kind."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..errors import UserError
from ..parallel.device import one_thread
from ..settings import Settings
from .normalize import normalize, orthogonalize
from .random import random_directions


def make_directions(settings: Settings, weights: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """count directions of the kind that the settings name, normalized, on the CPU.

    On one thread, so that the norms do not depend on how many ranks share the machine.
    """
    with one_thread():
        return RECIPES[settings.directions](settings, weights, count)


def _random(settings: Settings, weights: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Random directions; the second and third made orthogonal to those before them when asked."""
    if settings.orthogonalize and settings.normalization in ("filter", "layer"):
        raise UserError(
            f"--orthogonalize does not survive --normalization {settings.normalization}: it scales each "
            f"{settings.normalization} by its own factor afterwards; use --normalization model or none"
        )
    made: list[dict[str, Tensor]] = []
    for direction in random_directions(weights, count, settings.seed, settings.distribution):
        direction = normalize(direction, weights, "none", settings.ignore)
        if settings.orthogonalize:
            for earlier in made:
                direction = orthogonalize(direction, earlier)
        made.append(direction)
    return [normalize(direction, weights, settings.normalization, settings.ignore) for direction in made]


RECIPES = {"random": _random}
