"""Principal components of a trajectory: the directions along which checkpoints differ most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..model.numbers import double, like, numbers_of, reals
from ..model.state import nbytes
from .normalize import norm, orthogonalize

PIECE = 2**20  # numbers converted to float64 at once, 8 MiB
TIE = 1e-6

Checkpoints = Sequence[Callable[[], Mapping[str, Tensor]]]


@torch.no_grad()
def principal_directions(
    checkpoints: Checkpoints, origin: Mapping[str, Tensor], count: int, memory: int = 2**31
) -> tuple[list[dict[str, Tensor]], np.ndarray]:
    """(count directions, the explained variance ratio of every component that is not zero, in descending order).

    The principal components of n checkpoints about their mean (Li et al. 2018, section 7.2, have the same: there,
    differences to the final model). The origin gives names, shapes and dtypes, and should be near the checkpoints:
    inner products are of differences to it; complex numbers are pairs of real ones. Directions are orthonormal in
    float64, before they take its dtypes. A component's sign: of the checkpoints farthest out along it, the first has a
    negative coordinate.

    Checkpoints, on the CPU, are called one at a time, and as many are held as fit in ``memory`` bytes, at least 2;
    where not all do, each is called again for every block of half as many before it. Then all are called once more for
    the directions, whose float64 come on top. UserError where there are fewer than count components, or a checkpoint's
    values are not finite.
    """
    n, needed = len(checkpoints), f"{count} principal components need at least {count + 1} different checkpoints"
    if n <= count:
        raise UserError(f"{needed}, and there are {n}: give more")
    vectors, variances = _components(checkpoints, origin, memory)
    if len(variances) < count:
        raise UserError(f"{needed}, and the {n} given span a space of dimension {len(variances)}: give others")
    directions = _combine(checkpoints, origin, vectors[:, :count])
    directions = [
        {name: _shaped(d, origin[name]) for name, d in direction.items()} for direction in _orthonormal(directions)
    ]
    return directions, variances / variances.sum()


def _components(checkpoints: Checkpoints, origin: Mapping[str, Tensor], memory: int) -> tuple[np.ndarray, np.ndarray]:
    """(unit vectors (n, rank): the checkpoints' shares in each component; eigenvalues (rank,), descending)."""
    n = len(checkpoints)
    products = _inner_products(checkpoints, origin, memory)
    centred = products - products.mean(axis=0)
    centred -= centred.mean(axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(centred)
    values, vectors = values[::-1], vectors[:, ::-1]
    rounding = 10 * n * np.finfo(np.float64).eps * products.diagonal().max()
    rank = int((values > rounding).sum())
    sizes = np.abs(vectors[:, :rank])
    farthest = np.argmax(sizes >= (1 - TIE) * sizes.max(axis=0), axis=0)  # the first of those tied
    return vectors[:, :rank] * -np.sign(vectors[farthest, range(rank)]), values[:rank]


def _inner_products(checkpoints: Checkpoints, origin: Mapping[str, Tensor], memory: int) -> np.ndarray:
    """The inner products of the checkpoints' differences to the origin, (n, n), block by block."""
    n = len(checkpoints)
    fit = max(2, memory // max(1, nbytes(_load(checkpoints, 0, origin))))
    size = n if n <= fit else fit // 2  # a block of rows and one of columns

    def block(start: int) -> list[dict[str, Tensor]]:
        return [_load(checkpoints, i, origin) for i in range(start, min(start + size, n))]

    products = np.empty((n, n))
    for row in range(0, n, size):
        held = block(row)
        for column in range(row, n, size):
            found = _block_products(held, held if column == row else block(column), origin)
            products[row : row + size, column : column + size] = found
            products[column : column + size, row : row + size] = found.T
    return products


def _block_products(a: list[dict[str, Tensor]], b: list[dict[str, Tensor]], origin: Mapping[str, Tensor]) -> np.ndarray:
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device="cpu")
    step = max(1, PIECE // (len(a) + len(b)))
    for name, start in origin.items():
        start = reals(start).reshape(-1)
        for i in range(0, start.numel(), step):
            piece = slice(i, i + step)
            left, right = (
                torch.stack([tensors[name][piece].double() for tensors in block]) - start[piece].double()
                for block in (a, b)
            )
            total += left @ right.T
    return total.numpy()


def _combine(checkpoints: Checkpoints, origin: Mapping[str, Tensor], vectors: np.ndarray) -> list[dict[str, Tensor]]:
    """sum_i vectors[i, k] * (checkpoint i - mean) for every k, flat, float64."""
    shares = vectors - vectors.mean(axis=0)  # they sum to zero, so that the mean drops out
    sums = [
        {name: torch.zeros(reals(t).numel(), dtype=torch.float64, device="cpu") for name, t in origin.items()}
        for _ in shares.T
    ]
    for i in range(len(checkpoints)):
        tensors = _load(checkpoints, i, origin)
        for name, start in origin.items():
            difference = tensors[name].double() - reals(double(start)).reshape(-1)
            for k, direction in enumerate(sums):
                direction[name].add_(difference, alpha=float(shares[i, k]))
    return sums


def _orthonormal(directions: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Gram-Schmidt, each step twice: eigenvectors of inner products are orthogonal to within the squared condition."""
    made: list[dict[str, Tensor]] = []
    for direction in directions:
        for earlier in made * 2:
            direction = orthogonalize(direction, earlier)
        length = norm(direction)
        made.append({name: d / length for name, d in direction.items()})
    return made


def _shaped(flat: Tensor, start: Tensor) -> Tensor:
    """A flat part of a direction as the parameter is: its shape and dtype."""
    return numbers_of(flat.view(reals(start).shape), start).to(start.dtype)


def _load(checkpoints: Checkpoints, i: int, origin: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Checkpoint i's tensors of the origin's names, flat, complex ones as pairs."""
    given = checkpoints[i]()
    found = {name: given[name].to(like(given[name].dtype, start)) for name, start in origin.items()}
    tensors = {name: reals(t).reshape(-1) for name, t in found.items()}
    if bad := next((name for name, t in tensors.items() if not bool(t.isfinite().all())), None):
        raise UserError(
            f"checkpoint {i + 1} of {len(checkpoints)} has values in {bad} that are not finite: leave it out"
        )
    return tensors
