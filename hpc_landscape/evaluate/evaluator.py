"""Evaluates points: place, warm up batch normalization, measure."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..metrics.metric import BatchMetric, Metric
from ..model_interface.batchnorm import batch_statistics
from ..model_interface.model_wrapper import ModelWrapper
from ..model_interface.subspace import Subspace
from ..problems.problem import Problem
from .passes import measure, warm_up

DTYPES = {"fp64": torch.float64}  # the others compute points as the parameters are


class Evaluator:
    """A point's coordinates -> the metrics' values there, by the problem's model.

    bn: ``warmup``, ``running``, ``batch``, or ``none`` for a model without running statistics. data, warmup_data:
    batches on the subspace's device. A value depends on the point alone. Use inside ``attached()``.
    """

    def __init__(
        self,
        problem: Problem,
        subspace: Subspace,
        data: Iterable[Any],
        warmup_data: Iterable[Any],
        bn: str,
        precision: str = "fp32",
        metrics: Sequence[Metric] = (),
    ):
        self.problem, self.model, self.subspace = problem, problem.model, subspace
        self.wrapper = ModelWrapper(problem.model)
        self.loss = problem.loss
        if isinstance(self.loss, torch.nn.Module):  # class weights, say
            self.loss = copy.deepcopy(self.loss).to(subspace.device, subspace.dtype)
        self.metrics = metrics
        self.data, self.warmup_data = data, warmup_data
        self.bn, self.precision = bn, precision

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The model at the subspace's points meanwhile; afterwards it is bitwise what it was."""
        with self.subspace.attached(self.model), _matmul(self.precision):
            yield

    def __call__(self, coordinates: Sequence[float]) -> dict[str, np.ndarray]:
        """Metric name -> value, float64, of the metric's shape. NaN and infinity are values."""
        self.subspace.place(coordinates)
        with self._arithmetic():
            if self.bn == "warmup":
                warm_up(self.problem, self.model, self.warmup_data)
            with batch_statistics(self.model) if self.bn == "batch" else nullcontext():
                additive = [m for m in self.metrics if isinstance(m, BatchMetric)]
                values = measure(self.problem, self.model, self.data, additive) if additive else {}
                values |= {m.name: m(self.wrapper) for m in self.metrics if m.name not in values}
        return {name: np.asarray(_host(value), dtype=np.float64) for name, value in values.items()}

    def first_batch(self) -> tuple[Any, Any, Any]:
        """(output, target, loss) of the first batch at the origin: whether model, data and loss fit each other."""
        with self.attached(), torch.inference_mode(), self._arithmetic():
            self.subspace.place([0.0] * self.subspace.dimensions)
            batch = next(iter(self.data))
            output, target = self.problem.output(self.model, batch), self.problem.target(batch)
            return output, target, self.loss(output, target)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        device = next(iter(self.subspace.views.values())).device.type
        return torch.autocast(device, torch.bfloat16) if self.precision == "bf16" else nullcontext()


def _host(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


@contextmanager
def _matmul(precision: str) -> Iterator[None]:
    """TF32 where it is asked for, and nowhere else."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def check_precision(precision: str, device: torch.device) -> None:
    """Raise UserError where the device has no such arithmetic."""
    if precision == "fp64" and device.type == "mps":
        raise UserError("--precision fp64: mps has no float64; use --device cpu")
    if precision == "tf32" and device.type != "cuda":
        raise UserError(f"--precision tf32: only NVIDIA GPUs have it, the device is {device.type}; use fp32")
