"""A metric over a frame: the library's face of the campaign."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch

from ..data.batches import Batches, StoredBatches
from ..data.data import Data
from ..data.faults import Patience
from ..data.sets import Sets
from ..errors import UserError, warn
from ..evaluate.build import EvaluatorBuilder, takes_images
from ..evaluate.evaluator import DTYPES, Evaluator, stack
from ..evaluate.exactness import ExecutionErrors
from ..evaluate.execution import PLAIN, ExecutionMode
from ..evaluate.normalization import Given, Normalization, Running, WarmUp
from ..evaluate.trial import not_finite, try_batch
from ..evaluate.tune import recorded
from ..metrics import BatchMetric, Criterion, DataMetric, Metric, MetricPipeline
from ..metrics.criterion import loss_on
from ..metrics.supervised import Loss
from ..metrics.trial import check_loss
from ..model.batchnorm import batchnorm_layers
from ..model.modes import EVAL, MODES, TRAIN_WITHOUT_DROPOUT, only_in_train_mode
from ..model.placement import Placement
from ..model.wrapper import ModelWrapper
from ..progress import Progress
from ..ranks.base import Comm
from ..ranks.device import check_precision, shared_gpus
from ..schedule.strided import Strided
from ..setting_groups import SpeedSettings
from ..store.exactness import GIVEN_UP
from ..store.layout import Trajectory
from ..store.memory import MemoryWriter
from .failures import Attempts
from .fallback import Choice
from .frame import Frame
from .loop import Campaign
from .modes import first_mode, tuned
from .prepare import open_file
from .storing import compute_stored, name_of

AnyMetric = Metric | Callable[[ModelWrapper], Any]


@dataclasses.dataclass(frozen=True)
class Request:
    """How it is to be computed. device: None: where each parameter is. progress: whether to show how far it is.

    path: of a file that values are brought to as they come, and that is gone on with; empty: they stay in memory.
    attributes, trajectory: what else the file is to say.
    """

    device: torch.device | None = None
    precision: str = "fp32"
    speed: SpeedSettings = dataclasses.field(default_factory=SpeedSettings)
    seed: int = 0
    progress: bool = False
    path: str = ""
    overwrite: bool = False
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    trajectory: Trajectory | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """In which points are computed; None: as the parameters are."""
        return DTYPES.get(self.precision)

    @property
    def plain(self) -> bool:
        """Whether nothing is asked for but the plain way; TF32 is no other way, but less exact."""
        speed = self.speed
        return not (speed.channels_last or speed.compile or speed.block or speed.tune or self.precision == "bf16")

    @functools.cached_property
    def stored(self) -> Mapping[str, Any] | None:
        """What the file says of itself that is gone on with; read once."""
        found = open_file(self.path, self.overwrite, None, warn) if self.path else None
        return None if found is None else found.attributes


class FrameSubject:
    """A frame's model with a metric of it, for the builder of evaluators."""

    hint = ""

    def __init__(self, frame: Frame, metric: BatchMetric):
        self.frame, self.metric, self.data = frame, metric, metric.data
        self.model, self.own_forward = frame.model, metric.data.forward is not None
        self.point_bytes = frame.point_bytes

    def placement(self, device: torch.device | None, dtype: torch.dtype | None, mode: ExecutionMode) -> Placement:
        return self.frame.placement(device, dtype, mode)

    def on(self, batches: Any) -> Data:
        """Batches read as the metric's data are."""
        other = copy.copy(self.data)
        other.batches = batches
        return other

    def trial(self, data: Data) -> Metric:
        return with_data(self.metric, data)


def with_data(metric: Any, data: Data) -> Any:
    """The metric on other data."""
    other = copy.copy(metric)
    other.data = data
    return other


