"""What a metric is."""

from __future__ import annotations

import abc
from typing import Any

from torch import Tensor

from ..model_interface.model_wrapper import ModelWrapper


class Metric(abc.ABC):
    """A quantity that can be computed given a model: called with the model wrapper at a placed point.

    It returns a number or an array of shape ``shape``, whose dimensions are called ``dims`` in the file.
    """

    name = "metric"
    shape: tuple[int, ...] = ()
    dims: tuple[str, ...] = ()

    @abc.abstractmethod
    def __call__(self, model_wrapper: ModelWrapper) -> Any:
        """The quantity at the parameters that the model has now."""


class BatchMetric(Metric):
    """A mean over samples: it adds up over batches, and shares one pass over the data with its like."""

    @abc.abstractmethod
    def batch_mean(self, output: Any, target: Any) -> Tensor:
        """The mean over this batch, a 0-d tensor. Means are weighted by the batch's items and added up in float64."""
