"""The mode in which a run computes: as asked for, and as the model can."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.resident import beginning, share
from ..directions.recipes import Directions
from ..errors import UserError, user_traceback
from ..evaluate.evaluator import DTYPES, Evaluator
from ..evaluate.execution import ExecutionMode, compiling, compute_dtypes
from ..evaluate.normalization import Running, choose_normalization
from ..grid import Grid
from ..metrics import Data, Loss
from ..metrics.base import Metric
from ..metrics.criterion import loss_on
from ..model import state
from ..model.batchnorm import batchnorm_layers, used_once
from ..model.modes import EVAL, TRAIN_WITHOUT_DROPOUT, only_in_train_mode
from ..model.norms import is_norm
from ..model.placement import Placement
from ..problems.problem import Problem
from ..ranks.comm import Comm
from ..ranks.memory import free_memory
from ..settings import Settings
from .data import Sets

SAMPLED = 8  # points at which a mode's error is seen
ROWS = {"fp64": 1e-9, "fp32": 1e-5}  # relative, between rows of a stacked pass: rounding; in fewer bits 1e-2
SPREAD = 4.0  # times their root mean square: the grid's worst, as an estimate
CHOICES = ("channels_last", "compile", "block")  # the settings that mode is chosen by
IN_TURN = 8  # points on each batch of streamed data: what loading costs is divided by it
ROOM = 0.1  # of the free memory, for the parameters of these points


@dataclass
class ExecutionErrors:
    """How far a mode's values are from the plain mode's: by metric, at points (flat indices)."""

    points: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    differences: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def estimates(self) -> dict[str, float]:
        """By metric, what to expect at the worst point of the grid."""
        with np.errstate(over="ignore"):
            return {name: SPREAD * float(np.sqrt(np.mean(d**2))) for name, d in self.differences.items()}

    def attributes(self) -> dict[str, Any]:
        """As a file keeps them."""
        if not self.differences:
            return {}
        return {
            "execution_error_points": self.points,
            **{f"execution_error_{name}": estimate for name, estimate in self.estimates.items()},
            **{f"execution_error_differences_{name}": found for name, found in self.differences.items()},
        }


def candidate_modes(
    settings: Settings, problem: Problem, device: torch.device, streamed: bool = False
) -> list[ExecutionMode]:
    """The modes to try, the one asked for first, the plain one last; by the problem and the kind of device alone.

    Points are stacked where data is at hand; where it is streamed they take turns on each batch.

    In float32 channels are last only when asked for, and so in every precision where that is inexact.
    """
    images = any(isinstance(m, nn.Conv2d) for m in problem.root.modules())
    faster = (settings.compile or settings.precision == "bf16") and not inexact_last(settings, problem, device)
    wanted = settings.channels_last or faster
    orders = [True, False] if images and wanted and device.type in ("cpu", "cuda") else [False]
    lows: list[dict[str, Any]] = [{}]
    if settings.precision == "bf16":  # an own forward makes the inputs: only torch can cast them there
        lows = [{"compute_dtype": torch.bfloat16}] * (problem.forward is None) + [{"autocast": True}]
    block = 1 if streamed else settings.block or 1
    if settings.compile and block > 1:
        raise UserError(f"--compile --block {block}: take one of the two; stacked points are not compiled")
    ways: list[dict[str, Any]] = [{}]
    if settings.compile or block > 1:
        ways = [{"compiled": "default" * settings.compile, "stacked": block}, {}]
    return [ExecutionMode(channels_last=order, **low, **way) for way in ways for low in lows for order in orders]


def inexact_last(settings: Settings, problem: Problem, device: torch.device) -> bool:
    """Whether channels last would make values wrong by more than rounding: up to 1e-2.

    PyTorch adds up batch normalization's variance in float32 there: off by 1e-4 to 8e-3 where batches are large.
    """
    return device.type == "cpu" and choose_normalization(settings.bn, problem.wrapper).by_batch


class Maker:
    """Makes evaluators of one problem, on one device, in a mode."""

    def __init__(
        self,
        settings: Settings,
        problem: Problem,
        sets: Sets,
        directions: Directions,
        device: torch.device,
        is_additive: bool = False,
        points: int = 1,
    ):
        """is_additive: whether all metrics add up over batches; points: of a rank."""
        self.settings, self.problem, self.sets = settings, problem, sets
        self.directions, self.device, self.is_additive, self.points = directions, device, is_additive, points
        self.dtype = DTYPES.get(settings.precision)
        self.careful = False
        self.normalization = choose_normalization(settings.bn, problem.wrapper, sets.warmup is not None)
        self.loss = loss_on(problem.loss, problem.root, device, self.dtype)

    def make(self, mode: ExecutionMode, comm: Comm | None = None) -> tuple[Evaluator, dict[str, Data]]:
        """The evaluator, with no metrics as yet, and the evaluation sets; model, directions and data on the device.

        comm: whose ranks make the same together, with one copy of the data on each node.
        """
        here = self.sets.to(self.device, self.dtype, self.normalization.reads_data, mode.channels_last)
        if comm is not None and self.device.type == "cpu":
            here = here.each(partial(share, comm=comm))
        warmup_data = None if here.warmup is None else self.problem.on(here.warmup)
        evaluator = self._evaluator(mode, self._placement(mode), {}, warmup_data)
        if self.careful:
            evaluator.be_careful()
        return evaluator, {name: self.problem.on(batches) for name, batches in here.evaluation.items()}

    def _placement(self, mode: ExecutionMode) -> Placement:
        tensors, directions = state.state(self.problem.root), self.directions
        return Placement(
            {
                name: tensors[name]
                for name in (*directions.vectors[0], *(directions.rest[0] if directions.rest else ()))
            },
            directions.moves,
            self.device,
            self.dtype,
            targets=directions.ends is not None,
            compute_dtypes=compute_dtypes(self.problem.root, mode.compute_dtype),
            channels_last=mode.channels_last,
            rows=mode.points,
        )

    def _evaluator(
        self, mode: ExecutionMode, placement: Placement, metrics: dict[str, Metric], warmup_data: Data | None
    ) -> Evaluator:
        settings, policy = self.settings, self.normalization(warmup_data)
        return Evaluator(
            self.problem.wrapper, placement, metrics, policy, None, settings.precision, settings.seed, mode
        )

    def choose(self, comm: Comm, say: Callable[[str], None]) -> tuple[Evaluator, dict[str, Data]]:
        """The evaluator in the first mode that works, the same on every rank; a note where it is not the one asked for.

        Raises UserError where none does.
        """
        candidates = candidate_modes(self.settings, self.problem, self.device, self.sets.streamed)
        chosen, why = len(candidates) - 1, "it has no data to try it on"
        with comm.raise_on_all_ranks():
            if comm.is_root and self.sets.evaluation:
                chosen, why = self._try(candidates)
        chosen, why = comm.bcast((chosen, why))
        asked, mode = candidates[0], candidates[chosen]
        if mode != asked:
            say(f"execution    {mode}, since this model cannot be evaluated as asked for: {why}")
        interleaved = self.settings.block or IN_TURN if self.is_additive and self.sets.streamed else 1
        return self.make(replace(mode, interleaved=min(interleaved, self.most_points(comm))), comm)

    def most_points(self, comm: Comm) -> int:
        """How many points can be evaluated together: as many as every rank has room for, and as a rank has.

        All ranks call it: their nodes and GPUs may differ.
        """
        a_point = sum(d.nbytes for d in self.directions.vectors[0].values())
        sharers = self.sets.sharers if self.device.type == "cuda" else comm.local_size
        room = int(ROOM * free_memory(self.device, sharers)) // max(1, a_point)
        return max(1, min(*comm.allgather(room), self.points))

    def _try(self, candidates: list[ExecutionMode]) -> tuple[int, str]:
        """(the number of the first mode that works, why the first one does not)."""
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
                    what = f"the problem fails on its first batch{_hint(self.problem)}"
                    raise UserError(f"{what}: {user_traceback(error)}") from None
                why = why or f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise AssertionError("there is always a plain mode")

    def _try_train_mode(self, mode: ExecutionMode, why: Exception) -> None:
        """UserError that names the mode in which the model works, after it has failed in eval mode."""
        wrapper = self.problem.wrapper
        if wrapper.mode != EVAL:
            return
        self.problem.wrapper = wrapper.in_mode(TRAIN_WITHOUT_DROPOUT)
        try:
            self.try_first_batches(mode)
        except Exception:
            return  # that is not why
        finally:
            self.problem.wrapper = wrapper
        raise UserError(only_in_train_mode(why)) from None

    def try_first_batches(self, mode: ExecutionMode) -> None:
        """One batch of each set at the origin, in this mode; raises what goes wrong."""
        first = self.sets.each(lambda batches: beginning(batches, 1), False)
        here = first.to(self.device, self.dtype, False, mode.channels_last)
        placement = self._placement(mode)
        for batches in here.evaluation.values():
            data = self.problem.on(batches)
            trial = self._evaluator(mode, placement, {"loss": Loss(self.loss, data)}, data)
            if mode.exact and self.normalization.reads_data:
                trial.normalization = Running()
            trial.careful = True  # nothing is known of it yet
            with trial.attached():
                if self.normalization.reads_data and not mode.exact:
                    _check_uses(trial, data)
                trial([0.0] * placement.dimensions)
                self.careful |= placement.left_behind()
                if mode.stacked > 1:
                    _check_rows(trial)


def _hint(problem: Problem) -> str:
    """What may be the matter where the user's code fails on data that it was not written for."""
    if not any(isinstance(data, list) and len(data) == 1 for data in problem.sets.values()):
        return ""
    return " (a list is one of samples; a graph that is all of the data is DataLoader([graph], batch_size=None))"


