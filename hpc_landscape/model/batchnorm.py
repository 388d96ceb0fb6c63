"""Batch normalization whose statistics belong to the point: which layers these are, and their buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

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


def statistics(layers: list[nn.Module]) -> list[Tensor]:
    """All running means and variances: the buffers themselves."""
    return [b for pair in zip(running_means(layers), running_variances(layers), strict=True) for b in pair]


def running_means(layers: Iterable[nn.Module]) -> list[Tensor]:
    """Each layer's."""
    return [cast(Tensor, layer._buffers["running_mean"]) for layer in layers]


def running_variances(layers: Iterable[nn.Module]) -> list[Tensor]:
    """Each layer's."""
    return [cast(Tensor, layer._buffers["running_var"]) for layer in layers]


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
    """A user's statistics as one vector: by buffer name, or a (mean, variance) for each layer."""
    own = statistics(batchnorm_layers(model))
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
