"""Loss and accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .metric import BatchMetric
from .precise import precise


def loss_of(loss_fn: Callable[[Any, Any], Any], output: Any, target: Any) -> Tensor:
    """The loss of a batch as a 0-d tensor; UserError where it is not one number."""
    loss = loss_fn(output, target)
    if not isinstance(loss, Tensor):
        return torch.as_tensor(float(loss), dtype=torch.float64, device="cpu")
    if loss.numel() != 1:
        raise UserError(
            f"the loss returned a tensor of shape {tuple(loss.shape)}: it must be one number, the mean over the "
            "batch (reduction='mean')"
        )
    return precise(loss.reshape(()))


class Loss(BatchMetric):
    """The loss: ``loss_fn(output, target)``, a mean over the batch; the mean over all samples of a loader."""

    name = "loss"

    def __init__(self, loss_fn: Callable[[Any, Any], Any], inputs: Any, target: Any = None):
        super().__init__(inputs, target)
        self.loss_fn = loss_fn

    def batch_mean(self, output: Any, target: Any) -> Tensor:
        return loss_of(self.loss_fn, output, target)


class Accuracy(BatchMetric):
    """The share of targets, class indices, that are among the k largest outputs (over dimension 1)."""

    name = "accuracy"

    def __init__(self, inputs: Any, target: Any = None, k: int = 1):
        super().__init__(inputs, target)
        if k < 1:
            raise UserError(f"accuracy: k={k} must be at least 1")
        self.k = k
        self.name = "accuracy" if k == 1 else f"accuracy_top{k}"

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
        if self.k == 1:
            correct = output.argmax(dim=1) == target
        else:
            best = output.topk(min(self.k, output.shape[1]), dim=1).indices
            correct = (best == target.unsqueeze(1)).any(dim=1)
        return correct.sum().double() / correct.numel() if correct.device.type != "mps" else correct.float().mean()
