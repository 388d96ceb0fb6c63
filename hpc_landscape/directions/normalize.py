"""Normalization of a direction against the weights (Li et al. 2018, section 4), and orthogonalization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat

import torch
from torch import Tensor

from ..errors import UserError, few
from ..model.lazy import made
from ..model.numbers import double, inner
from ..model.parameters import EPSILON, norm_factors

PIECE = 2**18  # numbers that are scaled at a time: their float64 stays in the cache


def normalize(
    direction: Mapping[str, Tensor], weights: Mapping[str, Tensor], how: str = "filter", ignore: str = "biasbn"
) -> dict[str, Tensor]:
    """The direction with each part scaled to the norm of the same part of the weights.

    A part is, for ``filter``, each slice over dimension 0 of a parameter with 2 or more dimensions; for ``layer`` a
    whole parameter; for ``model`` the whole vector. Parameters with fewer dimensions are zero (``biasbn``), or one
    filter each (``none``; also where there are no others). Norms are taken in float64, of complex numbers by their
    modulus; the result has the weights' dtype. Zero weights give zeros.
    """
    found = factors(direction, weights, how, ignore)
    return {name: scaled(d, found[name], weights[name].dtype) for name, d in direction.items()}


def factors(
    direction: Mapping[str, Tensor], weights: Mapping[str, Tensor], how: str, ignore: str
) -> dict[str, Tensor | None]:
    """What each part of the direction is multiplied by to be normalized, float64; None: it does not move."""
    if all(weights[name].ndim < 2 for name in direction):
        ignore = "none"  # or nothing would move
    moving = {name: d for name, d in direction.items() if ignore == "none" or weights[name].ndim >= 2}
    if how == "filter" or how == "layer":
        found = {name: norm_factors(d, weights[name], by_filter=how == "filter") for name, d in moving.items()}
    elif how == "model":
        whole = {name: moving.get(name, torch.zeros((), device="cpu")) for name in direction}
        found = dict.fromkeys(moving, norm({name: weights[name] for name in direction}) / (norm(whole) + EPSILON))
    else:
        found = dict.fromkeys(moving, torch.ones((), dtype=torch.float64, device="cpu"))
    return {name: found.get(name) for name in direction}


def scaled(part: Tensor, factor: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A part of a direction times its factor, computed in float64, a piece at a time; zeros without one."""
    if factor is None or not part.ndim:
        return torch.zeros_like(part, dtype=dtype) if factor is None else (double(part) * factor).to(dtype)
    product = torch.empty_like(part, dtype=dtype)
    rows = max(1, PIECE * len(part) // max(1, part.numel()))
    each = factor.split(rows) if factor.ndim and len(factor) == len(part) else repeat(factor)
    for place, numbers, by in zip(product.split(rows), part.split(rows), each, strict=False):
        place.copy_(double(numbers) * by)
    return product


def normalize_all(
    directions: list[dict[str, Tensor]], weights: Mapping[str, Tensor], how: str, ignore: str
) -> list[dict[str, Tensor]]:
    """Each of them normalized; as they are where that is by nothing."""
    return directions if how == "none" else [normalize(d, weights, how, ignore) for d in directions]


def standing(
    vectors: Sequence[Mapping[str, Tensor]], weights: Mapping[str, Tensor], axes: Sequence[str], scaled: bool
) -> str:
    """What a person is to know of directions that are zero, all of them or, where each part was scaled, some; or ''."""
    named = [name for name, w in weights.items() if w.numel() and not bool(w.any())]
    if still := [axis for axis, vector in zip(axes, vectors, strict=False) if not any(map(_any, vector.values()))]:
        why = f", since the weights it is scaled to are ({few(named)})" if named else ""
        return f"zero everywhere, so that nothing changes along it: direction {' and '.join(still)}{why}"
    several = any(w.ndim > 1 for w in weights.values())  # else those of one dimension move
    found = [n for n in named if not _any(vectors[0].get(n)) and (weights[n].ndim > 1 or not several)] if scaled else []
    if not found:
        return ""
    return (
        f"{len(found)} of {len(weights)} tensors do not move, since a direction is scaled to the weights and these are "
        f"zero, as a fresh adapter's are: {few(found)}"
    )


def _any(tensor: Tensor | None) -> bool:
    return tensor is not None and bool(tensor.any())


def orthogonalize(direction: Mapping[str, Tensor], against: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of the direction that is orthogonal to another; the direction itself where the other is zero."""
    length = dot(against, against)
    factor = dot(direction, against) / length if length > 0 else torch.zeros((), dtype=torch.float64, device="cpu")
    return {name: (double(d) - factor * double(against[name])).to(d.dtype) for name, d in direction.items()}


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """The inner product of two directions, float64; of complex numbers as pairs of real ones."""
    products = [inner(a[name], b[name]) for name in a]
    return torch.stack(products).sum() if products else torch.zeros((), dtype=torch.float64, device="cpu")


def norm(a: Mapping[str, Tensor]) -> Tensor:
    """The length of a direction, float64."""
    return dot(a, a).sqrt()


def cosine(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The cosine of the angle between two directions; 0 where one is zero."""
    pairs = ((made(a[name]), made(b[name])) for name in a)
    products = [torch.stack([inner(x, x), inner(y, y), inner(x, y)]) for x, y in pairs]
    aa, bb, ab = torch.stack(products).sum(dim=0) if products else torch.zeros(3)
    lengths = float(aa.sqrt() * bb.sqrt())
    return float(ab) / lengths if lengths > 0 else 0.0


def checked(normalization: str | None) -> str:
    """The name of a normalization; None is ``none``."""
    if normalization not in (None, "filter", "layer", "model", "none"):
        raise UserError(f"normalization='{normalization}': expected filter, layer, model or None")
    return normalization or "none"
