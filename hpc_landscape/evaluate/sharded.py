"""What evaluators are built of where a model is sharded over the ranks of a team."""

from __future__ import annotations

import torch
from torch import nn

from ..data.data import Data
from ..directions.base import Directions
from ..errors import UserError
from ..metrics.base import Metric
from ..metrics.criterion import loss_on
from ..metrics.supervised import Loss
from ..model import state
from ..model.sharded import Sharded, ShardedPlacement
from ..problems.problem import Problem
from .execution import ExecutionMode


class ShardedSubject:
    """A problem's model, sharded, along directions; as ``ProblemSubject``."""

    hint = ""

    def __init__(self, problem: Problem, directions: Directions, sharded: Sharded):
        if directions.targets is not None or any(directions.rest):
            raise UserError("--shard fsdp: directions that lead to other models are not sharded; take random ones, say")
        own = {id(p) for p in problem.root.parameters()}
        if isinstance(problem.loss, nn.Module) and any(id(p) in own for p in problem.loss.parameters()):
            raise UserError("--shard fsdp: the loss holds parameters of the model: let it take what it needs as output")
        self.problem, self.directions, self.sharded = problem, directions, sharded
        self.model, self.own_forward, self.on = sharded.wrapper, problem.forward is not None, problem.on
        self.loss = loss_on(problem.loss, problem.root, sharded.device, None)

    @property
    def point_bytes(self) -> int:
        return sum(d.nbytes for d in self.directions.vectors[0].values()) // self.sharded.size

    def placement(
        self, device: torch.device | None, dtype: torch.dtype | None, mode: ExecutionMode
    ) -> ShardedPlacement:
        tensors = state.parameters(self.problem.root)
        moving = {name: tensors[name] for name in self.directions.vectors[0]}
        return ShardedPlacement(self.sharded, moving, self.directions.placed)

    def trial(self, data: Data) -> Metric:
        return Loss(self.loss, data)
