"""Builds evaluators: in the execution mode that is asked for, as far as the model can be computed so."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..data.resident import beginning
from ..data.sets import Sets
from ..directions.base import DEVICE, Directions
from ..errors import UserError, user_traceback
from ..metrics import Data, Loss
from ..metrics.base import Metric
from ..metrics.criterion import loss_on
from ..metrics.without import no_gradients
from ..model import state
from ..model.batchnorm import batchnorm_layers, used_once
from ..model.estimation import adds_up_exactly
from ..model.folding import Pair, find_pairs
from ..model.modes import EVAL, TRAIN_WITHOUT_DROPOUT, only_in_train_mode
from ..model.norms import is_norm
from ..model.placement import Placement
from ..model.sharded import AnyPlacement
from ..model.wrapper import ModelWrapper
from ..problems.problem import Problem
from ..ranks.memory import free_memory
from ..ranks.team import Team
from .evaluator import DTYPES, Evaluator
from .execution import PLAIN, ExecutionMode, compiling, compute_dtypes
from .normalization import Normalization, Running

if TYPE_CHECKING:
    from ..setting_groups import SpeedSettings

GRAPHS = {"fp64": 1e-9, "fp32": 1e-3}  # relative, between compiled and eager: rounding; in fewer bits 1e-1
ROWS = {"fp64": 1e-9, "fp32": 1e-5}  # relative, between rows of a stacked pass: rounding; in fewer bits 1e-2
CHOICES = ("channels_last", "compile", "block")  # the settings that mode is chosen by
INTERLEAVED = 8  # points on each batch of streamed data: what loading costs is divided by it
ROOM = 0.1  # of the free memory, for the parameters of these points


def candidate_modes(
    speed: SpeedSettings,
    precision: str,
    normalization: type[Normalization],
    root: nn.Module,
    own_forward: bool,
    device: torch.device | None,
    streamed: bool = False,
) -> list[ExecutionMode]:
    """The modes to try, the one asked for first, the plain one last; by the model and the kind of device alone.

    Points are stacked where data is at hand; where it is streamed they are interleaved on each batch. Channels are last
    where that is asked for, and where nothing is said, unless it is less exact, or points are stacked.
    """
    kind = "" if device is None else device.type
    images = kind in ("cpu", "cuda") and takes_images(root)
    dtypes: list[dict[str, Any]] = [{}]
    if precision == "bf16":  # an own forward makes the inputs: only torch can cast them there
        dtypes = [{"compute_dtype": torch.bfloat16}] * (not own_forward) + [{"autocast": True}]
    stacked = 1 if streamed else speed.block or 1
    if speed.compile and stacked > 1:
        raise UserError(f"--compile --block {stacked}: take one of the two; stacked points are not compiled")
    ways: list[dict[str, Any]] = [{}]
    if speed.compile or stacked > 1:
        ways = [{"compiled": speed.compile_mode or "", "stacked": stacked}, {}]
    found = []
    for way in ways:
        exact = last_is_exact(root, normalization, kind, bool(way.get("compiled")))
        last = exact and way.get("stacked", 1) == 1 if speed.channels_last is None else speed.channels_last
        orders: list[dict[str, Any]] = [{"channels_last": True, "rounded": not exact}] * (images and last) + [{}]
        found += [ExecutionMode(**order, **dtype, **way) for dtype in dtypes for order in orders]
    return found


def takes_images(root: nn.Module) -> bool:
    """Whether it is one for which an order of channels matters."""
    return any(isinstance(module, nn.Conv2d) for module in root.modules())


def last_is_exact(root: nn.Module, normalization: type[Normalization], kind: str, compiled: bool) -> bool:
    """Whether channels last is as exact as PyTorch's own order: there its CPU kernels add up statistics in float32.

    Not where ours take their place, nor where they are compiled; group normalization's are off by 4e-6.
    """
    if kind != "cpu" or compiled:
        return True
    for module in root.modules():
        kept = is_norm(module)
        by_batch = isinstance(module, _NormBase) and (normalization.by_batch or not kept)
        if isinstance(module, nn.GroupNorm) or (by_batch and not (kept and adds_up_exactly(module))):
            return False
    return True


class Subject(Protocol):
    """What evaluators are built of: a model that can be placed, and how its data is read.

    own_forward: whether the user's code makes the model's inputs. hint: what may be the matter where it fails.
    """

    model: ModelWrapper
    own_forward: bool
    hint: str

    @property
    def point_bytes(self) -> int:
        """What a point's parameters take."""

    def placement(self, device: torch.device | None, dtype: torch.dtype | None, mode: ExecutionMode) -> AnyPlacement:
        """Where the model is put at points."""

    def on(self, batches: Iterable[Any]) -> Data:
        """Batches as metrics read them."""

    def trial(self, data: Data) -> Metric:
        """What tells whether the model can be evaluated on a batch."""


