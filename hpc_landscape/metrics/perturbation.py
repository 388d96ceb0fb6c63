"""How the loss changes in random directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import UserError
from ..model.numbers import count
from ..model.parameters import ModelParameters
from ..model.wrapper import ModelWrapper
from .base import DataMetric
from .criterion import Criterion, data_of
from .gradient import LossFunction, floating, movable, unflatten
from .supervised import Loss


class LossPerturbations(DataMetric):
    """L(w + alpha d) - L(w) for directions d, independent and uniform on the unit sphere: shape (n_directions,).

    Ahmed et al. 2019 (arXiv 1811.11214). The directions depend on the seed and the parameters' shapes alone: they are
    the same at every point, and on every device.
    """

    dims = ("perturbation",)

    def __init__(
        self,
        loss_fn: LossFunction,
        inputs: Any = None,
        target: Any = None,
        n_directions: int = 10,
        alpha: float = 0.1,
        seed: int = 0,
    ):
        super().__init__(data_of(loss_fn, inputs), target)
        if n_directions < 1:
            raise UserError(f"loss_perturbations: n_directions={n_directions} must be at least 1")
        self.loss_fn, self.n_directions, self.alpha, self.seed = Criterion.of(loss_fn), n_directions, alpha, seed
        self.shape = (n_directions,)

    def __call__(self, model_wrapper: ModelWrapper) -> np.ndarray:
        loss = Loss(self.loss_fn, self.data)
        here = loss(model_wrapper)
        changes = []
        with movable(model_wrapper) as move:
            for direction, norm in self._directions(floating(model_wrapper)):
                move(direction, self.alpha / norm)
                changes.append(loss(model_wrapper) - here)
        return np.array(changes)

    def _directions(self, parameters: Sequence[Tensor]) -> Iterator[tuple[ModelParameters, float]]:
        """(direction, its norm): a normal vector points anywhere with equal probability."""
        generator = np.random.default_rng(self.seed)
        for _ in range(self.n_directions):
            vector = generator.standard_normal(sum(map(count, parameters)), dtype=np.float32)
            direction = unflatten(vector, parameters)
            yield direction, direction.model_norm()
