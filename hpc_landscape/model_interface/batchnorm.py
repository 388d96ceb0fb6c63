"""Batch normalization whose statistics belong to the point.

``warmup`` re-estimates the running statistics at each point: the average over the warm-up batches of each batch's mean
and (unbiased) variance, weighted by batch size. With equal batches that is ``torch.optim.swa_utils.update_bn``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

POLICIES = ("warmup", "running", "batch")


def batchnorm_layers(model: nn.Module) -> list[_BatchNorm]:
    """The batch normalization layers that keep running statistics; the others use their batch's at all times."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


class WarmUp:
    """A pass that re-estimates running statistics: call ``weigh(n)`` before each batch of n samples."""

    def __init__(self, layers: list[_BatchNorm]):
        self.layers = layers
        self.seen = 0

    def weigh(self, samples: int) -> None:
        """Let the next batch count by its share of the samples so far: a running, weighted average."""
        self.seen += samples
        for layer in self.layers:
            layer.momentum = samples / self.seen


@contextmanager
def warm_up(model: nn.Module) -> Iterator[WarmUp]:
    """Reset the running statistics, and let batches re-estimate them; only these layers are in train mode meanwhile."""
    layers = batchnorm_layers(model)
    before = [layer.momentum for layer in layers]
    with batch_statistics(model):
        for layer in layers:
            layer.reset_running_stats()
        try:
            yield WarmUp(layers)
        finally:
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
