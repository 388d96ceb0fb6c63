"""What a checkpoint's file, or the directory of a saved model, holds: read, never run."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, few, printable
from .archives import check_archive
from .distributed import is_distributed, read_distributed
from .lazy import Lazy

# What save_pretrained, the Trainer and accelerate leave in a directory, the whole model before its adapters.
MODELS = tuple(
    name
    for stem in ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "adapter_model.bin")
    for name in (stem, f"{stem}.index.json")
) + ("adapter_model.safetensors",)
MARKS = ("config.json", "adapter_config.json", "trainer_state.json")  # beside them, where the directory is one model
INDEX = ".index.json"
TRUST = "save model.state_dict(), or use --weights_only false if you trust where it comes from"
SHOWN = 3  # names of each fault
MOST_SAID = 200  # characters of what a file, or its reader, says


def model_file(path: str) -> str | None:
    """The file that holds the model in a directory, or the index of its shards; None where there is none."""
    names = (os.path.join(path, name) for name in MODELS)
    return next((name for name in names if os.path.isfile(name)), None)


def is_one_model(path: str) -> bool:
    """Whether a directory is one saved model, and no folder of several checkpoints."""
    if is_distributed(path):
        return True
    return os.path.isdir(path) and model_file(path) is not None and any(map(os.path.isfile, _marks(path)))


def _marks(path: str) -> list[str]:
    return [os.path.join(path, name) for name in MARKS]


def read_content(path: str, weights_only: bool, where: str, instead: str = TRUST) -> Any:
    """What is in a file, in the shards that an index names, or in a directory's model, on the CPU.

    Of shards and of distributed checkpoints tensors are ``Lazy``: there is one at a time in memory. where: what a
    UserError begins with; instead: what to do, where a pickle holds code.
    """
    if os.path.isdir(path):
        if is_distributed(path):
            return read_distributed(path, weights_only, where, instead)
        if (found := model_file(path)) is None:
            raise UserError(
                f"{where}: it is no file, nor a directory with model.safetensors, pytorch_model.bin, an index of "
                "shards, or .metadata of torch.distributed.checkpoint: name the file in it"
            )
        path, where = found, f"{where}: {os.path.basename(found)}"
    if not os.path.isfile(path):
        raise UserError(f"{where}: {'it is no file' if os.path.exists(path) else 'there is no such file'}")
    if path.endswith(INDEX):
        return _read_shards(path, weights_only, where, instead)
    return _read_file(path, weights_only, where, instead)


class _Shards:
    """The files of an index, of which the last one used is open. read: gives the tensors of one, mapped from it."""

    def __init__(self, read: Callable[[str], Mapping[str, Any]]):
        self.read = read
        self.path, self.tensors = "", dict[str, Any]()

    def open(self, path: str) -> Mapping[str, Any]:
        """The content of one file."""
        if path != self.path:
            self.path, self.tensors = "", {}  # closed before the next is open
            self.path, self.tensors = path, dict(self.read(path))
        return self.tensors

    def lazy(self, path: str, name: str) -> Any:
        """A tensor of an open file, to be read from there when it is used; anything else as it is."""
        tensor = self.open(path)[name]
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            return tensor
        return Lazy(tensor.shape, tensor.dtype, lambda: self.open(path)[name].detach())


def _read_shards(path: str, weights_only: bool, where: str, instead: str) -> dict[str, Any]:
    """The tensors that an index places in files beside it."""
    try:
        with open(path, encoding="utf-8") as file:
            places = json.load(file)["weight_map"]
        shards = dict.fromkeys(map(os.fspath, places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{where}: not an index of shards: it needs a weight_map of names to files") from None
    tensors: dict[str, Any] = {}
    files = _Shards(partial(_read_shard, os.path.dirname(path), weights_only, where, instead))
    for shard in shards:
        content = files.open(shard)
        tensors |= {name: files.lazy(shard, name) for name in content if places.get(name) == shard}
    return tensors


def _read_shard(folder: str, weights_only: bool, where: str, instead: str, shard: str) -> Mapping[str, Any]:
    """The tensors of one shard, mapped from its file where that can be."""
    said = f"shard {printable(shard[:MOST_SAID])}"
    if os.path.isabs(shard) or ".." in shard.replace("\\", "/").split("/"):
        raise UserError(f"{where}: its {said} is outside of its directory: it is not read")
    path = os.path.join(folder, shard)
    if not os.path.isfile(path):
        raise UserError(f"{where}: its {said} is missing")
    content = _read_file(path, weights_only, f"{where}: {said}", instead, mapped=zipfile.is_zipfile(path))
    if not isinstance(content, dict):
        raise UserError(f"{where}: its {said} holds no tensors by name")
    return content


def _read_file(path: str, weights_only: bool, where: str, instead: str, mapped: bool = False) -> Any:
    if path.endswith(".safetensors"):
        return _read_safetensors(path, where)
    return _load(path, weights_only, where, instead, mapped)


def _read_safetensors(path: str, where: str) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{where}: reading it needs safetensors: pip install safetensors") from None
    try:
        return load_file(path)
    except Exception as error:
        raise UserError(printable(f"{where}: not a safetensors file: {str(error)[:MOST_SAID]}")) from None


def _load(path: str, weights_only: bool, where: str, instead: str, mapped: bool) -> Any:
    check_archive(path, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats: it can be read, or is refused below
            return torch.load(path, map_location="cpu", weights_only=weights_only, mmap=mapped)
    except pickle.UnpicklingError as error:
        said = str(error).lower()
        if weights_only and ("global" in said or "unsupported class" in said):  # the name of what it would call
            raise UserError(
                f"{where}: holds more than weights, code that would run when it is loaded; {instead}"
            ) from None
        raise UserError(f"{where}: not a PyTorch checkpoint") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{where}: cannot be read: {type(error).__name__}: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """The beginning of what an error says, on one line."""
    return printable(" ".join((str(error).split("\n") or [""])[0].split())[:MOST_SAID])


def first_few(names: Sequence[str], shown: int = SHOWN) -> str:
    """The first names, and how many more there are, on one line whatever a file holds as a name."""
    return few([name[:MOST_SAID] for name in names], shown)
