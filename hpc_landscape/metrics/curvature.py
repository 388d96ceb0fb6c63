"""The curvature of the loss: eigenvalues and trace of its Hessian, from products with vectors alone.

A product takes the derivative of the gradient along a vector (Pearlmutter 1994), batch by batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.data import Data
from ..errors import UserError, warn
from ..model.numbers import can_move, count, inner, wide
from ..model.parameters import ModelParameters
from ..model.wrapper import ModelWrapper
from .base import DataMetric
from .criterion import Criterion, data_of
from .gradient import LossFunction, Parts, batch_gradients, differentiable, unflatten, weighted_mean
from .second import check_second, refuse
from .statistics import mean_and_error

DENSE = 64  # up to so many parameters the matrix itself is cheaper
LANCZOS = 40  # vectors that ARPACK keeps: with its default of 20 a small end beside a large one takes 3 times as long
RESTARTS = 50  # about 2,000 products
FLOOR = 1e-3  # of the norm: below it an eigenvalue's error is relative to that


class NotFinite(ArithmeticError):
    """The loss has no finite second derivative at this point."""


class Hessian:
    """The Hessian of the mean loss over the data. Use inside ``twice_differentiable``, whose parameters these are."""

    def __init__(self, model: ModelWrapper, parameters: Sequence[Tensor], loss_fn: LossFunction, data: Data):
        self.model, self.parameters, self.loss_fn, self.data = model, parameters, loss_fn, data
        self.size = sum(map(count, parameters))  # complex numbers are pairs of real ones
        self._graph = list(self._compute()) if data.single else None  # one graph is kept; of many one at a time

    def gradients(self) -> Iterator[tuple[Parts, float]]:
        """(gradient with its graph, weight) of each batch."""
        return iter(self._graph) if self._graph is not None else self._compute()

    def _compute(self) -> Iterator[tuple[Parts, float]]:
        return batch_gradients(self.model, self.parameters, self.loss_fn, self.data, create_graph=True)

    def of_batch(self, gradient: Parts, vector: ModelParameters) -> Parts:
        """The product of one batch's Hessian and a vector."""
        pairs = [(g, v) for g, v in zip(gradient, vector, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return [None] * len(self.parameters)  # the loss is linear
        outputs, vectors = zip(*((g, v.to(g.dtype).to(g.device)) for g, v in pairs), strict=True)
        try:
            return torch.autograd.grad(outputs, self.parameters, vectors, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            refuse(error)
            raise

    def product(self, vector: np.ndarray) -> np.ndarray:
        """The product with a vector, in float64. NotFinite where it is not."""
        parts = unflatten(np.ascontiguousarray(vector, dtype=np.float64).reshape(-1), self.parameters)
        batches = ((self.of_batch(gradient, parts), weight) for gradient, weight in self.gradients())
        result = weighted_mean(self.parameters, batches, self.loss_fn).as_numpy()
        if not np.isfinite(result).all():
            raise NotFinite
        return result

    def matrix(self) -> np.ndarray:
        """The Hessian itself, shape (size, size)."""
        matrix = np.stack([self.product(unit) for unit in np.eye(self.size)])
        return (matrix + matrix.T) / 2


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


class Lanczos:
    """Eigenvalues at the ends of a Hessian's spectrum, by SciPy's ARPACK (implicitly restarted Lanczos).

    An eigenvalue e is right to tolerance * (|e| + FLOOR * norm) at least, and mostly by far more: the spectrum is
    shifted by FLOOR * norm, since ARPACK's own criterion, tolerance * |e|, is never met by an eigenvalue of zero. No
    result is better than the products are: the floor is higher in lower precision.
    """

    def __init__(self, hessian: Hessian, tolerance: float, seed: int):
        self.hessian, self.tolerance, self.seed = hessian, tolerance, seed
        self.start = np.random.default_rng(seed).standard_normal(hessian.size)
        vector, norm = self.start, 0.0
        for _ in range(4):  # power iterations: the norm to within a small factor
            vector = hessian.product(vector / (np.linalg.norm(vector) or 1.0))
            norm = float(np.linalg.norm(vector))
        noise = 10 * max(torch.finfo(p.dtype).eps for p in hessian.parameters)  # of the products, relative to the norm
        self.shift = max(FLOOR, noise / tolerance) * norm or 1.0

    def __call__(self, count: int, which: str) -> tuple[np.ndarray, np.ndarray]:
        """(eigenvalues, ascending; eigenvectors, columns). which: BE both ends, LA the largest, SA the smallest.

        ArpackNoConvergence where the restarts do not suffice.
        """
        linalg = scipy_linalg()
        size = self.hessian.size
        operator = linalg.LinearOperator(
            (size, size), matvec=lambda v: self.hessian.product(v) - self.shift * v.reshape(-1), dtype=np.float64
        )
        # For the vector that ARPACK goes on with when it has exhausted a placement; SciPy before 1.17 has its own.
        own = {"rng": self.seed} if "rng" in inspect.signature(linalg.eigsh).parameters else {}
        values, vectors = linalg.eigsh(
            operator,
            count,
            which=which,
            v0=self.start,
            ncv=min(size, max(LANCZOS, 3 * count)),
            maxiter=RESTARTS,
            tol=self.tolerance,
            **own,
        )
        order = np.argsort(values)
        return values[order] + self.shift, vectors[:, order]


def scipy_linalg() -> Any:
    """``scipy.sparse.linalg``; UserError where SciPy is missing."""
    try:
        import scipy.sparse.linalg
    except ImportError:
        raise UserError("curvature needs scipy: pip install 'hpc_landscape[curvature]'") from None
    return scipy.sparse.linalg


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
    and, with a warning, an end that has not converged after about 2,000 products. UserError without SciPy, or for
    fewer than 2n parameters.
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
        no_convergence = scipy_linalg().ArpackNoConvergence
        lanczos = Lanczos(hessian, self.tolerance, self.seed)
        with suppress(no_convergence):
            return lanczos(2 * n, "BE")[0]
        warn("curvature: an end of the Hessian's spectrum did not converge, its values are NaN")
        values = np.full(2 * n, np.nan)
        for end, which in ((slice(n, None), "LA"), (slice(n), "SA")):  # the largest mostly do
            with suppress(no_convergence):
                values[end] = lanczos(n, which)[0]
                break
        return values


def hessian_eigenvectors(
    model_wrapper: ModelWrapper, loss_fn: LossFunction, data: Data, count: int, tolerance: float = 1e-4, seed: int = 0
) -> tuple[list[dict[str, Tensor]], np.ndarray]:
    """Eigenvectors of the Hessian's largest eigenvalues, and those, descending; at the parameters as they are.

    A vector is a mapping by parameter name, of unit length, in the parameters' dtype, at least float32, on the CPU; of
    its two signs it has the one that makes its largest component positive. UserError where there
    are none, or none are found.
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
    else:
        no_convergence = scipy_linalg().ArpackNoConvergence
        try:
            values, vectors = Lanczos(hessian, tolerance, seed)(count, "LA")
        except no_convergence:
            raise UserError(
                f"hessian: the {count} largest eigenvalues did not converge to {tolerance:g}: ask for fewer"
            ) from None
    return values[::-1][:count], vectors[:, ::-1][:, :count]


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
        totals, items = np.zeros(self.n_vectors), 0.0
        with twice_differentiable(model_wrapper) as parameters:
            hessian = Hessian(model_wrapper, parameters, self.loss_fn, self.data)
            for gradient, weight in hessian.gradients():
                for i, vector in enumerate(self._vectors(hessian)):  # drawn anew: n_vectors in memory are too many
                    totals[i] += weight * _dot(vector, hessian.of_batch(gradient, vector))
                items += weight
            self._check(model_wrapper, parameters)
        items = 1.0 if items and Criterion.of(self.loss_fn).sum else items
        return mean_and_error(totals / items if items else np.full(self.n_vectors, np.nan))

    def _vectors(self, hessian: Hessian) -> Iterator[ModelParameters]:
        generator = np.random.default_rng(self.seed)
        for _ in range(self.n_vectors):
            yield unflatten(2 * generator.integers(0, 2, hessian.size, dtype=np.int8) - 1, hessian.parameters)


def _dot(vector: ModelParameters, product: Parts) -> float:
    """The inner product in float64, on the product's device."""
    return sum(float(inner(p, v)) for v, p in zip(vector, product, strict=True) if p is not None)
