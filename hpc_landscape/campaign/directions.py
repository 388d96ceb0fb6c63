"""The directions, on every rank; and what is projected onto them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.sets import Sets
from ..directions.base import DEVICE, HOST, SEED, Directions, Origin
from ..directions.projection import project
from ..directions.random import drawn_directions
from ..directions.registry import can_be_drawn_again, direction_kind, make_directions
from ..evaluate.build import EvaluatorBuilder, ProblemSubject
from ..evaluate.evaluator import DTYPES
from ..evaluate.execution import PLAIN
from ..evaluate.normalization import Normalization
from ..grid import NAMES, Grid
from ..metrics import Criterion, Data
from ..metrics.trial import treat_as_sum, try_loss
from ..model import state
from ..model.checkpoint import find_paths, labels, read_parameters
from ..model.choice import Chosen
from ..model.numbers import wide
from ..model.rest import rest
from ..model.wrapper import ModelWrapper
from ..problems.problem import Problem
from ..ranks.base import Comm
from ..ranks.shared import blank_pool
from ..setting_groups import DirectionSettings, ProblemSettings, SpeedSettings
from ..store import layout
from ..store.earlier import Earlier
from ..store.layout import Trajectory
from ..store.resume import fill_from
from .keeping import check_copies
from .share import broadcast_rest, broadcast_tensors

log = logging.getLogger(__name__)
Ways = list[list[str]]  # the checkpoints of each path of a trajectory
Loss = Callable[[], AbstractContextManager[tuple[ModelWrapper, Criterion, Data]]]


def find_trajectory(asked: DirectionSettings, comm: Comm) -> Ways:
    """The checkpoints of each path of the trajectory, as rank 0 finds them."""
    text = asked.trajectory
    return [] if text is None else comm.from_root(lambda: find_paths(text, "--trajectory"))


def moving(problem: Problem) -> dict[str, Tensor]:
    """The parameters that move, by name, on the CPU, as directions are computed with: those of 16 bits in 32."""
    return {name: p.data.cpu().to(wide(p.dtype)) for name, p in problem.wrapper.named_moving()}


class Reader:
    """Reads other checkpoints of the problem's model; says once what is odd in one."""

    def __init__(self, problem: Problem, options: ProblemSettings):
        self.problem, self.options = problem, options
        self.told: set[str] = set()

    def read(self, names: list[str], path: str, option: str) -> Mapping[str, Tensor]:
        """Tensors of these names. option: that names the file."""
        options = self.options
        key, trusted = options.checkpoint_key, options.weights_only
        return read_parameters(path, self.problem.root, names, trusted, option, key, self._tell)

    def _tell(self, path: str, chosen: Chosen) -> None:
        if chosen.notes and str(chosen) not in self.told:
            self.told.add(str(chosen))
            log.info("weights      %s%s", path, chosen)


def broadcast_directions(
    asked: DirectionSettings,
    count: int,
    problem: Problem,
    reader: Reader,
    trajectory: Ways,
    loss: Loss | None,
    earlier: Earlier | None,
    memory: str,
    comm: Comm,
) -> Directions:
    """Rank 0's directions, made or read from an earlier file, for every rank.

    count: how many. loss: for kinds that need gradients or curvature. memory: where they are kept.
    """
    kind = direction_kind(asked.directions)
    weights = moving(problem) if comm.is_root or memory == DEVICE else _shapes(problem)
    if memory == SEED:
        drawn = comm.from_root(lambda: drawn_directions(asked, weights, count))
        return Directions([direction.tensors(weights) for direction in drawn], memory=memory)
    blank, shared = _blank(weights, count, memory, comm)
    made = Directions(blank, blank if kind.leads_to_models else None)
    with comm.raise_on_all_ranks():
        if comm.is_root and earlier is not None and earlier.stored.has_directions and not _made_again(asked):
            made = _stored(asked, earlier, blank)
        elif comm.is_root:
            own = rest(problem.wrapper) if kind.leads_to_models else {}
            names = [*weights, *(name for name in own if name in problem.root.state_dict())]
            read = partial(reader.read, names)
            made = _made(asked, Origin(weights, count, read, sum(trajectory, []), loss), memory, blank)
    vectors = made.vectors if made.targets is None else made.targets
    kept = not shared or comm.local_rank == 0
    broadcast_tensors((d for vector in vectors for d in vector.values()), comm, kept)
    if shared:
        comm.node_allgather(None)  # all is there
    made.memory = memory
    made.rest, made.stays = broadcast_rest(problem.wrapper, made.rest, comm)
    made.axes = comm.bcast(made.axes)
    return made


def _shapes(problem: Problem) -> dict[str, Tensor]:
    """What moves, without values."""
    parameters = problem.wrapper.named_moving()
    return {name: torch.empty_like(p.data, dtype=wide(p.dtype), device="meta") for name, p in parameters}


