"""A problem: model, loss and data; and how a factory that makes one is found and called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..data.data import Data
from ..errors import UserError
from ..metrics.base import Metric
from ..metrics.criterion import REDUCTIONS, takes_no_data, without_data
from ..model.modes import EVAL, check_mode
from ..model.numbers import can_move
from ..model.wrapper import ModelWrapper, wrap_model


@dataclass
class Problem:
    """What a factory returns.

    model: the network; or a wrapper that says how a model or an agent is called, and which of its modules move.
    loss: ``loss(output, target)``, a mean over the batch (a torch.nn loss, say), or several as a dict or tuple; without
    data ``loss()`` or ``loss(model)``.
    data: what the metrics are computed on: a pair of tensors, a Dataset or a DataLoader; or several such by name,
    ``{"train": ..., "test": ...}``.
    warmup_data: what batch normalization is re-estimated on; None: the data (of several, "train", else the first).
    forward, count: for batches that are not (input, target): ``forward(model, batch)`` gives the output, loss receives
    (output, batch), and ``count(batch)`` says over how many items the mean was taken.
    reduction: ``sum`` where the loss is a sum over the batch: it is added up over the batches then, and not averaged.
    train: makes the model what it should be, in place, where it does not come trained; runs on rank 0 only.
    score: says how good the trained model is, in a few words, on data that it was not trained on.
    axis: the default axis, MIN:MAX:N. name: for titles.
    metrics: metrics of its own, asked for by their names. env: of an agent, a Gymnasium environment, or its name.
    neutral: arguments of the factory that no value depends on, the name of a log, say: a run goes on with others.
    mode: how the modules are at points; ``train_without_dropout`` for a model whose loss exists in train mode only (a
    detector): all in train mode but dropout and what keeps running statistics.
    """

    model: nn.Module | ModelWrapper
    loss: Callable[..., Any] | None = None
    data: Any = None
    warmup_data: Any = None
    forward: Callable[[nn.Module, Any], Any] | None = None
    count: Callable[[Any], Any] | None = None
    train: Callable[[nn.Module], None] | None = None
    score: Callable[[nn.Module], str] | None = None
    axis: str = "-1:1:51"
    name: str = ""
    metrics: Sequence[Metric] = ()
    env: Any = None
    neutral: Sequence[str] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict, init=False, repr=False)  # that the factory was given
    mode: str = EVAL
    reduction: str | None = None

    def __post_init__(self) -> None:
        if self.data is None and self.forward is None and callable(self.loss) and takes_no_data(self.loss):
            self.data, self.forward = (
                (torch.zeros(1, device="cpu"),),
                without_data(self.loss),
            )  # one batch, which nobody looks at

    @cached_property
    def wrapper(self) -> ModelWrapper:
        """How metrics see the model."""
        wrapper = wrap_model(self.model)
        return wrapper if self.mode == EVAL else wrapper.in_mode(self.mode)

    @property
    def root(self) -> nn.Module:
        """All there is of the model."""
        return self.wrapper.root

    @property
    def sets(self) -> dict[str, Any]:
        """The data by name; the name of a single set is empty."""
        if self.data is None:
            return {}
        return dict(self.data) if isinstance(self.data, Mapping) else {"": self.data}

    def on(self, batches: Iterable[Any]) -> Data:
        """The batches as metrics read them."""
        return Data(batches, forward=self.forward, count=self.count)

    def check(self) -> None:
        """Raise UserError where a part is missing or of the wrong kind."""
        if not isinstance(self.model, (nn.Module, ModelWrapper)):
            raise UserError(
                f"the problem's model is a {type(self.model).__name__}, not a torch.nn.Module (an agent is wrapped: "
                "GeneralModelWrapper(agent, [agent.policy], lambda agent, x: agent.act(x)))"
            )
        check_mode(self.mode)
        if self.loss is not None and not callable(self.loss):
            raise UserError(
                f"the problem's loss is a {type(self.loss).__name__}: it must be callable, loss(output, target)"
            )
        self._check_loss()
        if self.data is None and not self.metrics and self.env is None:
            raise UserError(
                "the problem has no data: give Problem(model, loss, data) tensors, a Dataset or a DataLoader; or "
                "metrics of its own, or an env"
            )
        if self.data is not None and self.loss is None:
            raise UserError("the problem has data but no loss: give Problem(model, loss, data) a loss(output, target)")
        for name in self.sets:
            if name and not name.isidentifier():
                raise UserError(f"the problem's data has a set called '{name}': take letters, digits and underscores")
        self._check_parameters()

    def _check_loss(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise UserError(f"the problem's reduction is {self.reduction!r}: it must be 'mean' or 'sum'")
        if self.reduction is None and getattr(self.loss, "reduction", "mean") == "none":
            raise UserError("the problem's loss has reduction='none': it must be one number, 'mean' or 'sum'")
        if self.loss is not None and self.forward is None and self.data is not None and takes_no_data(self.loss):
            raise UserError(
                "the problem has data, and its loss does not take (output, target): leave out the data, or let it "
                "take them"
            )

    def _check_parameters(self) -> None:
        parameters = list(self.root.parameters())
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
            raise UserError("the problem's model has lazy layers without a shape yet: call it once in the factory")
        if not any(map(can_move, self.wrapper.parameters())):
            raise UserError("the problem's model has no floating-point parameters: there is nothing to move")
