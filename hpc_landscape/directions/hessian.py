"""The directions of largest curvature."""

from __future__ import annotations

from typing import Any

from ..errors import UserError
from .base import DirectionKind, Directions, Origin


class Hessian(DirectionKind):
    """Eigenvectors of the loss's Hessian with the largest eigenvalues, of unit length unless normalized."""

    options = ("normalization", "ignore")
    title = "Hessian"
    axis_label = "Hessian eigenvector {number}"

    def make(self, settings: Any, origin: Origin) -> Directions:
        """Eigenvectors of the Hessian of the loss over the first evaluation set, of the parameters that move."""
        from ..metrics import hessian_eigenvectors
        from .normalize import normalize_all

        if origin.loss is None:
            raise UserError("--directions hessian: the problem has no data")
        weights = origin.weights
        with origin.loss() as (model, loss, data):
            vectors, values = hessian_eigenvectors(model, loss, data, origin.count)
        vectors = [{name: d.to(weights[name].dtype) for name, d in vector.items()} for vector in vectors]
        return Directions(
            normalize_all(vectors, weights, settings.normalized, settings.ignore), notes={"hessian_eigenvalues": values}
        )
