"""Batch normalization whose statistics belong to the point.

``warmup`` re-estimates the running statistics at each point: the average over the warm-up batches of each batch's mean
and (unbiased) variance, weighted by batch size. With equal batches that is ``torch.optim.swa_utils.update_bn``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batchnorm_layers(model: nn.Module) -> list[_BatchNorm]:
    """The batch normalization layers that keep running statistics; the others use their batch's at all times."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


class WarmUp:
    """A pass that re-estimates running statistics: call ``weigh(n)`` before each batch of n samples."""

    def __init__(self, layers: list[_BatchNorm]):
        self.seen = dict.fromkeys(layers, 0)
        self.samples = 0
        self.hooks = [layer.register_forward_pre_hook(self._count) for layer in layers]

    def weigh(self, samples: int) -> None:
        """Let the next batch count by its share of the samples so far: a running, weighted average."""
        self.samples = samples

    def _count(self, layer: _BatchNorm, inputs: Any) -> None:
        """Of the samples that this layer has seen: it may be used twice in a pass, or not at all."""
        self.seen[layer] += self.samples
        layer.momentum = self.samples / self.seen[layer]

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


@contextmanager
def warm_up(model: nn.Module) -> Iterator[WarmUp]:
    """Reset the running statistics, and let batches re-estimate them; only these layers are in train mode meanwhile."""
    layers = batchnorm_layers(model)
    before = [layer.momentum for layer in layers]
    with batch_statistics(model):
        for layer in layers:
            layer.reset_running_stats()
        statistics = WarmUp(layers)
        try:
            yield statistics
        finally:
            statistics.close()
            for layer, momentum in zip(layers, before, strict=True):
                layer.momentum = momentum


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Normalize by each batch's own statistics. Dropout and the rest stay as they are."""
    layers = batchnorm_layers(model)
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.training = training
