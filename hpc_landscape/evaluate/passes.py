"""The pass over the data in which batch normalization's statistics are re-estimated; the other one measures.

That is ``metrics.base.measure``: a metric that is called alone has it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ..data.data import Data, fresh
from ..errors import UserError
from ..metrics.base import BatchMetric, Metric, measure
from ..metrics.without import no_gradients
from ..model.wrapper import ModelWrapper
from .executor import Executor


def warm_up(executor: Executor, run: Data | Metric) -> None:
    """Re-estimate every point's statistics on data, or on what a metric passes through the model."""
    model = executor.model
    with executor.estimation() as estimate:
        if not isinstance(run, Data):
            executor.each(partial(run, model))
            return
        with no_gradients():
            for batch, samples in executor.sampled(run):
                estimate.begin(samples)
                executor.each(partial(_pass, model, run, batch))
                estimate.end(samples)


def _pass(model: ModelWrapper, data: Data, batch: Any) -> None:
    """What the model says while it warms up is not looked at."""
    output(model, data, fresh(batch))


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


def measure_all(executor: Executor, model: ModelWrapper, metrics: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """Every metric's value at every point; model: as metrics that make no such pass call it.

    Those, of a team, are computed by its first rank alone: they want all of the data. Random numbers begin anew before
    each pass, and each metric: none depends on which others there are.
    """
    found: list[dict[str, Any]] = [{} for _ in executor.points]
    for data, group in passes(metrics).items():
        executor.start_pass()
        with no_gradients(), executor.folding():
            batches, together = executor.counted(data), executor.share.together
            rows = measure(executor.model, data, list(group.values()), executor.each, batches, together)
        rows = rows * len(found) if len(rows) == 1 else rows[: len(found)]  # no batch at all; a stack that is not full
        for values, row in zip(found, rows, strict=True):
            values.update(zip(group, row, strict=True))
    for name, metric in metrics.items():
        if not isinstance(metric, BatchMetric) and executor.share.team.leads:
            executor.start_pass()
            for values, value in zip(found, executor.each(partial(metric, model)), strict=True):
                values[name] = value
    return [{name: values[name] for name in metrics if name in values} for values in found]
