"""A model's state by name: to bytes, to arrays, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from .lazy import made
from .parts import is_plain, parts, shape_of


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, tied ones once; the tensors themselves, not copies."""
    return {name: parameter.data for name, parameter in model.named_parameters()}


def state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, tied ones once; the tensors themselves, not copies."""
    return parameters(model) | dict(model.named_buffers())


def shapes(model: nn.Module) -> list[tuple[str, object, str]]:
    """What ranks have to have in common before one's state is broadcast: names, shapes and dtypes."""
    return [(name, shape_of(tensor), str(tensor.dtype)) for name, tensor in state(model).items()]


def sha256(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {shape_of(tensor)} {tensor.dtype};".encode())
        for part in parts(tensor):
            digest.update(as_bytes(part).data)
    return digest.hexdigest()


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """As NumPy arrays; what NumPy has not, bfloat16 and 8 bits, as float32, and complex halves as complex64."""
    return {name: _numpys(t.detach().cpu()).numpy() for name, t in _dense(tensors).items()}


def _numpys(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.resolve_conj().to(torch.complex64 if tensor.dtype == torch.complex32 else tensor.dtype)
    known = not tensor.is_floating_point() or tensor.dtype in (torch.float16, torch.float32, torch.float64)
    return tensor.resolve_neg() if known else tensor.float()


@torch.no_grad()
def fill(tensors: Mapping[str, Tensor], arrays: Mapping[str, np.ndarray]) -> None:
    """Fill the tensors, in place, with the arrays of the same names; KeyError, ValueError where they do not fit."""
    if set(tensors) != set(arrays):
        raise KeyError(", ".join(sorted(set(tensors) ^ set(arrays))[:3]))
    for name, tensor in tensors.items():
        if not is_plain(tensor):
            continue  # sparse ones are as the factory makes them; the model's checksum tells where they differ
        if tuple(tensor.shape) != arrays[name].shape:
            raise ValueError(f"{name}: shape {arrays[name].shape}, expected {tuple(tensor.shape)}")
        if np.iscomplexobj(arrays[name]) and not tensor.is_complex():
            raise ValueError(f"{name}: complex numbers, expected real ones")
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(arrays[name]).reshape(tensor.shape)))


def nbytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that the tensors take."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _dense(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as arrays can hold them: sparse ones dense, nested ones padded with zeros."""
    return {
        name: made(t) if is_plain(t) else torch.nested.to_padded_tensor(t, 0.0) if t.is_nested else t.to_dense()
        for name, t in tensors.items()
    }


def as_bytes(tensor: Tensor) -> np.ndarray:
    """The tensor's bytes in C order: its own memory where it is contiguous on the CPU."""
    return made(tensor.detach()).cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
