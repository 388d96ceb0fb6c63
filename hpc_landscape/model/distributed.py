"""Checkpoints of torch.distributed.checkpoint: a directory whose tensors are in pieces, as ranks saved them."""

from __future__ import annotations

import io
import math
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, printable
from .lazy import Lazy

METADATA = ".metadata"
# What its pickle is made of: names of classes that hold data, and that PyTorch's own reader would find there.
_OF = "torch.distributed.checkpoint."
ALLOWED = {
    (f"{_OF}metadata", "Metadata"),
    (f"{_OF}metadata", "TensorStorageMetadata"),
    (f"{_OF}metadata", "BytesStorageMetadata"),
    (f"{_OF}metadata", "ChunkStorageMetadata"),
    (f"{_OF}metadata", "TensorProperties"),
    (f"{_OF}metadata", "MetadataIndex"),
    (f"{_OF}metadata", "StorageMeta"),
    (f"{_OF}metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_OF}filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    *(("pathlib", name) for name in ("Path", "PosixPath", "PurePath", "PurePosixPath")),
    *(("pathlib._local", name) for name in ("Path", "PosixPath", "PurePath", "PurePosixPath")),
}


def is_distributed(path: str) -> bool:
    """Whether a directory is such a checkpoint."""
    return os.path.isfile(os.path.join(path, METADATA))


class _Forbidden(pickle.UnpicklingError):
    pass


class _Unpickler(pickle.Unpickler):
    """Makes what metadata is made of, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        if (module, name) not in ALLOWED:
            raise _Forbidden(f"{module}.{name}")
        return super().find_class(module, name)


@dataclass(frozen=True)
class _Piece:
    """A part of a tensor: where it begins in it, and where its bytes are in a file."""

    offsets: Sequence[int]
    sizes: Sequence[int]
    file: str
    start: int
    length: int


def read_distributed(path: str, weights_only: bool, where: str, instead: str) -> dict[str, Any]:
    """The tensors that such a checkpoint holds, nested as they were saved; each is read when it is used.

    weights_only: whether classes beside those of metadata are refused. where: what a UserError begins with; instead:
    what to do, where its pickle holds code.
    """
    metadata = _metadata(os.path.join(path, METADATA), weights_only, f"{where}: {METADATA}", instead)
    try:
        nested: dict[str, Any] = {}
        places = metadata.planner_data if isinstance(metadata.planner_data, dict) else {}
        for name, stored in metadata.state_dict_metadata.items():
            if not hasattr(stored, "chunks"):
                continue  # no tensor: a step, a learning rate
            pieces = [_piece(path, name, chunk, metadata.storage_data, where) for chunk in stored.chunks]
            *keys, last = places.get(name) or (name,)
            inner = nested
            for key in keys:
                inner = inner.setdefault(str(key), {})
            shape, dtype = tuple(stored.size), stored.properties.dtype
            inner[str(last)] = Lazy(shape, dtype, partial(_assembled, shape, dtype, pieces, f"{where}: {name}"))
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        said = printable(f"{type(error).__name__}: {error}"[:200])
        raise UserError(f"{where}: not a distributed checkpoint that can be read: {said}") from None
    return nested


def _metadata(path: str, weights_only: bool, where: str, instead: str) -> Any:
    try:
        with open(path, "rb") as file:
            return _Unpickler(file).load() if weights_only else pickle.load(file)
    except _Forbidden as error:
        said = f"{where}: holds more than metadata, {str(error)[:200]}, which would run when it is loaded"
        raise UserError(f"{printable(said)}: {instead}") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{where}: cannot be read: {printable(f'{type(error).__name__}: {error}'[:200])}") from None


def _piece(folder: str, name: str, chunk: Any, storage: Any, where: str) -> _Piece:
    """Where a chunk is; UserError where it is not there, whole, in a file of this directory."""
    from torch.distributed.checkpoint.metadata import MetadataIndex

    info = storage[MetadataIndex(name, chunk.offsets)]
    said = f"{where}: its file {printable(info.relative_path[:200])}"
    if os.path.isabs(info.relative_path) or ".." in info.relative_path.replace("\\", "/").split("/"):
        raise UserError(f"{said} is outside of its directory: it is not read")
    if getattr(info, "transform_descriptors", None):
        raise UserError(f"{said} is compressed or transformed: save it without extensions")
    file = os.path.join(folder, info.relative_path)
    if not os.path.isfile(file):
        raise UserError(f"{said} is missing")
    if info.offset < 0 or info.length < 0 or info.offset + info.length > os.path.getsize(file):
        raise UserError(f"{said} is cut short")
    return _Piece(tuple(chunk.offsets), tuple(chunk.sizes), file, info.offset, info.length)


def _assembled(shape: Sequence[int], dtype: torch.dtype, pieces: Sequence[_Piece], where: str) -> Tensor:
    """The tensor of these pieces."""
    if len(pieces) == 1 and tuple(pieces[0].sizes) == tuple(shape):
        return _read(pieces[0], dtype, where)
    whole = torch.empty(tuple(shape), dtype=dtype, device="cpu")
    filled = 0
    for piece in pieces:
        part = tuple(slice(begin, begin + size) for begin, size in zip(piece.offsets, piece.sizes, strict=True))
        whole[part] = _read(piece, dtype, where)
        filled += math.prod(piece.sizes)
    if filled != whole.numel():
        raise UserError(f"{where}: its pieces do not fill it")
    return whole


class _Within(io.RawIOBase):
    """A part of an open file as a file, which is read into its place without a copy between."""

    def __init__(self, file: io.BufferedReader, start: int, length: int):
        self.file, self.start, self.length, self.at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence])
        return self.at

    def readinto(self, buffer: Any) -> int:
        wanted = memoryview(buffer).cast("B")[: max(0, self.length - self.at)]
        self.file.seek(self.start + self.at)
        got = self.file.readinto(wanted)
        self.at += got
        return got


def _read(piece: _Piece, dtype: torch.dtype, where: str) -> Tensor:
    """One piece, an archive of torch.save within a file."""
    try:
        with open(piece.file, "rb") as file:
            content: Any = _Within(file, piece.start, piece.length)
            tensor = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive may raise anything
        name = printable(os.path.basename(piece.file))
        raise UserError(f"{where}: what {name} holds of it cannot be read: {type(error).__name__}") from None
    if not isinstance(tensor, Tensor) or tensor.shape != tuple(piece.sizes) or tensor.dtype != dtype:
        raise UserError(f"{where}: a piece is not what the metadata says")
    return tensor
