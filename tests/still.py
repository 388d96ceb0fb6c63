"""A model that stays where it is, for the passes over data."""

from __future__ import annotations

from hpc_landscape.evaluate.executor import Eager
from hpc_landscape.model.placement import Placement
from hpc_landscape.model.wrapper import ModelWrapper
from hpc_landscape.ranks.generators import Generators


def still(model: ModelWrapper) -> Eager:
    """It, as the one point of an executor."""
    executor = Eager(model, Placement({}, []), Generators(), 0)
    executor.points = [()]
    return executor
