"""The first point tried on one batch, twice: whether a value depends on the point alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.data import Data
from ..errors import UserError, few
from ..metrics.base import BatchMetric
from ..metrics.supervised import Loss
from ..metrics.without import no_gradients
from ..model.batchnorm import batchnorm_layers, statistics
from .evaluator import Evaluator

TOLERANCE = {"cpu": 1e-5}  # relative, of the same sums computed again: kernels may add up in another order
ON_GPU = 1e-3


class Tried(NamedTuple):
    """What the model said to the first batch, its target, each metric's value.

    broken, terms: names, of what in the model is not finite, and of the loss's terms. seconds: that it took.
    """

    output: Any
    target: Any
    values: dict[str, float]
    broken: list[str]
    terms: list[str]
    seconds: float


def try_batch(
    evaluator: Evaluator,
    data: Data,
    metrics: Mapping[str, BatchMetric],
    gradients: bool = False,
    before: Mapping[str, float] | None = None,
) -> Tried:
    """The metrics of the first batch at the origin, twice; the evaluator learns whether it has to be careful.

    gradients: whether they are on where these values will be computed. before: values that have been computed already,
    of this batch at the origin: where they are the same, once is enough. UserError where two differ.
    """
    kind = next((view.device.type for view in evaluator.placement.views.values()), "cpu")
    tolerance, before = TOLERANCE.get(kind, ON_GPU), before or {}
    evaluator.careful, careful = True, evaluator.careful
    try:
        with evaluator.attached():
            tried, left = _once(evaluator, data, metrics, gradients)
            if not all(k in before and _same(value, before[k], tolerance) for k, value in tried.values.items()):
                before = tried.values
                tried, _ = _once(evaluator, data, metrics, gradients)
    finally:
        evaluator.careful = careful
    if left:
        evaluator.be_careful()
    for name, value in tried.values.items():
        _check_same(name, before[name], value, tolerance)
    return tried


def _once(evaluator: Evaluator, data: Data, metrics: Mapping[str, BatchMetric], gradients: bool) -> tuple[Tried, bool]:
    """What is tried, and whether it leaves something behind in the model."""
    origin = [0.0] * evaluator.placement.dimensions
    with evaluator.at(origin), torch.enable_grad() if gradients else no_gradients():
        start = time.perf_counter()
        batch = next(data.on(evaluator.model))
        output, target = data.output(evaluator.model, batch), data.target(batch)
        values = {name: float(metric.batch_mean(output, target).detach()) for name, metric in metrics.items()}
        seconds = time.perf_counter() - start
        finite = all(map(_finite, values.values()))
        losses = [metric for metric in metrics.values() if isinstance(metric, Loss)]
        terms = [term for loss in losses for term in loss.whole(output, target)]
        tried = Tried(output, target, values, [] if finite else _broken(evaluator), terms, seconds)
        return tried, evaluator.placement.left_behind()


def _same(first: float, again: float, tolerance: float) -> bool:
    near = abs(first - again) <= tolerance * max(abs(first), abs(again))
    return first == again or (first != first and again != again) or near


def _check_same(name: str, first: float, again: float, tolerance: float) -> None:
    if _same(first, again, tolerance):
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
    layers = [] if evaluator.normalization.name == "running" else batchnorm_layers(evaluator.model)
    estimated = {id(b) for b in statistics(layers)}
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