def _check_uses(evaluator: Evaluator, data: Data) -> None:
    """Compiled and stacked passes read a layer's statistics after each batch: it is to be used once."""
    if not (evaluator.execution.compiled or evaluator.execution.stacked > 1):
        return
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
    near = ROWS.get(evaluator.precision, 1e-2)
    if not np.allclose(alone["loss"], beside["loss"], rtol=near, atol=near / 10, equal_nan=True):
        raise ValueError("the loss or forward uses weights that it does not get by the model")


def errors_of_mode(evaluator: Evaluator, plain: Evaluator, grid: Grid, seed: int) -> ExecutionErrors:
    """How far values are from the plain mode's, at points drawn by the seed."""
    draw = np.random.default_rng([seed, 1])
    points = np.sort(draw.choice(grid.size, min(SAMPLED, grid.size), replace=False))
    values = []
    for one in (plain, evaluator):
        with one.attached():
            values.append([one(grid.point(int(point))) for point in points])
    found = {}
    for name in plain.metrics:
        slow, fast = (np.array([value[name] for value in which], dtype=np.float64) for which in values)
        same = (slow == fast) | (np.isnan(slow) & np.isnan(fast))
        with np.errstate(invalid="ignore"):
            found[name] = np.where(same, 0.0, fast - slow)
    return ExecutionErrors(points, found)
