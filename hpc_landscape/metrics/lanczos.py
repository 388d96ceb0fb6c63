"""Eigenvalues at the ends of a symmetric operator's spectrum, by products with vectors alone.

Lanczos iterations that keep their vectors, and start again with the best of what those hold once there are many: Wu and
Simon 2000, "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM J. Matrix Anal. Appl. 22. Since
it is seen at almost every product whether all is found, half as many are needed as by ARPACK, which looks every 40.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PRODUCTS = 2000  # at most, or some for each eigenvalue where many are wanted
VECTORS = 160, 40  # that are kept: so many where they take no more than MEMORY, so many always
MEMORY = 2**28  # bytes
STRICT = 0.1  # of the tolerance: before that, the last of a dense end may be taken for its first
COLUMNS = 2**16  # of the vectors that are combined at a time

Operator = Callable[[Tensor], Tensor]


class Ends(NamedTuple):
    """Eigenvalues, the smallest and then the largest, ascending: shape (low + high,).

    vectors: (low + high, size), of unit length. converged: whether each value is right to the tolerance. products: how
    many were taken.
    """

    values: np.ndarray
    vectors: Tensor
    converged: np.ndarray
    products: int


def ends(product: Operator, start: Tensor, low: int, high: int, tolerance: float, floor: float, seed: int = 0) -> Ends:
    """The ``low`` smallest and the ``high`` largest eigenvalues of a symmetric operator, no more than it has.

    product: of the operator with a float64 vector like ``start``, any that is not zero. An eigenvalue e is right to
    tolerance * (|e| + floor * norm) at least, and mostly by far more: that is by how much its vector's product is off.
    Of a multiple eigenvalue not every repetition may be found. seed: of what is drawn where the products of the start
    lead to no further vector.
    """
    krylov = _Krylov(product, start, _how_many(start, low + high), tolerance * floor, seed)
    looked, most = 0, max(PRODUCTS, 10 * (low + high))
    for products in range(1, most + 1):
        krylov.extend()
        size = krylov.size
        due = krylov.full or products == most or krylov.rest == 0 or products - looked > size // 16
        if size < low + high or not due:
            continue
        looked = products
        values, parts = np.linalg.eigh(krylov.matrix[:size, :size])
        chosen = [*range(low), *range(size - high, size)]
        off = krylov.rest * np.abs(parts[-1, chosen])
        converged = off <= tolerance * (STRICT * np.abs(values[chosen]) + floor * np.abs(values).max())
        several = krylov.exhausted and krylov.exhausted < max(low, high)  # each time brings one repetition to light
        if products == most or size == len(start) or (converged.all() and not several):
            break
        if krylov.full:
            krylov.restart(values, parts, low, high)
    return Ends(values[chosen], krylov.combined(parts[:, chosen]), converged, products)


def _how_many(start: Tensor, wanted: int) -> int:
    """How many vectors are kept; the same wherever it is computed, or values would depend on the memory there is."""
    most, least = VECTORS
    room = MEMORY // (start.numel() * start.element_size())
    return min(len(start), max(least, 3 * wanted, min(most, room)))


class _Krylov:
    """An orthonormal basis, and the operator in it. most: so many vectors, and the next one.

    size: of the basis. matrix: the operator in it. rest: the length of what products with the basis have outside of it,
    all of it along the next vector. exhausted: how often there was nothing, and another vector was drawn.
    """

    def __init__(self, product: Operator, start: Tensor, most: int, nothing: float, seed: int):
        self.product, self.nothing, self.seed = product, nothing, seed
        self.vectors = start.new_empty(most + 1, len(start))
        self.matrix = np.zeros((most, most))
        self.size, self.rest, self.exhausted = 0, 0.0, 0
        self.vectors[0] = start / torch.linalg.vector_norm(start)

    @property
    def full(self) -> bool:
        return self.size == len(self.matrix)

    def extend(self) -> None:
        """Take the next vector into the basis: one product."""
        n = self.size
        further, inside = self._outside(self.product(self.vectors[n]), n + 1)
        self.matrix[n, : n + 1] = self.matrix[: n + 1, n] = inside
        self.size = n + 1
        self.rest = float(torch.linalg.vector_norm(further))
        if self.rest <= self.nothing * np.abs(self.matrix[: n + 1, : n + 1]).max():
            self.rest = 0.0
            self.exhausted += 1
            if n + 1 == further.numel():
                return
            drawn = np.random.default_rng([self.seed, self.exhausted]).standard_normal(further.numel())
            further, _ = self._outside(torch.from_numpy(drawn).to(further.device), n + 1)
        self.vectors[n + 1] = further / torch.linalg.vector_norm(further)

    def _outside(self, vector: Tensor, size: int) -> tuple[Tensor, np.ndarray]:
        """What a vector has outside of the first vectors' span, and its products with them."""
        basis, inside = self.vectors[:size], torch.zeros(size, dtype=vector.dtype, device=vector.device)
        for _ in range(2):  # once leaves rounding errors that grow
            part = basis @ vector
            vector, inside = vector - part @ basis, inside + part
        return vector, inside.cpu().numpy()

    def combined(self, parts: np.ndarray) -> Tensor:
        """Vectors of the space that the basis spans; parts: (size, vectors)."""
        return torch.from_numpy(np.ascontiguousarray(parts.T)).to(self.vectors) @ self.vectors[: self.size]

    def restart(self, values: np.ndarray, parts: np.ndarray, low: int, high: int) -> None:
        """Keep the approximate eigenvectors that are wanted, half of the others at those ends, and the next vector."""
        more = (self.size - low - high) // 2
        both = more // 2 if low and high else more
        low, high = low + both * (low > 0), high + both * (high > 0)
        kept = [*range(low), *range(self.size - high, self.size)]
        mixed = torch.from_numpy(np.ascontiguousarray(parts[:, kept].T)).to(self.vectors)
        for columns in self.vectors.split(COLUMNS, dim=1):
            columns[: len(kept)] = mixed @ columns[: self.size]
            columns[len(kept)] = columns[self.size]
        self.matrix[:] = 0
        self.matrix[range(len(kept)), range(len(kept))] = values[kept]
        self.size = len(kept)
