"""The curvature of the loss: eigenvalues and trace of its Hessian, from products with vectors alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.data import Data
from ..errors import UserError, warn
from ..model.numbers import can_move, wide
from ..model.wrapper import ModelWrapper
from . import lanczos
from .base import DataMetric
from .criterion import Criterion, data_of
from .derivative import LossFunction, Parts
from .gradient import unflatten
from .hessian import Hessian, NotFinite, twice_differentiable
from .second import check_second
from .statistics import mean_and_error

DENSE = 64  # up to so many parameters the matrix itself is cheaper
FLOOR = 1e-3  # of the norm: below it an eigenvalue's error is relative to that


class CurvatureMetric(DataMetric):
    """What is made of second derivatives: whether there are any is seen once, on the first batch."""

    checked = False
    loss_fn: LossFunction
    seed: int

    def check(self, model_wrapper: ModelWrapper) -> None:
        """UserError where the loss has no second derivatives, and products would say something else."""
        with twice_differentiable(model_wrapper) as parameters:
            self._check(model_wrapper, parameters)

    def _check(self, model: ModelWrapper, parameters: Sequence[nn.Parameter]) -> None:
        if not self.checked:
            check_second(model, parameters, self.loss_fn, self.data, self.seed)
            self.checked = True


class PrincipalCurvatureEvaluator(CurvatureMetric):
    """The n smallest and the n largest eigenvalues of the Hessian of the mean loss, ascending: shape (2n,).

    tolerance: of an eigenvalue, relative to it; to a thousandth of the largest where that is more. In float32 it is
    right to about 1e-7 of the largest, and no better: use double precision where the small ones matter. Of a multiple
    eigenvalue (zeros, mostly) not every repetition may be found. NaN where the loss has no finite second derivatives;
    and, with a warning, an end that has not converged after 2,000 products. UserError for fewer than 2n parameters.
    """

    name = "curvature"
    dims = ("eigenvalue",)

    def __init__(
        self,
        loss_fn: LossFunction,
        inputs: Any = None,
        target: Any = None,
        n: int = 1,
        tolerance: float = 1e-5,
        seed: int = 0,
    ):
        super().__init__(data_of(loss_fn, inputs), target)
        if n < 1:
            raise UserError(f"curvature: n={n} must be at least 1")
        self.loss_fn, self.n, self.tolerance, self.seed = Criterion.of(loss_fn), n, tolerance, seed
        self.shape = (2 * n,)

    def __call__(self, model_wrapper: ModelWrapper) -> np.ndarray:
        with twice_differentiable(model_wrapper) as parameters:
            try:
                values = self._eigenvalues(Hessian(model_wrapper, parameters, self.loss_fn, self.data))
            except NotFinite:
                return np.full(2 * self.n, np.nan)
            self._check(model_wrapper, parameters)
        return values

    def _eigenvalues(self, hessian: Hessian) -> np.ndarray:
        n = self.n
        if hessian.size < 2 * n:
            raise UserError(f"curvature: n={n} is too large, {2 * n} eigenvalues of {hessian.size} parameters")
        if hessian.size <= max(DENSE, 6 * n):
            values = np.linalg.eigvalsh(hessian.matrix())
            return np.concatenate([values[:n], values[-n:]])
        found = ends_of(hessian, n, n, self.tolerance, self.seed)
        values = found.values
        for end in (slice(n), slice(n, None)):
            if not found.converged[end].all():
                values[end] = np.nan
        if np.isnan(values).any():
            warn("curvature: an end of the Hessian's spectrum did not converge, its values are NaN")
        return values


def ends_of(hessian: Hessian, low: int, high: int, tolerance: float, seed: int) -> lanczos.Ends:
    """The ends of a Hessian's spectrum. Products in lower precision make the floor higher: no result is better."""
    start = torch.from_numpy(np.random.default_rng(seed).standard_normal(hessian.size)).to(hessian.home)
    noise = max(torch.finfo(p.dtype).eps for p in hessian.parameters)
    return lanczos.ends(hessian.apply, start, low, high, tolerance, max(FLOOR, noise / tolerance), seed)


