"""How a model computes: order of its weights, precision, compiled or not, how many points at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..data.data import each_tensor
from ..data.precise import full_precision
from ..model.folding import Pair
from ..model.numbers import can_move, like
from ..model.wrapper import ModelWrapper


@dataclass(frozen=True)
class ExecutionMode:
    """How points are evaluated. The plain mode is float32, eager, one point at a time.

    channels_last: images and the weights on them in that order; rounded: where kernels are less exact then.
    compute_dtype: what a point's weights and the inputs are cast to; autocast: torch chooses, operation by operation,
    what is computed in 16 bits. compiled: the mode of torch.compile, ``default`` or ``reduce-overhead`` (CUDA graphs);
    empty: eager. stacked: points at a time, under vmap. interleaved: points that share each batch of streamed data;
    that alone changes no value. folded: layers and batch normalizations that passes with fixed statistics compute as
    one.
    """

    channels_last: bool = False
    rounded: bool = False
    compute_dtype: torch.dtype | None = None
    autocast: bool = False
    compiled: str = ""
    stacked: int = 1
    interleaved: int = 1
    folded: tuple[Pair, ...] = ()

    def __str__(self) -> str:
        words = [
            "channels last" * self.channels_last,
            f"weights in {str(self.compute_dtype).removeprefix('torch.')}" if self.compute_dtype else "",
            "autocast" * self.autocast,
            {"": "", "default": "compiled"}.get(self.compiled, f"compiled ({self.compiled})"),
            f"{self.stacked} points at a time" if self.stacked > 1 else "",
        ]
        return ", ".join(filter(None, words)) or "plain"

    @property
    def exact(self) -> bool:
        """Whether values are as exact as those of the plain mode: right to 1e-7."""
        return replace(self, channels_last=False, interleaved=1, folded=()) == PLAIN

    @property
    def eager(self) -> bool:
        """Whether the model is called as it is, at one point after the other."""
        return not self.compiled and self.stacked == 1

    @property
    def folds(self) -> bool:
        """Whether batch normalization is folded: compiled it is fused; in 16 bits weights would be less exact."""
        return self.eager and self.compute_dtype is None and not self.autocast

    @property
    def points(self) -> int:
        """How many points are evaluated together."""
        return max(self.stacked, self.interleaved)


PLAIN = ExecutionMode()
LIMIT = 256
LOWERED = (torch.float32, torch.float16)


def compute_dtypes(model: nn.Module, compute_dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """The dtype that each parameter and buffer of these is cast to: batch normalization keeps its own."""
    if compute_dtype is None:
        return {}
    preserved = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, _NormBase)
        for name in (*module._parameters, *module._buffers)
    }
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: compute_dtype for name, t in tensors.items() if t.dtype in LOWERED and name not in preserved}


def describe_dtype(model: nn.Module, mode: ExecutionMode, dtype: torch.dtype | None = None) -> str:
    """What the parameters are when the model computes: dtype for all of them, else their own, or as the mode has it."""
    cast = compute_dtypes(model, mode.compute_dtype)
    kinds = {
        like(dtype, p) if dtype is not None and can_move(p) else cast.get(name, p.dtype)
        for name, p in model.named_parameters()
        if p.is_floating_point() or p.is_complex()
    }
    words = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    return words + " by autocast in bfloat16" * mode.autocast


class Recast(ModelWrapper):
    """A model that is called in another way: its inputs cast, its outputs in full precision, or by a compiled call."""

    def __init__(self, inner: ModelWrapper, call: Callable[[Any], Any]):
        super().__init__(inner.modules, inner.model)
        self.root, self.only, self.call = inner.root, inner.only, call
        self.mode, self.norms = inner.mode, inner.norms

    def forward(self, x: Any) -> Any:
        return self.call(x)


def in_dtype(model: ModelWrapper, dtype: torch.dtype | None) -> ModelWrapper:
    """The model on inputs cast to dtype, its outputs cast back: losses are computed in full precision."""
    if dtype is None:
        return model

    def call(x: Any) -> Any:
        return full_precision(model.forward(each_tensor(x, lambda t: t.to(dtype) if t.dtype in LOWERED else t)))

    return Recast(model, call)


class Compiled(Recast):
    """The model called through torch.compile, or what the problem calls it by; compiled at the first call of a shape.

    What is compiled must be the function that runs: a model's own compiled call is not used by a forward that calls
    its methods.
    """

    def __init__(self, inner: ModelWrapper, mode: str):
        _allow(LIMIT)
        super().__init__(inner, torch.compile(inner.forward, dynamic=False, mode=mode))
        self.inner, self.how = inner, mode
        self.forwards: dict[Callable[..., Any], Callable[[Any], Any]] = {}

    def called_by(self, forward: Callable[[Any, Any], Any], batch: Any) -> Any:
        if forward not in self.forwards:
            inner = self.inner
            self.forwards[forward] = torch.compile(
                lambda batch: inner.called_by(forward, batch), dynamic=False, mode=self.how
            )
        return self.forwards[forward](batch)


def compiled(model: ModelWrapper, mode: str) -> ModelWrapper:
    """The model compiled, in that mode of torch.compile."""
    return Compiled(model, mode)


def _allow(count: int) -> None:
    """Let PyTorch compile a function so often: it counts all models that are called by one, and gives up after 8."""
    import torch._dynamo

    config: Any = torch._dynamo.config
    for name in ("recompile_limit", "cache_size_limit"):  # as newer and older versions call it
        if hasattr(config, name) and getattr(config, name) < count:
            setattr(config, name, count)


@contextmanager
def compiling(mode: ExecutionMode) -> Iterator[None]:
    """Something must be compiled meanwhile where the mode says so; a failure leaves nothing behind for others.

    Raises ValueError where PyTorch finds nothing that it can compile, and so runs all of it as it is.
    """
    if not mode.compiled:
        yield
        return
    before = _graphs()
    try:
        yield
        if _graphs() == before:
            raise ValueError("torch.compile finds nothing in it that it can compile")
    except BaseException:
        torch._dynamo.reset()
        raise


def _graphs() -> int:
    """How many graphs have been compiled in this process."""
    import torch._dynamo.utils

    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
