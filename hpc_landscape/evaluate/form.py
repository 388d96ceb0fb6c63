"""In which form a model computes: order of its weights, precision, compiled or not, how many points at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..metrics.data import each_tensor, full_precision
from ..model_interface.model_wrapper import ModelWrapper


@dataclass(frozen=True)
class Form:
    """How points are evaluated. The plain form is float32, eager, one point at a time.

    channels_last: images and the weights on them in that order. low: the dtype that a point's weights and the inputs
    are cast to; autocast: torch chooses, operation by operation, what is computed in 16 bits. compiled: by
    torch.compile. block: points at a time, under vmap. in_turn: points that share each batch of data that is streamed;
    that alone changes no value. graph: passes captured and replayed as a CUDA graph.
    """

    channels_last: bool = False
    low: torch.dtype | None = None
    autocast: bool = False
    compiled: bool = False
    block: int = 1
    in_turn: int = 1
    graph: bool = False

    def __str__(self) -> str:
        words = [
            "channels last" * self.channels_last,
            f"weights in {str(self.low).removeprefix('torch.')}" if self.low else "",
            "autocast" * self.autocast,
            "compiled" * self.compiled,
            f"{self.block} points at a time" if self.block > 1 else "",
            "CUDA graph" * self.graph,
        ]
        return ", ".join(filter(None, words)) or "plain"

    @property
    def exact(self) -> bool:
        """Whether this is the plain form, from which others differ by rounding at least."""
        return replace(self, in_turn=1) == PLAIN

    @property
    def points(self) -> int:
        """How many points are evaluated together."""
        return max(self.block, self.in_turn)


PLAIN = Form()


def shown_dtypes(model: nn.Module, low: torch.dtype | None) -> dict[str, torch.dtype]:
    """The dtype that each float32 parameter and buffer is cast to: batch normalization keeps its own."""
    if low is None:
        return {}
    kept = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, _NormBase)
        for name in (*module._parameters, *module._buffers)
    }
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: low for name, t in tensors.items() if t.dtype == torch.float32 and name not in kept}


class Recast(ModelWrapper):
    """A model that is called in another way: its inputs cast, its outputs in full precision, or by a compiled call."""

    def __init__(self, inner: ModelWrapper, call: Callable[[Any], Any]):
        super().__init__(inner.modules, inner.model)
        self.root, self.only, self.call = inner.root, inner.only, call
        self.mode, self.norms = inner.mode, inner.norms

    def forward(self, x: Any) -> Any:
        return self.call(x)


def lowered(model: ModelWrapper, low: torch.dtype | None) -> ModelWrapper:
    """The model on inputs cast to low, its outputs cast back: losses are computed in full precision."""
    if low is None:
        return model

    def call(x: Any) -> Any:
        cast = each_tensor(x, lambda t: t.to(low) if t.dtype == torch.float32 else t)
        return full_precision(model.forward(cast))

    return Recast(model, call)


def compiled(model: ModelWrapper) -> ModelWrapper:
    """The model called through torch.compile; compiled at the first call with a shape."""
    return Recast(model, torch.compile(model.forward, dynamic=False))
