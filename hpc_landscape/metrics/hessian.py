"""Products with the Hessian of the mean loss: the derivative of the gradient along a vector (Pearlmutter 1994)."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..data.data import Data
from ..errors import is_out_of_memory
from ..model.numbers import count, double, numbers_of, reals
from ..model.wrapper import ModelWrapper
from ..ranks.generators import Generators
from ..ranks.memory import free_memory
from .gradient import LossFunction, Parts, batch_gradients, differentiable, weighted_mean
from .second import refuse

ROOM = 0.5  # of the memory that is free, graphs may take
LOOK = 0.05  # seconds, after which the host's free memory is looked at again: that takes 0.5 ms
SMALL = 100_000  # bytes of the largest tensor of a batch's graph, at most: several vectors at a time are faster then
TOGETHER = 16  # vectors
CHANGED = re.compile("modified by an inplace operation")
T = TypeVar("T")


class NotFinite(ArithmeticError):
    """The loss has no finite second derivative at this point."""


class Hessian:
    """The Hessian of the mean loss over the data. Use inside ``twice_differentiable``, whose parameters these are.

    The gradients of all batches are kept with their graphs where there is room: a product is then two thirds of the
    work. What the forward draws is the same in every product. A vector is float64, of shape (size,), on the device
    ``home``: complex numbers are pairs of real ones.
    """

    def __init__(self, model: ModelWrapper, parameters: Sequence[Tensor], loss_fn: LossFunction, data: Data):
        self.model, self.parameters, self.loss_fn, self.data = model, parameters, loss_fn, data
        self.size = sum(map(count, parameters))
        self.devices = sorted({p.device for p in parameters}, key=str)
        whole = len(self.devices) == 1 and self.devices[0].type != "mps"  # which has no float64
        self.home = self.devices[0] if whole else torch.device("cpu")
        self._generators = Generators(self.devices)
        self._drawn = self._generators.read()
        self.together = 1
        self._kept = self._keep()

    @property
    def keeps(self) -> bool:
        """Whether the batches' graphs are kept."""
        return self._kept is not None

    def apply(self, vector: Tensor) -> Tensor:
        """The product with a vector. NotFinite where it is not."""
        parts = [part[0] for part in self._parts(vector[None])]

        def mean(batches: Iterable[tuple[Parts, float]]) -> Tensor:
            products = ((self._product(gradient, parts), weight) for gradient, weight in batches)
            return self._flat(weighted_mean(self.parameters, products, self.loss_fn))

        result = self.over(mean)
        if not bool(torch.isfinite(result).all()):
            raise NotFinite
        return result

    def product(self, vector: np.ndarray) -> np.ndarray:
        """The same for arrays."""
        given = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float64).reshape(-1))
        return self.apply(given.to(self.home)).cpu().numpy()

    def matrix(self) -> np.ndarray:
        """The Hessian itself, shape (size, size)."""
        matrix = np.stack([self.product(unit) for unit in np.eye(self.size)])
        return (matrix + matrix.T) / 2

    def over(self, compute: Callable[[Iterable[tuple[Parts, float]]], T]) -> T:
        """What is computed of (gradient with its graph, weight) of each batch; again, where kept graphs are no more."""
        try:
            return compute(self._kept if self._kept is not None else self._compute())
        except RuntimeError as error:
            lost = CHANGED.search(str(error)) or is_out_of_memory(error)  # by the pass of a later batch
            if self._kept is None or self.data.single or not lost:
                raise
            self._kept = None
        return compute(self._compute())

    def of_batch(self, gradient: Parts, vectors: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """(vector, product of one batch's Hessian with it) of each, ``together`` of them at a time."""
        vectors = iter(vectors)
        while chunk := list(islice(vectors, self.together)):
            stack = torch.stack(chunk)
            parts = self._parts(stack)
            found = self._several(gradient, parts) if self.together > 1 else None
            if found is None:
                self.together = 1
                singles = (self._product(gradient, [part[i] for part in parts]) for i in range(len(chunk)))
                found = map(self._flat, singles)
            yield from zip(stack, found, strict=True)

    def try_together(self) -> None:
        """Take several vectors at once from now on, where that is faster: where a batch's graph holds small tensors."""
        largest = 0

        def seen(tensor: Tensor) -> Tensor:
            nonlocal largest
            largest = max(largest, tensor.numel() * tensor.element_size())
            return tensor

        with self._generators.preserved(), torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            try:
                next(self._compute(), None)
            except RuntimeError as error:
                if "hooks" not in str(error):  # which torch.func does not have
                    raise
                return
        self.together = TOGETHER if largest <= SMALL else 1

    def _several(self, gradient: Parts, parts: Sequence[Tensor]) -> Iterable[Tensor] | None:
        """The products with several vectors in one pass; None where the loss is made of what does not allow that."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # of what is computed one by one all the same
                products = self._product(gradient, parts, several=True)
        except Exception:
            return None  # one by one it says itself what is wrong
        return (self._flat([product[i] for product in products]) for i in range(len(parts[0])))

    def _product(self, gradient: Parts, vector: Sequence[Tensor], several: bool = False) -> list[Tensor]:
        """The product of one batch's Hessian with a vector; several: with as many as dimension 0 holds."""
        found = [torch.zeros_like(v) for v in vector]
        pairs = [(g, v) for g, v in zip(gradient, vector, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return found  # the loss is linear
        outputs, vectors = zip(*pairs, strict=True)
        try:
            parts = torch.autograd.grad(
                outputs, self.parameters, vectors, retain_graph=True, allow_unused=True, is_grads_batched=several
            )
        except RuntimeError as error:
            refuse(error)
            raise
        return [zeros if part is None else part for part, zeros in zip(parts, found, strict=True)]

    def _keep(self) -> list[tuple[Parts, float]] | None:
        """The gradients of all batches with their graphs, where there is room for them; a single one is kept always."""
        if self.data.single:
            return list(self._compute())
        least = [(1 - ROOM) * free_memory(device) for device in self.devices]
        kept, look = [], time.monotonic()
        try:
            for batch in self._compute(copied=True):
                kept.append(batch)
                if time.monotonic() >= look:
                    if any(free_memory(d) < bytes for d, bytes in zip(self.devices, least, strict=True)):
                        return None
                    look = time.monotonic() + LOOK * (self.devices[0].type == "cpu")
        except RuntimeError as error:
            if not kept or not is_out_of_memory(error):
                raise
            return None
        return kept

    def _compute(self, copied: bool = False) -> Iterator[tuple[Parts, float]]:
        """copied: of what is loaded in each pass; some loaders fill one batch again and again."""
        self._generators.write(self._drawn)
        copied = copied and not self.data.kept
        return batch_gradients(self.model, self.parameters, self.loss_fn, self.data, create_graph=True, copied=copied)

    def _parts(self, vectors: Tensor) -> list[Tensor]:
        """Vectors, (n, size), as tensors of the parameters' shapes, dtypes and devices, after a dimension of n."""
        parts = []
        for part, p in zip(vectors.split([count(p) for p in self.parameters], dim=1), self.parameters, strict=True):
            shape = (len(vectors), *reals(p).shape)
            numbers = part.reshape(shape).clone() if p.is_complex() else part.reshape(shape)  # pairs begin anywhere
            parts.append(numbers_of(numbers, p).to(p.dtype).to(p.device))
        return parts

    def _flat(self, parts: Iterable[Tensor]) -> Tensor:
        return torch.cat([reals(double(part)).reshape(-1).to(self.home) for part in parts])


@contextmanager
def twice_differentiable(model: ModelWrapper) -> Iterator[list[nn.Parameter]]:
    """The floating-point parameters, recording what is computed with them so that gradients have gradients."""
    with differentiable(model) as parameters, _plain_attention():
        yield parameters


def _plain_attention() -> AbstractContextManager[Any]:
    """Fused attention has no second derivative."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # torch before 2.3
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)
