"""Loss and accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..model.wrapper import ModelWrapper
from .base import BatchMetric
from .criterion import Criterion, data_of
from .trial import check_loss


class Loss(BatchMetric):
    """The loss: ``loss_fn(output, target)``, a mean over the batch; the mean over all samples of a loader.

    A torch.nn loss counts for itself what its mean is over: class weights, ignored targets, elements. Of others a batch
    weighs what the data's ``count`` says, else its samples; where a batch does not agree with its parts in that, there
    is a warning. ``reduction="sum"``: the loss is a sum over the batch, and is added up over the batches.

    A loss of several terms (a dict or tuple of numbers) is their sum; ``LossTerm`` is one of them. A loss without data,
    ``loss()`` or ``loss(model)``, is given alone: ``Loss(closure)``. ``loss()`` has to compute with the model that
    moves: a landscape made with ``deepcopy_model=True`` moves a copy, which ``loss(model)`` is given.
    """

    name = "loss"
    weighs_targets = True

    def __init__(
        self, loss_fn: Callable[..., Any], inputs: Any = None, target: Any = None, reduction: str | None = None
    ):
        self.criterion = Criterion.of(loss_fn) if reduction is None else Criterion(loss_fn, reduction)
        super().__init__(data_of(self.criterion, inputs), target)
        self.loss_fn = loss_fn

    @property  # what the criterion says, which may find out more
    def whole(self) -> Callable[[Any, Any], dict[str, Tensor]]:  # type: ignore[override]
        return self.criterion.terms

    @property
    def sums(self) -> bool:  # type: ignore[override]
        return self.criterion.sum

    def batch_mean(self, output: Any, target: Any) -> Tensor:
        return self.part(self.whole(output, target))

    def part(self, whole: Mapping[str, Tensor]) -> Tensor:
        return self.criterion.total(whole)

    def batch_weight(self, output: Any, target: Any, items: Any) -> Any:
        return self.criterion.weight(output, target, items, self.data.count is not None)

    def __call__(self, model_wrapper: ModelWrapper) -> float:
        if not model_wrapper.root.training:
            check_loss(model_wrapper, self.criterion, self.data)
        return super().__call__(model_wrapper)


class LossTerm(Loss):
    """One term of a loss that returns several: by its key, or ``loss_0``, ``loss_1`` of a tuple."""

    def __init__(
        self,
        loss_fn: Callable[..., Any],
        term: str,
        inputs: Any = None,
        target: Any = None,
        reduction: str | None = None,
    ):
        super().__init__(loss_fn, inputs, target, reduction)
        self.term = self.name = term

    def part(self, whole: Mapping[str, Tensor]) -> Tensor:
        if self.term not in whole:
            raise UserError(f"the loss has no term '{self.term}'; it has {', '.join(whole)}")
        return whole[self.term]


class Accuracy(BatchMetric):
    """The share of targets, class indices, that are among the k largest outputs (over dimension 1).

    Targets that are no class (-100, or 255 of 19) do not count, nor do those of ignore_index.
    """

    name = "accuracy"
    weighs_targets = True

    def __init__(self, inputs: Any, target: Any = None, k: int = 1, ignore_index: int | None = None):
        super().__init__(inputs, target)
        if k < 1:
            raise UserError(f"accuracy: k={k} must be at least 1")
        self.k, self.ignore_index = k, ignore_index
        self.name = "accuracy" if k == 1 else f"accuracy_top{k}"

    @staticmethod
    def applies(output: Any, target: Any) -> bool:
        """Whether these are class scores and class indices."""
        return (
            isinstance(output, Tensor)
            and isinstance(target, Tensor)
            and not target.is_floating_point()
            and not target.is_complex()
            and not output.is_complex()  # nor have these a largest
            and output.ndim >= 2
            and output.shape[1] > 1  # a single score has no largest
            and output.shape[:1] + output.shape[2:] == target.shape
        )

    def _counts(self, output: Tensor, target: Tensor) -> Tensor:
        """Which targets do."""
        counts = (target >= 0) & (target < output.shape[1])
        return counts if self.ignore_index is None else counts & (target != self.ignore_index)

    def batch_mean(self, output: Tensor, target: Tensor) -> Tensor:
        if self.k == 1:
            correct = output.argmax(dim=1) == target
        else:
            best = output.topk(min(self.k, output.shape[1]), dim=1).indices
            correct = (best == target.unsqueeze(1)).any(dim=1)
        counts = self._counts(output, target)
        right, all_of_them = (correct & counts).sum(), counts.sum()
        if right.device.type == "mps":
            return right.float() / all_of_them
        return right.double() / all_of_them

    def batch_weight(self, output: Tensor, target: Tensor, items: Any) -> Any:
        """The targets that count; in a batch without items, none."""
        counts = self._counts(output, target).sum()
        return counts if items is None else counts * (items != 0)
