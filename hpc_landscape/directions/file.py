"""Directions from files."""

from __future__ import annotations

from typing import Any

from ..words import split
from .base import DirectionKind, Directions, Origin


class File(DirectionKind):
    """An earlier landscape's directions, or tensors by parameter name in one file per axis; as they are unless
    normalized.
    """

    options = ("direction_files", "normalization", "ignore")
    needs = {"direction_files": "a file with directions"}
    only = ("direction_files",)

    def make(self, settings: Any, origin: Origin) -> Directions:
        """What the files hold, checked against the model."""
        from .normalize import normalize_all
        from .reading import read_directions

        vectors = read_directions(split(settings.direction_files), origin.weights, origin.count)
        return Directions(normalize_all(vectors, origin.weights, settings.normalized, settings.ignore))
