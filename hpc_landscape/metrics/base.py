"""What a metric is."""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
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


Counted = tuple[Any, Any, "dict[BatchMetric, Any] | None"]  # a batch, its items, what is known of its weights


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
    weighs_targets = False  # whether a batch's weight is the same at every point, by its target and the output's shape
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


def weighed(
    metrics: Sequence[BatchMetric],
    model: ModelWrapper,
    data: Data,
    batch: object,
    items: object,
    known: dict[BatchMetric, Any] | None = None,
) -> list[Any]:
    """Each metric's mean over a batch of so many items, in float64, and then what each weighs. Without gradients.

    What several are parts of is computed once. known: this batch's weights that are the same at every point.
    """
    output, target = data.output(model, batch), data.target(batch)
    wholes: dict[Any, Any] = {}
    means, weights = [], []
    for metric in metrics:
        if (whole := metric.whole) is None:
            mean = metric.batch_mean(output, target)
        else:
            if whole not in wholes:
                wholes[whole] = whole(output, target)
            mean = metric.part(wholes[whole])
        weight = None if known is None else known.get(metric)
        if weight is None:
            weight = _weight(metric, output, target, items, data, batch)
            if known is not None and metric.weighs_targets:
                here = isinstance(weight, Tensor) and weight.device.type == "cpu"  # elsewhere nobody waits for it
                known[metric] = weight = float(weight) if here else weight
        means.append(_double(mean))
        weights.append(weight)
    return means + weights


def _weight(metric: BatchMetric, output: Any, target: Any, items: Any, data: Data, batch: object) -> Any:
    """A batch's weight: a number, or where only the device knows a 0-d tensor in float64."""
    weight = metric.batch_weight(output, target, items)
    if isinstance(weight, Tensor):
        return _double(weight).reshape(())
    return data.unknown(batch) if weight is None else weight


def _double(number: Tensor) -> Tensor:
    """A copy, that nothing larger hangs on; on the host where the device has no such numbers."""
    if number.device.type == "mps":
        number = number.cpu()
    return number.to(torch.float64, copy=True)


def _weighed_anew(
    metrics: Sequence[BatchMetric],
    model: ModelWrapper,
    data: Data,
    batch: object,
    items: object,
    known: dict[BatchMetric, Any] | None,
) -> list[Any]:
    """The same; the user's code may change the batch that it is given."""
    return weighed(metrics, model, data, fresh(batch), items, known)


class Sums:
    """Metrics over batches: means by their weights. For use without gradients.

    They stay on the device until they are asked for. What is added may be of several points, along dimension 0.
    """

    def __init__(self, metrics: Sequence[BatchMetric]):
        self.metrics = metrics
        self.batches: list[Sequence[Any]] = []

    def add(self, found: Sequence[Any]) -> None:
        """What ``weighed`` has found of one more batch."""
        self.batches.append(found)

    def values(self) -> list[list[float]]:
        """Each metric's mean over all batches, one list for each point."""
        return [means(self.metrics, batches) for batches in self.read()]

    def read(self) -> list[list[list[float]]]:
        """What was added: of each point, each batch's means and weights. The only wait for the device."""
        if not self.batches:
            return [[]]
        tensors = [value for batch in self.batches for value in batch if isinstance(value, Tensor)]
        home, points = tensors[0].device, max(value.numel() for value in tensors)
        if len({value.device for value in tensors}) > 1:
            tensors = [value.to(home) for value in tensors]
        if not any(value.ndim for value in tensors):
            return [self._filled(iter(torch.stack(tensors).tolist()))]
        numbers = torch.stack([value.reshape(-1).expand(points) for value in tensors]).T.tolist()
        return [self._filled(iter(row)) for row in numbers]

    def _filled(self, read: Iterator[float]) -> list[list[float]]:
        """The batches of a point, with what was read of it in place of tensors."""
        return [[next(read) if isinstance(value, Tensor) else value for value in batch] for batch in self.batches]


def means(metrics: Sequence[BatchMetric], batches: list[list[float]]) -> list[float]:
    """Each metric's mean over a point's batches, in plain numbers, which there are few of; NaN over nothing.

    batches: the means of each, and then its weights. The mean of one that weighs nothing may be NaN, and counts for
    nothing.
    """
    return [
        _mean(metric, [(batch[i], batch[len(metrics) + i]) for batch in batches]) for i, metric in enumerate(metrics)
    ]


def _mean(metric: BatchMetric, weighted: list[tuple[float, float]]) -> float:
    total = items = 0.0
    for mean, weight in weighted:
        if weight:
            total += mean * weight
            items += weight
    return total if metric.sums else total / items if items else float("nan")


def counted(model: ModelWrapper, data: Data) -> Iterator[Counted]:
    """The batches, the items of each, and that no weights are known."""
    return ((batch, items, None) for _, batch, items in data.counted(model))


def once(function: Callable[[], Any]) -> list[Any]:
    """Of a model that stays where it is: what a function gives there."""
    return [function()]


def total(
    model: ModelWrapper,
    data: Data,
    metrics: Sequence[BatchMetric],
    each: Callable[[Callable[[], Any]], list[Any]] = once,
    batches: Iterable[Counted] | None = None,
) -> list[Sums]:
    """The metrics over all batches, in one pass.

    each: calls a function of the model at every point, and gives one result for each, or for all of them together.
    batches: those of the data, where they have been counted before.
    """
    sums: list[Sums] = []
    for batch, items, known in counted(model, data) if batches is None else batches:
        found = each(partial(_weighed_anew, metrics, model, data, batch, items, known))
        sums = sums or [Sums(metrics) for _ in found]
        for one, more in zip(sums, found, strict=True):
            one.add(more)
    return sums or [Sums(metrics)]


def measure(
    model: ModelWrapper,
    data: Data,
    metrics: Sequence[BatchMetric],
    each: Callable[[Callable[[], Any]], list[Any]] = once,
    batches: Iterable[Counted] | None = None,
    together: Callable[[list[Any]], list[Any]] = lambda read: read,
) -> list[list[float]]:
    """Each metric's mean over all batches, weighted by their items, in one pass: one list for each point.

    together: makes of what these batches gave at each point what all did, where others have a part of them.
    """
    read = [batches for sums in total(model, data, metrics, each, batches) for batches in sums.read()]
    return [means(metrics, batches) for batches in together(read)]
