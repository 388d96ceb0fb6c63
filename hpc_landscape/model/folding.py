"""Batch normalization folded into the layer before it: one pass less over each activation, where statistics are fixed.

A pair is a convolution or linear layer and the normalization of its output, of which nobody else takes notice: that is
seen by watching one pass. Then scale * (W x + b - mean) + shift is computed as (scale * W) x + (scale * (b - mean) +
shift) (Jacob et al. 2018, section 3.2).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .norms import is_batch_norm

Pair = tuple[str, str]  # names: of a layer, of the normalization of what it gives
SMALL = 2**16  # numbers: a pass over fewer takes no longer than to fold
LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class OtherFlow(Exception):
    """A pass that is not as the one that was watched: the model's own flow depends on its data."""


def find_pairs(root: nn.Module, run: Callable[[], Any], least: int = SMALL) -> tuple[Pair, ...]:
    """The pairs of a model whose layer gives so many numbers at least.

    run: a pass over a batch, in eval mode and without gradients, of which it returns all that it gives.
    """
    named = dict(root.named_modules())
    linear = {module: name for name, module in named.items() if _is_linear(module)}
    norms = {module: name for name, module in named.items() if is_batch_norm(module) and not _is_hooked(module)}
    watch = _Watch(linear, norms, least)
    with watch.hooked(), watch:
        given = run()
    found = watch.pairs
    del given
    return found


def _is_linear(module: nn.Module) -> bool:
    """Whether its output is that of its weight and bias, as they are."""
    plain = any(isinstance(module, kind) and type(module).forward is kind.forward for kind in LINEAR)
    return plain and "forward" not in vars(module) and not _is_hooked(module)


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


class _Watch(TorchDispatchMode):
    """Notes what is computed of each linear layer's output. Holds no activation: a batch may be large."""

    def __init__(self, linear: dict[nn.Module, str], norms: dict[nn.Module, str], least: int):
        super().__init__()
        self.linear, self.norms, self.least = linear, norms, least
        self.weights = {name: layer._parameters.get("weight") for layer, name in linear.items()}
        self.uses: dict[str, int] = {}  # how often each layer was called
        self.followed: dict[str, str] = {}  # linear layer -> the norm of its output
        self.alive: dict[str, weakref.ref[Tensor]] = {}
        self.storages: dict[int, str] = {}  # of outputs that are still there
        self.taken: set[str] = set()  # whose output others have read
        self.inside: nn.Module | None = None  # the norm at work

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch else imports its compiler here, for seconds, to say that it is not to be compiled."""
        return False

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """What may be folded: after the pass, while what it gave is still held."""
        return tuple(
            (layer, norm)
            for layer, norm in self.followed.items()
            if self.uses[layer] == self.uses[norm] == 1 and layer not in self.taken and self.alive[layer]() is None
        )

    @contextmanager
    def hooked(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self.linear:
                stack.callback(module.register_forward_hook(self._made).remove)
            for module in self.norms:
                stack.callback(module.register_forward_pre_hook(self._enter).remove)
                stack.callback(module.register_forward_hook(self._leave).remove)
            yield

    def _made(self, layer: nn.Module, _: Any, output: Any) -> None:
        name = self.linear[layer]
        self.uses[name] = self.uses.get(name, 0) + 1
        if torch.is_grad_enabled() or layer._parameters.get("weight") is not self.weights[name]:
            self.taken.add(name)  # differentiated, or called with other weights
        features = max(2, cast(Tensor, layer.weight).ndim)  # in another shape others are normalized
        if type(output) is Tensor and output.ndim == features and output.numel() >= self.least:
            key = output.untyped_storage()._cdata
            self.alive[name], self.storages[key] = weakref.ref(output), name
            weakref.finalize(output, self.storages.pop, key, None)

    def _enter(self, norm: nn.Module, inputs: Any) -> None:
        name = self.norms[norm]
        self.uses[name] = self.uses.get(name, 0) + 1
        self.inside = None  # what it reads is taken, but by the one that follows the layer
        for layer, output in self.alive.items():
            if len(inputs) == 1 and output() is inputs[0] and not norm.training and layer not in self.followed:
                self.followed[layer], self.inside = name, norm

    def _leave(self, *_: Any) -> None:
        self.inside = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.inside is None and self.storages:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                    self.taken.add(self.storages.get(leaf.untyped_storage()._cdata, ""))
        return function(*args, **(kwargs or {}))


@contextmanager
def folded(root: nn.Module, pairs: Sequence[Pair], row: Callable[[], int], each: Callable[..., Any]) -> Iterator[None]:
    """Let a model compute its pairs folded, by the parameters and statistics that it has now; no gradients.

    each: calls a function at every point that the model is held at, row: at which it is. OtherFlow where a pass is not
    as it was when the pairs were found.
    """
    named = ((root.get_submodule(layer), root.get_submodule(norm)) for layer, norm in pairs)
    found = [(layer, norm) for layer, norm in named if not norm.training]  # which normalize by the batch
    own = [layer._parameters.get("weight") for layer, _ in found]
    rows = each(lambda: _fold(found))
    handed: dict[nn.Module, Tensor] = {}  # what a layer has made, until its norm takes it

    def linear(i: int, layer: Any, input: Tensor) -> Tensor:
        if layer in handed or layer._parameters.get("weight") is not own[i] or torch.is_grad_enabled():
            raise OtherFlow
        weight, bias = rows[row()][i]
        handed[layer] = output = _apply(layer, input, weight, bias)
        return output

    def norm(layer: nn.Module, input: Tensor) -> Tensor:
        if handed.pop(layer, None) is not input:
            raise OtherFlow
        return input

    try:
        for i, (layer, after) in enumerate(found):
            vars(layer)["forward"] = partial(linear, i, layer)
            vars(after)["forward"] = partial(norm, layer)
        yield
        if handed:
            raise OtherFlow
    finally:
        for pair in found:
            for module in pair:
                vars(module).pop("forward", None)


def _apply(layer: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(input, weight, bias)
    output: Tensor = layer._conv_forward(input, weight, bias)
    return output


@torch.no_grad()
def _fold(pairs: Sequence[tuple[Any, Any]]) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of each pair, in the dtype of the layer's own."""
    if not pairs:
        return []
    scales = torch._foreach_add([norm.running_var for _, norm in pairs], [norm.eps for _, norm in pairs])
    torch._foreach_sqrt_(scales)
    torch._foreach_reciprocal_(scales)
    shifts = torch._foreach_neg([norm.running_mean for _, norm in pairs])
    for i, (layer, norm) in enumerate(pairs):
        if layer.bias is not None:
            shifts[i].add_(layer.bias)
        if norm.weight is not None:
            scales[i].mul_(norm.weight)
    torch._foreach_mul_(shifts, scales)
    made = []
    for (layer, norm), scale, shift in zip(pairs, scales, shifts, strict=True):
        if norm.bias is not None:
            shift.add_(norm.bias)
        weight = layer.weight
        made.append(((weight * scale.view(-1, *[1] * (weight.ndim - 1))).to(weight.dtype), shift.to(weight.dtype)))
    return made