class ProblemSubject:
    """A problem's model along directions; its loss is on the device."""

    def __init__(
        self, problem: Problem, directions: Directions, device: torch.device | None, dtype: torch.dtype | None
    ):
        self.problem, self.directions = problem, directions
        self.model, self.own_forward, self.on = problem.wrapper, problem.forward is not None, problem.on
        first = next((parameter.device for parameter in problem.root.parameters()), None)
        self.loss = loss_on(problem.loss, problem.root, device or first, dtype)
        alone = any(isinstance(data, list) and len(data) == 1 for data in problem.sets.values())
        self.hint = (
            " (a list is one of samples; a graph that is all of the data is DataLoader([graph], batch_size=None))"
            if alone
            else ""
        )

    @property
    def point_bytes(self) -> int:
        return sum(d.nbytes for d in self.directions.vectors[0].values())

    def placement(self, device: torch.device | None, dtype: torch.dtype | None, mode: ExecutionMode) -> Placement:
        tensors, directions = state.state(self.problem.root), self.directions
        moving = (*directions.vectors[0], *(directions.rest[0] if directions.rest else ()))
        return Placement(
            {name: tensors[name] for name in moving},
            directions.placed,
            device,
            dtype,
            targets=directions.targets is not None,
            keeps_directions=directions.memory == DEVICE,
            **how_placed(self.problem.root, mode),
        )

    def trial(self, data: Data) -> Metric:
        return Loss(self.loss, data)


def how_placed(root: nn.Module, mode: ExecutionMode) -> dict[str, Any]:
    """What an execution mode wants of a placement."""
    return {
        "compute_dtypes": compute_dtypes(root, mode.compute_dtype),
        "channels_last": mode.channels_last,
        "rows": mode.points,
    }


