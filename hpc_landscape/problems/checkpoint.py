"""Trained weights from files: found, read, checked against a model."""

from __future__ import annotations

import glob
import os
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, printable

NESTED = ("state_dict", "model_state_dict", "model", "net", "module")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # DataParallel, torch.compile, Lightning
SUFFIXES = (".pt", ".pth", ".safetensors")  # of a directory's files
TRUST = "save model.state_dict(), or use --weights_only false if you trust where it comes from"
SHOWN = 3  # keys of each fault
MOST_SAID = 200  # characters of what a file, or its reader, says
DEEPEST = 8  # mapping within mapping: one may hold itself


def load_checkpoint(path: str, model: nn.Module, weights_only: bool = True) -> None:
    """Load the state dict in a .pt, .pth or .safetensors file into the model, in place.

    UserError where the file cannot be read, or belongs to another architecture: it says which keys.
    """
    model.load_state_dict(read_checkpoint(path, model, weights_only))


def read_checkpoint(
    path: str, model: nn.Module, weights_only: bool = True, option: str = "--checkpoint"
) -> dict[str, Tensor]:
    """The state dict in a file, checked against the model's, on the CPU and in the file's dtypes.

    A state dict under ``state_dict`` or ``model`` is found, a prefix that all keys share (``module.``) is taken off,
    and a key that tied weights make superfluous may be missing. UserError, which begins with the option's name, where
    the file cannot be read, or belongs to another architecture: it says which keys.
    """
    expected = model.state_dict(keep_vars=True)  # tied tensors are one object
    tensors = strip_prefixes(read_tensors(path, weights_only, option), expected)
    tensors = _with_tied(tensors, expected)
    _check(tensors, expected, f"{option} {path}")
    return tensors


def read_parameters(
    path: str, model: nn.Module, names: Iterable[str], weights_only: bool = True, option: str = "--checkpoint"
) -> dict[str, Tensor]:
    """The parameters of these names, as model.named_parameters() has them, of a file read by read_checkpoint."""
    tensors = read_checkpoint(path, model, weights_only, option)
    return {name: tensors[name] for name in names}


def read_tensors(
    path: str, weights_only: bool = True, option: str = "--checkpoint", instead: str = TRUST
) -> dict[str, Tensor]:
    """The mapping of names to tensors in a file, nested or not, on the CPU, unchecked.

    instead: what to do, for the UserError that tells of a pickle with code in it.
    """
    where = f"{option} {path}"
    if not os.path.isfile(path):
        raise UserError(f"{where}: {'it is no file' if os.path.exists(path) else 'there is no such file'}")
    return _state_dict(_read(path, weights_only, where, instead), where)


def strip_prefixes(tensors: Mapping[str, Tensor], known: Iterable[str]) -> dict[str, Tensor]:
    """The tensors without prefixes that all their names share, as far as that makes the most names known ones."""
    forms = [dict(tensors)]
    while prefix := next((p for p in PREFIXES if tensors and all(key.startswith(p) for key in forms[-1])), None):
        forms.append({key.removeprefix(prefix): tensor for key, tensor in forms[-1].items()})
    known = set(known)
    return max(forms, key=lambda form: len(form.keys() & known))


def find_checkpoints(spec: str, option: str) -> list[str]:
    """The files that a comma-separated list of files, globs and directories names, each once.

    Files keep the list's order; those of a glob, and the .pt, .pth and .safetensors files of a directory, come in
    natural order: epoch2 before epoch10. UserError, which begins with the option's name, where a part names no file.
    """
    parts = [spec] if os.path.exists(spec) else spec.split(",")  # one name may hold commas
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in parts)):
        for path in _files(part, f"{option} {part}"):
            found.setdefault(os.path.abspath(path), path)
    if not found:
        raise UserError(f"{option}: names no checkpoint; give files, a directory, or a pattern such as 'run/*.pt'")
    return list(found.values())


