"""What a metric is computed on: batches, and how a model is applied to one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from ..model_interface.model_wrapper import ModelWrapper
from ..parallel.generators import apart
from .nest import each_tensor, move
from .precise import full_precision

BATCH_SIZE = 512  # of a data set that no loader reads


class Data:
    """Batches of (input, target): one of two tensors, or those of a loader.

    forward, count: for other batches: ``forward(model, batch)`` gives the output, the target is the batch, and
    ``count(batch)`` says over how many items a mean over it was taken.
    """

    def __init__(
        self,
        inputs: Tensor | Iterable[Any],
        target: Any = None,
        forward: Callable[[Any, Any], Any] | None = None,
        count: Callable[[Any], int] | None = None,
    ):
        self.single = target is not None or isinstance(inputs, Tensor)
        self.batches: Iterable[Any] = [(inputs, target)] if self.single else inputs
        if isinstance(self.batches, Iterator):
            self.batches = list(self.batches)  # to be read at every point
        elif isinstance(self.batches, Dataset):  # gives samples
            self.batches = DataLoader(self.batches, BATCH_SIZE)
        self.forward, self.count = forward, count

    def on(self, model: ModelWrapper) -> Iterator[Any]:
        """The batches, on the model's device where it has but one."""
        home = next((parameter.device for parameter in model.root.parameters()), None)
        kept = isinstance(self.batches, (list, tuple)) or not getattr(self.batches, "streamed", True)
        for batch in self.batches if kept else apart(self.batches):
            if type(batch) in (tuple, list) and all(isinstance(t, Tensor) and t.device == home for t in batch):
                yield fresh(batch)
            else:
                others = {parameter.device for parameter in model.root.parameters()} - {home}
                yield fresh(move(batch, None if others else home))

    def output(self, model: ModelWrapper, batch: Any) -> Any:
        """What the model says to a batch; what it says in 16 bits in 32, so that losses are computed in no less."""
        if self.forward:
            return full_precision(model.called_by(self.forward, batch))
        if isinstance(batch, (Mapping, Tensor)):
            raise UserError(
                f"a batch is a {type(batch).__name__}, not (input, target): give Problem, or Data, a "
                "forward=lambda model, batch: ..., and a loss(output, batch)"
            )
        return full_precision(model.forward(batch[0]))

    def target(self, batch: Any) -> Any:
        """What the loss compares the output with."""
        return batch if self.forward else full_precision(batch[1])

    def items(self, batch: Any) -> float:
        """By how much the batch's mean weighs."""
        if self.count:
            return float(self.count(batch))
        return 1.0 if self.single else samples(batch)


def fresh(batch: Any) -> Any:
    """The batch as tensors of this use: gradients that user code asks of its inputs stay with them."""

    def own(tensor: Tensor) -> Tensor:
        if tensor.is_inference():  # made inside of a caller's inference mode: cannot be differentiated
            return tensor.clone()
        return tensor.detach().requires_grad_() if tensor.requires_grad else tensor.detach()

    return type(batch)(map(own, batch)) if _plain(batch) else each_tensor(batch, own)


def _plain(batch: Any) -> bool:
    return type(batch) in (tuple, list) and all(isinstance(t, Tensor) for t in batch)


def samples(batch: Any) -> int:
    """How many samples a batch holds: the length of the first tensor in it."""
    tensor = _first_tensor(batch)
    if tensor is None or tensor.ndim == 0:
        raise UserError("cannot tell how many samples a batch holds: give the problem count=lambda batch: ...")
    return tensor.size(0)  # nested ones have no len()


def _first_tensor(batch: Any) -> Tensor | None:
    if isinstance(batch, Tensor):
        return batch
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return next((t for t in map(_first_tensor, parts) if t is not None), None)