@dataclass
class EvaluatorBuilder:
    """Builds evaluators of one subject, on one device, in any execution mode.

    device: None: each parameter where it is. normalization: the policy. speed: the modes that are asked for.
    is_additive: whether all metrics add up over batches. points: of a rank. pairs: what may be folded. losses: of the
    first batches at the origin, as the model is in the checkpoint, where trying a mode has computed them. team:
    that shares out the model.
    """

    subject: Subject
    sets: Sets
    device: torch.device | None
    normalization: type[Normalization]
    precision: str
    seed: int
    speed: SpeedSettings
    is_additive: bool = False
    points: int = 1
    careful: bool = False
    pairs: tuple[Pair, ...] = ()
    losses: dict[str, float] = field(default_factory=dict)
    team: Team | None = None

    def __post_init__(self) -> None:
        self.dtype = DTYPES.get(self.precision)
        self.model = self.subject.model

    @property
    def in_step(self) -> bool:
        """Whether the model is called by several ranks or by none: then in the plain mode."""
        return self.team is not None

    def data(self, mode: ExecutionMode) -> Sets:
        """The data on the device, as the mode wants it."""
        return self.sets.to(self.device, self.dtype, self.normalization.reads_data, mode.channels_last)

    def build(self, mode: ExecutionMode, here: Sets | None = None) -> tuple[Evaluator, dict[str, Data]]:
        """The evaluator, with no metrics as yet, and the evaluation sets; model, directions and data on the device.

        here: the data as ``data`` gives it, where it is there already.
        """
        here = self.data(mode) if here is None else here
        mode = replace(mode, folded=self.pairs if mode.folds else ())
        warmup_data = None if here.warmup is None else self.subject.on(here.warmup)
        evaluator = self._evaluator(mode, self.subject.placement(self.device, self.dtype, mode), {}, warmup_data)
        if self.careful:
            evaluator.be_careful()
        return evaluator, {name: self.subject.on(batches) for name, batches in here.evaluation.items()}

    def _evaluator(
        self, mode: ExecutionMode, placement: AnyPlacement, metrics: dict[str, Metric], warmup_data: Data | None
    ) -> Evaluator:
        policy = self.normalization(warmup_data)
        evaluator = Evaluator(self.model, placement, metrics, policy, None, self.precision, self.seed, mode)
        evaluator.in_step = self.in_step
        return evaluator

    def candidates(self) -> list[ExecutionMode]:
        """The modes to try, the one asked for first, the plain one last."""
        if self.in_step:
            return [PLAIN]
        how = self.speed, self.precision, self.normalization
        return candidate_modes(*how, self.model.root, self.subject.own_forward, self.device, self.sets.streamed)

    def asked(self, mode: ExecutionMode) -> ExecutionMode:
        """The mode as far as it was asked for: where nothing is said of the order, it is no matter."""
        return mode if self.speed.channels_last else replace(mode, channels_last=False, rounded=False)

    def room(self, sharers: int) -> int:
        """How many points can be evaluated together here: for how many there is memory, and as many as a rank has.

        sharers: of the memory where points are.
        """
        places = {p.device for p in self.model.root.parameters()} if self.device is None else {self.device}
        free = int(ROOM * min(free_memory(place, sharers) for place in places)) // max(1, self.subject.point_bytes)
        return max(1, min(free, self.points))

    def interleaved(self, most: int) -> int:
        """How many points share each batch: several of streamed data, at most so many as there is room for."""
        several = self.is_additive and self.sets.streamed and not self.in_step
        wanted = self.speed.block or INTERLEAVED if several else 1
        return min(wanted, most)

    def first_that_works(self) -> tuple[int, str]:
        """(the number of the first candidate that works, why the first one does not); UserError where none does."""
        candidates, why = self.candidates(), "it has no data to try it on"
        if not self.sets.evaluation:
            return len(candidates) - 1, why
        why = ""
        for number, mode in enumerate(candidates):
            try:
                with warnings.catch_warnings(), compiling(mode):
                    warnings.simplefilter("ignore")
                    self.try_first_batches(mode)
                return number, why
            except Exception as error:
                if number == len(candidates) - 1:
                    self._try_train_mode(mode, error)
                    if isinstance(error, UserError):
                        raise
                    what = f"the problem fails on its first batch{self.subject.hint}"
                    raise UserError(f"{what}: {user_traceback(error)}") from None
                why = why or f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise AssertionError("there is always a plain mode")

    def _try_train_mode(self, mode: ExecutionMode, why: Exception) -> None:
        """UserError that names the mode in which the model works, after it has failed in eval mode."""
        model = self.model
        if model.mode != EVAL or self.in_step:
            return
        self.model = model.in_mode(TRAIN_WITHOUT_DROPOUT)
        try:
            self.try_first_batches(mode)
        except Exception:
            return  # that is not why
        finally:
            self.model = model
        raise UserError(only_in_train_mode(why)) from None

    def try_first_batches(self, mode: ExecutionMode) -> None:
        """One batch of each set at the origin, in this mode; raises what goes wrong."""
        first = self.sets.each(lambda batches: beginning(batches, 1), False)
        here = first.to(self.device, self.dtype, False, mode.channels_last)
        placement = self.subject.placement(self.device, self.dtype, mode)
        pairs: list[tuple[Pair, ...]] = []
        for name, batches in here.evaluation.items():
            data = self.subject.on(batches)
            trial = self._evaluator(mode, placement, {"loss": self.subject.trial(data)}, data)
            if mode.exact and self.normalization.reads_data:
                trial.normalization = Running()
            trial.careful = True  # nothing is known of it yet
            with trial.attached():
                if self.normalization.reads_data and not mode.eager:
                    _check_uses(trial, data)
                found = trial([0.0] * placement.dimensions)
                self.careful |= placement.left_behind()
                if mode.eager and not trial.normalization.by_batch:
                    self.losses[name] = found["loss"]
                if mode.stacked > 1:
                    _check_rows(trial)
                if mode.folds and not self.in_step:
                    pairs.append(_foldable(trial, data))
            if mode.compiled:
                eager = self._evaluator(replace(mode, compiled=""), placement, trial.metrics, data)
                _check_compiled(trial, eager)
        self.pairs = tuple(pair for pair in pairs[0] if all(pair in others for others in pairs)) if pairs else ()