def _files(part: str, where: str) -> list[str]:
    if os.path.isfile(part):  # first: its name may look like a pattern
        return [part]
    if os.path.isdir(part):
        found = [p for p in glob.glob(os.path.join(glob.escape(part), "*")) if p.endswith(SUFFIXES)]
        fault = f"the directory holds no {', '.join(SUFFIXES)} file; name others by a pattern such as '{part}/*.ckpt'"
    elif glob.has_magic(part):
        found = glob.glob(part, recursive=True)
        fault = "the pattern matches no file"
    else:
        raise UserError(f"{where}: there is no such file")
    found = [path for path in found if os.path.isfile(path)]
    if not found:
        raise UserError(f"{where}: {fault}")
    return sorted(found, key=_natural)


def _natural(path: str) -> tuple[list[str | int], str]:
    """A key that sorts numbers by value; the path itself where these are the same."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", path)], path


def _read(path: str, weights_only: bool, where: str, instead: str) -> Any:
    if path.endswith(".safetensors"):
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise UserError(f"{where}: reading it needs safetensors: pip install safetensors") from None
        try:
            return load_file(path)
        except Exception as error:
            raise UserError(printable(f"{where}: not a safetensors file: {str(error)[:MOST_SAID]}")) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats: it can be read, or is refused below
            return torch.load(path, map_location="cpu", weights_only=weights_only)
    except pickle.UnpicklingError as error:
        if weights_only and "global" in str(error).lower():  # the name of what it would call
            raise UserError(
                f"{where}: holds more than weights, code that would run when it is loaded; {instead}"
            ) from None
        raise UserError(f"{where}: not a PyTorch checkpoint") from None
    except Exception as error:  # a damaged pickle may raise anything
        said = printable(" ".join(str(error).split("\n")[0].split())[:MOST_SAID])
        raise UserError(f"{where}: cannot be read: {type(error).__name__}: {said}") from None


def _state_dict(content: Any, where: str) -> dict[str, Tensor]:
    if isinstance(content, nn.Module):
        content = content.state_dict()
    for _ in range(DEEPEST):
        if not isinstance(content, Mapping):
            break
        if content and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
            return {key: value.detach() for key, value in content.items()}
        inner = next((content[key] for key in NESTED if isinstance(content.get(key), (Mapping, nn.Module))), None)
        if isinstance(inner, nn.Module):
            inner = inner.state_dict()
        if inner is None:
            break
        content = inner
    keys = first_few(list(map(str, content))) if isinstance(content, Mapping) else type(content).__name__
    raise UserError(f"{where}: holds no state dict (found: {keys})")


def _with_tied(tensors: Mapping[str, Tensor], expected: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give a missing key the tensor of the key it is tied to: safetensors' save_model writes that one alone."""
    there = {id(t): tensors[key] for key, t in expected.items() if key in tensors and isinstance(t, Tensor)}
    return {**{key: there[id(t)] for key, t in expected.items() if id(t) in there}, **tensors}


def _check(tensors: Mapping[str, Tensor], expected: Mapping[str, Any], where: str) -> None:
    faults = []
    if missing := [key for key in expected if key not in tensors]:
        faults.append(f"it lacks {first_few(missing)}")
    if extra := [key for key in tensors if key not in expected]:
        faults.append(f"the model has no {first_few(extra)}")
    shapes = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in tensors and isinstance(expected[key], Tensor) and tensors[key].shape != expected[key].shape
    ]
    if shapes:
        faults.append(f"other shapes: {first_few(shapes)}")
    odd = [
        key
        for key, t in tensors.items()
        if t.layout != torch.strided or t.is_meta or t.is_quantized or (t.is_complex() and not _complex(expected, key))
    ]
    if odd and not faults:
        raise UserError(f"{where}: holds tensors that are not dense ones of real numbers: {first_few(odd)}")
    if faults:
        raise UserError(f"{where}: belongs to another architecture: {'; '.join(faults)}")


def _complex(expected: Mapping[str, Any], key: str) -> bool:
    return isinstance(wanted := expected.get(key), Tensor) and wanted.is_complex()


def first_few(names: Sequence[str]) -> str:
    """The first names, and how many more there are, on one line whatever a file holds as a name."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return printable(", ".join(name[:MOST_SAID] for name in names[:SHOWN])) + more
