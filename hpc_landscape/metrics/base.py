"""What a metric is."""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..data.data import Data, fresh
from ..model.wrapper import ModelWrapper
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
    """A mean over samples: it adds up over batches, and shares one pass over the data with its like.

    whole: a function of (output, target) of which several metrics take a ``part`` each: it is called once for a batch.
    """

    shape = ()
    whole: Callable[[Any, Any], Any] | None = None
    sums = False  # whether the numbers of batches are added up as they are, and not divided by their weights

    @abc.abstractmethod
    def batch_mean(self, output: Any, target: Any) -> Tensor:
        """The mean over this batch, a 0-d tensor. Means are weighted by ``batch_weight`` and added up in float64."""

    def batch_weight(self, output: Any, target: Any, items: Any) -> Any:
        """Over how much the mean of this batch was taken: a number or a 0-d tensor; 0: the batch weighs nothing.

        items: over how many items, as the data say; None where they do not.
        """
        return items

    def part(self, whole: Any) -> Tensor:
        """The mean over a batch, of what ``whole`` gave for it."""
        return whole

    def __call__(self, model_wrapper: ModelWrapper) -> float:
        with no_gradients():
            return measure(model_wrapper, self.data, [self])[0][0]


class MetricPipeline(Metric):
    """Several metrics at one point: a tuple of what each returns."""

    def __init__(self, metrics: Sequence[Metric]):
        super().__init__()
        self.metrics = list(metrics)

    def __call__(self, model_wrapper: ModelWrapper) -> tuple[Any, ...]:
        return tuple(metric(model_wrapper) for metric in self.metrics)


def weighed(metrics: Sequence[BatchMetric], model: ModelWrapper, data: Data, batch: object, items: object) -> list[Any]:
    """Each metric's mean over a batch of so many items times its weight, and then the weights.

    What several are parts of is computed once.
    """
    output, target = data.output(model, batch), data.target(batch)
    wholes: dict[Any, Any] = {}
    products, weights = [], []
    for metric in metrics:
        if metric.whole is None:
            mean = metric.batch_mean(output, target)
        else:
            if metric.whole not in wholes:
                wholes[metric.whole] = metric.whole(output, target)
            mean = metric.part(wholes[metric.whole])
        weight = metric.batch_weight(output, target, items)
        if isinstance(weight, Tensor):
            weight = (weight.cpu() if weight.device.type == "mps" else weight).double().reshape(())
        weight = data.unknown(batch) if weight is None else weight
        products.append(times(mean, weight))
        weights.append(weight)
    return products + weights


def _weighed_anew(
    metrics: Sequence[BatchMetric], model: ModelWrapper, data: Data, batch: object, items: object
) -> list[Any]:
    """The same; the user's code may change the batch that it is given."""
    return weighed(metrics, model, data, fresh(batch), items)


def times(mean: Tensor, weight: Any) -> Tensor:
    """A batch's mean times its weight, in float64; nothing, where it weighs nothing: its mean may be NaN then."""
    mean = (mean.cpu() if mean.device.type == "mps" else mean).double()
    if not isinstance(weight, Tensor):
        return mean * weight if weight else torch.zeros_like(mean)
    weight = weight.to(mean.device)
    return torch.where(weight == 0, 0.0, mean * weight)


def _to(device: torch.device, weight: object) -> Any:
    return weight.to(device) if isinstance(weight, Tensor) else weight


class Sums:
    """Metrics over batches: means by their weights. For use without gradients.

    Sums are float64 and stay on the device (on the host where it has no float64) until they are asked for. What is
    added may be of several points, along dimension 0.
    """

    def __init__(self, metrics: Sequence[BatchMetric]):
        self.metrics = metrics
        self.totals: list[Any] = [0.0] * 2 * len(metrics)

    def add(self, found: Sequence[Any]) -> None:
        """What ``weighed`` has found of one more batch."""
        for i, value in enumerate(found):
            self.totals[i] += value

    def on_device(self) -> Tensor:
        """Each metric's mean over all batches, float64, without a wait for the device: (points, metrics).

        NaN over nothing.
        """
        n = len(self.metrics)
        if not any(isinstance(total, Tensor) for total in self.totals[:n]):
            return torch.full((1, n), float("nan"), dtype=torch.float64, device="cpu")
        home = self.totals[0].device
        pairs = zip(self.metrics, self.totals[:n], self.totals[n:], strict=True)
        means = [total.to(home) if m.sums else total.to(home) / _to(home, w) for m, total, w in pairs]
        return torch.stack([mean.reshape(-1) for mean in means], dim=1)


def once(function: Callable[[], Any]) -> list[Any]:
    """Of a model that stays where it is: what a function gives there."""
    return [function()]


def total(
    model: ModelWrapper,
    data: Data,
    metrics: Sequence[BatchMetric],
    each: Callable[[Callable[[], Any]], list[Any]] = once,
) -> list[Sums]:
    """The metrics over all batches, in one pass.

    each: calls a function of the model at every point, and gives one result for each, or for all of them together.
    """
    sums: list[Sums] = []
    for batch, items in data.counted(model):
        found = each(partial(_weighed_anew, metrics, model, data, batch, items))
        sums = sums or [Sums(metrics) for _ in found]
        for one, more in zip(sums, found, strict=True):
            one.add(more)
    return sums or [Sums(metrics)]


def measure(
    model: ModelWrapper,
    data: Data,
    metrics: Sequence[BatchMetric],
    each: Callable[[Callable[[], Any]], list[Any]] = once,
) -> list[list[float]]:
    """Each metric's mean over all batches, weighted by their items, in one pass: one list for each point."""
    return [values for sums in total(model, data, metrics, each) for values in sums.on_device().tolist()]
