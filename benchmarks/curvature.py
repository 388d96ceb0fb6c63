"""Products with the Hessian a second, beside those of curvlinops (pip install curvlinops-for-pytorch)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpc_landscape.metrics import Data, HessianTrace
from hpc_landscape.metrics.curvature import FLOOR, ends_of
from hpc_landscape.metrics.hessian import Hessian, twice_differentiable
from hpc_landscape.model.wrapper import wrap_model

from .models import ResNet, images, lenet, mlp
from .timing import in_turns, ratio

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Batches = list[tuple[Tensor, Tensor]]
CASES: dict[str, tuple[Callable[[], nn.Module], int, int, int, int]] = {  # network, images, size, batch, products
    "resnet-8, 4 batches of 64": (lambda: ResNet(1), 256, 28, 64, 8),
    "resnet-8, 1 batch of 128": (lambda: ResNet(1), 128, 28, 128, 8),
    "mlp, 3 batches of 512": (mlp, 1437, 8, 512, 50),
    "mlp, 1 batch of 1,437": (mlp, 1437, 8, 1437, 50),
    "lenet, 3 batches of 512": (lenet, 1437, 8, 512, 50),
}
FEW = {"mlp": (mlp, 64, 8, 64, 0), "lenet": (lenet, 64, 8, 64, 0)}  # a batch of so few that probes go together
CRITERION = nn.CrossEntropyLoss()


def curvature(turns: int) -> dict[str, Any]:
    """Products with the Hessian a second, what there is to be set up at a point among them; in eval mode."""
    from curvlinops import HessianLinearOperator

    found: dict[str, Any] = {}
    for name, (make, count, size, batch, products) in CASES.items():
        model, batches = _made(make, count, size, batch)
        vector = np.random.default_rng(0).standard_normal(sum(p.numel() for p in model.parameters()))
        given = torch.from_numpy(vector).to(DEVICE, torch.float32)

        def ours(model=model, batches=batches, products=products, vector=vector) -> None:
            with _hessian(model, batches) as hessian:
                for _ in range(products):
                    hessian.product(vector)

        def theirs(model=model, batches=batches, products=products, given=given) -> None:
            operator = HessianLinearOperator(
                model, CRITERION, list(model.parameters()), batches, check_deterministic=False
            )
            for _ in range(products):
                (operator @ given).cpu()

        seconds = in_turns({"ours": ours, "curvlinops": theirs}, turns)
        found |= {f"{name}: {kind}": _rate(seconds[kind], products) for kind in seconds}
        found[f"{name}: ours / curvlinops"] = ratio(seconds, "curvlinops", "ours")
    return found | _probes(turns) | _eigenvalues()


def _probes(turns: int) -> dict[str, Any]:
    """A trace with 32 vectors, beside 32 products, where vectors go together because batches are small."""
    found: dict[str, Any] = {}
    for name, (make, count, size, batch, _) in FEW.items():
        model, batches = _made(make, count, size, batch)
        metric, wrapper = HessianTrace(CRITERION, batches, n_vectors=32), wrap_model(model)
        metric.checked = True
        vector = np.ones(sum(p.numel() for p in model.parameters()))

        def one_by_one(model=model, batches=batches, vector=vector) -> None:
            with _hessian(model, batches) as hessian:
                for _ in range(32):
                    hessian.product(vector)

        seconds = in_turns({"trace": lambda m=metric, w=wrapper: m(w), "products": one_by_one}, turns)
        found[f"{name}, 64 images: 32 products / trace"] = ratio(seconds, "products", "trace")
    return found


def _eigenvalues() -> dict[str, Any]:
    """How many products the smallest and the largest eigenvalue take, and how many ARPACK takes for as much."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    model, batches = _made(*CASES["mlp, 3 batches of 512"][:4])
    with _hessian(model, batches) as hessian:
        ours = ends_of(hessian, 1, 1, 1e-5, 0)
        taken, shift = [0], FLOOR * np.abs(ours.values).max()  # ARPACK's criterion is relative to the eigenvalue alone

        def shifted(vector: np.ndarray) -> np.ndarray:
            taken[0] += 1
            return hessian.product(vector) - shift * vector.reshape(-1)

        operator = LinearOperator((hessian.size, hessian.size), matvec=shifted, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(hessian.size)
        eigsh(operator, 2, which="BE", v0=start, ncv=40, tol=1e-5, return_eigenvectors=False)
    return {"mlp: products, two eigenvalues": ours.products, "mlp: products, by ARPACK": taken[0]}


def _made(make: Callable[[], nn.Module], count: int, size: int, batch: int) -> tuple[nn.Module, Batches]:
    torch.manual_seed(0)
    x, y = images(count, size, device=DEVICE)
    return make().eval().to(DEVICE), list(zip(x.split(batch), y.split(batch), strict=True))


@contextmanager
def _hessian(model: nn.Module, batches: Batches) -> Iterator[Hessian]:
    wrapper = wrap_model(model)
    with twice_differentiable(wrapper) as parameters:
        yield Hessian(wrapper, parameters, CRITERION, Data(batches))


def _rate(seconds: list[float], products: int) -> str:
    rates = [products / s for s in seconds]
    return f"{statistics.median(rates):.4g} products/s  ({min(rates):.4g} to {max(rates):.4g})"
