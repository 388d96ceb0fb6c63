"""Passes over the data: the only loops over batches there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..metrics.metric import BatchMetric
from ..model_interface import batchnorm
from ..problems.problem import Problem, samples


@torch.inference_mode()
def warm_up(problem: Problem, model: nn.Module, batches: Iterable[Any]) -> None:
    """Re-estimate the model's batch normalization statistics on the batches."""
    with batchnorm.warm_up(model) as statistics:
        for batch in batches:
            n = samples(batch)
            statistics.weigh(n)
            try:
                problem.output(model, batch)
            except ValueError as error:
                if n > 1:
                    raise
                raise UserError(f"batch normalization cannot use a batch of one sample: {error}") from None


@torch.inference_mode()
def measure(
    problem: Problem, model: nn.Module, batches: Iterable[Any], metrics: Sequence[BatchMetric]
) -> dict[str, float]:
    """Each metric's mean over all batches, weighted by their items, in one pass.

    Sums are float64 and stay on the device (on the host where it has no float64) until the pass is over.
    """
    totals: list[Tensor | float] = [0.0] * len(metrics)
    items = 0.0
    for batch in batches:
        output, target, weight = problem.output(model, batch), problem.target(batch), problem.items(batch)
        if not weight:
            continue  # a mean over nothing is NaN
        for i, metric in enumerate(metrics):
            mean = metric.batch_mean(output, target)
            totals[i] += (mean.cpu() if mean.device.type == "mps" else mean).double() * weight
        items += weight
    return {
        metric.name: float(total) / items if items else float("nan")
        for metric, total in zip(metrics, totals, strict=True)
    }
