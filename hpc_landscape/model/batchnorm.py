"""Batch normalization whose statistics belong to the point.

``warmup`` re-estimates the running statistics at each point: the average over the warm-up batches of each batch's mean
and (unbiased) variance, weighted by batch size. With equal batches that is ``torch.optim.swa_utils.update_bn``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, cast

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


class Points(Protocol):
    """Where a model is at several points by turns: ``row`` says at which."""

    row: int

    @property
    def points(self) -> Sequence[Any]:
        """All of them."""

    def each(self, function: Callable[[], Any]) -> list[Any]:
        """What the function gives at every point."""


class OnePoint:
    """A model that stays where it is."""

    row = 0
    points: Sequence[Any] = ((),)

    def each(self, function: Callable[[], Any]) -> list[Any]:
        return [function()]


class RunningStatistics:
    """Re-estimates running statistics in a pass: a running average of the batches', weighted by their samples.

    Use ``with``; call ``begin(n)`` before each batch of n samples: without it a layer counts the samples by the length
    of its input. A layer may be used several times in a pass, or not at all. Only these layers are in train mode.
    """

    def __init__(self, layers: list[nn.Module], points: Points | None = None):
        self.layers, self.points = layers, points or OnePoint()
        self.seen = [dict.fromkeys(layers, 0.0) for _ in self.points.points]
        self.samples: float | None = None
        self.stack = ExitStack()

    def __enter__(self) -> RunningStatistics:
        self.stack.enter_context(batch_statistics(self.layers))
        self.stack.enter_context(_momentum_preserved(self.layers))
        for layer in self.layers:
            self.stack.callback(layer.register_forward_pre_hook(self._count).remove)
            if not is_norm(layer):
                self.stack.callback(_BuffersInPlace(layer).remove)
        self.points.each(lambda: reset(self.layers))
        return self

    def __exit__(self, *_: Any) -> None:
        self.stack.close()

    def begin(self, samples: float) -> None:
        """Let the next batch count by its share of the samples so far."""
        self.samples = samples

    def end(self, samples: float) -> None:
        """After that batch, at every point."""

    def _count(self, layer: nn.Module, inputs: Any) -> None:
        """Of the samples that this layer has seen: it may be used twice in a pass, or not at all."""
        samples, seen = len(inputs[0]) if self.samples is None else self.samples, self.seen[self.points.row]
        seen[layer] += samples
        vars(layer)["momentum"] = samples / seen[layer]  # a Module's own way costs 20 times as much


class AveragedStatistics:
    """The same where each layer is used exactly once in a pass: nothing differs from batch to batch.

    That is what compilation and stacked points need. After each batch the buffers hold that batch's statistics alone;
    their average, weighted by samples, is added up beside, and in the end is what they hold. buffers: of all points.
    """

    def __init__(self, layers: list[nn.Module], buffers: list[Tensor]):
        self.layers, self.buffers, self.weight = layers, buffers, 0.0
        self.totals = [torch.zeros_like(buffer) for buffer in buffers]
        self.stack = ExitStack()

    @torch.no_grad()
    def __enter__(self) -> AveragedStatistics:
        for buffer in self.buffers:
            buffer.zero_()  # what is not finite would stay, even with no weight
        self.stack.enter_context(batch_statistics(self.layers))
        self.stack.enter_context(_momentum_preserved(self.layers))
        for layer in self.layers:
            vars(layer)["momentum"] = 1.0
        return self

    @torch.no_grad()
    def __exit__(self, kind: Any, *_: Any) -> None:
        self.stack.close()
        if kind is None:
            for buffer, total in zip(self.buffers, self.totals, strict=True):
                buffer.copy_(total / self.weight)

    def begin(self, samples: float) -> None:
        """Before a batch."""

    @torch.no_grad()
    def end(self, samples: float) -> None:
        """After a batch of so many samples, at every point."""
        if self.buffers:
            torch._foreach_add_(self.totals, self.buffers, alpha=samples)
        self.weight += samples


@contextmanager
def _momentum_preserved(layers: list[nn.Module]) -> Iterator[None]:
    before = [layer.momentum for layer in layers]
    try:
        yield
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            vars(layer)["momentum"] = momentum


@torch.no_grad()
def reset(layers: list[nn.Module]) -> None:
    """What ``reset_running_stats`` does to each, in a few calls for all: there may be a hundred, at every point."""
    if layers:
        means, variances = running_means(layers), running_variances(layers)
        torch._foreach_zero_(means + variances)
        torch._foreach_add_(variances, 1.0)
        for layer in layers:
            if (count := getattr(layer, "num_batches_tracked", None)) is not None:
                count.zero_()


class _BuffersInPlace:
    """The buffers of a layer of the user's own stay the same tensors: what it puts in their place is copied there."""

    def __init__(self, layer: nn.Module):
        self.before: dict[str, Tensor | None] = {}
        self.hooks = [layer.register_forward_pre_hook(self._remember), layer.register_forward_hook(self._copy)]

    def _remember(self, layer: nn.Module, _: object) -> None:
        self.before = dict(layer._buffers)

    @torch.no_grad()
    def _copy(self, layer: nn.Module, *_: Any) -> None:
        for name, buffer in self.before.items():
            now = layer._buffers.get(name)
            if buffer is not None and now is not buffer:
                assert now is not None, f"a layer has taken its {name} away"
                buffer.copy_(now)
                layer._buffers[name] = buffer

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


def used_once(model: nn.Module | ModelWrapper, run: Callable[[], Any]) -> bool:
    """Whether a pass uses each of the layers exactly once."""
    layers = batchnorm_layers(model)
    uses = dict.fromkeys(layers, 0)

    def count(layer: nn.Module, _: object) -> None:
        uses[layer] += 1

    hooks = [layer.register_forward_pre_hook(count) for layer in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return all(n == 1 for n in uses.values())


@contextmanager
def batch_statistics(layers: list[nn.Module]) -> Iterator[None]:
    """Let these layers normalize by each batch's own statistics. Dropout and the rest stay as they are."""
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
    layers = batchnorm_layers(model)
    return [b for pair in zip(running_means(layers), running_variances(layers), strict=True) for b in pair]


def running_means(layers: Iterable[nn.Module]) -> list[Tensor]:
    """Each layer's."""
    return [cast(Tensor, layer.running_mean) for layer in layers]


def running_variances(layers: Iterable[nn.Module]) -> list[Tensor]:
    """Each layer's."""
    return [cast(Tensor, layer.running_var) for layer in layers]


def read_statistics(model: nn.Module | ModelWrapper) -> Tensor:
    """All running means and variances, one after the other, on the CPU."""
    return as_vector(statistics(model))


def write_statistics(model: nn.Module | ModelWrapper, values: Tensor) -> None:
    """Set all running means and variances to what ``read_statistics`` has read."""
    write_vector(statistics(model), values)


def as_vector(buffers: Iterable[Tensor]) -> Tensor:
    """Tensors one after the other, on the CPU."""
    parts = [b.detach().cpu().reshape(-1) for b in buffers]
    return torch.cat(parts) if parts else torch.empty(0, device="cpu")


@torch.no_grad()
def write_vector(buffers: Iterable[Tensor], values: Tensor) -> None:
    """Set the tensors to what ``as_vector`` has made of them."""
    start = 0
    for buffer in buffers:
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
    return as_vector(parts)
