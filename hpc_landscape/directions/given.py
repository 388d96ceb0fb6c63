"""Directions that a user gives, and the length of the library's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..model.numbers import count, double, numbers_of, reals
from .normalize import norm


def as_direction(given: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A direction by name: from a mapping (what is missing does not move), tensors in order, or one flat array."""
    if isinstance(given, (Tensor, np.ndarray)):
        given = _split(torch.as_tensor(given, device="cpu").reshape(-1), weights)
    if not isinstance(given, Mapping):
        given = list(given)
        if len(given) != len(weights):
            raise UserError(f"a direction of {len(given)} tensors for {len(weights)} parameters")
        given = dict(zip(weights, given, strict=True))
    tensors = {name: torch.as_tensor(d, device="cpu").detach() for name, d in given.items()}
    for name, d in tensors.items():
        if name not in weights or d.shape != weights[name].shape:
            raise UserError(f"a direction's {name} {tuple(d.shape)} is no parameter that moves, or another shape")
        if d.is_complex() and not weights[name].is_complex():
            raise UserError(f"a direction's {name} is complex, and the parameter is not")
    zeros = {name: torch.zeros_like(w) for name, w in weights.items()}
    return zeros | {name: d.to(weights[name].dtype) for name, d in tensors.items()}


def _split(flat: Tensor, weights: Mapping[str, Tensor]) -> list[Tensor]:
    sizes = [count(w) for w in weights.values()]
    if flat.numel() != sum(sizes):
        raise UserError(f"a direction of {flat.numel()} numbers for {sum(sizes)} parameters")
    parts = zip(flat.split(sizes), weights.values(), strict=True)
    return [numbers_of(part.reshape(reals(w).shape), w) for part, w in parts]


def as_long(direction: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The direction with the norm of the parameters that it moves."""
    moved = {name: weights[name] for name, d in direction.items() if bool(d.any())}
    length = norm(direction)
    factor = norm(moved) / length if length > 0 else torch.zeros((), dtype=torch.float64, device="cpu")
    return {name: (double(d) * factor).to(d.dtype) for name, d in direction.items()}
