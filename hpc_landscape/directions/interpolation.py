"""Directions from one model to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..grid import NAMES
from ..words import split
from .base import OTHERS, DirectionKind, Directions, Origin, naming_option

if TYPE_CHECKING:
    from torch import Tensor


class Interpolation(DirectionKind):
    """From the model to one, two or three others, which are at coordinate 1 of an axis each."""

    options = ("to", "checkpoint_key")
    needs = {"to": "the checkpoint of another model"}
    only = ("to",)
    axis = "-0.5:1.5:41"
    leads_to_models = True
    axis_label = "interpolation (0: first model, 1: {other} model)"
    models = ("first model", *(f"{other} model" for other in OTHERS))

    def check(self, settings: Any, axes: Mapping[str, str]) -> None:
        """One model for each axis that is given, to which the way is neither scaled nor turned."""
        models = split(settings.to)
        if len(models) > len(NAMES):
            raise UserError(f"--to {settings.to}: at most {len(NAMES)} models, one per axis")
        for number, name in enumerate(NAMES):
            if name in axes and number >= len(models):
                raise UserError(f"--{name} {axes[name]}: --to leads to one model per axis, and names {number}")
        if settings.normalized != "none" or settings.orthogonalize:
            raise UserError("--directions interpolation leads to other models: no --normalization, no --orthogonalize")

    def dimensions(self, settings: Any, asked: int) -> int:
        """An axis for each model."""
        return len(split(settings.to))

    def make(self, settings: Any, origin: Origin) -> Directions:
        """The differences to the models, and the models themselves, whose ends are bitwise theirs."""
        assert origin.read is not None  # the needed models are given
        weights = origin.weights
        models = [dict(origin.read(path, "--to")) for path in split(settings.to)]
        ends = [{name: model[name].to(w.dtype) for name, w in weights.items()} for model in models]
        with naming_option(f"--to {settings.to}"):
            vectors = differences(weights, ends)
        rest = [{name: t for name, t in model.items() if name not in weights} for model in models]
        return Directions(vectors, ends, rest=rest)


def differences(origin: Mapping[str, Tensor], ends: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """For each end, end - origin by the origin's names, in the origin's dtypes.

    UserError where an end is equal to the origin in these dtypes, or its difference is not finite.
    """
    from ..model.numbers import double

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
