"""Batch normalization whose statistics belong to the point.

``warmup`` re-estimates the running statistics at each point: the average over the warm-up batches of each batch's mean
and (unbiased) variance, weighted by batch size. With equal batches that is ``torch.optim.swa_utils.update_bn``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .norms import is_norm
from .wrapper import ModelWrapper


def batchnorm_layers(model: nn.Module | ModelWrapper) -> list[nn.Module]:
    """The layers whose running statistics are re-estimated: those that the wrapper has found, else all of torch's own.

    Layers without running statistics use their batch's at all times.
    """
    if isinstance(model, nn.Module):
        return [module for module in model.modules() if is_norm(module)]
    if model.norms is None:
        return batchnorm_layers(model.root)
    return [model.root.get_submodule(name) for name in model.norms.estimated]


class WarmUp:
    """A pass that re-estimates running statistics: call ``weigh(n)`` before each batch of n samples.

    Without it a layer counts the samples by the length of its input. points: of how many points, in turn.
    """

    def __init__(self, layers: list[nn.Module], points: int = 1):
        self.points = [dict.fromkeys(layers, 0) for _ in range(points)]
        self.seen = self.points[0]
        self.samples: int | None = None
        self.hooks: list[Any] = [layer.register_forward_pre_hook(self._count) for layer in layers]
        self.hooks += [_Kept(layer) for layer in layers if not is_norm(layer)]

    def weigh(self, samples: int, point: int = 0) -> None:
        """Let the point's next batch count by its share of the samples so far: a running, weighted average."""
        self.samples, self.seen = samples, self.points[point]

    def _count(self, layer: nn.Module, inputs: Any) -> None:
        """Of the samples that this layer has seen: it may be used twice in a pass, or not at all."""
        samples = len(inputs[0]) if self.samples is None else self.samples
        self.seen[layer] += samples
        vars(layer)["momentum"] = samples / self.seen[layer]  # a Module's own way costs 20 times as much

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


@contextmanager
def warm_up(model: nn.Module | ModelWrapper, points: int = 0) -> Iterator[WarmUp]:
    """Reset the running statistics, and let batches re-estimate them; only these layers are in train mode meanwhile.

    points: of how many points in turn; each one's ``reset`` is the caller's then.
    """
    layers = batchnorm_layers(model)
    before = [layer.momentum for layer in layers]
    with batch_statistics(model, layers):
        if not points:
            reset(layers)
        counted = WarmUp(layers, max(1, points))
        try:
            yield counted
        finally:
            counted.close()
            for layer, momentum in zip(layers, before, strict=True):
                vars(layer)["momentum"] = momentum


@torch.no_grad()
def reset(layers: list[nn.Module]) -> None:
    """What ``reset_running_stats`` does to each, in a few calls for all: there may be a hundred, at every point."""
    if layers:
        variances = [layer.running_var for layer in layers]
        torch._foreach_zero_([layer.running_mean for layer in layers] + variances)
        torch._foreach_add_(variances, 1.0)
        for layer in layers:
            if getattr(layer, "num_batches_tracked", None) is not None:
                layer.num_batches_tracked.zero_()


@contextmanager
def last_batch(model: nn.Module | ModelWrapper) -> Iterator[None]:
    """After each batch the running statistics are that batch's alone: for an ``Average`` to add up.

    The same as a warm_up where each layer is used once in a pass, without anything that differs from batch to batch:
    what compilation and stacked points need.
    """
    layers = batchnorm_layers(model)
    before = [layer.momentum for layer in layers]
    with batch_statistics(model, layers):
        for layer in layers:
            vars(layer)["momentum"] = 1.0
        try:
            yield
        finally:
            for layer, momentum in zip(layers, before, strict=True):
                vars(layer)["momentum"] = momentum