def compute(frame: Frame, metric: AnyMetric, policy: Normalization, request: Request) -> tuple[Any, ExecutionErrors]:
    """The metric at every point of the grid, on every rank: float64, the axes' shape and then the metric's own.

    And how far a fast way's values are from those of the plain one, which is taken where that is too much.
    """
    comm, grid = frame.comm, frame.grid
    with comm.raise_on_all_ranks(any_error=True):
        if request.device is not None:
            check_precision(request.precision, request.device)
    evaluator, choice = _evaluator(frame, metric, policy, request)
    with comm.raise_on_all_ranks(any_error=True), _naming_the_mode(evaluator):
        if comm.is_root:
            _try_first_batch(evaluator, grid.size)
        _check_losses(evaluator)
    if comm.bcast(evaluator.careful):
        evaluator.be_careful()
    errors, why = ExecutionErrors(), ""
    if choice is not None:
        there = comm.from_root(lambda: request.stored, any_error=True)
        evaluator, errors, why = choice.settle(there, lambda text: _warn(f"computed {text}", comm))
    with _progress(request, grid.size if request.path else -(-grid.size // comm.size), comm) as update:
        if request.path:
            attributes = {**request.attributes, **errors.attributes(), **({GIVEN_UP: why} if why else {})}
            stored = request.path, request.overwrite, attributes, request.trajectory
            return compute_stored(frame, evaluator, *stored, update), errors
        writer, name = MemoryWriter(), name_of(metric)
        attempts = Attempts(evaluator, grid, lambda values: values[name], Patience())
        mine = Strided(np.arange(grid.size), comm.rank, comm.size)
        with comm.raise_on_all_ranks(any_error=True), _naming_the_mode(evaluator):
            Campaign(mine, attempts, writer, on_points=lambda points, _: update(len(points))).run()
    values = {i: value for part in comm.allgather(writer.values) for i, value in part.items()}
    return stack([values[i] for i in range(grid.size)], grid.shape), errors


@contextmanager
def _progress(request: Request, points: int, comm: Comm) -> Iterator[Callable[[int], None]]:
    """Call it with how many points more are done."""
    progress = Progress(points, 0, shown=request.progress and comm.is_root)
    try:
        yield lambda count: progress.update(progress.done + count)
    finally:
        progress.close()


def _evaluator(
    frame: Frame, metric: AnyMetric, policy: Normalization, request: Request
) -> tuple[Evaluator, Choice | None]:
    """In the mode that is asked for, as far as model and metric can be computed so; else plain, with a warning.

    And the choice between it and the plain one, where it is less exact.
    """
    if isinstance(metric, BatchMetric):
        if not (request.plain and request.precision != "tf32"):
            return _fast(frame, metric, policy, request)
        if _gains(frame, metric, request):
            with suppress(Exception):  # of all ranks alike; what is wrong shows in the plain way
                return _fast(frame, metric, policy, request)
    if not request.plain:
        what = f"{getattr(metric, 'name', type(metric).__name__)} does not add up over batches"
        _warn(f"{what}: it is computed one point at a time, in the plain way", frame.comm)
    with frame.comm.raise_on_all_ranks(any_error=True):
        there = on_device(metric, frame.model, request)
    placement = frame.placement(request.device, request.dtype, PLAIN)
    policy = _on_same_data(policy, metric, there)
    named = {name_of(metric): there}
    return Evaluator(frame.model, placement, named, policy, None, request.precision, request.seed), None


def _gains(frame: Frame, metric: BatchMetric, request: Request) -> bool:
    """Whether a way that is as exact as the plain one may be faster: of images, that are all at hand."""
    return takes_images(frame.model.root) and metric.data.kept and request.device is not None


def _warn(text: str, comm: Comm) -> None:
    """A warning, once for all ranks."""
    if comm.is_root:
        warn(text)


def _on_same_data(policy: Normalization, metric: Any, there: Any) -> Normalization:
    """The policy; where its data are the metric's, on these where they are now."""
    if policy.data is None or policy.data is not getattr(metric, "data", None):
        return policy
    return type(policy)(there.data)


def _known(request: Request) -> list[torch.device]:
    return [] if request.device is None else [request.device]


def _fast(frame: Frame, metric: BatchMetric, policy: Normalization, request: Request) -> tuple[Evaluator, Choice]:
    """In the first mode that works, the one asked for first; the same on every rank."""
    comm, batches, sharers = frame.comm, metric.data.batches, shared_gpus(frame.comm, _known(request))
    subject = FrameSubject(frame, with_loss(metric, frame.model, request))
    builder = EvaluatorBuilder(
        subject,
        Sets({"": batches if isinstance(batches, Batches) else _held(batches)}, None, sharers=sharers),
        request.device,
        type(policy) if policy.by_batch else Running,
        *(request.precision, request.seed, request.speed),
        is_additive=True,
        points=-(-frame.grid.size // comm.size),
    )
    stored = comm.from_root(lambda: request.stored, any_error=True)
    if request.speed.tune:
        choice, _ = tuned(builder, comm, any_error=True)
    else:
        choice = {} if stored is None else recorded(stored, request.speed)[0]
    builder.speed = dataclasses.replace(request.speed, tune=False, **choice)
    mode = first_mode(builder, comm, lambda text: _warn(f"computed {text}", comm), any_error=True)

    def equip(evaluator: Evaluator, data: Mapping[str, Data]) -> None:
        there = with_data(subject.metric, data[""])
        evaluator.metrics = {name_of(metric): there}
        evaluator.normalization = _on_same_data(policy, metric, there)

    with comm.raise_on_all_ranks(any_error=True):
        evaluator, data = builder.build(mode)
        equip(evaluator, data)
    return evaluator, Choice(evaluator, builder, equip, frame.grid, comm, Patience(), any_error=True)


def _held(batches: Any) -> Batches:
    """Batches that are at hand as such."""
    return StoredBatches(list(batches), None, None)


def on_device(metric: Any, model: ModelWrapper, request: Request, known: dict[int, Data] | None = None) -> Any:
    """The metric with its data, where that is in memory, on the device once; its loss too."""
    known = {} if known is None else known
    if isinstance(metric, MetricPipeline):
        other = copy.copy(metric)
        other.metrics = [on_device(one, model, request, known) for one in metric.metrics]
        return other
    if not isinstance(metric, DataMetric) or request.device is None:
        return metric
    key = id(metric.data)
    if key not in known:
        known[key] = _moved(metric.data, request.device, request.dtype)
    return with_data(with_loss(metric, model, request), known[key])


def with_loss(metric: Any, model: ModelWrapper, request: Request) -> Any:
    """The metric with its loss, where that has numbers of its own, on the device and in the dtype."""
    if not isinstance(metric, Loss) or request.device is None:
        return metric
    criterion = metric.criterion
    loss = loss_on(criterion.loss_fn, model.root, request.device, request.dtype)
    if loss is criterion.loss_fn:
        return metric
    other, there = copy.copy(metric), Criterion(loss, criterion.given)
    there.sum, there.tried = criterion.sum, criterion.tried
    other.criterion, other.loss_fn = there, loss
    return other


def _moved(data: Data, device: torch.device, dtype: torch.dtype | None) -> Data:
    batches = data.batches
    if isinstance(batches, (list, tuple)):
        batches = _held(batches)
    if not isinstance(batches, Batches) or batches.streamed:
        return data
    other = copy.copy(data)
    other.batches = Sets({"": batches}, None).to(device, dtype, False).evaluation[""]
    return other


def warm_up(frame: Frame, data: Any, device: torch.device | None) -> dict[tuple[float, ...], torch.Tensor]:
    """Batch normalization's statistics at this rank's points, by their coordinates: vectors on the CPU."""
    if not batchnorm_layers(frame.model):
        return {}
    comm, grid = frame.comm, frame.grid
    with comm.raise_on_all_ranks(any_error=True):
        evaluator = Evaluator(frame.model, frame.placement(device, None, PLAIN), {}, WarmUp(data))
        mine = Strided(np.arange(grid.size), comm.rank, comm.size).next(grid.size)
        with evaluator.attached():
            return {point: evaluator.statistics(point) for point in (grid.point(int(i)) for i in mine)}


def given(
    model: ModelWrapper, by_point: Mapping[tuple[float, ...], torch.Tensor], common: torch.Tensor | None
) -> Normalization:
    """The policy where statistics are there already."""
    return Given(by_point, common) if batchnorm_layers(model) else Running()


@contextmanager
def _naming_the_mode(evaluator: Evaluator) -> Iterator[None]:
    """UserError where what fails in eval mode works in train mode."""
    try:
        yield
    except Exception as error:
        works, model = [], evaluator.model
        for mode in MODES if model.mode == EVAL and evaluator.execution.exact else ():
            evaluator.model = evaluator.fast = model.in_mode(mode)
            with suppress(Exception), evaluator.attached():
                evaluator([0.0] * evaluator.placement.dimensions)
                works.append(mode)
        if works == [TRAIN_WITHOUT_DROPOUT]:
            raise UserError(only_in_train_mode(error)) from error
        raise


def _try_first_batch(evaluator: Evaluator, points: int) -> None:
    """One batch of the first point, twice: whether its value depends on the point alone, and is a number."""
    (metric,) = evaluator.metrics.values()
    if points > 1 and isinstance(metric, BatchMetric):
        tried = try_batch(evaluator, metric.data, {metric.name: metric})
        if line := not_finite(tried):
            warn(line)


def _check_losses(evaluator: Evaluator) -> None:
    """Warn where a loss is not the mean that it is taken for; a sum is added up from then on."""
    (metric,) = evaluator.metrics.values()
    for one in metric.metrics if isinstance(metric, MetricPipeline) else [metric]:
        criterion = getattr(one, "criterion", getattr(one, "loss_fn", None))
        if isinstance(criterion, Criterion) and isinstance(one, DataMetric) and not criterion.tried:
            with evaluator.attached_at([0.0] * evaluator.placement.dimensions):
                check_loss(evaluator.model, criterion, one.data)
