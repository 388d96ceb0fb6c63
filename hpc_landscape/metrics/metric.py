"""What a metric is."""

from __future__ import annotations

import abc
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..model_interface.model_wrapper import ModelWrapper
from .data import Data
from .without import no_gradients


class Metric(abc.ABC):
    """A quantity that can be computed given a model or an agent: called with its wrapper at a placed point.

    It returns a number, an array, or a tuple. name: what it is called in a file; by default the class's name, in
    lower case. shape: of one value, None where a first value has to tell. dims: a name for each dimension of that.
    """

    name = "metric"
    shape: tuple[int, ...] | None = None
    dims: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lstrip("_").lower()

    @abc.abstractmethod
    def __call__(self, model_wrapper: ModelWrapper) -> Any:
        """The quantity at the parameters that the model has now."""


class DataMetric(Metric):
    """A metric on data: (inputs, target) tensors, a loader of such batches, or Data, on any device."""

    def __init__(self, inputs: Any, target: Any = None):
        super().__init__()
        self.data = inputs if isinstance(inputs, Data) else Data(inputs, target)


class BatchMetric(DataMetric):
    """A mean over samples: it adds up over batches, and shares one pass over the data with its like."""

    shape = ()

    @abc.abstractmethod
    def batch_mean(self, output: Any, target: Any) -> Tensor:
        """The mean over this batch, a 0-d tensor. Means are weighted by the batch's items and added up in float64."""

    def __call__(self, model_wrapper: ModelWrapper) -> float:
        with no_gradients():
            return measure(model_wrapper, self.data, [self])[0]


class MetricPipeline(Metric):
    """Several metrics at one point: a tuple of what each returns."""

    def __init__(self, metrics: Sequence[Metric]):
        super().__init__()
        self.metrics = list(metrics)

    def __call__(self, model_wrapper: ModelWrapper) -> tuple[Any, ...]:
        return tuple(metric(model_wrapper) for metric in self.metrics)


class Sums:
    """Metrics over batches: means weighted by the batches' items. For use without gradients.

    Sums are float64 and stay on the device (on the host where it has no float64) until they are asked for.
    """

    def __init__(self, metrics: Sequence[BatchMetric]):
        self.metrics = metrics
        self.totals: list[Any] = [0.0] * len(metrics)
        self.items = 0.0

    def add(self, model: ModelWrapper, data: Data, batch: Any) -> None:
        """What the model makes of one more batch."""
        output, target, weight = data.output(model, batch), data.target(batch), data.items(batch)
        if not weight:
            return  # a mean over nothing is NaN
        for i, metric in enumerate(self.metrics):
            mean = metric.batch_mean(output, target)
            self.totals[i] += (mean.cpu() if mean.device.type == "mps" else mean).double() * weight
        self.items += weight

    def on_device(self) -> Tensor:
        """Each metric's mean over all batches, float64, without a wait for the device."""
        if not self.items:
            return torch.full((len(self.metrics),), float("nan"), dtype=torch.float64, device="cpu")
        home = self.totals[0].device
        return torch.stack([total.to(home) for total in self.totals]) / self.items

    def means(self) -> list[float]:
        """The same as numbers."""
        return self.on_device().tolist()


def total(model: ModelWrapper, data: Data, metrics: Sequence[BatchMetric]) -> Sums:
    """The metrics over all batches, in one pass."""
    sums = Sums(metrics)
    for batch in data.on(model):
        sums.add(model, data, batch)
    return sums


def measure(model: ModelWrapper, data: Data, metrics: Sequence[BatchMetric]) -> list[float]:
    """Each metric's mean over all batches, weighted by their items, in one pass."""
    return total(model, data, metrics).means()
