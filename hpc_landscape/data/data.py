"""What a metric is computed on: batches, and how a model is applied to one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import suppress
from functools import cached_property
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from ..model.wrapper import ModelWrapper
from ..ranks.generators import apart
from .batches import Batches
from .nest import each_tensor, move
from .precise import full_precision
from .sizes import UNKNOWN, batch_size, shapes

BATCH_SIZE = 512  # of a data set that no loader reads


class Data:
    """Batches of (input, target): one of two tensors, or those of a loader; a tuple of tensors is one batch.

    forward, count: for other batches: ``forward(model, batch)`` gives the output, the target is the batch, and
    ``count(batch)`` says over how many items a mean over it was taken, a number or a tensor.
    """

    def __init__(
        self,
        inputs: Tensor | Iterable[Any],
        target: Any = None,
        forward: Callable[[Any, Any], Any] | None = None,
        count: Callable[[Any], Any] | None = None,
    ):
        parts = type(inputs) is tuple and bool(inputs) and all(isinstance(part, Tensor) for part in inputs)
        self.single = target is not None or isinstance(inputs, Tensor) or parts
        one = inputs if parts and target is None else (inputs, target)
        self.batches: Iterable[Any] = [one] if self.single else inputs
        if isinstance(self.batches, Iterator):
            self.batches = list(self.batches)  # to be read at every point
        elif isinstance(self.batches, Dataset):  # gives samples
            self.batches = DataLoader(self.batches, BATCH_SIZE)
        self.forward, self.count = forward, count
        self._whole: Data | None = None  # of which these are a part

    def part(self, index: int, count: int) -> Data:
        """Every count-th batch, from that index on."""
        other = copy.copy(self)
        whole = self.batches
        other.batches = whole.shard(index, count) if isinstance(whole, Batches) else Part(whole, index, count)
        other._whole = self
        return other

    def on(self, model: ModelWrapper) -> Iterator[Any]:
        """The batches, where the model's first parameter is, as tensors of this use."""
        return map(fresh, self.shared(model))

    def shared(self, model: ModelWrapper) -> Iterator[Any]:
        """The same, for several uses: each is to take them by ``fresh``."""
        home = next((parameter.device for parameter in model.root.parameters()), None)
        for batch in self.batches if self.kept else apart(self.batches):
            if _plain(batch) and all(t.device == home for t in batch):
                yield batch
            else:
                yield move(batch, home)

    def counted(self, model: ModelWrapper) -> Iterator[tuple[int, Any, Any]]:
        """The number of each batch of ``shared``, the batch and its items, but for those that hold nothing."""
        for number, batch in enumerate(self.shared(model)):
            items = self.items(batch)
            if not is_empty(items):
                yield number, batch, items

    def sampled(self, model: ModelWrapper) -> Iterator[tuple[int, Any, float]]:
        """The same with the samples of each."""
        for number, batch in enumerate(self.shared(model)):
            if samples := self.samples(batch):
                yield number, batch, samples

    @property
    def kept(self) -> bool:
        """Whether the batches are in memory, and not read anew in each pass."""
        return _kept(self.batches)

    def at_hand(self, model: ModelWrapper) -> bool:
        """Whether the batches are tensors, all of them where the model is: to be read once for all points."""
        if not self.kept:
            return False
        devices = {parameter.device for parameter in model.root.parameters()}
        return all(_plain(batch) and all({t.device} == devices for t in batch) for batch in self.batches)

    def output(self, model: ModelWrapper, batch: Any) -> Any:
        """What the model says to a batch; what it says in 16 bits in 32, so that losses are computed in no less.

        What the last of several devices says is brought to the target's.
        """
        if self.forward:
            return full_precision(model.called_by(self.forward, batch))
        self._check_pair(batch)
        try:
            output, target = full_precision(model.forward(batch[0])), batch[1]
            apart = isinstance(output, Tensor) and isinstance(target, Tensor) and output.device != target.device
            return output.to(target.device) if apart else output
        except TypeError as error:
            if type(batch[0]) not in (tuple, list):
                raise
            raise UserError(
                f"the model cannot be called with a batch's input, a {type(batch[0]).__name__} of {len(batch[0])} "
                f"parts ({' '.join(str(error).split())[:120]}): give Problem, or Data, a forward=lambda model, batch: "
                "model(*batch[0]), and a loss(output, batch)"
            ) from error

    @staticmethod
    def _check_pair(batch: object) -> None:
        """Raise UserError where a batch is not (input, target): nobody guesses what else it is."""
        if not isinstance(batch, (tuple, list)):
            raise UserError(
                f"a batch is a {type(batch).__name__}, not (input, target): give Problem, or Data, a "
                "forward=lambda model, batch: ..., and a loss(output, batch)"
            )
        if len(batch) != 2:
            inputs = ", ".join(f"batch[{i}]" for i in range(max(1, min(len(batch) - 1, 4))))
            raise UserError(
                f"a batch has {len(batch)} part{'s' * (len(batch) != 1)}, not (input, target): give Problem, or Data, "
                f"a forward=lambda model, batch: model({inputs}), and a loss(output, batch)"
            )

    def target(self, batch: Any) -> Any:
        """What the loss compares the output with."""
        return batch if self.forward else full_precision(batch[1])

    def items(self, batch: Any) -> Any:
        """Over how many items the mean of a batch was taken: a number or a 0-d tensor; None where nothing tells."""
        if self.count:
            count = self.count(fresh(batch))
            if isinstance(count, Tensor) and count.numel() == 1:
                return count
            try:
                return float(count)
            except (TypeError, ValueError, RuntimeError):
                raise UserError(f"count= gave {_of_kind(count)}: it must give one number for a batch") from None
        return 1.0 if self.single else batch_size(batch)

    def samples(self, batch: Any) -> float:
        """How many samples a batch holds; where that cannot be told, the user's count. UserError where nothing tells.

        By these the statistics of batch normalization are weighed: with equal batches as ``update_bn`` does it.
        """
        size = batch_size(batch)
        if size is not None:
            return size
        return float(self.items(batch)) if self.count else 1.0 if self.single else self.unknown(batch)

    def unknown(self, batch: Any) -> float:
        """The weight of a batch whose size cannot be told: any, where it is the only one; else UserError."""
        if self.alone:
            return 1.0
        raise UserError(UNKNOWN.format(found=shapes(batch)))

    @cached_property
    def alone(self) -> bool:
        """Whether there is but one batch: then its weight is of no account."""
        if self._whole is not None:
            return self._whole.alone
        with suppress(TypeError):  # a stream has no length
            if isinstance(self.batches, Sized):
                return len(self.batches) == 1
        first = iter(self.batches)
        next(first, None)
        return next(first, None) is None


