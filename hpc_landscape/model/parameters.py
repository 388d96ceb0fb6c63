"""A point, or a direction, in parameter space: one tensor per parameter, with the arithmetic of vectors."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .numbers import count, double, inner, numbers_of, reals, wide

EPSILON = 1e-10


class ModelParameters:
    """A vector whose components are tensors, on whatever devices and in whatever dtypes they are.

    Operators make new tensors; methods that end in ``_`` change these in place, without a gradient. Operands have equal
    shapes, tensor by tensor; scalars are numbers. A complex number is a pair of real ones: it counts as two, the inner
    product is that of the pairs, and norms are of its modulus.
    """

    def __init__(self, parameters: Iterable[Tensor]):
        self.parameters = list(parameters)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self.parameters)

    def numel(self) -> int:
        """How many real numbers there are in all."""
        return sum(count(p) for p in self.parameters)

    def __getitem__(self, index: int) -> Tensor:
        return self.parameters[index]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.parameters)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ModelParameters) or len(self) != len(other):
            return False
        return all(a.shape == b.shape and bool((a == b.to(a.device)).all()) for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # its values can change
    __array_ufunc__ = None  # or a NumPy number on the left would multiply it item by item

    def __repr__(self) -> str:
        return f"ModelParameters of {self.numel()} numbers in {len(self)} tensors"

    def __add__(self, other: ModelParameters) -> ModelParameters:
        return self._with(operator.add, other)

    __radd__ = __add__

    def __sub__(self, other: ModelParameters) -> ModelParameters:
        return self._with(operator.sub, other)

    def __rsub__(self, other: ModelParameters) -> ModelParameters:
        return ModelParameters(other) - self

    def __neg__(self) -> ModelParameters:
        return self * -1

    def __mul__(self, scalar: float) -> ModelParameters:
        return self._by(operator.mul, scalar)

    __rmul__ = __mul__

    def __truediv__(self, scalar: float) -> ModelParameters:
        return self._by(operator.truediv, scalar)

    def __floordiv__(self, scalar: float) -> ModelParameters:
        return self._by(operator.floordiv, scalar)

    def __matmul__(self, other: ModelParameters) -> float:
        return self.dot(other)

    def add_(self, other: ModelParameters) -> ModelParameters:
        return self._set(self + other)

    def sub_(self, other: ModelParameters) -> ModelParameters:
        return self._set(self - other)

    def mul_(self, scalar: float) -> ModelParameters:
        return self._set(self * scalar)

    def truediv_(self, scalar: float) -> ModelParameters:
        return self._set(self / scalar)

    def floordiv_(self, scalar: float) -> ModelParameters:
        return self._set(self // scalar)

    def dot(self, other: ModelParameters) -> float:
        """The inner product, added up in float64."""
        return sum(inner(a, b).item() for a, b in self._pairs(other))

    def model_norm(self, order: float = 2) -> float:
        """The norm of the whole vector."""
        norms = [float(torch.linalg.vector_norm(double(p), order)) for p in self if p.numel()]
        parts = torch.tensor(norms, dtype=torch.float64, device="cpu")
        return float(torch.linalg.vector_norm(parts, order)) if norms else 0.0

    def layer_norm(self, index: int, order: float = 2) -> float:
        """The norm of one tensor."""
        return float(torch.linalg.vector_norm(double(self[index]), order))

    def filter_norm(self, index: tuple[int, int], order: float = 2) -> float:
        """The norm of one filter: of the slice index[1], over dimension 0, of the tensor index[0]."""
        layer, filter_ = index
        return float(torch.linalg.vector_norm(double(self[layer][filter_]), order))

    def model_normalize_(self, reference: ModelParameters, order: float = 2) -> ModelParameters:
        """Scale to the norm of the reference; to zero where that is zero (Li et al. 2018, section 4)."""
        factor = reference.model_norm(order) / (self.model_norm(order) + EPSILON)
        return self.mul_(factor)

    def layer_normalize_(self, reference: ModelParameters, order: float = 2) -> ModelParameters:
        """Scale each tensor to the norm of the reference's."""
        return self._set(ModelParameters(match_norm(d, w, order) for d, w in self._pairs(reference)))

    def filter_normalize_(self, reference: ModelParameters, order: float = 2) -> ModelParameters:
        """Scale each slice over dimension 0 to the norm of the reference's; a tensor of fewer than 2 dims is one."""
        return self._set(ModelParameters(match_norm(d, w, order, True) for d, w in self._pairs(reference)))

    def as_numpy(self) -> np.ndarray:
        """All real numbers, in order, those of a pair side by side: shape (numel(),)."""
        flat = [reals(p.detach()).reshape(-1).cpu() for p in self.parameters]
        flat = [p.float() if p.dtype == torch.bfloat16 else p for p in flat]  # NumPy has no bfloat16
        return np.concatenate([p.numpy() for p in flat]) if flat else np.empty(0)

    def _pairs(self, other: ModelParameters) -> Iterator[tuple[Tensor, Tensor]]:
        if len(self) != len(other):
            raise ValueError(f"{len(self)} tensors on one side, {len(other)} on the other")
        for i, (a, b) in enumerate(zip(self, other, strict=True)):
            if a.shape != b.shape:
                raise ValueError(f"tensor {i}: shape {tuple(a.shape)} on one side, {tuple(b.shape)} on the other")
            yield a, b

    def _with(self, operation: Callable[[Any, Any], Any], other: ModelParameters) -> ModelParameters:
        return ModelParameters(operation(a, b.to(a.device)) for a, b in self._pairs(other))

    def _by(self, operation: Callable[[Any, Any], Any], scalar: float) -> ModelParameters:
        return ModelParameters(operation(p, scalar) for p in self)

    @torch.no_grad()
    def _set(self, values: ModelParameters) -> ModelParameters:
        for p, value in zip(self, values, strict=True):
            p.copy_(value)
        return self


