"""The library's face: lines and planes around models, with the names that loss-landscapes users know.

In all of it axis 0 is the first direction, values ``[i, j]`` lie at ``(x[i], y[j])``, every point is computed from the
origin in eval mode, and the user's model is bitwise what it was when a call returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .campaign.landscape import Landscape
from .data.prepare import as_batches
from .evaluate.evaluator import Evaluator
from .metrics import Loss, Metric
from .metrics.criterion import loss_on
from .model.others import Point
from .model.placement import Placement
from .model.wrapper import ModelWrapper, wrap_model
from .ranks.torch_state import one_at_a_time


class PlanarLossLandscape(Landscape):
    """A metric over a plane. ``random_plain(...)``, then perhaps ``warm_up(metric)``, then ``compute(metric)``."""

    dimensions, first = 2, "random_plane"

    def random_plane(
        self,
        distance: float = 1,
        normalization: str | None = "filter",
        random: str = "normal",
        centered: bool = True,
        seed: int | None = None,
        ignore: str = "biasbn",
    ) -> PlanarLossLandscape:
        """Two random directions; coordinates from -distance/2 to distance/2 (centered), or from 0 to distance.

        A direction is normalized (``filter``, ``layer``, ``model`` or None; Li et al. 2018, section 4) and then as long
        as the parameters that it moves. ignore: ``biasbn``: parameters of fewer than 2 dimensions do not move.
        """
        return self._random(distance, normalization, random, centered, seed, ignore)

    random_plain = random_plane

    def interpolation(
        self, end_one: Point, end_two: Point, low: float = 0.0, high: float = 1.0, key: str | None = None
    ) -> PlanarLossLandscape:
        """The plane through three models: this one at (0, 0), the others, bitwise, at (1, 0) and (0, 1).

        Buffers in which they differ go along: floating-point ones in proportion, others as a whole from 1 on, with a
        warning that names them. Batch normalization has this model's statistics everywhere, until ``warm_up``.
        key: which of several networks in a file, as --checkpoint_key.
        """
        return self._interpolation([end_one, end_two], low, high, key)

    def precomputed(
        self,
        dir_one: Any,
        dir_two: Any,
        distance: float = 1,
        normalization: str | None = None,
        centered: bool = True,
        ignore: str = "biasbn",
    ) -> PlanarLossLandscape:
        """The user's directions, as they are unless normalized: by name, as tensors in their order, or flat."""
        return self._precomputed([dir_one, dir_two], distance, normalization, centered, ignore)


class LinearLossLandscape(Landscape):
    """A metric over a line. ``random_line(...)``, then perhaps ``warm_up(metric)``, then ``compute(metric)``."""

    dimensions, first = 1, "random_line"

    def random_line(
        self,
        distance: float = 1,
        normalization: str | None = "filter",
        random: str = "normal",
        centered: bool = True,
        seed: int | None = None,
        ignore: str = "biasbn",
    ) -> LinearLossLandscape:
        """One random direction; everything as in ``PlanarLossLandscape.random_plane``."""
        return self._random(distance, normalization, random, centered, seed, ignore)

    def interpolation(
        self, end_one: Point, low: float = 0.0, high: float = 1.0, key: str | None = None
    ) -> LinearLossLandscape:
        """The line from this model, at 0, to another, bitwise, at 1.

        Buffers in which they differ go along: floating-point ones in proportion, others as a whole from 1 on, with a
        warning that names them. Batch normalization has this model's statistics everywhere, until ``warm_up``.
        key: which of several networks in a file, as --checkpoint_key.
        """
        return self._interpolation([end_one], low, high, key)

    def precomputed(
        self,
        dir_one: Any,
        distance: float = 1,
        normalization: str | None = None,
        centered: bool = True,
        ignore: str = "biasbn",
    ) -> LinearLossLandscape:
        """The user's direction, as it is unless normalized: by name, as tensors in their order, or flat."""
        return self._precomputed([dir_one], distance, normalization, centered, ignore)


@one_at_a_time
def point(model: nn.Module | ModelWrapper, metric: Metric) -> Any:
    """The metric at the model itself, in eval mode."""
    wrapper = wrap_model(model)
    parameters = {name: p.data for name, p in wrapper.named_moving()}
    evaluator = Evaluator(wrapper, Placement(parameters, []), {"": metric})
    with evaluator.attached():
        return evaluator(())[""]


def linear_interpolation(
    model_start: nn.Module | ModelWrapper,
    model_end: Point,
    metric: Metric,
    steps: int = 100,
    deepcopy_model: bool = False,
    comm: Any = None,
) -> Any:
    """The metric at steps points from one model to another, both included: (steps, ...)."""
    return LinearLossLandscape(model_start, steps, deepcopy_model, comm).interpolation(model_end).compute(metric)


def random_line(
    model_start: nn.Module | ModelWrapper,
    metric: Metric,
    distance: float = 0.1,
    steps: int = 100,
    normalization: str | None = "filter",
    deepcopy_model: bool = False,
    seed: int | None = None,
    comm: Any = None,
) -> Any:
    """The metric at steps points from the model in a random direction: (steps, ...).

    distance: how far, in norms of the parameters that move.
    """
    line = LinearLossLandscape(model_start, steps, deepcopy_model, comm)
    return line.random_line(distance, normalization, centered=False, seed=seed).compute(metric)


def planar_interpolation(
    model_start: nn.Module | ModelWrapper,
    model_end_one: Point,
    model_end_two: Point,
    metric: Metric,
    steps: int = 20,
    deepcopy_model: bool = False,
    comm: Any = None,
) -> Any:
    """The metric over the plane through three models: (steps, steps, ...), the first at [0, 0]."""
    plane = PlanarLossLandscape(model_start, steps, deepcopy_model, comm)
    return plane.interpolation(model_end_one, model_end_two).compute(metric)


def random_plane(
    model: nn.Module | ModelWrapper,
    metric: Metric,
    distance: float = 1,
    steps: int = 20,
    normalization: str | None = "filter",
    deepcopy_model: bool = False,
    seed: int | None = None,
    comm: Any = None,
) -> Any:
    """The metric over a random plane with the model in its middle: (steps, steps, ...).

    distance: the side of the plane, in norms of the parameters that move.
    """
    plane = PlanarLossLandscape(model, steps, deepcopy_model, comm)
    return plane.random_plane(distance, normalization, seed=seed).compute(metric)


def eval_warm_up(landscape: Landscape, loader: Any, device: torch.device | str, criterion: Any = None) -> None:
    """Re-estimate batch normalization's statistics at every point on the whole of a loader's data."""
    landscape.warm_up(loader, device)


def eval_loss(landscape: Landscape, loader: Any, device: torch.device | str, criterion: Callable[..., Any]) -> Any:
    """The loss over the whole of a loader's data, weighted by samples, at every point: (steps, steps)."""
    criterion = loss_on(criterion, landscape.model_wrapper.root, device)
    return landscape.compute(Loss(criterion, as_batches(loader)), device)
