"""Loss and accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..model_interface.model_wrapper import ModelWrapper
from .metric import BatchMetric


class _Supervised(BatchMetric):
    """A mean over pairs of output and target; inputs and target are what it is computed on when it is called."""

    def __init__(self, inputs: Tensor | None = None, target: Tensor | None = None):
        self.inputs, self.target = inputs, target

    def __call__(self, model_wrapper: ModelWrapper) -> float:
        if self.inputs is None:
            raise ValueError(f"{type(self).__name__} was made without inputs and target: it has nothing to run on")
        with torch.no_grad():
            return float(self.batch_mean(model_wrapper.forward(self.inputs), self.target))


class Loss(_Supervised):
    """The loss: ``loss_fn(output, target)``, a mean over the batch."""

    name = "loss"

    def __init__(
        self, loss_fn: Callable[[Any, Any], Tensor], inputs: Tensor | None = None, target: Tensor | None = None
    ):
        super().__init__(inputs, target)
        self.loss_fn = loss_fn

    def batch_mean(self, output: Any, target: Any) -> Tensor:
        loss = self.loss_fn(output, target)
        if not isinstance(loss, Tensor):
            return torch.as_tensor(float(loss), dtype=torch.float64)
        if loss.numel() != 1:
            raise UserError(
                f"the loss returned a tensor of shape {tuple(loss.shape)}: it must be one number, the mean over the "
                "batch (reduction='mean')"
            )
        return loss.reshape(())


class Accuracy(_Supervised):
    """The share of targets, class indices, that have the largest output (over dimension 1)."""

    name = "accuracy"

    @staticmethod
    def applies(output: Any, target: Any) -> bool:
        """Whether these are class scores and class indices."""
        return (
            isinstance(output, Tensor)
            and isinstance(target, Tensor)
            and not target.is_floating_point()
            and not target.is_complex()
            and output.ndim >= 2
            and output.shape[1] > 1  # a single score has no largest
            and output.shape[:1] + output.shape[2:] == target.shape
        )

    def batch_mean(self, output: Tensor, target: Tensor) -> Tensor:
        correct = output.argmax(dim=1) == target
        return correct.sum().double() / correct.numel() if correct.device.type != "mps" else correct.float().mean()