def match_norm(direction: Tensor, weights: Tensor, order: float = 2, by_filter: bool = False) -> Tensor:
    """The direction, in float64, with the weights' norm; filter by filter over dimension 0 of 2 or more dimensions.

    Weights that are zero give zeros, and nothing divides by zero: d * ||w|| / (||d|| + 1e-10).
    """
    return double(direction) * norm_factors(direction, weights, order, by_filter)


def norm_factors(direction: Tensor, weights: Tensor, order: float = 2, by_filter: bool = False) -> Tensor:
    """What each number of the direction is multiplied by for that, float64: one factor for each filter, or one in all.

    Its shape broadcasts to the direction's.
    """
    d, w = double(direction), double(weights).to(direction.device)
    dims = tuple(range(1, d.ndim)) if by_filter and d.ndim >= 2 else tuple(range(d.ndim))
    norms = [torch.linalg.vector_norm(t, order, dim=dims, keepdim=True) if t.numel() else t for t in (d, w)]
    return norms[1] / (norms[0] + EPSILON)


def rand_u_like(example: ModelParameters) -> ModelParameters:
    """Independent numbers, uniform on [-1, 1], from torch's generator; at least float32."""
    return ModelParameters(numbers_of(2 * torch.rand_like(drawn) - 1, p) for p, drawn in _blanks(example))


def rand_n_like(example: ModelParameters) -> ModelParameters:
    """Independent standard normal numbers, from torch's generator; at least float32."""
    return ModelParameters(numbers_of(torch.randn_like(drawn), p) for p, drawn in _blanks(example))


def _blanks(example: ModelParameters) -> Iterator[tuple[Tensor, Tensor]]:
    """Each tensor, and one of the real numbers that are to be drawn for it."""
    return ((p, torch.empty_like(reals(p.detach()), dtype=wide(reals(p.detach()).dtype))) for p in example)


def orthogonal_to(vector: ModelParameters) -> ModelParameters:
    """A random vector orthogonal to this one: normal, less its part along it."""
    random = rand_n_like(vector)
    length = vector.dot(vector)
    return random - vector * (random.dot(vector) / length) if length else random
