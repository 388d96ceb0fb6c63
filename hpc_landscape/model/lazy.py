"""Tensors that are made when something is computed with them: those of a shard that is not open, say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Lazy(Tensor):
    """A tensor of a known shape and dtype, on the CPU, whose values are made at each use, and not kept.

    make: gives them. A model's load_state_dict takes it as it takes any tensor, and so has one at a time in memory.
    """

    @staticmethod
    def __new__(cls, shape: Sequence[int], dtype: torch.dtype, make: Callable[[], Tensor]) -> Lazy:
        blank: Any = Tensor._make_wrapper_subclass
        return blank(cls, tuple(shape), dtype=dtype, device="cpu")

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, make: Callable[[], Tensor]):
        self.make = make

    def _compute(cls: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        return func(*tree_map(made, args), **tree_map(made, kwargs or {}))

    __torch_dispatch__: Any = classmethod(_compute)


def made(value: Any) -> Any:
    """The tensor with its values; anything else as it is."""
    return value.make() if isinstance(value, Lazy) else value
