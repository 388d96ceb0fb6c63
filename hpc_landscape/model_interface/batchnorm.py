"""Batch normalization whose statistics belong to the point.

``warmup`` re-estimates the running statistics at each point: the average over the warm-up batches of each batch's mean
and (unbiased) variance, weighted by batch size. With equal batches that is ``torch.optim.swa_utils.update_bn``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError


def batchnorm_layers(model: nn.Module) -> list[_BatchNorm]:
    """The batch normalization layers that keep running statistics; the others use their batch's at all times."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


class WarmUp:
    """A pass that re-estimates running statistics: call ``weigh(n)`` before each batch of n samples.

    Without it a layer counts the samples by the length of its input.
    """

    def __init__(self, layers: list[_BatchNorm]):
        self.seen = dict.fromkeys(layers, 0)
        self.samples: int | None = None
        self.hooks = [layer.register_forward_pre_hook(self._count) for layer in layers]

    def weigh(self, samples: int) -> None:
        """Let the next batch count by its share of the samples so far: a running, weighted average."""
        self.samples = samples

    def _count(self, layer: _BatchNorm, inputs: Any) -> None:
        """Of the samples that this layer has seen: it may be used twice in a pass, or not at all."""
        samples = len(inputs[0]) if self.samples is None else self.samples
        self.seen[layer] += samples
        layer.momentum = samples / self.seen[layer]

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


def read_statistics(model: nn.Module) -> Tensor:
    """All running means and variances, one after the other, on the CPU."""
    layers = batchnorm_layers(model)
    parts = [
        buffer.detach().cpu().reshape(-1) for layer in layers for buffer in (layer.running_mean, layer.running_var)
    ]
    return torch.cat(parts) if parts else torch.empty(0)


@torch.no_grad()
def write_statistics(model: nn.Module, statistics: Tensor) -> None:
    """Set all running means and variances to what ``read_statistics`` has read."""
    start = 0
    for layer in batchnorm_layers(model):
        for buffer in (layer.running_mean, layer.running_var):
            buffer.copy_(statistics[start : start + buffer.numel()].reshape(buffer.shape))
            start += buffer.numel()


def given_statistics(model: nn.Module, given: Any) -> Tensor:
    """A user's statistics as ``read_statistics`` gives them: by buffer name, or a (mean, variance) for each layer."""
    own = [b for layer in batchnorm_layers(model) for b in (layer.running_mean, layer.running_var)]
    if isinstance(given, Mapping):
        names = {id(b): name for name, b in model.named_buffers()}
        if unknown := set(given) - set(dict(model.named_buffers())):
            raise UserError(f"running_stats: the model has no buffer {sorted(unknown)[0]}")
        parts = [torch.as_tensor(given.get(names[id(b)], b)) for b in own]
    else:
        parts = [torch.as_tensor(b) for pair in given for b in pair]
    if [part.numel() for part in parts] != [b.numel() for b in own]:
        raise UserError("running_stats: expected a mean and a variance of each batch normalization layer's size")
    return torch.cat([part.detach().cpu().reshape(-1) for part in parts])