def _kept(batches: Iterable[Any]) -> bool:
    return isinstance(batches, (list, tuple)) or not getattr(batches, "streamed", True)


class Part:
    """Every count-th of the batches of a list, or of a loader, from an index on."""

    def __init__(self, batches: Iterable[Any], index: int, count: int):
        self.batches, self.index, self.count = batches, index, count
        self.streamed = not _kept(batches)

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.index, None, self.count)


def _of_kind(value: object) -> str:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return f"a {type(value).__name__}{shape}"


def is_empty(items: object) -> bool:
    """Whether a batch of so many items need not be computed."""
    return items is not None and not isinstance(items, Tensor) and not items


def fresh(batch: Any) -> Any:
    """The batch as tensors of this use: gradients that user code asks of its inputs stay with them."""

    def own(tensor: Tensor) -> Tensor:
        if tensor.is_inference():  # made inside of a caller's inference mode: cannot be differentiated
            return tensor.clone()
        return tensor.detach().requires_grad_() if tensor.requires_grad else tensor.detach()

    return type(batch)(map(own, batch)) if _plain(batch) else each_tensor(batch, own)


def _plain(batch: Any) -> bool:
    return type(batch) in (tuple, list) and all(isinstance(t, Tensor) for t in batch)


def samples(batch: object) -> int:
    """How many samples a batch holds, all of its parts agreeing; UserError where they do not."""
    size = batch_size(batch)
    if size is None:
        raise UserError(UNKNOWN.format(found=shapes(batch)))
    return size
