"""The directions, on every rank; and what is projected onto them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..directions.projection import project
from ..directions.recipes import Directions, Read, make_directions
from ..errors import UserError
from ..evaluate.form import PLAIN
from ..grid import NAMES, Grid
from ..metrics import Criterion, hessian_eigenvectors
from ..metrics.trial import settle, try_loss
from ..model_interface import state
from ..parallel.comm import Comm
from ..problems.checkpoint import find_checkpoints, read_parameters
from ..problems.problem import Problem
from ..settings import Settings
from ..store import layout
from ..store.layout import Trajectory
from .data import Sets
from .form import Maker
from .stored import fill_from


def locate(settings: Settings, comm: Comm) -> tuple[Settings, list[str]]:
    """The settings, and the trajectory's checkpoints as rank 0 finds them: pca is around the last, or --checkpoint."""
    paths: list[str] = []
    with comm.together():
        if comm.is_root and settings.trajectory is not None:
            paths = find_checkpoints(settings.trajectory, "--trajectory")
    paths = comm.bcast(paths)
    if settings.directions == "pca" and settings.checkpoint is None:
        settings = dataclasses.replace(settings, checkpoint=paths[-1])
    return settings, paths


def moving(problem: Problem) -> dict[str, Tensor]:
    """The parameters that move, by name, on the CPU."""
    return {name: p.data.cpu() for name, p in problem.wrapper.named_parameters() if p.is_floating_point()}


def share_directions(
    settings: Settings,
    problem: Problem,
    sets: Sets,
    stored: layout.Stored | None,
    trajectory: Sequence[str],
    device: torch.device,
    comm: Comm,
) -> Directions:
    """Rank 0's directions, made or read from the file that is gone on with, for every rank."""
    weights = moving(problem)
    read = reader(settings, problem, list(weights))
    blank = [{name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(settings.dimensions)]
    ends = settings.directions == "interpolation"
    made = Directions(blank, blank if ends else None)
    with comm.together():
        if comm.is_root and stored is not None and stored.has_directions and not ends:
            made = _stored(settings, stored, blank)
        elif comm.is_root:
            eigenvectors = partial(_eigenvectors, settings, problem, sets, weights, device)
            made = make_directions(settings, weights, read, trajectory, eigenvectors)
    state.broadcast((d for vector in made.moves for d in vector.values()), comm)
    made.axes = comm.bcast(made.axes)
    return made


def _eigenvectors(
    settings: Settings,
    problem: Problem,
    sets: Sets,
    weights: Mapping[str, Tensor],
    device: torch.device,
    count: int,
) -> tuple[list[dict[str, Tensor]], np.ndarray]:
    """Of the Hessian of the loss over the first evaluation set, at the model, of the parameters that move."""
    if not sets.evaluation:
        raise UserError("--directions hessian: the problem has no data")
    maker = Maker(settings, problem, sets, Directions([dict(weights)]), device)
    evaluator, data = maker.make(PLAIN)
    criterion, first = Criterion(maker.loss, problem.reduction), next(iter(data.values()))
    with evaluator.at_origin(normalizing=False):
        if (found := try_loss(problem.wrapper, criterion, first)) is not None:
            settle(criterion, found)
    with evaluator.at_origin():
        return hessian_eigenvectors(problem.wrapper, criterion, first, count)


def _stored(settings: Settings, stored: layout.Stored, vectors: list[dict[str, Tensor]]) -> Directions:
    """The directions that the file holds."""
    for axis, vector in zip(NAMES, vectors, strict=False):
        fill_from(settings.output, f"directions/{axis}", vector, "directions of another model")
    axes = [str(axis) for axis in stored.grid.axes] if settings.directions == "pca" else None
    return Directions(vectors, axes=axes)


def make_grid(settings: Settings, problem: Problem, directions: Directions) -> Grid:
    """The grid: as the settings say, else as the directions ask for, else as the problem does."""
    return settings.grid(directions.axes or [problem.axis] * len(NAMES))


def reader(settings: Settings, problem: Problem, names: list[str]) -> Read:
    """Reads the parameters that move from another checkpoint of the problem's model."""

    def read(path: str, option: str) -> Mapping[str, Tensor]:
        return read_parameters(path, problem.root, names, settings.weights_only, option)

    return read


def project_trajectory(
    settings: Settings,
    problem: Problem,
    paths: Sequence[str],
    directions: Directions,
    grid: Grid,
    say: Callable[[str], None],
) -> Trajectory | None:
    """The checkpoints' places in the plane, least squares; None without any."""
    if not paths:
        return None
    weights = moving(problem)
    read = reader(settings, problem, list(weights))
    points = [partial(read, path, "--trajectory") for path in paths]
    coordinates, distances = project(points, weights, directions.vectors)
    ends = zip(coordinates.T, grid.coordinates, strict=True)
    inside = np.all([(axis[0] <= c) & (c <= axis[-1]) for c, axis in ends], axis=0)
    outside = f"; {(~inside).sum()} of them outside the grid" if not inside.all() else ""
    say(f"trajectory   {len(paths)} checkpoints, at most {distances.max():.3g} from the plane{outside}")
    return Trajectory(coordinates, distances, [os.path.splitext(os.path.basename(path))[0] for path in paths])
