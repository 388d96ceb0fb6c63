"""Evaluates points: place, warm up batch normalization, measure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.data import Data
from ..errors import UserError
from ..metrics.base import BatchMetric, Metric
from ..metrics.without import no_gradients
from ..model.batchnorm import batch_statistics, batchnorm_layers, read_statistics, write_statistics
from ..model.placement import Placement
from ..model.wrapper import ModelWrapper
from ..ranks.generators import Generators
from ..ranks.torch_state import LOCK, matmul, neutral
from .execution import PLAIN, ExecutionMode, compiled, lowered
from .interleaved import InTurn
from .passes import measure_all, passes, warm_up
from .stacked import Block

DTYPES = {"fp64": torch.float64}  # the others compute points as the parameters are


class Evaluator:
    """A point's coordinates -> the metrics' values there.

    bn: ``warmup`` on warmup_data, ``running``, ``batch``, or ``none`` for a model without running statistics. seed: of
    what models and metrics draw at a point, the same at each. form: how the model computes; the placement is made for
    it. A value depends on the point alone. Use inside ``attached()``.
    careful: whether user code leaves more behind in the model than mere passes do (``trial`` finds out).
    """

    careful = False

    def __init__(
        self,
        model: ModelWrapper,
        placement: Placement,
        metrics: Mapping[str, Metric],
        bn: str = "running",
        warmup_data: Data | Metric | None = None,
        precision: str = "fp32",
        seed: int = 0,
        form: ExecutionMode = PLAIN,
    ):
        self.model, self.placement, self.metrics = lowered(model, form.low), placement, dict(metrics)
        self.fast = compiled(self.model) if form.compiled else self.model
        self.bn = bn if batchnorm_layers(model) else "none"
        self.warmup_data = warmup_data
        self.precision, self.seed, self.form = precision, seed % 2**63, form  # as far as torch counts

    def be_careful(self) -> None:
        """Put everything back before each point, and mix none: what is left behind would be of another."""
        self.careful, self.form = True, replace(self.form, interleaved=1)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The model at the placement's points meanwhile; afterwards it is bitwise what it was.

        Other threads wait: the model, the generators and PyTorch's flags are the process's.
        """
        with (
            LOCK,
            neutral(),
            matmul(self.precision),
            self._generators.kept(),
            self.placement.attached(self.model.root, self.form.interleaved > 1, self._fully, self.model.mode),
        ):
            self._block = Block(self.model, self.placement.stacked) if self.form.block > 1 else None
            yield

    def __call__(self, coordinates: Sequence[float], statistics: Tensor | None = None) -> dict[str, Any]:
        """Metric name -> what the metric returns. statistics: batch normalization's, from an earlier ``warm_up``."""
        if self.form.block > 1 and self._is_additive:
            return self.block([coordinates])[0]
        with self.at(coordinates), self._normalizing(statistics):
            return measure_all(self.model, self.metrics, self.fast, self._seed)

    def block(self, points: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        """The same for several points, at most as many as the form evaluates together.

        Metrics that do not add up over batches are computed one point at a time.
        """
        if self.form.points == 1 or len(points) == 1 == self.form.block or not self._is_additive:
            return [self(coordinates) for coordinates in points]
        with self._arithmetic():
            return self._stacked(points) if self.form.block > 1 else self._in_turn(points)

    def _stacked(self, points: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        """A block that is not full is filled up, so that a value does not depend on how many neighbours it has."""
        self._seed()
        self.placement.restore(self._fully)
        for row in range(self.form.block):
            self.placement.place(points[min(row, len(points) - 1)], row)
        if self.bn == "warmup":
            self._block.warm_up(self.warmup_data)
        with batch_statistics(self.model) if self.bn == "batch" else nullcontext():
            values = {}
            for data, group in passes(self.metrics).items():
                self._seed()
                values.update(zip(group, self._block.measure(data, list(group.values())), strict=True))
        return [{name: float(values[name][row]) for name in self.metrics} for row in range(len(points))]

    def _in_turn(self, points: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        """Each as if alone, batch by batch."""
        self._seed()
        found: list[dict[str, Any]] = [{} for _ in points]
        try:
            for row, coordinates in enumerate(points):
                self.placement.select(row)
                self.placement.restore(full=False)
                self.placement.place(coordinates, row)
            turns = InTurn(self.fast, self.placement, len(points), self._generators)
            with no_gradients():
                if self.bn == "warmup":
                    turns.warm_up(self.warmup_data, self.form.compiled)
                with batch_statistics(self.model) if self.bn == "batch" else nullcontext():
                    for data, group in passes(self.metrics).items():
                        turns.start()
                        for values, means in zip(found, turns.measure(data, list(group.values())), strict=True):
                            values.update(zip(group, means, strict=True))
        finally:
            self.placement.select(0)  # where a point alone is placed
        return [{name: values[name] for name in self.metrics} for values in found]

    def warm_up(self, coordinates: Sequence[float]) -> Tensor:
        """The batch normalization statistics of a point, from the warm-up data."""
        with self.at(coordinates):
            warm_up(self.model, self.warmup_data)
        return read_statistics(self.model)

    @contextmanager
    def at_origin(self) -> Iterator[None]:
        """The model at the origin meanwhile, as metrics see it."""
        with self.attached(), self.at([0.0] * self.placement.dimensions), self._normalizing():
            yield

    @contextmanager
    def attached_at(self, coordinates: Sequence[float]) -> Iterator[None]:
        """The model attached at one point meanwhile, its statistics as they are in the checkpoint."""
        with self.attached(), self.at(coordinates):
            yield

    @contextmanager
    def _normalizing(self, statistics: Tensor | None = None) -> Iterator[None]:
        """Batch normalization as it is to be at the point that the model is at."""
        if statistics is not None:
            write_statistics(self.model, statistics)
        elif self.bn == "warmup":
            warm_up(self.fast, self.warmup_data, once=self.form.compiled)
        with batch_statistics(self.model) if self.bn == "batch" else nullcontext():
            yield

    @contextmanager
    def at(self, coordinates: Sequence[float]) -> Iterator[None]:
        """The model at this point, whatever was done at the one before."""
        self._seed()
        self.placement.restore(self._fully)
        self.placement.place(coordinates)
        with self._arithmetic():
            yield

    def _seed(self) -> None:
        """All random numbers begin anew, and no cast of another point's weights is left."""
        self._generators.seed(self.seed)
        torch.clear_autocast_cache()

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if not self.form.autocast:
            return nullcontext()
        kind = next(iter(self._devices)).type
        alone = self.form.points == 1  # a cast is of one point's weights
        return torch.autocast(kind, torch.bfloat16, cache_enabled=alone)

    @property
    def _is_additive(self) -> bool:
        """Whether a point is passes over data, and nothing else."""
        return not isinstance(self.warmup_data, Metric) and all(
            isinstance(metric, BatchMetric) for metric in self.metrics.values()
        )

    @property
    def _fully(self) -> bool:
        """Whether more than buffers and modes has to be put back before each point."""
        return self.careful or not self._is_additive

    @cached_property
    def _generators(self) -> Generators:
        return Generators(self._devices)

    @cached_property
    def _devices(self) -> set[torch.device]:
        return {view.device for view in self.placement.views.values()}


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
