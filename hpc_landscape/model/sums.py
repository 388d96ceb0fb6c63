"""Layers' statistics of batches, weighted and added up; and kept apart where other ranks have some of the batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .batchnorm import running_means, running_variances


class Sums:
    """Layers' means and variances at a point, weighted and added up."""

    def __init__(self) -> None:
        self.weights: dict[nn.Module, float] = {}
        self.means: dict[nn.Module, Tensor] = {}
        self.variances: dict[nn.Module, Tensor] = {}

    def add(self, layer: nn.Module, mean: Tensor, variance: Tensor, weight: float, unbiased: float) -> None:
        """Of one layer, in float64. unbiased: what makes the variance the unbiased one."""
        if layer not in self.weights:
            self._begin(layer, mean, torch.float64)
        self.means[layer].add_(mean, alpha=weight)
        self.variances[layer].add_(variance, alpha=weight * unbiased)
        self.weights[layer] += weight

    def add_all(self, layers: list[nn.Module], moments: list[Tensor], weight: float) -> None:
        """Of several, all means and then all unbiased variances; on a GPU in one operation, in at least float32."""
        for layer, mean in zip(layers, moments, strict=False):
            if layer not in self.weights:
                self._begin(layer, mean, added_in(mean))
        sums = [of[layer] for of in (self.means, self.variances) for layer in layers]
        torch._foreach_add_(sums, moments, alpha=weight)
        for layer in layers:
            self.weights[layer] += weight

    def _begin(self, layer: nn.Module, like: Tensor, dtype: torch.dtype) -> None:
        self.weights[layer] = 0.0
        self.means[layer], self.variances[layer] = (torch.zeros_like(like, dtype=dtype) for _ in "mv")

    def write(self) -> None:
        """Let the layers have the averages."""
        layers = [layer for layer, weight in self.weights.items() if weight]
        if not layers:
            return
        sums = [of[layer] for of in (self.means, self.variances) for layer in layers]
        torch._foreach_div_(sums, 2 * [self.weights[layer] for layer in layers])
        torch._foreach_copy_(running_means(layers) + running_variances(layers), sums)


def added_in(statistic: Tensor) -> torch.dtype:
    """In what a layer's own statistics are added up: float64, but on a GPU as they are, in no less than float32."""
    return torch.float64 if statistic.device.type == "cpu" else torch.promote_types(statistic.dtype, torch.float32)


class Taken:
    """What layers have seen of one batch, to be added up with that of others, here or on another rank."""

    def __init__(self) -> None:
        self.uses: list[tuple[list[int], float, float | None]] = []
        self.moments: list[list[Tensor]] = []

    def append(self, layers: list[int], moments: list[Tensor], weight: float, unbiased: float | None = None) -> None:
        """As ``Sums.add`` takes it of one layer, or with no ``unbiased`` as ``add_all`` of several; by numbers."""
        self.uses.append((layers, weight, unbiased))
        self.moments.append(moments)

    def __getstate__(self) -> Any:
        """All numbers in one array: a hundred small tensors take long to pickle. float64 has all of them."""
        shapes = [[moment.shape for moment in moments] for moments in self.moments]
        parts = [moment.reshape(-1).double() for moments in self.moments for moment in moments]
        return self.uses, shapes, torch.cat(parts).cpu().numpy() if parts else None

    def __setstate__(self, state: Any) -> None:
        self.uses, shapes, numbers = state
        sizes = [shape.numel() for moments in shapes for shape in moments]
        parts = iter(() if numbers is None else torch.from_numpy(numbers).split(sizes))
        self.moments = [[next(parts).view(shape) for shape in moments] for moments in shapes]

    def add_to(self, sums: Sums, layers: list[nn.Module]) -> None:
        """Add it up, as if these layers had just seen it."""
        for (numbers, weight, unbiased), found in zip(self.uses, self.moments, strict=True):
            used = [layers[number] for number in numbers]
            if unbiased is None:
                buffers = running_means(used) + running_variances(used)
                sums.add_all(used, [t.to(b.device, b.dtype) for t, b in zip(found, buffers, strict=True)], weight)
            else:
                mean, variance = found
                sums.add(used[0], mean, variance, weight, unbiased)
