"""What numbers a parameter is made of: which kinds can move, and in which precision that is computed.

A complex number is a pair of reals: it moves as two do, and has the length that two have.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
COMPLEX = {real: pair for pair, real in REAL.items()}


def can_move(tensor: Tensor) -> bool:
    """Whether there is a straight line between two such tensors: not of integers, of 8 bits, of complex halves."""
    return tensor.dtype in REAL or tensor.dtype in COMPLEX or tensor.dtype in HALVES


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which such parameters are computed with: float32 for those of 16 bits, else their own."""
    return torch.float32 if dtype in HALVES else dtype


def like(dtype: torch.dtype, tensor: Tensor) -> torch.dtype:
    """The dtype, or the complex one of such numbers where the tensor is complex."""
    return COMPLEX.get(dtype, torch.complex64) if tensor.is_complex() and dtype not in REAL else dtype


def double(tensor: Tensor) -> Tensor:
    """In float64, or complex numbers of such; where the device has none (MPS), on the host."""
    tensor = tensor.detach().to_dense()
    tensor = tensor.cpu() if tensor.device.type == "mps" else tensor
    return tensor.to(like(torch.float64, tensor))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of the real numbers that they are made of, in float64."""
    a = double(a)
    product = a.conj() * double(b).to(a.device)
    return (product.real if product.is_complex() else product).sum()


def reals(tensor: Tensor) -> Tensor:
    """The real numbers that it is made of: complex ones have one more dimension, of 2."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def numbers_of(numbers: Tensor, tensor: Tensor) -> Tensor:
    """What ``reals`` gave, as such a tensor is: real, or complex."""
    return torch.view_as_complex(numbers) if tensor.is_complex() else numbers


def count(tensor: Tensor) -> int:
    """How many real numbers it is made of."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)