def hessian_eigenvectors(
    model_wrapper: ModelWrapper, loss_fn: LossFunction, data: Data, count: int, tolerance: float = 1e-4, seed: int = 0
) -> tuple[list[dict[str, Tensor]], np.ndarray]:
    """Eigenvectors of the Hessian's largest eigenvalues, and those, descending; at the parameters as they are.

    A vector is a mapping by parameter name, of unit length, in the parameters' dtype, at least float32, on the CPU; of
    its two signs it has the one that makes its largest component positive. UserError where there are none, or none
    are found.
    """
    names = [name for name, parameter in model_wrapper.named_parameters() if can_move(parameter)]
    with twice_differentiable(model_wrapper) as parameters:
        check_second(model_wrapper, parameters, loss_fn, data, seed)
        hessian = Hessian(model_wrapper, parameters, loss_fn, data)
        if hessian.size < count:
            raise UserError(f"hessian: {count} eigenvectors of {hessian.size} parameters")
        try:
            values, vectors = _largest(hessian, count, tolerance, seed)
        except NotFinite:
            raise UserError("hessian: the loss has no finite second derivatives at the model") from None
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(count)])
    made = [unflatten(np.ascontiguousarray(vector), parameters) for vector in vectors.T]
    dtypes = [wide(parameter.dtype) for parameter in parameters]
    return [
        {name: part.to(dtype) for name, part, dtype in zip(names, vector, dtypes, strict=True)} for vector in made
    ], values


def _largest(hessian: Hessian, count: int, tolerance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(eigenvalues, descending; eigenvectors, columns)."""
    if hessian.size <= max(DENSE, 3 * count):
        values, vectors = np.linalg.eigh(hessian.matrix())
        return values[::-1][:count], vectors[:, ::-1][:, :count]
    found = ends_of(hessian, 0, count, tolerance, seed)
    if not found.converged.all():
        raise UserError(f"hessian: the {count} largest eigenvalues did not converge to {tolerance:g}: ask for fewer")
    return found.values[::-1], found.vectors.cpu().numpy().T[:, ::-1]


class HessianTrace(CurvatureMetric):
    """Hutchinson's estimate of the trace of the Hessian of the mean loss, and its standard error: shape (2,).

    The mean of v.Hv over n_vectors vectors v of random signs, the same at every point (Hutchinson 1989). The error is
    NaN for a single vector.
    """

    shape = (2,)
    dims = ("statistic",)

    def __init__(
        self, loss_fn: LossFunction, inputs: Any = None, target: Any = None, n_vectors: int = 32, seed: int = 0
    ):
        super().__init__(data_of(loss_fn, inputs), target)
        if n_vectors < 1:
            raise UserError(f"hessian_trace: n_vectors={n_vectors} must be at least 1")
        self.loss_fn, self.n_vectors, self.seed = Criterion.of(loss_fn), n_vectors, seed

    def __call__(self, model_wrapper: ModelWrapper) -> np.ndarray:
        with twice_differentiable(model_wrapper) as parameters:
            hessian = Hessian(model_wrapper, parameters, self.loss_fn, self.data)
            if self.n_vectors > 1:
                hessian.try_together()
            estimates = hessian.over(lambda batches: self._estimates(hessian, batches))
            self._check(model_wrapper, parameters)
        return mean_and_error(estimates)

    def _estimates(self, hessian: Hessian, batches: Iterable[tuple[Parts, float]]) -> np.ndarray:
        """v.Hv of each vector."""
        totals, items = np.zeros(self.n_vectors), 0.0
        for gradient, weight in batches:
            products = hessian.of_batch(gradient, self._vectors(hessian))  # drawn anew: all in memory are too many
            totals += weight * np.array([float(vector @ product) for vector, product in products])
            items += weight
        items = 1.0 if items and Criterion.of(self.loss_fn).sum else items
        return totals / items if items else np.full(self.n_vectors, np.nan)

    def _vectors(self, hessian: Hessian) -> Iterator[Tensor]:
        generator = np.random.default_rng(self.seed)
        for _ in range(self.n_vectors):
            signs = 2 * generator.integers(0, 2, hessian.size, dtype=np.int8) - 1
            yield torch.from_numpy(signs).to(hessian.home, torch.float64)
