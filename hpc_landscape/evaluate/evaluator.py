"""Evaluates points: place, warm up batch normalization, measure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..metrics.data import Data
from ..metrics.metric import BatchMetric, Metric
from ..model_interface.batchnorm import batch_statistics, read_statistics, write_statistics
from ..model_interface.model_wrapper import ModelWrapper
from ..model_interface.subspace import Subspace
from .passes import measure_all, warm_up

DTYPES = {"fp64": torch.float64}  # the others compute points as the parameters are


class Evaluator:
    """A point's coordinates -> the metrics' values there.

    bn: ``warmup`` on warmup_data, ``running``, ``batch``, or ``none`` for a model without running statistics. seed: of
    what models and metrics draw at a point, the same at each. A value depends on the point alone. Use inside
    ``attached()``.
    """

    def __init__(
        self,
        model: ModelWrapper,
        subspace: Subspace,
        metrics: Mapping[str, Metric],
        bn: str = "running",
        warmup_data: Data | Metric | None = None,
        precision: str = "fp32",
        seed: int = 0,
    ):
        self.model, self.subspace, self.metrics = model, subspace, dict(metrics)
        self.bn, self.warmup_data = bn, warmup_data
        self.precision, self.seed = precision, seed

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The model at the subspace's points meanwhile; afterwards it is bitwise what it was."""
        with self.subspace.attached(self.model.root), _matmul(self.precision), _own_random_numbers(self._devices):
            yield

    def __call__(self, coordinates: Sequence[float], statistics: Tensor | None = None) -> dict[str, Any]:
        """Metric name -> what the metric returns. statistics: batch normalization's, from an earlier ``warm_up``."""
        with self._at(coordinates), self._normalizing(statistics):
            return measure_all(self.model, self.metrics)

    def warm_up(self, coordinates: Sequence[float]) -> Tensor:
        """The batch normalization statistics of a point, from the warm-up data."""
        with self._at(coordinates):
            warm_up(self.model, self.warmup_data)
        return read_statistics(self.model.root)

    @contextmanager
    def at_origin(self, normalizing: bool = True) -> Iterator[None]:
        """The model at the origin meanwhile, as metrics see it; or without the statistics of this point."""
        origin = [0.0] * self.subspace.dimensions
        with self.attached(), self._at(origin), self._normalizing() if normalizing else nullcontext():
            yield

    @contextmanager
    def _normalizing(self, statistics: Tensor | None = None) -> Iterator[None]:
        """Batch normalization as it is to be at the point that the model is at."""
        if statistics is not None:
            write_statistics(self.model.root, statistics)
        elif self.bn == "warmup":
            warm_up(self.model, self.warmup_data, self.metrics.values())
        with batch_statistics(self.model.root) if self.bn == "batch" else nullcontext():
            yield

    @contextmanager
    def _at(self, coordinates: Sequence[float]) -> Iterator[None]:
        """The model at this point, whatever was done at the one before."""
        torch.manual_seed(self.seed)
        if not all(isinstance(metric, BatchMetric) for metric in self.metrics.values()):
            random.seed(self.seed)
            np.random.seed(self.seed % 2**32)
            self.subspace.settle()
        self.subspace.place(coordinates)
        with self._arithmetic():
            yield

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(next(iter(self._devices)).type, torch.bfloat16)

    @property
    def _devices(self) -> set[torch.device]:
        return {view.device for view in self.subspace.views.values()}


def as_array(value: Any) -> np.ndarray:
    """What a metric returned, float64; a tuple of equal shapes becomes the first axis."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().double().numpy()
    elif isinstance(value, (tuple, list)):
        value = [as_array(part) for part in value]
    return np.asarray(value, dtype=np.float64)


def stack(values: list[Any], shape: tuple[int, ...]) -> Any:
    """What the metric returned at each point as one array; as a tuple of arrays where it is a tuple of unlike parts."""
    first = values[0]
    if isinstance(first, tuple) and len({as_array(part).shape for part in first}) > 1:
        return tuple(stack([value[k] for value in values], shape) for k in range(len(first)))
    arrays = [as_array(value) for value in values]
    if len({array.shape for array in arrays}) > 1:
        raise UserError("the metric's values differ in shape from point to point")
    return np.stack(arrays).reshape(shape + arrays[0].shape)


@contextmanager
def _own_random_numbers(devices: Iterable[torch.device]) -> Iterator[None]:
    """What is drawn meanwhile leaves the user's generators as they were."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


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
