"""Trained weights from a file, into a model."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError

NESTED = ("state_dict", "model_state_dict", "model", "net", "module")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # DataParallel, torch.compile, Lightning
SHOWN = 3  # keys of each fault


def load_checkpoint(path: str, model: nn.Module, weights_only: bool = True) -> None:
    """Load the state dict in a .pt, .pth or .safetensors file into the model, in place.

    A state dict under ``state_dict`` or ``model`` is found, and a prefix that all keys share (``module.``) is taken
    off. UserError where the file cannot be read, or belongs to another architecture: it says which keys.
    """
    if not os.path.isfile(path):
        raise UserError(f"--checkpoint {path}: there is no such file")
    tensors = _state_dict(_read(path, weights_only), path)
    expected = model.state_dict()
    while not _fits(tensors, expected):
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None)
        if prefix is None:
            break
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    _check(tensors, expected, path)
    model.load_state_dict(tensors)


def _read(path: str, weights_only: bool) -> Any:
    if path.endswith(".safetensors"):
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise UserError(f"--checkpoint {path}: reading it needs safetensors: pip install safetensors") from None
        try:
            return load_file(path)
        except Exception as error:
            raise UserError(f"--checkpoint {path}: not a safetensors file: {error}") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=weights_only)
    except pickle.UnpicklingError as error:
        if weights_only and "global" in str(error).lower():  # the name of what it would call
            raise UserError(
                f"--checkpoint {path}: holds more than weights, code that would run when it is loaded; save "
                "model.state_dict(), or use --weights_only false if you trust where it comes from"
            ) from None
        raise UserError(f"--checkpoint {path}: not a PyTorch checkpoint") from None
    except Exception as error:  # a damaged pickle may raise anything
        said = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"--checkpoint {path}: cannot be read: {type(error).__name__}: {said}") from None


def _state_dict(content: Any, path: str) -> dict[str, Tensor]:
    if isinstance(content, nn.Module):
        content = content.state_dict()
    while isinstance(content, Mapping):
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return dict(content)
        inner = next((content[key] for key in NESTED if isinstance(content.get(key), (Mapping, nn.Module))), None)
        if isinstance(inner, nn.Module):
            inner = inner.state_dict()
        if inner is None:
            break
        content = inner
    keys = ", ".join(map(str, list(content)[:SHOWN])) if isinstance(content, Mapping) else type(content).__name__
    raise UserError(f"--checkpoint {path}: holds no state dict (found: {keys})")


def _fits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return set(tensors) == set(expected)


def _check(tensors: Mapping[str, Tensor], expected: Mapping[str, Any], path: str) -> None:
    faults = []
    if missing := [key for key in expected if key not in tensors]:
        faults.append(f"it lacks {_some(missing)}")
    if extra := [key for key in tensors if key not in expected]:
        faults.append(f"the model has no {_some(extra)}")
    shapes = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in tensors and isinstance(expected[key], Tensor) and tensors[key].shape != expected[key].shape
    ]
    if shapes:
        faults.append(f"other shapes: {_some(shapes)}")
    if faults:
        raise UserError(f"--checkpoint {path}: belongs to another architecture: {'; '.join(faults)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
