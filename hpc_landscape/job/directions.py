"""The directions, on every rank; and what is projected onto them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..campaign.share import broadcast_rest, broadcast_tensors
from ..data.sets import Sets
from ..directions.base import Directions, Origin
from ..directions.projection import project
from ..directions.registry import direction_kind, make_directions
from ..evaluate.build import EvaluatorBuilder
from ..evaluate.execution import PLAIN
from ..evaluate.normalization import choose_normalization
from ..grid import NAMES, Grid
from ..metrics import Criterion, Data
from ..metrics.trial import treat_as_sum, try_loss
from ..model.checkpoint import find_paths, labels, read_parameters
from ..model.choice import Chosen
from ..model.numbers import wide
from ..model.rest import rest
from ..model.wrapper import ModelWrapper
from ..problems.problem import Problem
from ..ranks.comm import Comm
from ..settings import Settings
from ..store import layout
from ..store.layout import Trajectory
from .stored import fill_from

Ways = list[list[str]]  # the checkpoints of each path of a trajectory
Say = Callable[[str], None]


def locate(settings: Settings, comm: Comm) -> tuple[Settings, Ways]:
    """The settings, and the checkpoints of each path of the trajectory as rank 0 finds them.

    Some kinds of direction are around the last of all, without a --checkpoint.
    """
    ways: Ways = []
    with comm.raise_on_all_ranks():
        if comm.is_root and settings.trajectory is not None:
            ways = find_paths(settings.trajectory, "--trajectory")
    ways = comm.bcast(ways)
    if direction_kind(settings.directions).from_last_checkpoint and settings.checkpoint is None:
        settings = settings.replaced(checkpoint=ways[-1][-1])
    return settings, ways


def moving(problem: Problem) -> dict[str, Tensor]:
    """The parameters that move, by name, on the CPU, as directions are computed with: those of 16 bits in 32."""
    return {name: p.data.cpu().to(wide(p.dtype)) for name, p in problem.wrapper.named_moving()}


def broadcast_directions(
    settings: Settings,
    problem: Problem,
    sets: Sets,
    stored: layout.Stored | None,
    trajectory: Ways,
    device: torch.device,
    comm: Comm,
    say: Say,
) -> Directions:
    """Rank 0's directions, made or read from the file that is gone on with, for every rank."""
    weights, kind = moving(problem), direction_kind(settings.directions)
    blank = [{name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(settings.dimensions)]
    ends = kind.leads_to_models
    own = rest(problem.wrapper) if ends else {}
    read = reader(settings, problem, [*weights, *(name for name in own if name in problem.root.state_dict())], say)
    made = Directions(blank, blank if ends else None)
    with comm.raise_on_all_ranks():
        if comm.is_root and stored is not None and stored.has_directions and not ends:
            made = _stored(settings, stored, blank)
        elif comm.is_root:
            loss = partial(_loss_at_origin, settings, problem, sets, weights, device) if sets.evaluation else None
            made = make_directions(settings, Origin(weights, read, sum(trajectory, []), loss))
    vectors = made.vectors if made.ends is None else made.ends
    broadcast_tensors((d for vector in vectors for d in vector.values()), comm)
    made.rest, made.stays = broadcast_rest(problem.wrapper, made.rest, comm)
    made.axes = comm.bcast(made.axes)
    return made


@contextmanager
def _loss_at_origin(
    settings: Settings, problem: Problem, sets: Sets, weights: Mapping[str, Tensor], device: torch.device
) -> Iterator[tuple[ModelWrapper, Criterion, Data]]:
    """The model, its loss and the first evaluation set, on the device; the parameters that move are at the origin."""
    policy = choose_normalization(settings.bn, problem.wrapper, sets.warmup is not None)
    directions, speed = Directions([dict(weights)]), settings.for_speed
    builder = EvaluatorBuilder(problem, sets, directions, device, policy, settings.precision, settings.seed, speed)
    evaluator, data = builder.build(PLAIN)
    evaluator.careful = True  # nothing is known yet of what the loss writes into
    criterion, first = Criterion(builder.loss, problem.reduction), next(iter(data.values()))
    with evaluator.attached_at([0.0] * evaluator.placement.dimensions):
        if (found := try_loss(problem.wrapper, criterion, first)) is not None:
            treat_as_sum(criterion, found)
    with evaluator.at_origin():
        yield problem.wrapper, criterion, first


def _stored(settings: Settings, stored: layout.Stored, vectors: list[dict[str, Tensor]]) -> Directions:
    """The directions that the file holds."""
    for axis, vector in zip(NAMES, vectors, strict=False):
        fill_from(settings.output, f"directions/{axis}", vector, "directions of another model")
    fits = direction_kind(settings.directions).fits_axes
    return Directions(vectors, axes=[str(axis) for axis in stored.grid.axes] if fits else None)


def make_grid(settings: Settings, problem: Problem, directions: Directions) -> Grid:
    """The grid: as the settings say, else as the directions or their kind ask for, else as the problem does."""
    usual = direction_kind(settings.directions).axis or problem.axis
    return settings.grid(directions.axes or [usual] * len(NAMES))


def reader(
    settings: Settings, problem: Problem, names: list[str], say: Say
) -> Callable[[str, str], Mapping[str, Tensor]]:
    """Reads the parameters that move from another checkpoint of the problem's model; says once what is odd in it."""
    said: set[str] = set()

    def tell(path: str, chosen: Chosen) -> None:
        if chosen.notes and str(chosen) not in said:
            said.add(str(chosen))
            say(f"weights      {path}{chosen}")

    def read(path: str, option: str) -> Mapping[str, Tensor]:
        key = settings.checkpoint_key
        return read_parameters(path, problem.root, names, settings.weights_only, option, key, tell)

    return read


def project_trajectory(
    settings: Settings, problem: Problem, ways: Ways, directions: Directions, grid: Grid, say: Say
) -> Trajectory | None:
    """The checkpoints' places in the plane, least squares; None without any."""
    if not ways:
        return None
    weights = moving(problem)
    said = "trajectory" in direction_kind(settings.directions).needs  # what is odd in them, while they were read
    read = reader(settings, problem, list(weights), (lambda _: None) if said else say)
    paths = sum(ways, [])
    points = [partial(read, path, "--trajectory") for path in paths]
    coordinates, distances = project(points, weights, directions.vectors)
    ends = zip(coordinates.T, grid.coordinates, strict=True)
    inside = np.all([(axis[0] <= c) & (c <= axis[-1]) for c, axis in ends], axis=0)
    outside = f"; {(~inside).sum()} of them outside the grid" if not inside.all() else ""
    several = f" on {len(ways)} paths" if len(ways) > 1 else ""
    say(f"trajectory   {len(paths)} checkpoints{several}, at most {distances.max():.3g} from the plane{outside}")
    numbers = np.repeat(np.arange(len(ways)), list(map(len, ways))) if len(ways) > 1 else None
    return Trajectory(coordinates, distances, labels(paths), numbers)
