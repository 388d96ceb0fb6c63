"""Mean and variance of a batch by channel, as exact channels last as in PyTorch's own order, on CPUs.

PyTorch's kernel adds up channels last in float32, one row after the other: off by 1e-4 and more where there are many.
Here the same kernel, which reads at the speed of memory, sees the rows folded into more channels: each sum is over some
hundred rows, and the sums are put together in float64 (Chan, Golub & LeVeque 1983).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

FEW = 512  # rows: what float32 adds up to rounding
ROWS = 128, 512  # in a sum: of fewer there are more sums than help, of more it is less exact
LOW = 2**16, 2**18  # of numbers of 16 bits, which are less exact themselves
SUMS = 2**15  # that a core's caches hold


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (of the population) over all dimensions but 1: float64, or float32 where that is as exact.

    x: (samples, channels, ...), on a CPU, float32, or of 16 bits: then right to 1e-4. No gradients. The sums are
    grouped by the shape alone, and so are right to about 1e-7 of the standard deviation for any number of threads.
    """
    rows, low = _rows(x), x.dtype != torch.float32
    if rows is None or len(rows) <= (LOW[1] if low else FEW):
        return _update(x if rows is None else rows)
    channels = rows.shape[1]
    parts = [*_parts(len(rows), channels, LOW if low else ROWS)]
    if len(parts) == 1:
        mean, variance = (t.double().view(-1, channels) for t in _update(rows.view(-1, parts[0][1] * channels)))
        center = mean.mean(0)
        return center, mean.sub_(center).square_().add_(variance).mean(0)
    found, weights, start = [], [], 0
    for length, sums in parts:
        found.append(_update(rows[start : start + length].view(-1, sums * channels)))
        weights.append(torch.full((sums, 1), length / sums / len(rows), dtype=torch.float64, device="cpu"))
        start += length
    weight = torch.cat(weights)
    mean, variance = (torch.cat(part).double().view(-1, channels) for part in zip(*found, strict=True))
    center = (weight * mean).sum(0)
    return center, mean.sub_(center).square_().add_(variance).mul_(weight).sum(0)


def _rows(x: Tensor) -> Tensor | None:
    """The same as a matrix (n, channels), a view; None where x is in PyTorch's own order, and has more dimensions."""
    if x.ndim == 2 or x.numel() == x.shape[0] * x.shape[1]:
        return x.reshape(x.shape[:2]).contiguous()
    last = x.movedim(1, -1)
    if x.is_contiguous() or not last.is_contiguous():
        return None
    return last.reshape(-1, x.shape[1])


def _parts(total: int, channels: int, rows: tuple[int, int] = ROWS) -> Iterator[tuple[int, int]]:
    """Rows in parts of equal sums: (how many rows, how many sums); mostly one. rows: in a sum, at least and at most."""
    least, most = rows
    room = max(1, SUMS // channels)
    while total:
        sums = min(room, max(1, total // least))
        if total > sums * most:  # more rows than there is room for: a part of them
            length = sums * most
        else:
            equal = (n for n in range(sums, max(1, total // most), -1) if total % n == 0)
            sums = next(equal, sums)
            length = total - total % sums
        yield length, sums
        total -= length


def _update(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the population, float32, by PyTorch's kernel."""
    if x.dtype == torch.float32:
        return torch.batch_norm_update_stats(x, None, None, 0.0)
    zeros = torch.zeros(x.shape[1], device=x.device)  # in float32, so that the results are
    return torch.batch_norm_update_stats(x, zeros, zeros, 0.0)
