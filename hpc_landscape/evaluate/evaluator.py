"""Evaluates points: place, warm up batch normalization, measure."""

from __future__ import annotations

import logging
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
from ..model.estimation import adds_up_exactly, exact_statistics
from ..model.folding import OtherFlow
from ..model.placement import Placement
from ..model.sharded import AnyPlacement
from ..model.wrapper import ModelWrapper
from ..ranks.generators import Generators
from ..ranks.team import ALONE, Elsewhere, Team
from ..ranks.torch_state import LOCK, matmul, neutral
from .execution import PLAIN, ExecutionMode, compiled, in_dtype
from .executor import Eager, Executor
from .normalization import Normalization, choose_normalization
from .passes import measure_all
from .share import Share, Undivided
from .stacked import Stacked

log = logging.getLogger(__name__)
DTYPES = {"fp64": torch.float64}  # the others compute points as the parameters are


class Evaluator:
    """Points' coordinates -> the metrics' values there.

    normalization: the policy for batch normalization, or its word; data: what it re-estimates statistics on. seed: of
    what models and metrics draw at a point, the same at each. execution: how the model computes; the placement is made
    for it. A value depends on the point alone. Use inside ``attached()``.
    careful: whether user code leaves more behind in the model than mere passes do (``trial`` finds out). team: the
    ranks that evaluate the same points together, each a part of the batches; divided: whether they can; in_step:
    whether their model is sharded, and called by all of them or by none.
    """

    careful = False
    team: Team = ALONE
    divided = True
    in_step = False

    def __init__(
        self,
        model: ModelWrapper,
        placement: AnyPlacement,
        metrics: Mapping[str, Metric],
        normalization: Normalization | str = "running",
        data: Data | Metric | None = None,
        precision: str = "fp32",
        seed: int = 0,
        execution: ExecutionMode = PLAIN,
    ):
        self.model, self.placement, self.metrics = in_dtype(model, execution.compute_dtype), placement, dict(metrics)
        self.fast = compiled(self.model, execution.compiled) if execution.compiled else self.model
        if isinstance(normalization, str):
            normalization = choose_normalization(normalization, model)(data)
        self.normalization = normalization
        self.precision, self.seed, self.execution = precision, seed % 2**63, execution  # as far as torch counts

    def be_careful(self) -> None:
        """Put everything back before each point, and mix none: what is left behind would be of another."""
        self.careful, self.execution = True, replace(self.execution, interleaved=1)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The model at the placement's points meanwhile; afterwards it is bitwise what it was.

        Other threads wait: the model, the generators and PyTorch's flags are the process's.
        """
        interleaved = self.execution.interleaved > 1
        with (
            LOCK,
            neutral(),
            matmul(self.precision),
            self._generators.preserved(),
            self.placement.attached(self.model.root, interleaved, self._fully, self.model.mode),
        ):
            self._set_up()
            yield

    def _set_up(self) -> None:
        common = self.placement, self._generators, self.seed
        if self.careful and self.divided and self.team.size > 1:
            self.divided = False
            log.info("team         batches are not shared: the model keeps what it has made of each")
        share = Share(self.team, self.divided, self.in_step)
        self._one = Eager(self.fast, *common, bool(self.execution.compiled), self.execution.folded, share)
        self._many: Executor = self._one
        if self.execution.stacked > 1 and isinstance(self.placement, Placement):
            self._many = Stacked(self.model, self.placement, self._generators, self.seed, share)

    def __call__(self, coordinates: Sequence[float]) -> dict[str, Any]:
        """Metric name -> what the metric returns at one point."""
        return self.evaluate([coordinates])[0]

    def evaluate(self, points: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        """The same for several points, at most as many as the execution mode evaluates together.

        Where a metric does not add up over batches they are computed one at a time.
        """
        if not self.is_additive or self.execution.points == 1:
            return [values for point in points for values in self._evaluate([point], alone=True)]
        return self._evaluate(points)

    def _evaluate(self, points: Sequence[Sequence[float]], alone: bool = False) -> list[dict[str, Any]]:
        executor = self._one if alone else self._many
        try:
            with self._arithmetic():
                executor.place(points, self._fully)
                self.normalization.estimate(executor)
                with self.normalization.measuring(self.model), self._exactly():
                    return measure_all(executor, self.model, self.metrics)
        except OtherFlow:
            self._unfold(self.team.fail(OtherFlow.__name__))
        except Elsewhere as error:
            self._unfold(error.faults)
        except Undivided:  # from now on each rank of the team has all of the batches
            log.info("team         batches are not shared: each leaves something for the next, or draws at random")
            self.divided = False
            self._one.leave()
            self._set_up()
        finally:
            self._one.leave()
        return self._evaluate(points, alone)

    def _unfold(self, faults: list[Any]) -> None:
        """From now on nothing is folded, on no rank of the team. Elsewhere where that is not all that is the matter."""
        if any(fault != OtherFlow.__name__ for fault in faults):
            raise Elsewhere(faults)
        self.execution = replace(self.execution, folded=())
        self._one.pairs = ()

    def _exactly(self) -> AbstractContextManager[Any]:
        """While points are measured: layers that normalize by the batch do it exactly, where the model is called."""
        layers = self._one.layers if self.normalization.by_batch and self.execution.eager else []
        by_batch = [layer for layer in layers if layer.training and adds_up_exactly(layer)]
        return exact_statistics(by_batch) if by_batch else nullcontext()

    def statistics(self, coordinates: Sequence[float]) -> Tensor:
        """The batch normalization statistics that the policy gives a point, as one vector on the CPU."""
        with self.at(coordinates):
            self.normalization.estimate(self._one)
            return self._one.read_statistics()[0]

    @contextmanager
    def at_origin(self) -> Iterator[None]:
        """The model at the origin meanwhile, as metrics see it."""
        with self.attached(), self.at([0.0] * self.placement.dimensions):
            self.normalization.estimate(self._one)
            with self.normalization.measuring(self.model):
                yield

    @contextmanager
    def attached_at(self, coordinates: Sequence[float]) -> Iterator[None]:
        """The model attached at one point meanwhile, its statistics as they are in the checkpoint."""
        with self.attached(), self.at(coordinates):
            yield

    @contextmanager
    def at(self, coordinates: Sequence[float]) -> Iterator[None]:
        """The model at this point, whatever was done at the one before."""
        self._one.place([coordinates], self._fully)
        with self._arithmetic():
            yield

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if not self.execution.autocast:
            return nullcontext()
        kind = self.device.type
        alone = self.execution.points == 1  # a cast is of one point's weights
        return torch.autocast(kind, torch.bfloat16, cache_enabled=alone)

    @property
    def is_additive(self) -> bool:
        """Whether a point is passes over data, and nothing else."""
        return not isinstance(self.normalization.data, Metric) and all(
            isinstance(metric, BatchMetric) for metric in self.metrics.values()
        )

    @property
    def _fully(self) -> bool:
        """Whether more than buffers and modes has to be put back before each point."""
        return self.careful or not self.is_additive

    @cached_property
    def _generators(self) -> Generators:
        return Generators(self.devices)

    @property
    def device(self) -> torch.device:
        """Where points are computed, or one of several such."""
        return next(iter(self.placement.views.values())).device

    @cached_property
    def devices(self) -> set[torch.device]:
        """Where points are computed."""
        return {view.device for view in self.placement.views.values()}

    @property
    def device_kind(self) -> str:
        """What kind of device that is; of several kinds, all of them."""
        return ",".join(sorted({device.type for device in self.devices}))


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