def _foldable(evaluator: Evaluator, data: Data) -> tuple[Pair, ...]:
    """What may be folded in a pass over such batches; nothing where that cannot be told."""
    model, origin = evaluator.model, [0.0] * evaluator.placement.dimensions
    if not any(map(is_norm, model.root.modules())):
        return ()
    try:
        with evaluator.at(origin), evaluator.normalization.measuring(model), no_gradients():
            return find_pairs(model.root, lambda: [data.output(model, batch) for batch in data.on(model)])
    except Exception:  # of a kind of tensor that cannot be watched
        return ()


def _check_uses(evaluator: Evaluator, data: Data) -> None:
    """Compiled and stacked passes read a layer's statistics after each batch: it is to be used once."""
    model = evaluator.model
    with torch.no_grad():
        once = used_once(model, lambda: [data.output(model, batch) for batch in data.on(model)])
    if not all(map(is_norm, batchnorm_layers(model))):
        raise ValueError("a normalization layer is none of torch's own")
    if not once:
        raise ValueError("a batch normalization layer is not used exactly once in a pass")


def _check_rows(evaluator: Evaluator) -> None:
    """A stacked pass knows the weights that it is given by the model: a loss that holds one itself has row 0's."""
    origin, other = ([at] * evaluator.placement.dimensions for at in (0.0, 1.0))
    alone, beside = evaluator.evaluate([origin])[0], evaluator.evaluate([other, origin])[1]
    if not _agree(alone["loss"], beside["loss"], ROWS.get(evaluator.precision, 1e-2)):
        raise ValueError("the loss or forward uses weights that it does not get by the model")


def _check_compiled(compiled: Evaluator, eager: Evaluator) -> None:
    """A graph of an older PyTorch may take no notice of train mode, and only the second time."""

    def losses(evaluator: Evaluator) -> list[float]:
        found, own = [], evaluator.normalization
        with evaluator.attached():
            for policy in (own, own, Running()):
                evaluator.normalization = policy
                found.append(evaluator([0.0] * evaluator.placement.dimensions)["loss"])
        return found

    here, there = losses(compiled), losses(eager)
    if not _agree(here, there, GRAPHS.get(eager.precision, 1e-1)):
        raise ValueError(
            f"PyTorch {torch.__version__} compiles it to something else: loss {here[-1]:g}, not {there[-1]:g}"
        )


def _agree(here: Any, there: Any, near: float) -> bool:
    """Whether losses are the same to rounding. near: relative."""
    return np.allclose(here, there, rtol=near, atol=near / 10, equal_nan=True)
