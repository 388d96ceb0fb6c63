"""Statistics of batch normalization that are re-estimated in a pass.

They are the average over the warm-up batches of each batch's mean and (unbiased) variance, weighted by batch size. With
equal batches that is ``torch.optim.swa_utils.update_bn``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .batchnorm import batch_statistics, running_means, running_variances
from .moments import moments
from .norms import is_batch_norm, is_norm
from .sums import Sums, Taken

Taker = Callable[[nn.Module, Tensor, Tensor, Tensor, float], None]
Together = Callable[[list[list[Any]]], list[list[Any]]]  # what these batches gave at each point -> what all gave


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


def adds_up_exactly(layer: nn.Module) -> bool:
    """Whether ``exact_statistics`` is for it: one of torch's own layers on a CPU, in float32."""
    if not is_batch_norm(layer):
        return False
    here = cast(Tensor, layer.running_mean)
    return here.device.type == "cpu" and here.dtype == torch.float32


@contextmanager
def exact_statistics(layers: Sequence[nn.Module], take: Taker | None = None) -> Iterator[None]:
    """Let these layers, where they are in train mode, normalize by ``moments``; their running statistics stay.

    take(layer, input, mean, variance, unbiased): is told of each batch's, and what makes the variance the unbiased one.
    """
    try:
        for layer in layers:
            vars(layer)["forward"] = partial(_normalize, layer, take)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _normalize(layer: Any, take: Taker | None, input: Tensor) -> Tensor:
    count = input.numel() // max(1, input.shape[1]) if input.ndim > 1 else 0
    if not layer.training or count < 2:  # which is refused
        return _BatchNorm.forward(layer, input)
    layer._check_input_dim(input)
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    if not torch.is_grad_enabled():
        mean, variance = moments(input)
        if take is not None:
            take(layer, input, mean, variance, count / (count - 1))
        return torch.batch_norm(input, weight, bias, mean.float(), variance.float(), False, 0.0, layer.eps, False)
    if take is not None:
        with torch.no_grad():
            take(layer, input, *moments(input.detach()), count / (count - 1))
    return torch.batch_norm(input, weight, bias, None, None, True, 0.0, layer.eps, False)


