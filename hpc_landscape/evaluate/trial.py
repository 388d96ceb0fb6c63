"""The first point tried on one batch, twice: whether a value depends on the point alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.data import Data
from ..errors import UserError, few
from ..metrics.base import BatchMetric
from ..metrics.supervised import Loss
from ..metrics.without import no_gradients
from ..model.batchnorm import statistics
from .evaluator import Evaluator

TOLERANCE = {"cpu": 1e-5}  # relative, of the same sums computed again: kernels may add up in another order
ON_GPU = 1e-3


class Tried(NamedTuple):
    """What the model said to the first batch, its target, each metric's value.

    broken, terms: names, of what in the model is not finite, and of the loss's terms.
    """

    output: Any
    target: Any
    values: dict[str, float]
    broken: list[str]
    terms: list[str]


def try_batch(evaluator: Evaluator, data: Data, metrics: Mapping[str, BatchMetric], gradients: bool = False) -> Tried:
    """The metrics of the first batch at the origin, twice; the evaluator learns whether it has to be careful.

    gradients: whether they are on where these values will be computed. UserError where the second value is another.
    """
    evaluator.careful, careful = True, evaluator.careful
    try:
        with evaluator.attached():
            first, left = _once(evaluator, data, metrics, gradients)
            again, _ = _once(evaluator, data, metrics, gradients)
    finally:
        evaluator.careful = careful
    if left:
        evaluator.be_careful()
    kind = next((view.device.type for view in evaluator.placement.views.values()), "cpu")
    for name, value in first.values.items():
        _compare(name, value, again.values[name], TOLERANCE.get(kind, ON_GPU))
    return first


def _once(evaluator: Evaluator, data: Data, metrics: Mapping[str, BatchMetric], gradients: bool) -> tuple[Tried, bool]:
    """What is tried, and whether it leaves something behind in the model."""
    origin = [0.0] * evaluator.placement.dimensions
    with evaluator.at(origin), torch.enable_grad() if gradients else no_gradients():
        batch = next(data.on(evaluator.model))
        output, target = data.output(evaluator.model, batch), data.target(batch)
        values = {name: float(metric.batch_mean(output, target).detach()) for name, metric in metrics.items()}
        finite = all(map(_finite, values.values()))
        losses = [metric for metric in metrics.values() if isinstance(metric, Loss)]
        terms = [term for loss in losses for term in loss.whole(output, target)]
        tried = Tried(output, target, values, [] if finite else _broken(evaluator), terms)
        return tried, evaluator.placement.left_behind()


def _compare(name: str, first: float, again: float, tolerance: float) -> None:
    same = first == again or (first != first and again != again)
    if same or abs(first - again) <= tolerance * max(abs(first), abs(again)):
        return
    raise UserError(
        f"the {name or 'metric'} of the same batch at the same point is {first:.6g}, and computed again {again:.6g}: "
        "something has random numbers of its own (a torch.Generator, np.random.Generator or random.Random of the data "
        "set, a transform, the forward or the loss), counts its calls, or writes into its batch. Seed it at each call, "
        "or draw from the generators of torch, NumPy and Python themselves, which are seeded at every point"
    )


def _finite(value: float) -> bool:
    return value - value == 0


def _broken(evaluator: Evaluator) -> list[str]:
    """Parameters that are not finite, and buffers with a NaN (infinities are masks), but for what is re-estimated."""
    root = evaluator.model.root
    estimated = {id(b) for b in statistics(evaluator.model)} if evaluator.normalization.name != "running" else set()
    parameters = [name for name, p in root.named_parameters() if not bool(_numbers(p).isfinite().all())]
    return parameters + [
        name for name, b in root.named_buffers() if id(b) not in estimated and bool(_numbers(b).isnan().any())
    ]


def _numbers(tensor: Tensor) -> Tensor:
    return tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()


def not_finite(tried: Tried) -> str:
    """The line that says so; nothing where the model is finite, or its values are."""
    if not tried.broken:
        return ""
    return (
        f"the model is not finite where it starts: NaN or infinity in {few(tried.broken)}, and so is its value on the "
        "first batch. Is it the checkpoint of a run that has diverged? Take an earlier one"
    )
