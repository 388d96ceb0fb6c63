"""Directions from one model to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UserError
from ..model.numbers import double


@torch.no_grad()
def differences(origin: Mapping[str, Tensor], ends: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """For each end, end - origin by the origin's names, in the origin's dtypes.

    UserError where an end is equal to the origin in these dtypes, or its difference is not finite.
    """
    made = []
    for i, end in enumerate(ends, start=1):
        direction = {name: (double(end[name]) - double(start)).to(start.dtype) for name, start in origin.items()}
        which = f"model {i} of the {len(ends)} to go to"
        if not any(bool(d.any()) for d in direction.values()):
            raise UserError(f"{which} equals the model at the origin: no direction leads to it; give another one")
        if bad := next((name for name, d in direction.items() if not bool(d.isfinite().all())), None):
            raise UserError(f"{which} differs from the origin in {bad} by values that are not finite; give another one")
        made.append(direction)
    return made