def _blank(weights: Mapping[str, Tensor], count: int, memory: str, comm: Comm) -> tuple[list[dict[str, Tensor]], bool]:
    """Zeros for so many directions; and whether the ranks of a node have them in common."""
    found = None
    if memory == HOST:
        wanted = {(number, name): w for number in range(count) for name, w in weights.items()}
        if comm.local_size > 1:
            found = blank_pool(wanted if comm.local_rank == 0 else {}, comm)
        with comm.raise_on_all_ranks():
            if found is None:
                check_copies(count * state.nbytes(weights), comm.local_size)
    if found is not None:
        return [{name: found[number, name] for name in weights} for number in range(count)], True
    return [{name: torch.zeros_like(w, device="cpu") for name, w in weights.items()} for _ in range(count)], False


def _made(asked: DirectionSettings, origin: Origin, memory: str, blank: list[dict[str, Tensor]]) -> Directions:
    """The directions; to be kept in host memory, in the place that there is for them."""
    if memory == DEVICE:
        return make_directions(asked, origin)
    if can_be_drawn_again(asked):
        drawn = drawn_directions(asked, origin.weights, origin.count)
        made = Directions([direction.tensors(origin.weights) for direction in drawn])
    else:
        made = make_directions(asked, origin)
    for place, direction in zip(blank, made.vectors if made.targets is None else made.targets, strict=True):
        for name, tensor in place.items():
            tensor.copy_(direction[name])
    if made.targets is None:
        made.vectors = blank
    else:
        made.targets = blank
    return made


def _made_again(asked: DirectionSettings) -> bool:
    """Whether a run that goes on makes them again: of an ensemble, all of whose sets are drawn as the first one is."""
    return direction_kind(asked.directions).leads_to_models or asked.ensemble is not None


@contextmanager
def loss_at_origin(
    problem: Problem,
    sets: Sets,
    device: torch.device | None,
    normalization: type[Normalization],
    precision: str,
    seed: int,
) -> Iterator[tuple[ModelWrapper, Criterion, Data]]:
    """The model, its loss and the first evaluation set, on the device; the parameters that move are at the origin."""
    still = Directions([moving(problem)])
    subject = ProblemSubject(problem, still, device, DTYPES.get(precision))
    builder = EvaluatorBuilder(subject, sets, device, normalization, precision, seed, SpeedSettings())
    evaluator, data = builder.build(PLAIN)
    evaluator.careful = True  # nothing is known yet of what the loss writes into
    criterion, first = Criterion(subject.loss, problem.reduction), next(iter(data.values()))
    with evaluator.attached_at([0.0] * evaluator.placement.dimensions):
        if (found := try_loss(problem.wrapper, criterion, first)) is not None:
            treat_as_sum(criterion, found)
    with evaluator.at_origin():
        yield problem.wrapper, criterion, first


def _stored(asked: DirectionSettings, earlier: Earlier, vectors: list[dict[str, Tensor]]) -> Directions:
    """The directions that the file holds."""
    for axis, vector in zip(NAMES, vectors, strict=False):
        fill_from(earlier, layout.ALONG.format(axis), vector, "directions of another model")
    fits = direction_kind(asked.directions).fits_axes
    return Directions(vectors, axes=[str(axis) for axis in earlier.stored.grid.axes] if fits else None)


def default_axes(asked: DirectionSettings, problem: Problem, directions: Directions) -> list[str]:
    """What axes are where nothing is said: as the directions or their kind ask for, else as the problem does."""
    return directions.axes or [direction_kind(asked.directions).axis or problem.axis] * len(NAMES)


def project_trajectory(
    reader: Reader, problem: Problem, ways: Ways, directions: Directions, grid: Grid
) -> Trajectory | None:
    """The checkpoints' places in the plane, least squares; None without any."""
    if not ways:
        return None
    weights = moving(problem)
    paths = sum(ways, [])
    points: list[Any] = [partial(reader.read, list(weights), path, "--trajectory") for path in paths]
    coordinates, distances = project(points, weights, directions.vectors)
    ends = zip(coordinates.T, grid.coordinates, strict=True)
    inside = np.all([(axis[0] <= c) & (c <= axis[-1]) for c, axis in ends], axis=0)
    outside = f"; {(~inside).sum()} of them outside the grid" if not inside.all() else ""
    several = f" on {len(ways)} paths" if len(ways) > 1 else ""
    log.info(f"trajectory   {len(paths)} checkpoints{several}, at most {distances.max():.3g} from the plane{outside}")
    numbers = np.repeat(np.arange(len(ways)), list(map(len, ways))) if len(ways) > 1 else None
    return Trajectory(coordinates, distances, labels(paths), numbers)
