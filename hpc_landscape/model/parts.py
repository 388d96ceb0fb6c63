"""Tensors that are no single block of memory, sparse and nested ones: what they are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_BY_ROWS = {torch.sparse_csr, torch.sparse_bsr}
_BLOCKS = {torch.sparse_bsr, torch.sparse_bsc}


def is_plain(tensor: Tensor) -> bool:
    """Whether the tensor is one block of memory: with strides, and dense."""
    return tensor.layout == torch.strided and not tensor.is_nested


def parts(tensor: Tensor) -> list[Tensor]:
    """The dense tensors that a tensor is made of, its own memory; of a dense one, itself."""
    tensor = tensor.detach()
    if is_plain(tensor):
        return [tensor]
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in _BY_ROWS:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.to_dense()]


def shape_of(tensor: Tensor) -> tuple[object, ...]:
    """The shape; where the tensor is not dense also how it is made, and the shapes of its parts."""
    if is_plain(tensor):
        return tuple(tensor.shape)
    own = () if tensor.is_nested else tuple(tensor.shape)  # nested ones have a number in it that is no size
    return (*own, str(tensor.layout), *(tuple(part.shape) for part in parts(tensor)))


def length(tensor: Tensor) -> int:
    """How many rows there are."""
    return tensor.size(0)


def take_rows(tensor: Tensor, rows: slice | Sequence[int] | Tensor) -> Tensor:
    """These rows, in this order, as a tensor of the same layout."""
    if is_plain(tensor):
        return tensor[rows]
    if isinstance(rows, slice):
        rows = range(*rows.indices(length(tensor)))
    index = torch.as_tensor(list(rows) if isinstance(rows, range) else rows, dtype=torch.long)
    if tensor.is_nested:
        pieces = tensor.unbind()
        return torch.nested.as_nested_tensor([pieces[i] for i in index.tolist()], layout=tensor.layout)
    if tensor.layout == torch.sparse_coo:
        return tensor.index_select(0, index.to(tensor.device))
    found = tensor.to_sparse_coo().index_select(0, index.to(tensor.device)).coalesce()
    if tensor.layout in _BLOCKS:
        return found.to_dense().to_sparse(layout=tensor.layout, blocksize=tensor.values().shape[-2:])
    return found.to_sparse(layout=tensor.layout)