class RunningStatistics:
    """Re-estimates running statistics in a pass: the average of the batches', weighted by their samples.

    Use ``with``, as often as wanted; call ``begin(n)`` and ``end(n)`` around each batch of n samples: without them a
    layer counts the samples by the length of its input. A layer may be used several times in a pass, or not at all.
    Only these layers are in train mode. What torch's own batch normalization sees on a CPU is averaged in float64; what
    others of torch's own write into their buffers, batch by batch, in no less than float32; layers of the user's own
    keep a running average, by their momentum. together: where other ranks have a part of the batches; there are no
    layers of the user's own then.
    """

    together: Together | None = None

    def __init__(self, layers: list[nn.Module], points: Points | None = None):
        self.layers, self.points = layers, points or OnePoint()
        self.exact = [layer for layer in layers if adds_up_exactly(layer)]
        exact = set(self.exact)
        self.native = [layer for layer in layers if layer not in exact and is_norm(layer)]
        self.others = [layer for layer in layers if layer not in exact and not is_norm(layer)]
        self.numbers = {layer: i for i, layer in enumerate(layers)}
        self.places = {layer: i for i, layer in enumerate(self.native)}  # in the lists of buffers
        self.stack = ExitStack()

    def __enter__(self) -> RunningStatistics:
        rows = len(self.points.points)
        self.sums = [Sums() for _ in range(rows)]
        self.taken: list[list[Taken]] = [[] for _ in range(rows)]
        self.pending: list[dict[nn.Module, float]] = [{} for _ in range(rows)]  # used, and not yet added: their weights
        self.seen = [dict.fromkeys(self.others, 0.0) for _ in range(rows)]
        self.samples: float | None = None
        self.stack.enter_context(batch_statistics(self.layers))
        self.stack.enter_context(exact_statistics(self.exact, self._take))
        if observed := self.native + self.others:
            self.stack.enter_context(_momentum_preserved(observed))
            self.points.each(lambda: reset(observed))
        self._observe()
        return self

    def _observe(self) -> None:
        """Let layers write into their buffers, and see when they do."""
        if self.native:
            self.buffers = self.points.each(lambda: (running_means(self.native), running_variances(self.native)))
        for layer in self.native:
            vars(layer)["momentum"] = 1.0
            self.stack.callback(layer.register_forward_pre_hook(self._use).remove)
        for layer in self.others:
            self.stack.callback(layer.register_forward_pre_hook(self._count).remove)
            self.stack.callback(_BuffersInPlace(layer).remove)

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.stack.close()
        if kind is not None:
            return
        self._add_pending()
        if self.together is not None:
            for sums, batches in zip(self.sums, self.together(self.taken), strict=True):
                for taken in batches:
                    taken.add_to(sums, self.layers)
        self.points.each(self._write)

    def begin(self, samples: float) -> None:
        """Let the next batch count by its samples."""
        self.samples = samples
        if self.together is not None:
            for batches in self.taken:
                batches.append(Taken())

    def end(self, samples: float) -> None:
        """After that batch, at every point."""
        self._add_pending()

    def _weight(self, input: Tensor) -> float:
        return len(input) if self.samples is None else self.samples

    def _take(self, layer: nn.Module, input: Tensor, mean: Tensor, variance: Tensor, unbiased: float) -> None:
        weight, row = self._weight(input), self.points.row
        if self._kept(row):
            self.taken[row][-1].append([self.numbers[layer]], [mean, variance], weight, unbiased)
        else:
            self.sums[row].add(layer, mean, variance, weight, unbiased)

    def _kept(self, row: int) -> bool:
        """Whether what layers see is kept until the other ranks have told of theirs, too."""
        return self.together is not None and bool(self.taken[row])

    def _use(self, layer: nn.Module, inputs: Any) -> None:
        """Before a layer writes into its buffers: what they hold of an earlier use is added first."""
        row = self.points.row
        if layer in self.pending[row]:
            self._add_pending_of(row)
        self.pending[row][layer] = self._weight(inputs[0])

    def _add_pending(self) -> None:
        for row, pending in enumerate(self.pending):
            if pending:
                self._add_pending_of(row)

    @torch.no_grad()
    def _add_pending_of(self, row: int) -> None:
        """What the layers have written, in a few operations for all, and cleared: what is not finite would stay."""
        pending = self.pending[row]
        for weight in dict.fromkeys(pending.values()):
            used = [layer for layer in pending if pending[layer] == weight]
            moments = [of[self.places[layer]] for of in self.buffers[row] for layer in used]
            if self._kept(row):
                numbers = [self.numbers[layer] for layer in used]
                self.taken[row][-1].append(numbers, [moment.clone() for moment in moments], weight)
            else:
                self.sums[row].add_all(used, moments, weight)
            torch._foreach_zero_(moments)
        pending.clear()

    def _count(self, layer: nn.Module, inputs: Any) -> None:
        """Of the samples that this layer has seen: it may be used twice in a pass, or not at all."""
        samples, seen = self._weight(inputs[0]), self.seen[self.points.row]
        seen[layer] += samples
        vars(layer)["momentum"] = samples / seen[layer]  # a Module's own way costs 20 times as much

    @torch.no_grad()
    def _write(self) -> None:
        sums = self.sums[self.points.row]
        if unused := [layer for layer in self.exact + self.native if layer not in sums.weights]:
            reset(unused)
        sums.write()


class AveragedStatistics:
    """The same where each layer is used exactly once in a pass: nothing differs from batch to batch.

    That is what compilation and stacked points need. After each batch the buffers hold that batch's statistics alone;
    their average, weighted by samples, is added up beside, and in the end is what they hold. buffers: of all points.
    together: where other ranks have a part of the batches.
    """

    def __init__(self, layers: list[nn.Module], buffers: list[Tensor], together: Together | None = None):
        self.layers, self.buffers, self.weight, self.together = layers, buffers, 0.0, together
        self.totals = [torch.zeros_like(buffer) for buffer in buffers]
        self.taken: list[tuple[float, list[Tensor]]] = []
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
            if self.together is not None:
                for samples, batch in self.together([self.taken])[0]:
                    self._add(samples, [t.to(b.device) for t, b in zip(batch, self.buffers, strict=True)])
            for buffer, total in zip(self.buffers, self.totals, strict=True):
                buffer.copy_(total / self.weight)

    def begin(self, samples: float) -> None:
        """Before a batch."""

    @torch.no_grad()
    def end(self, samples: float) -> None:
        """After a batch of so many samples, at every point."""
        if self.together is None:
            self._add(samples, self.buffers)
        else:
            self.taken.append((samples, [buffer.to("cpu", copy=True) for buffer in self.buffers]))

    def _add(self, samples: float, batch: list[Tensor]) -> None:
        if batch:
            torch._foreach_add_(self.totals, batch, alpha=samples)
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
