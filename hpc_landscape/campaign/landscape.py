"""What lines and planes of the library have in common: how axes are made, statistics for each point, and metrics."""

from __future__ import annotations

import copy
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import index
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .. import __version__
from ..data.data import Data
from ..data.prepare import as_batches
from ..directions.components import principal_directions
from ..directions.given import as_direction, as_long
from ..directions.interpolation import differences
from ..directions.normalize import checked, normalize
from ..directions.projection import around, project
from ..directions.random import random_directions
from ..directions.reading import read_directions
from ..errors import UserError
from ..evaluate.normalization import choose_normalization
from ..grid import counts
from ..metrics import DataMetric, Metric
from ..model import state
from ..model.batchnorm import given_statistics
from ..model.checkpoint import find_checkpoints, labels
from ..model.others import Path, Point, read_other, read_rest
from ..model.wrapper import ModelWrapper, wrap_model
from ..ranks.base import Comm, SerialComm
from ..ranks.comm import ours_of
from ..ranks.torch_state import LOCK, one_at_a_time
from ..setting_groups import SpeedSettings
from ..store import layout
from . import library
from .frame import Frame, Made, define, weights_of
from .norms import broadcast_found_norms


class Landscape:
    """A metric over a line or a plane of parameter space; use PlanarLossLandscape or LinearLossLandscape.

    Args:
        model: a module, or a wrapper that says what of it moves; frozen parameters (requires_grad=False) move like the
            others, ``wrap_model(model).restrict(trainable=True)`` leaves them. What is of 16 bits is computed in
            float32, and rounded once for the model.
        steps: points along each axis, or a number for each.
        deepcopy_model: work on a copy, so that the model can be used meanwhile.
        comm: an MPI communicator: every rank calls the same methods, computes every size-th point, and gets the whole
            result; None: this process computes all.
        mode: of the modules at points; ``train_without_dropout`` for a model whose loss exists in train mode only.
    """

    dimensions: int
    first: str

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
        self.execution_error = 0.0  # what 95% of a fast way's values are not farther from the plain one's than
        self._frame: Frame | None = None
        self._statistics: dict[tuple[float, ...], Tensor] = {}
        self._common: Tensor | None = None

    @one_at_a_time
    def __getstate__(self) -> dict[str, Any]:
        frame = self._frame and copy.copy(self._frame)
        if frame is not None:
            frame.comm = SerialComm()
        return {**vars(self), "comm": SerialComm(), "_frame": frame}

    @one_at_a_time
    def __deepcopy__(self, known: dict[int, Any]) -> Any:
        other = type(self).__new__(type(self))
        known[id(self)] = other
        vars(other).update(copy.deepcopy(self.__getstate__(), known), comm=self.comm)
        if other._frame is not None:
            other._frame.comm = self.comm
        return other

    @property
    def coordinates(self) -> Any:
        """The coordinates along each axis: (x, y) of a plane, x of a line."""
        found = self._defined().grid.coordinates
        return found if self.dimensions > 1 else found[0]

    @property
    def directions(self) -> list[dict[str, Tensor]]:
        """What a coordinate of 1 adds to the parameters, by their names: one mapping for each axis."""
        return self._defined().vectors

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
        drawn = secrets.randbits(63) if seed is None else index(seed)
        self.seed = number = self.comm.bcast(drawn)

        def make() -> Made:
            weights, how = weights_of(self.model_wrapper), checked(normalization)
            vectors = [
                as_long(normalize(d, weights, how, ignore), weights)
                for d in random_directions(weights, self.dimensions, number, random)
            ]
            return Made("random", vectors, self._sides(distance, centered), notes={"normalization": how})

        return self._define(make)

    @one_at_a_time
    def _precomputed(
        self, directions: Sequence[Any], distance: float, normalization: str | None, centered: bool, ignore: str
    ) -> Any:
        def make() -> Made:
            weights = weights_of(self.model_wrapper)
            vectors = [as_direction(direction, weights) for direction in directions]
            if normalization not in (None, "none"):
                vectors = [as_long(normalize(d, weights, checked(normalization), ignore), weights) for d in vectors]
            return Made("precomputed", vectors, self._sides(distance, centered))

        return self._define(make)

    @one_at_a_time
    def _interpolation(self, ends: Sequence[Point], low: float, high: float, key: str | None = None) -> Any:
        def make() -> Made:
            model, weights = self.model_wrapper, weights_of(self.model_wrapper)
            read = [read_other(end, model, weights, key)() for end in ends]
            models = [{name: t.to(weights[name].dtype) for name, t in other.items()} for other in read]
            others = [read_rest(end, model, key) for end in ends]
            vectors = differences(weights, models)
            return Made("interpolation", vectors, [(low, high)] * self.dimensions, models, others)

        return self._define(make)

    @one_at_a_time
    def pca(self, checkpoints: Path | Iterable[Point], margin: float = 0.25, key: str | None = None) -> Any:
        """The plane of the trajectory's largest principal directions, of unit length, around this model.

        checkpoints: models, state dicts or files, in their order; or a glob, a directory. The axes show all of them
        and a margin around. Afterwards ``trajectory`` and ``explained_variance_ratio`` are there. key: which of several
        networks in a file, as --checkpoint_key.
        """

        def make() -> Made:
            points, weights = self._points(checkpoints, key), weights_of(self.model_wrapper)
            vectors, self.explained_variance_ratio = principal_directions(points, weights, self.dimensions)
            self.trajectory = self._project(points, vectors)
            return Made("pca", vectors, [around(c, margin)[:2] for c in self.trajectory.coordinates.T])

        return self._define(make)

    @one_at_a_time
    def load_directions(self, *paths: Path, distance: float = 2, centered: bool = True) -> Any:
        """Directions from an earlier run's file, or from one .npz, .pt or .safetensors per axis, as they are."""

        def make() -> Made:
            weights, files = weights_of(self.model_wrapper), [os.fspath(path) for path in paths]
            return Made("file", read_directions(files, weights, self.dimensions), self._sides(distance, centered))

        return self._define(make)

    @one_at_a_time
    def project(self, checkpoints: Path | Iterable[Point], key: str | None = None) -> np.ndarray:
        """The checkpoints' coordinates in this plane, least squares: (n, axes). They are drawn by what is saved."""
        frame = self._defined()
        self.trajectory = self._project(self._points(checkpoints, key), frame.vectors)
        return self.trajectory.coordinates

    # What is computed there

    @one_at_a_time
    def stats_initializer(self, running_stats: Any = None) -> None:
        """Batch normalization statistics for all points: the model's own, or these, by the buffers' names.

        Not needed: without it, and without ``warm_up``, points have the model's own.
        """
        self._defined()
        self._statistics, self._common = {}, None
        if running_stats is not None:
            self._common = given_statistics(self.model_wrapper, running_stats)

    @one_at_a_time
    def warm_up(self, data: Any, device: torch.device | str | None = None) -> None:
        """Re-estimate batch normalization's statistics at every point, on a metric's data or on a loader.

        Only these statistics are kept: arrays, for the points of this rank.
        """
        frame, where = self._defined(), self._where(device)
        self._statistics = {}
        with self.comm.raise_on_all_ranks(any_error=True):
            data = _as_data(data)
        self._find_norms(data, where)
        self._statistics = library.warm_up(frame, data, where)

    def _where(self, device: torch.device | str | None) -> torch.device | None:
        """The device; where none is named that of all parameters, None where they are on several."""
        found = {p.device for p in self.model_wrapper.root.parameters()} if device is None else {torch.device(device)}
        return found.pop() if len(found) == 1 else None

    def _find_norms(self, data: Any, device: torch.device | None) -> None:
        """Which statistics are to be re-estimated."""
        self.model_wrapper = copy.copy(self.model_wrapper)  # the user's own stays as it is
        self.model_wrapper.norms = broadcast_found_norms(self.model_wrapper, data, device, self.comm)
        self._defined().model = self.model_wrapper

    @one_at_a_time
    def compute(
        self,
        metric: Metric | Callable[[ModelWrapper], Any],
        device: torch.device | str | None = None,
        *,
        bn: str | None = None,
        precision: str = "fp32",
        channels_last: bool | None = None,
        compile: bool | Literal["reduce-overhead"] = False,
        block: int | None = None,
        tune: bool = False,
        max_error: float | None = None,
        progress: bool = False,
        file: str | os.PathLike | None = None,
        overwrite: bool = False,
        title: str = "",
    ) -> Any:
        """The metric at every point.

        Args:
            metric: of ``hpc_landscape.metrics``, or a function of the model's wrapper.
            device: where to compute; None: where the model's parameters are.
            bn: None: batch normalization has the statistics of ``warm_up`` or ``stats_initializer``, else the model's
                own; ``running``: the model's own; ``batch``: each batch's; ``warmup``: re-estimated at each point, on
                the metric's own data.
            precision: ``fp32``, ``tf32``, ``bf16`` or ``fp64``.
            channels_last, compile, block, tune, max_error: as the program's options of these names.
            progress: whether to show how far it is.
            file: where to store values as they come, under the metric's name: the same call goes on with it after it
                was interrupted, on any number of ranks. overwrite: start again. title: for pictures of it,
                by default the name of the model's class.

        Returns:
            float64, of the axes' shape and then the metric's own. A tuple whose parts differ in shape gives a tuple of
            such arrays. ``execution_error`` then says how far values that were computed in a fast way are off: what 95%
            of them are not off by more than, by 16 points that were computed in the plain way, too.

        Raises:
            UserError: where it cannot be computed so.
        """
        frame = self._defined()
        if precision not in ("fp32", "tf32", "bf16", "fp64"):
            raise UserError(f"precision='{precision}': expected fp32, tf32, bf16 or fp64")
        speed = SpeedSettings(channels_last, compile, block, tune, max_error)
        speed.check()
        title = title or self.model_wrapper.class_name
        attributes = {"title": title, **({} if self.seed is None else {"seed": self.seed})}
        path = "" if file is None else os.fspath(file)
        request = library.Request(
            *(self._where(device), precision, speed, self.seed or 0, progress),
            *(path, overwrite, attributes, self.trajectory),
        )
        values, errors = library.compute(frame, metric, self._policy(metric, bn), request)
        self.execution_error = next(iter(errors.stated.values()), 0.0)
        return values

    def _policy(self, metric: Any, bn: str | None) -> Any:
        """Batch normalization's statistics: those that are there, or as the word says."""
        if bn is None:
            return library.given(self.model_wrapper, self._statistics, self._common)
        if bn not in ("running", "batch", "warmup"):
            raise UserError(f"bn='{bn}': expected running, batch or warmup, or None for what warm_up has estimated")
        data = getattr(metric, "data", None)
        return choose_normalization(bn, self.model_wrapper, data is not None)(data)

    def save(self, path: str, title: str = "", **values: np.ndarray) -> None:
        """Write what ``compute`` gave, by name, to a file that plot, info, export, xarray and ParaView read.

        title: for pictures of it, by default the name of the model's class.
        """
        frame = self._defined()
        grid = frame.grid
        unknown = [
            name
            for name, array in values.items()
            if not isinstance(array, np.ndarray) or array.shape[: self.dimensions] != grid.shape
        ]
        if unknown or not values:
            raise UserError(f"save: give name=array, of shape {grid.shape}: {', '.join(unknown) or 'nothing is given'}")
        if not self.comm.is_root:
            return
        title = title or self.model_wrapper.class_name
        attributes = {"program_version": __version__, "title": title, "metrics": ",".join(values), **frame.notes}
        if self.seed is not None:
            attributes["seed"] = self.seed
        if self.explained_variance_ratio is not None:
            attributes["explained_variance_ratio"] = self.explained_variance_ratio[:1000]
        directions = {axis: state.arrays(v) for axis, v in zip(grid.names, frame.vectors, strict=True)}
        arrays = {name: np.asarray(array, dtype=np.float64) for name, array in values.items()}
        layout.save(path, grid, arrays, attributes, directions, self.trajectory)

    # How

    def _define(self, make: Callable[[], Made]) -> Any:
        """Take what a recipe makes, rank 0's; what was warmed up before is gone."""
        self.trajectory = self.explained_variance_ratio = None
        with self.comm.raise_on_all_ranks(any_error=True):
            made = make()
        self._frame = define(self.model_wrapper, self.steps, made, self.comm)
        self._statistics, self._common = {}, None
        return self

    def _defined(self) -> Frame:
        if self._frame is None:
            raise UserError(f"say first where to go: {type(self).__name__}.{self.first}(...)")
        return self._frame

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
        weights = weights_of(self.model_wrapper)
        return [read_other(checkpoint, self.model_wrapper, weights, key) for checkpoint in checkpoints]

    def _project(
        self, points: Sequence[Callable[[], Mapping[str, Tensor]]], vectors: Sequence[Mapping[str, Tensor]]
    ) -> layout.Trajectory:
        coordinates, distances = project(points, weights_of(self.model_wrapper), vectors)
        return layout.Trajectory(coordinates, distances, self._labels)


def _as_data(data: Any) -> Any:
    """What batch normalization is to be re-estimated on: a metric's data, a loader's, or what a function passes."""
    if isinstance(data, DataMetric):
        return data.data
    if not isinstance(data, Data) and (isinstance(data, Iterable) or not callable(data)):
        return Data(as_batches(data))
    return data
