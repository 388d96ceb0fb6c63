"""Where a landscape of the library lies: origin, directions and grid, the same on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..directions.interpolation import differences
from ..directions.normalize import standing
from ..errors import UserError, warn
from ..evaluate.build import how_placed
from ..evaluate.execution import ExecutionMode
from ..grid import NAMES, Axis, Grid
from ..model import state
from ..model.numbers import wide
from ..model.placement import Placement
from ..model.rest import notes_on_rest, unmoved
from ..model.wrapper import ModelWrapper
from ..ranks.base import Comm
from .share import broadcast_rest, broadcast_tensors

Vectors = list[dict[str, Tensor]]


@dataclass
class Made:
    """What a recipe makes: directions, and the side of the grid along each.

    kind: its name. targets: other models that the directions lead to, and others: what else these have. notes: for a
    file.
    """

    kind: str
    vectors: Vectors
    sides: Sequence[tuple[float, float]]
    targets: Vectors | None = None
    others: Sequence[Mapping[str, Tensor]] = ()
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Frame:
    """The model as it was when the axes were defined, and what it is moved along.

    vectors: what a coordinate of 1 adds to the parameters. origin, placed, fixed, targets: as a Placement takes them.
    """

    model: ModelWrapper
    comm: Comm
    grid: Grid
    vectors: Vectors
    origin: dict[str, Tensor]
    placed: Vectors
    fixed: dict[str, Tensor]
    targets: bool
    notes: dict[str, Any]

    def placement(self, device: torch.device | None, dtype: torch.dtype | None, mode: ExecutionMode) -> Placement:
        """The points on a device; None: each parameter where the model has it."""
        how = how_placed(self.model.root, mode)
        return Placement(self.origin, self.placed, device, dtype, self.targets, fixed=self.fixed, **how)

    @property
    def point_bytes(self) -> int:
        """What a point's parameters take."""
        return sum(tensor.nbytes for tensor in self.origin.values())


def weights_of(model: ModelWrapper) -> dict[str, Tensor]:
    """The parameters that move, as they are now, on the CPU; those of 16 bits in 32, as directions are."""
    return {name: p.detach().cpu().to(wide(p.dtype), copy=True) for name, p in model.named_moving()}


def define(model: ModelWrapper, steps: Sequence[int], made: Made, comm: Comm) -> Frame:
    """Take rank 0's model and directions. UserError, on all ranks, where another has another model or grid."""
    weights = weights_of(model)
    if not weights:
        raise UserError("the model has no parameter that can move: none is of real or complex floating-point numbers")
    mine = [*state.shapes(model.root), *(name for name, _ in model.named_moving())]
    comm.check_equal(
        (mine, tuple(steps)), "the ranks have other models, or other steps, than each other: make the same on all"
    )
    broadcast_tensors(weights.values(), comm)
    placed = made.vectors if made.targets is None else made.targets
    placed = [{name: move[name].detach().cpu().clone() for name in weights} for move in placed]
    broadcast_tensors((d for move in placed for d in move.values()), comm)
    vectors = placed if made.targets is None else differences(weights, placed)
    fixed = _fixed(model, weights, comm)
    along, stays = broadcast_rest(model, made.others, comm, any_error=True)
    for note in _notes(model, weights, vectors, made, along, stays):
        warn(note)
    own = state.state(model.root)
    here = {**own, **fixed, **weights}
    moving = {**weights, **(along[0] if along else {})}
    origin = {name: here[name].detach().cpu().to(own[name].dtype) for name in moving}
    if along:
        placed = [{**move, **other} for move, other in zip(placed, along, strict=True)]
    sides = zip(made.sides, steps, strict=True)
    grid = Grid(*(Axis(float(low), float(high), n) for (low, high), n in sides))
    notes = {"directions": made.kind, **made.notes}
    return Frame(model, comm, grid, vectors, origin, placed, fixed, made.targets is not None, notes)


def _notes(
    model: ModelWrapper,
    weights: Mapping[str, Tensor],
    vectors: Vectors,
    made: Made,
    along: Vectors,
    stays: Sequence[str],
) -> Iterator[str]:
    """What a person is to know of what does not move, or goes along."""
    scaled = made.notes.get("normalization") in ("filter", "layer")
    if text := standing(vectors, weights, NAMES, scaled):
        yield f"{text}; normalization=None does not scale" if scaled else text
    yield from notes_on_rest(model, along, stays)
    if not along:
        yield from unmoved(model)


def _fixed(model: ModelWrapper, weights: Mapping[str, Tensor], comm: Comm) -> dict[str, Tensor]:
    """Buffers as they are now; on several ranks rank 0's, and its parameters that do not move."""
    tensors = state.state(model.root) if comm.size > 1 else dict(model.root.named_buffers())
    fixed = {name: t.detach().clone() for name, t in tensors.items() if name not in weights}
    broadcast_tensors(fixed.values(), comm)
    return fixed
