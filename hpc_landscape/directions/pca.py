"""The principal directions of a trajectory of checkpoints."""

from __future__ import annotations

from functools import partial
from typing import Any

from .base import DirectionKind, Directions, Origin, naming_option

KEPT = 1000  # ratios that a file holds at most
MARGIN = 0.25  # of the trajectory's extent, around it


class PCA(DirectionKind):
    """The directions along which a trajectory's checkpoints differ most, of unit length unless normalized."""

    options = ("trajectory", "checkpoint_key", "normalization", "ignore")
    needs = {"trajectory": "checkpoints"}
    fits_axes = True
    from_last_checkpoint = True
    title = "PCA"
    axis_label = "principal component {number}"

    def make(self, settings: Any, origin: Origin) -> Directions:
        """Principal components, and axes that show the whole trajectory."""
        from .components import principal_directions
        from .normalize import normalize_all
        from .projection import around, project

        assert origin.read is not None  # the needed trajectory is given
        points = [partial(origin.read, path, "--trajectory") for path in origin.trajectory]
        with naming_option(f"--trajectory {settings.trajectory}"):
            vectors, ratios = principal_directions(points, origin.weights, origin.count)
        vectors = normalize_all(vectors, origin.weights, settings.normalized, settings.ignore)
        coordinates, _ = project(points, origin.weights, vectors)
        axes = ["{:.6g}:{:.6g}:{}".format(*around(c, MARGIN)) for c in coordinates.T]
        return Directions(vectors, axes=axes, notes={"explained_variance_ratio": ratios[:KEPT]})
