"""Normalization of a direction against the weights (Li et al. 2018, section 4), and orthogonalization."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..model_interface.model_parameters import EPSILON, match_norm


def normalize(
    direction: Mapping[str, Tensor], weights: Mapping[str, Tensor], how: str = "filter", ignore: str = "biasbn"
) -> dict[str, Tensor]:
    """The direction with each part scaled to the norm of the same part of the weights.

    A part is, for ``filter``, each slice over dimension 0 of a parameter with 2 or more dimensions; for ``layer`` a
    whole parameter; for ``model`` the whole vector. Parameters with fewer dimensions are zero (``biasbn``), or one
    filter each (``none``; also where there are no others). Norms are taken in float64; the result has the weights'
    dtype. Zero weights give zeros.
    """
    if all(weights[name].ndim < 2 for name in direction):
        ignore = "none"  # or nothing would move
    kept = {}
    for name, d in direction.items():
        zero = ignore == "biasbn" and weights[name].ndim < 2
        kept[name] = torch.zeros_like(d, dtype=torch.float64) if zero else d.double()
    if how == "model":
        scale = norm({name: weights[name] for name in kept}) / (norm(kept) + EPSILON)
        kept = {name: d * scale for name, d in kept.items()}
    elif how != "none":
        kept = {name: match_norm(d, weights[name], by_filter=how == "filter") for name, d in kept.items()}
    return {name: d.to(weights[name].dtype) for name, d in kept.items()}


def orthogonalize(direction: Mapping[str, Tensor], against: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of the direction that is orthogonal to another; the direction itself where the other is zero."""
    length = dot(against, against)
    factor = dot(direction, against) / length if length > 0 else torch.zeros((), dtype=torch.float64, device="cpu")
    return {name: (d.double() - factor * against[name].double()).to(d.dtype) for name, d in direction.items()}


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """The inner product of two directions, float64."""
    products = [(a[name].double() * b[name].double()).sum() for name in a]
    return torch.stack(products).sum() if products else torch.zeros((), dtype=torch.float64, device="cpu")


def norm(a: Mapping[str, Tensor]) -> Tensor:
    """The length of a direction, float64."""
    return dot(a, a).sqrt()


def cosine(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The cosine of the angle between two directions; 0 where one is zero."""
    lengths = float(norm(a) * norm(b))
    return float(dot(a, b)) / lengths if lengths > 0 else 0.0