class _Kept:
    """The buffers of a layer of the user's own stay the same tensors: what it puts in their place is copied there."""

    def __init__(self, layer: nn.Module):
        self.before: dict[str, Tensor | None] = {}
        self.hooks = [layer.register_forward_pre_hook(self._remember), layer.register_forward_hook(self._copy)]

    def _remember(self, layer: nn.Module, _: Any) -> None:
        self.before = dict(layer._buffers)

    @torch.no_grad()
    def _copy(self, layer: nn.Module, *_: Any) -> None:
        for name, buffer in self.before.items():
            if buffer is not None and layer._buffers.get(name) is not buffer:
                buffer.copy_(layer._buffers[name])
                layer._buffers[name] = buffer

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


class Average:
    """The average of what buffers hold after each batch, weighted; in the end they hold it. Buffers start anew."""

    def __init__(self, buffers: list[Tensor]):
        self.buffers, self.weight = buffers, 0.0
        self.totals = [torch.zeros_like(buffer) for buffer in buffers]
        for buffer in buffers:
            buffer.zero_()  # what is not finite would stay, even with no weight

    def add(self, weight: float) -> None:
        if self.buffers:
            torch._foreach_add_(self.totals, self.buffers, alpha=weight)
        self.weight += weight

    def close(self) -> None:
        for buffer, total in zip(self.buffers, self.totals, strict=True):
            buffer.copy_(total / self.weight)


def used_once(model: nn.Module | ModelWrapper, run: Callable[[], Any]) -> bool:
    """Whether a pass uses each of the layers exactly once."""
    layers = batchnorm_layers(model)
    uses = dict.fromkeys(layers, 0)

    def count(layer: nn.Module, _: Any) -> None:
        uses[layer] += 1

    hooks = [layer.register_forward_pre_hook(count) for layer in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return all(n == 1 for n in uses.values())


@contextmanager
def batch_statistics(model: nn.Module | ModelWrapper, layers: list[nn.Module] | None = None) -> Iterator[None]:
    """Normalize by each batch's own statistics. Dropout and the rest stay as they are."""
    layers = batchnorm_layers(model) if layers is None else layers
    before = [layer.training for layer in layers]
    for layer in layers:
        vars(layer)["training"] = True
    try:
        yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            vars(layer)["training"] = training


def statistics(model: nn.Module | ModelWrapper) -> list[Tensor]:
    """All running means and variances: the buffers themselves."""
    return [b for layer in batchnorm_layers(model) for b in (layer.running_mean, layer.running_var)]


def read_statistics(model: nn.Module | ModelWrapper) -> Tensor:
    """All running means and variances, one after the other, on the CPU."""
    parts = [b.detach().cpu().reshape(-1) for b in statistics(model)]
    return torch.cat(parts) if parts else torch.empty(0, device="cpu")


@torch.no_grad()
def write_statistics(model: nn.Module | ModelWrapper, values: Tensor) -> None:
    """Set all running means and variances to what ``read_statistics`` has read."""
    start = 0
    for buffer in statistics(model):
        buffer.copy_(values[start : start + buffer.numel()].reshape(buffer.shape))
        start += buffer.numel()


def given_statistics(model: ModelWrapper, given: Any) -> Tensor:
    """A user's statistics as ``read_statistics`` gives them: by buffer name, or a (mean, variance) for each layer."""
    own = statistics(model)
    if isinstance(given, Mapping):
        names = {id(b): name for name, b in model.root.named_buffers()}
        if unknown := set(given) - set(names.values()):
            raise UserError(f"running_stats: the model has no buffer {sorted(unknown)[0]}")
        parts = [torch.as_tensor(given.get(names[id(b)], b), device="cpu") for b in own]
    else:
        parts = [torch.as_tensor(b, device="cpu") for pair in given for b in pair]
    if [part.numel() for part in parts] != [b.numel() for b in own]:
        raise UserError("running_stats: expected a mean and a variance of each batch normalization layer's size")
    return torch.cat([part.detach().cpu().reshape(-1) for part in parts])
