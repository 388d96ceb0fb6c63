"""Passes over the data of a point: first for batch normalization, then for all metrics that add up over batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..data.data import Data
from ..errors import UserError
from ..metrics.base import BatchMetric, Metric, measure
from ..metrics.without import no_gradients
from ..model import batchnorm
from ..model.wrapper import ModelWrapper


def warm_up(model: ModelWrapper, run: Data | Metric, once: bool = False) -> None:
    """Re-estimate the model's batch normalization statistics on data, or on what a metric passes through the model.

    once: each layer is known to be used once in a pass, which is then the same for every batch, as compilation wants
    it.
    """
    if once:
        with no_gradients(), batchnorm.last_batch(model):
            average = batchnorm.Average(batchnorm.statistics(model))
            for batch in run.on(model):
                run.output(model, batch)
                average.add(run.samples(batch))
            average.close()
        return
    with batchnorm.warm_up(model) as statistics:
        if isinstance(run, Data):
            with no_gradients():
                _pass(model, run, statistics)
        else:
            run(model)


def _pass(model: ModelWrapper, data: Data, statistics: batchnorm.WarmUp) -> None:
    for batch in data.on(model):
        samples = data.samples(batch)
        if not samples:
            continue
        statistics.weigh(samples)
        output(model, data, batch)


def output(model: ModelWrapper, data: Data, batch: Any) -> Any:
    """What the model says to a batch; UserError where batch normalization cannot be re-estimated on it."""
    try:
        return data.output(model, batch)
    except ValueError as error:
        if data.samples(batch) > 1:
            raise
        raise UserError(f"batch normalization cannot use a batch of one sample: {error}") from None


def passes(metrics: Mapping[str, Metric]) -> dict[Data, dict[str, BatchMetric]]:
    """The metrics that add up over batches, by the data that they share a pass over."""
    shared: dict[Data, dict[str, BatchMetric]] = {}
    for name, metric in metrics.items():
        if isinstance(metric, BatchMetric):
            shared.setdefault(metric.data, {})[name] = metric
    return shared


def measure_all(
    model: ModelWrapper,
    metrics: Mapping[str, Metric],
    fast: ModelWrapper | None = None,
    start: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Every metric's value; fast: how the model is called in passes over data; start: called before each of them.

    So no metric's random numbers depend on which others there are.
    """
    values: dict[str, Any] = {}
    for data, group in passes(metrics).items():
        start()
        with no_gradients():
            means = measure(fast or model, data, list(group.values()))
        values.update(zip(group, means, strict=True))
    for name, metric in metrics.items():
        if name not in values:
            start()
            values[name] = metric(model)
    return {name: values[name] for name in metrics}
