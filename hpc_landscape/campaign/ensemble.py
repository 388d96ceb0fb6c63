"""An ensemble's sets of random directions: the same grid along each, and a rank holds one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ..directions.base import Origin
from ..directions.registry import make_directions
from ..model.placement import Placement
from ..setting_groups import DirectionSettings
from .directions import moving
from .plan import Plan


class DirectionSets:
    """Draws the set that a rank's next point lies along, alone and on the CPU, into its placement's buffers.

    Set i of k axes has the directions i * k, i * k + 1, ... of the seed's streams, made as those of any run: its values
    depend on the seed, not on who draws it, or when. weights: of the origin, by name, on the CPU; the placement has
    set 0.
    """

    def __init__(self, asked: DirectionSettings, weights: Mapping[str, Tensor], placement: Placement):
        self.asked, self.weights, self.placement = asked, weights, placement
        self._now: int | None = 0

    def turn_to(self, number: int) -> None:
        """Let points lie along the set of this number."""
        if number == self._now:
            return
        self._now = None  # until all of it is there
        axes = self.placement.dimensions
        self.placement.redirect(make_directions(self.asked, Origin(self.weights, axes, first=number * axes)).vectors)
        self._now = number


def turning(plan: Plan) -> Callable[[int], None]:
    """What lets this rank's points lie along another set of directions; make it while no model is attached."""
    placement = plan.evaluator.placement
    if plan.directions_asked.ensemble is None or not isinstance(placement, Placement):
        return lambda number: None
    return DirectionSets(plan.directions_asked, moving(plan.problem), placement).turn_to
