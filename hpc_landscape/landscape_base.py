"""What lines and planes have in common: directions and a grid, statistics for each point, and the metric over it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import __version__
from .campaign.share import broadcast_rest, broadcast_tensors
from .data.prepare import as_batches
from .directions.components import principal_directions
from .directions.given import as_direction, as_long
from .directions.interpolation import differences
from .directions.normalize import checked, normalize, standing
from .directions.projection import around, project
from .directions.random import random_directions
from .directions.reading import read_directions
from .errors import UserError, warn
from .evaluate.evaluator import Evaluator, stack
from .evaluate.find_norms import find_norms
from .evaluate.normalization import Given, Running
from .evaluate.trial import not_finite, try_batch
from .grid import NAMES, Axis, Grid, counts
from .metrics import BatchMetric, Criterion, Data, DataMetric, Metric, MetricPipeline
from .metrics.trial import check_loss
from .model import state
from .model.batchnorm import batchnorm_layers, given_statistics
from .model.checkpoint import find_checkpoints, labels
from .model.modes import EVAL, MODES, TRAIN_WITHOUT_DROPOUT, only_in_train_mode
from .model.numbers import wide
from .model.others import Path, Point, read_other, read_rest
from .model.placement import Placement
from .model.rest import told, unmoved
from .model.wrapper import ModelWrapper, wrap_model
from .ranks.comm import Comm, SerialComm, ours_of
from .ranks.torch_state import LOCK, one_at_a_time
from .schedule.strided import strided
from .store import layout


class Landscape:
    """A metric over a line or a plane of parameter space; use PlanarLossLandscape or LinearLossLandscape.

    model: a module, or a wrapper that says what of it moves; frozen parameters (requires_grad=False) move like the
    others, ``wrap_model(model).restrict(trainable=True)`` leaves them. What is of 16 bits is computed in float32, and
    rounded once for the model. steps: points along each axis, or a number for each.
    deepcopy_model: work on a copy, so that the model can be used meanwhile. comm: an MPI communicator: every rank calls
    the same methods, computes every size-th point, and gets the whole result; None: this process computes all.
    mode: of the modules at points; ``train_without_dropout`` for a model whose loss exists in train mode only.
    """

    dimensions: int

    def __init__(
        self,
        model: nn.Module | ModelWrapper,
        steps: int | Sequence[int],
        deepcopy_model: bool = False,
        comm: Any = None,
        mode: str | None = None,
    ):
        with LOCK:  # another thread may have the model at a point
            self.model_wrapper = wrap_model(copy.deepcopy(model) if deepcopy_model else model)
        if mode is not None:
            self.model_wrapper = self.model_wrapper.in_mode(mode)
        self.steps = counts(steps, self.dimensions)
        self.comm: Comm = comm if isinstance(comm, Comm) else SerialComm() if comm is None else ours_of(comm)
        self.seed: int | None = None
        self.trajectory: layout.Trajectory | None = None
        self.explained_variance_ratio: np.ndarray | None = None
        self._grid: Grid | None = None

    @one_at_a_time
    def __getstate__(self) -> dict[str, Any]:
        """Without what is made anew: pickling parts a point and the buffer that it is a view of."""
        return {**vars(self), "_placements": {}, "comm": SerialComm()}

    @one_at_a_time
    def __deepcopy__(self, known: dict[int, Any]) -> Any:
        other = type(self).__new__(type(self))
        known[id(self)] = other
        vars(other).update(copy.deepcopy(self.__getstate__(), known), comm=self.comm)
        return other

    @property
    def coordinates(self) -> Any:
        """The coordinates along each axis: (x, y) of a plane, x of a line."""
        found = self._defined().coordinates
        return found if self.dimensions > 1 else found[0]

    @property
    def directions(self) -> list[dict[str, Tensor]]:
        """What a coordinate of 1 adds to the parameters, by their names: one mapping for each axis."""
        self._defined()
        return self._vectors

    # What the axes are

    @one_at_a_time
    def _random(
        self, distance: float, normalization: str | None, random: str, centered: bool, seed: int | None, ignore: str
    ) -> Any:
        """Random directions, each as long as what it moves of the parameters; distance: the side, in that unit."""
        if random not in ("normal", "uniform"):
            raise UserError(f"random='{random}': expected normal or uniform")
        if seed is not None and seed < 0:
            raise UserError(f"seed={seed}: must not be negative")
        drawn = np.random.SeedSequence().entropy % 2**63 if seed is None else index(seed)
        self.seed = self.comm.bcast(drawn)
        weights = self._weights()
        sides = self._sides(distance, centered)
        with self.comm.raise_on_all_ranks(any_error=True):
            vectors = [
                as_long(normalize(d, weights, checked(normalization), ignore), weights)
                for d in random_directions(weights, self.dimensions, self.seed, random)
            ]
        return self._define("random", vectors, sides, normalization=checked(normalization))

    @one_at_a_time
    def _precomputed(
        self, directions: Sequence[Any], distance: float, normalization: str | None, centered: bool, ignore: str
    ) -> Any:
        weights = self._weights()
        sides = self._sides(distance, centered)
        with self.comm.raise_on_all_ranks(any_error=True):
            vectors = [as_direction(direction, weights) for direction in directions]
            if normalization not in (None, "none"):
                vectors = [as_long(normalize(d, weights, checked(normalization), ignore), weights) for d in vectors]
        return self._define("precomputed", vectors, sides)

    @one_at_a_time
    def _interpolation(self, ends: Sequence[Point], low: float, high: float, key: str | None = None) -> Any:
        weights = self._weights()
        with self.comm.raise_on_all_ranks(any_error=True):
            models = [read_other(end, self.model_wrapper, weights, key)() for end in ends]
            models = [{name: t.to(weights[name].dtype) for name, t in model.items()} for model in models]
            others = [read_rest(end, self.model_wrapper, key) for end in ends]
            vectors = differences(weights, models)
        return self._define("interpolation", vectors, [(low, high)] * self.dimensions, models, others)

    @one_at_a_time
    def pca(self, checkpoints: Path | Iterable[Point], margin: float = 0.25, key: str | None = None) -> Any:
        """The plane of the trajectory's largest principal directions, of unit length, around this model.

        checkpoints: models, state dicts or files, in their order; or a glob, a directory. The axes show all of them
        and a margin around. Afterwards ``trajectory`` and ``explained_variance_ratio`` are there. key: which of several
        networks in a file, as --checkpoint_key.
        """
        with self.comm.raise_on_all_ranks(any_error=True):
            points = self._points(checkpoints, key)
            vectors, self.explained_variance_ratio = principal_directions(points, self._weights(), self.dimensions)
            self._vectors = vectors
            self.trajectory = self._project(points)
        return self._define("pca", vectors, [around(c, margin)[:2] for c in self.trajectory.coordinates.T])

    @one_at_a_time
    def load_directions(self, *paths: Path, distance: float = 2, centered: bool = True) -> Any:
        """Directions from an earlier run's file, or from one .npz, .pt or .safetensors per axis, as they are."""
        sides = self._sides(distance, centered)
        with self.comm.raise_on_all_ranks(any_error=True):
            vectors = read_directions([os.fspath(path) for path in paths], self._weights(), self.dimensions)
        return self._define("file", vectors, sides)

    @one_at_a_time
    def project(self, checkpoints: Path | Iterable[Point], key: str | None = None) -> np.ndarray:
        """The checkpoints' coordinates in this plane, least squares: (n, axes). They are drawn by what is saved."""
        self._defined()
        self.trajectory = self._project(self._points(checkpoints, key))
        return self.trajectory.coordinates

    # What is computed there

    @one_at_a_time
    def stats_initializer(self, running_stats: Any = None) -> None:
        """Batch normalization statistics for all points: the model's own, or these, by the buffers' names.

        Not needed: without it, and without ``warm_up``, points have the model's own.
        """
        self._defined()
        self._statistics = {}
        self._common = None
        if running_stats is not None:
            self._common = given_statistics(self.model_wrapper, running_stats)

    @one_at_a_time
    def warm_up(self, data: Any, device: torch.device | str | None = None) -> None:
        """Re-estimate batch normalization's statistics at every point, on a metric's data or on a loader.

        Only these statistics are kept: arrays, for the points of this rank.
        """
        grid = self._defined()
        self._statistics = {}
        with self.comm.raise_on_all_ranks(any_error=True):
            if isinstance(data, DataMetric):
                data = data.data
            elif not isinstance(data, Data) and (isinstance(data, Iterable) or not callable(data)):
                data = Data(as_batches(data))
        self._find_norms(data, device)
        if not batchnorm_layers(self.model_wrapper):
            return
        with self.comm.raise_on_all_ranks(any_error=True):
            evaluator = Evaluator(self.model_wrapper, self._placement(device), {}, "warmup", data)
            with evaluator.attached():
                statistics = {point: evaluator.statistics(point) for point in map(grid.point, self._mine())}
        self._statistics = statistics

    @one_at_a_time
    def _find_norms(self, data: Data | Metric, device: torch.device | str | None) -> None:
        """Which statistics are to be re-estimated, as rank 0 finds out on the first batch."""
        where = None if device is None else torch.device(device)
        self.model_wrapper = copy.copy(self.model_wrapper)  # the user's own stays as it is
        found = None
        with self.comm.raise_on_all_ranks(any_error=True):
            if self.comm.is_root:
                found = find_norms(self.model_wrapper, data, where)
        found = self.model_wrapper.norms = self.comm.bcast(found)
        for text in found.notices:
            warn(text)

    @contextmanager
    def _told_of_modes(self, evaluator: Evaluator) -> Iterator[None]:
        """UserError where what fails in eval mode works in train mode."""
        try:
            yield
        except Exception as error:
            works = []
            for mode in MODES if self.model_wrapper.mode == EVAL else ():
                evaluator.model = evaluator.fast = self.model_wrapper.in_mode(mode)
                with suppress(Exception), evaluator.attached():
                    evaluator([0.0] * self.dimensions)
                    works.append(mode)
            if works == [TRAIN_WITHOUT_DROPOUT]:
                raise UserError(only_in_train_mode(error)) from error
            raise

    def compute(self, metric: Metric | Callable[[ModelWrapper], Any], device: torch.device | str | None = None) -> Any:
        """The metric at every point: float64, the axes' shape and then the metric's own.

        A tuple whose parts differ in shape gives a tuple of such arrays. device: where to compute; None: where the
        model's parameters are.
        """
        grid = self._defined()
        with self.comm.raise_on_all_ranks(any_error=True):
            placement, seed = self._placement(device), self.seed or 0
            policy = Given(self._statistics, self._common) if batchnorm_layers(self.model_wrapper) else Running()
            evaluator = Evaluator(self.model_wrapper, placement, {"": metric}, policy, seed=seed)
            with self._told_of_modes(evaluator):
                if self.comm.is_root:
                    self._try(evaluator, metric)
                self._check_losses(evaluator, metric)
        if self.comm.bcast(evaluator.careful):
            evaluator.be_careful()
        with self.comm.raise_on_all_ranks(any_error=True), self._told_of_modes(evaluator), evaluator.attached():
            mine = {i: evaluator(grid.point(i))[""] for i in self._mine()}
        values = {i: value for part in self.comm.allgather(mine) for i, value in part.items()}
        return stack([values[i] for i in range(grid.size)], grid.shape)

    def _try(self, evaluator: Evaluator, metric: Any) -> None:
        """One batch of the first point, twice: whether its value depends on the point alone, and is a number."""
        if self._defined().size > 1 and isinstance(metric, BatchMetric):
            tried = try_batch(evaluator, metric.data, {metric.name: metric})
            if line := not_finite(tried):
                warn(line)

    def _check_losses(self, evaluator: Evaluator, metric: Any) -> None:
        """Warn where a loss is not the mean that it is taken for; a sum is added up from then on."""
        for one in metric.metrics if isinstance(metric, MetricPipeline) else [metric]:
            criterion = getattr(one, "criterion", getattr(one, "loss_fn", None))
            if isinstance(criterion, Criterion) and isinstance(one, DataMetric) and not criterion.tried:
                with evaluator.attached_at([0.0] * self.dimensions):
                    check_loss(evaluator.model, criterion, one.data)

    def save(self, path: str, title: str = "", **values: np.ndarray) -> None:
        """Write what ``compute`` gave, by name, to a file that plot, info, export, xarray and ParaView read."""
        grid = self._defined()
        unknown = [
            name
            for name, array in values.items()
            if not isinstance(array, np.ndarray) or array.shape[: self.dimensions] != grid.shape
        ]
        if unknown or not values:
            raise UserError(f"save: give name=array, of shape {grid.shape}: {', '.join(unknown) or 'nothing is given'}")
        if not self.comm.is_root:
            return
        attributes = {"program_version": __version__, "title": title, "metrics": ",".join(values), **self._notes}
        if self.seed is not None:
            attributes["seed"] = self.seed
        if self._notes["directions"] == "pca":
            attributes["explained_variance_ratio"] = self.explained_variance_ratio[:1000]
        directions = {axis: state.arrays(v) for axis, v in zip(grid.names, self._vectors, strict=True)}
        arrays = {name: np.asarray(array, dtype=np.float64) for name, array in values.items()}
        layout.save(path, grid, arrays, attributes, directions, self.trajectory)

    # How

    def _define(
        self,
        kind: str,
        vectors: list[dict[str, Tensor]],
        sides: Sequence[tuple[float, float]],
        ends: list[dict[str, Tensor]] | None = None,
        others: Sequence[Mapping[str, Tensor]] = (),
        **notes: Any,
    ) -> Any:
        """Take rank 0's directions; what was warmed up before is gone. others: what else the ends have."""
        weights = self._weights()
        if not weights:
            raise UserError(
                "the model has no parameter that can move: none is of real or complex floating-point numbers"
            )
        self._check_alike()
        broadcast_tensors(weights.values(), self.comm)
        moves = vectors if ends is None else ends
        moves = [{name: move[name].detach().cpu().clone() for name in weights} for move in moves]
        broadcast_tensors((d for move in moves for d in move.values()), self.comm)
        self._vectors = moves if ends is None else differences(weights, moves)
        self._warn_of_zeros(weights, scaled=notes.get("normalization") in ("filter", "layer"))
        fixed = self._fixed(weights)
        along, stays = broadcast_rest(self.model_wrapper, others, self.comm, any_error=True)
        for note in [*told(self.model_wrapper, along, stays), *(() if along else unmoved(self.model_wrapper))]:
            warn(note)
        own = state.state(self.model_wrapper.root)
        here = {**own, **fixed, **weights}
        origin = {
            name: here[name].detach().cpu().to(own[name].dtype) for name in {**weights, **(along[0] if along else {})}
        }
        moves = [{**move, **other} for move, other in zip(moves, along, strict=True)] if along else moves
        self._grid = Grid(*(Axis(float(low), float(high), n) for (low, high), n in zip(sides, self.steps, strict=True)))
        self._make: Callable[..., Placement] = partial(Placement, origin, moves, targets=ends is not None, fixed=fixed)
        self._placements: dict[Any, Placement] = {}
        self._statistics: dict[tuple[float, ...], Tensor] = {}
        self._common: Tensor | None = None
        self._notes = {"directions": kind, **notes}
        if kind != "pca":
            self.trajectory = None
        return self

    def _check_alike(self) -> None:
        """UserError, on all ranks, where another one has another model or another grid: only values may differ."""
        mine = [*state.shapes(self.model_wrapper.root), *(name for name, _ in self.model_wrapper.named_moving())]
        first, *others = self.comm.allgather((mine, self.steps))
        if any(other != first for other in others):
            raise UserError("the ranks have other models, or other steps, than each other: make the same on all")

    def _defined(self) -> Grid:
        if self._grid is None:
            raise UserError(f"say first where to go: {type(self).__name__}.{self.first}(...)")
        return self._grid

    def _weights(self) -> dict[str, Tensor]:
        """The parameters that move, as they are now, on the CPU; those of 16 bits in 32, as directions are."""
        named = self.model_wrapper.named_moving()
        return {name: p.detach().cpu().to(wide(p.dtype), copy=True) for name, p in named}

    def _warn_of_zeros(self, weights: Mapping[str, Tensor], scaled: bool) -> None:
        if text := standing(self._vectors, weights, NAMES, scaled):
            warn(f"{text}; normalization=None does not scale" if scaled else text)

    def _fixed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:  # rank 0's where there are several
        root = self.model_wrapper.root
        tensors = state.state(root) if self.comm.size > 1 else dict(root.named_buffers())
        fixed = {name: t.detach().clone() for name, t in tensors.items() if name not in weights}
        broadcast_tensors(fixed.values(), self.comm)
        return fixed

    def _placement(self, device: torch.device | str | None) -> Placement:
        """The placement on a device; None: each parameter where the model has it."""
        where = None if device is None else torch.device(device)
        if where not in self._placements:
            self._placements = {where: self._make(where)}
        return self._placements[where]

    def _mine(self) -> Iterable[int]:
        return (int(i) for i in strided(np.arange(self._grid.size), self.comm.rank, self.comm.size))

    def _sides(self, distance: float, centered: bool) -> list[tuple[float, float]]:
        if not 0 < distance < float("inf"):
            raise UserError(f"distance={distance}: must be positive and finite")
        return [(-distance / 2, distance / 2) if centered else (0.0, distance)] * self.dimensions

    def _points(self, checkpoints: Path | Iterable[Point], key: str | None) -> list[Callable[[], Mapping[str, Tensor]]]:
        if isinstance(checkpoints, Path):
            checkpoints = find_checkpoints(os.fspath(checkpoints), "checkpoints")
        checkpoints = list(checkpoints)
        named = iter(labels([os.fspath(c) for c in checkpoints if isinstance(c, Path)]))
        self._labels = [next(named) if isinstance(c, Path) else str(i) for i, c in enumerate(checkpoints)]
        weights = self._weights()
        return [read_other(checkpoint, self.model_wrapper, weights, key) for checkpoint in checkpoints]

    def _project(self, points: Sequence[Callable[[], Mapping[str, Tensor]]]) -> layout.Trajectory:
        return layout.Trajectory(*project(points, self._weights(), self._vectors), self._labels)
