"""How batch normalization gets the statistics that a point is measured with: one class for each policy.

Between the policies only this file decides: what a model needs, what is told of it, and what is done at a point.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from torch import Tensor

from ..data.data import Data
from ..errors import UserError
from ..kinds import NORMALIZATIONS
from ..metrics.base import Metric
from ..model.batchnorm import batch_statistics, batchnorm_layers
from ..model.wrapper import ModelWrapper
from .executor import Executor
from .passes import warm_up


class Normalization(abc.ABC):
    """A policy. data: what statistics are re-estimated on, where the policy does so.

    reads_data: whether each point first passes over that data. by_batch: whether layers ever normalize by the batch in
    hand, so that values depend on how batches are made, and on how their variance is added up.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    reads_data: ClassVar[bool] = False
    by_batch: ClassVar[bool] = False

    def __init__(self, data: Data | Metric | None = None):
        self.data = data

    def estimate(self, executor: Executor) -> None:  # noqa: B027 (most have nothing to do)
        """Before a pass that measures: the statistics of the points that are placed."""

    def measuring(self, model: ModelWrapper) -> AbstractContextManager[Any]:
        """While points are measured: which layers are in train mode."""
        return nullcontext()


class NoNormalization(Normalization):
    """Of a model whose layers keep no statistics."""

    name, help = "none", "the model keeps no running statistics"


class Running(Normalization):
    """The checkpoint's statistics at every point."""

    name, help = "running", "the checkpoint's running statistics at every point"


class Batch(Normalization):
    """Each batch by its own statistics, in one pass."""

    name, help = "batch", "each batch's own statistics, in a single pass"
    by_batch = True

    def measuring(self, model: ModelWrapper) -> AbstractContextManager[Any]:
        return batch_statistics(batchnorm_layers(model))


class WarmUp(Normalization):
    """Statistics re-estimated at each point, in a pass over the warm-up data before it is measured."""

    name, help = "warmup", "statistics re-estimated at each point on all of the warm-up data"
    reads_data = by_batch = True

    def estimate(self, executor: Executor) -> None:
        if self.data is None:
            raise UserError("batch normalization is to be re-estimated, and there is no data for it")
        warm_up(executor, self.data)


class Given(Normalization):
    """Statistics that are there already: by point, else the same everywhere, else the checkpoint's."""

    name, help = "given", "statistics that have been estimated before"

    def __init__(self, by_point: Mapping[tuple[float, ...], Tensor], common: Tensor | None = None):
        super().__init__()
        self.by_point, self.common = by_point, common

    def estimate(self, executor: Executor) -> None:
        found = (self.by_point.get(tuple(point), self.common) for point in executor.points)
        values = [value for value in found if value is not None]
        if len(values) == len(executor.points):
            executor.write_statistics(values)


def policy_of(word: str) -> type[Normalization]:
    """The policy that a word names; UserError where there is none."""
    found = NORMALIZATIONS.load(word)
    if not (isinstance(found, type) and issubclass(found, Normalization)):
        raise UserError(f"--bn {word}: is no class of hpc_landscape.evaluate.normalization.Normalization")
    return found


def choose_normalization(word: str, model: ModelWrapper, has_data: bool = True) -> type[Normalization]:
    """The same, as far as this model, and the data that there is, can have it."""
    if word == NoNormalization.name or not batchnorm_layers(model):
        return NoNormalization
    policy = policy_of(word)
    return Running if policy.reads_data and not has_data else policy
