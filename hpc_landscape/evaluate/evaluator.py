"""Evaluates points: place, warm up batch normalization, measure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..metrics.data import Data
from ..metrics.metric import BatchMetric, Metric
from ..model_interface.batchnorm import batch_statistics, batchnorm_layers, read_statistics, write_statistics
from ..model_interface.model_wrapper import ModelWrapper
from ..model_interface.subspace import Subspace
from .block import Block
from .form import PLAIN, Form, compiled, lowered
from .passes import measure_all, passes, warm_up

DTYPES = {"fp64": torch.float64}  # the others compute points as the parameters are


class Evaluator:
    """A point's coordinates -> the metrics' values there.

    bn: ``warmup`` on warmup_data, ``running``, ``batch``, or ``none`` for a model without running statistics. seed: of
    what models and metrics draw at a point, the same at each. form: how the model computes; the subspace is made for
    it. A value depends on the point alone. Use inside ``attached()``.
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
        form: Form = PLAIN,
    ):
        self.model, self.subspace, self.metrics = lowered(model, form.low), subspace, dict(metrics)
        self.fast = compiled(self.model) if form.compiled else self.model
        self.bn = bn if batchnorm_layers(model.root) else "none"
        self.warmup_data = warmup_data
        self.precision, self.seed, self.form = precision, seed % 2**63, form  # as far as torch counts

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The model at the subspace's points meanwhile; afterwards it is bitwise what it was."""
        with (
            self.subspace.attached(self.model.root, guarded=self._thoroughly),
            _matmul(self.precision),
            _own_random_numbers(self._devices),
        ):
            self._block = Block(self.model, self.subspace.stacked) if self.form.block > 1 else None
            yield

    def __call__(self, coordinates: Sequence[float], statistics: Tensor | None = None) -> dict[str, Any]:
        """Metric name -> what the metric returns. statistics: batch normalization's, from an earlier ``warm_up``."""
        if self.form.block > 1:
            return self.block([coordinates])[0]
        with self._at(coordinates), self._normalizing(statistics):
            return measure_all(self.model, self.metrics, self.fast)

    def block(self, points: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        """The same for several points, at most as many as the form's block; in one pass where the form says so.

        A block that is not full is filled up, so that a value does not depend on how many neighbours it has.
        """
        if self.form.block == 1:
            return [self(coordinates) for coordinates in points]
        self._seed()
        self.subspace.settle(False)
        for row in range(self.form.block):
            self.subspace.place(points[min(row, len(points) - 1)], row)
        with self._arithmetic():
            if self.bn == "warmup":
                self._block.warm_up(self.warmup_data)
            with batch_statistics(self.model.root) if self.bn == "batch" else nullcontext():
                values = {}
                for data, group in passes(self.metrics).items():
                    values.update(zip(group, self._block.measure(data, list(group.values())), strict=True))
        return [{name: float(values[name][row]) for name in self.metrics} for row in range(len(points))]

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
            warm_up(self.fast, self.warmup_data, self.metrics.values(), once=self.form.compiled)
        with batch_statistics(self.model.root) if self.bn == "batch" else nullcontext():
            yield

    @contextmanager
    def _at(self, coordinates: Sequence[float]) -> Iterator[None]:
        """The model at this point, whatever was done at the one before."""
        self._seed()
        self.subspace.settle(self._thoroughly)
        if self._thoroughly:
            random.seed(self.seed)
            np.random.seed(self.seed % 2**32)
        self.subspace.place(coordinates)
        with self._arithmetic():
            yield

    @property
    def _thoroughly(self) -> bool:
        """Whether code that is not ours may do with the model what it likes."""
        return isinstance(self.warmup_data, Metric) or not all(
            isinstance(metric, BatchMetric) for metric in self.metrics.values()
        )

    def _seed(self) -> None:
        """Start torch's generators anew; ``torch.manual_seed`` takes ten times as long where there is no GPU."""
        torch.default_generator.manual_seed(self.seed)
        if any(device.type != "cpu" for device in self._devices):
            torch.manual_seed(self.seed)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if not self.form.autocast:
            return nullcontext()
        return torch.autocast(next(iter(self._devices)).type, torch.bfloat16)

    @cached_property
    def _devices(self) -> set[torch.device]:
        return {view.device for view in self.subspace.views.values()}


def as_array(value: Any) -> np.ndarray:
    """What a metric returned, float64; a tuple of equal shapes becomes the first axis."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().double().numpy()
    elif isinstance(value, (tuple, list)):
        value = [as_array(part) for part in value]
    elif value is None:
        raise UserError("the metric returned None: it is to return a number, an array, or a tuple of these")
    return np.asarray(value, dtype=np.float64)


def stack(values: list[Any], shape: tuple[int, ...]) -> Any:
    """What the metric returned at each point as one array; as a tuple of arrays where it is a tuple of unlike parts."""
    first = values[0]
    if _ragged(first):
        return tuple(stack([value[k] for value in values], shape) for k in range(len(first)))
    arrays = [as_array(value) for value in values]
    if len({array.shape for array in arrays}) > 1:
        raise UserError("the metric's values differ in shape from point to point")
    return np.stack(arrays).reshape(shape + arrays[0].shape)


def _ragged(value: Any) -> bool:
    """Whether it is a tuple of unlike shapes, or holds one."""
    return isinstance(value, tuple) and (any(map(_ragged, value)) or len({as_array(part).shape for part in value}) > 1)


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
