"""What no direction is of, though models differ in it: buffers, and parameters that cannot move.

Where directions lead to other models it goes along: a real or complex buffer in proportion, anything else as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError, few
from .batchnorm import batchnorm_layers
from .numbers import can_move
from .wrapper import ModelWrapper

FLOATS = [getattr(torch, name) for name in dir(torch) if name.startswith("float8_")]
SMALL = [torch.int8, torch.uint8, *FLOATS]


def rest(model: ModelWrapper) -> dict[str, Tensor]:
    """It, by name; but for batch normalization's statistics, which each point has its own of."""
    own = {id(buffer) for layer in batchnorm_layers(model.root) for buffer in layer._buffers.values()}
    buffers = {name: buffer for name, buffer in model.root.named_buffers() if id(buffer) not in own}
    return {name: p.data for name, p in model.root.named_parameters() if not can_move(p)} | buffers


def differing(model: ModelWrapper, others: Sequence[Mapping[str, Tensor]]) -> tuple[list[str], list[str]]:
    """Names of what other models have otherwise: (what goes along with the parameters that move, what stays).

    Something stays where parameters beside it do. UserError where it has another shape, or is not dense.
    """
    moving = {id(p) for p in model.parameters()}
    along: list[str] = []
    stays: list[str] = []
    for name, tensor in rest(model).items():
        if any(name in other and not _same(tensor, other[name], name) for other in others):
            (along if _beside(model.root, name) <= moving else stays).append(name)
    return along, stays


def notes_on_rest(model: ModelWrapper, along: Sequence[Mapping[str, Tensor]], stays: Sequence[str]) -> Iterator[str]:
    """What a person is to know of it."""
    own = rest(model)
    for can, how in ((True, "in proportion to the coordinate"), (False, "from 1 on, the origin's before")):
        if names := [name for name in (along[0] if along else ()) if can_move(own[name]) == can]:
            yield f"as the other models have it, {how}: {few(names)}"
    if stays:
        yield f"other models have it otherwise, but it stays, as parameters beside it do: {few(stays)}"


def unmoved(model: ModelWrapper) -> Iterator[str]:
    """What a person is to know of weights that have no direction: whole numbers of more bits are no weights."""
    for kind in (*SMALL, torch.complex32):
        if names := [name for name, p in model.named_parameters() if p.dtype == kind]:
            yield f"stays as it is, being of {str(kind).removeprefix('torch.')}: {few(names)}"


def _same(tensor: Tensor, other: Tensor, name: str) -> bool:
    if tensor.shape != other.shape:
        raise UserError(f"{name} has shape {tuple(other.shape)} in another model, and {tuple(tensor.shape)} here")
    dense, there = (t.detach().to_dense().cpu().to(tensor.dtype) for t in (tensor, other))
    if torch.equal(dense, there):
        return True
    if tensor.layout != torch.strided:
        raise UserError(f"{name} is sparse, and differs in another model: there is no way from one to the other")
    return False


def _beside(root: nn.Module, name: str) -> set[int]:
    """The parameters of the module that holds it; where there are none, of the module around that, and so on."""
    if name in (parameters := dict(root.named_parameters())):
        return {id(parameters[name])}
    where = name.rpartition(".")[0]
    while True:
        found = {id(p) for p in root.get_submodule(where).parameters()}
        if found or not where:
            return found
        where = where.rpartition(".")[0]
