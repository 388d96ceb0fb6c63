"""What data is, as a checksum: the same in every process, and another one where any byte of it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from ..model.parts import is_plain, parts
from .nest import contents

SAMPLED_ITEMS = 8  # items of a large data set that its fingerprint reads


def checksum(thing: object) -> str:
    """SHA-256 of a thing, nested as it may be."""
    digest = hashlib.sha256()
    _feed(digest, thing, ())
    return digest.hexdigest()


def spread(size: int) -> list[int]:
    """A few indices from the first to the last."""
    return sorted({int(i) for i in np.linspace(0, size - 1, min(size, SAMPLED_ITEMS)).round()})


def labels(dataset: Any) -> Any:
    """The data set's labels, where it has them in memory: as an array where they make one."""
    found = getattr(dataset, "targets", None)
    try:
        if found is None and type(dataset) is Subset and (whole := labels(dataset.dataset)) is not None:
            return np.asarray(whole)[np.asarray(dataset.indices)]
        return found if found is None else np.asarray(found)
    except (ValueError, TypeError, IndexError):  # lists of several lengths, say
        return found


def _feed(digest: Any, thing: Any, within: tuple[int, ...]) -> None:
    """Add a thing to a digest: what it is, then its bytes. within: what it is in, by identity."""
    if isinstance(thing, Tensor):
        _feed_tensor(digest, thing)
    elif isinstance(thing, np.ndarray) and thing.dtype.hasobject:  # its bytes are addresses
        _feed(digest, thing.tolist(), within)
    elif isinstance(thing, np.ndarray):
        digest.update(f"array {thing.shape} {thing.dtype};".encode())
        digest.update(np.ascontiguousarray(thing).tobytes())
    elif isinstance(thing, Mapping):
        for key, value in list(thing.items()):
            digest.update(f"key {key};".encode())
            _feed(digest, value, within)
    elif isinstance(thing, (tuple, list)):
        digest.update(f"list {len(thing)};".encode())
        for value in thing:
            _feed(digest, value, within)
    elif hasattr(thing, "tobytes"):  # a PIL image, say
        digest.update(thing.tobytes())
    elif thing is None or isinstance(thing, (str, bytes, bool, int, float, complex)):
        digest.update(f"{type(thing).__name__} {thing!r};".encode())
    else:
        digest.update(f"{type(thing).__name__};".encode())  # a repr may hold an address: not the same on all ranks
        for key, value in [] if id(thing) in within else contents(thing) or ():
            digest.update(f"key {key};".encode())
            _feed(digest, value, (*within, id(thing)))


def _feed_tensor(digest: Any, tensor: Tensor) -> None:
    tensor = tensor.detach()
    if not is_plain(tensor):
        digest.update(f"{tensor.layout} {'nested' if tensor.is_nested else tuple(tensor.shape)};".encode())
        for part in parts(tensor):
            _feed_tensor(digest, part)
        return
    tensor = tensor.cpu().contiguous()
    digest.update(f"tensor {tuple(tensor.shape)} {tensor.dtype};".encode())
    digest.update(tensor.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8).numpy().data)
