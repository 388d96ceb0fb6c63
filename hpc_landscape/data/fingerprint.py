"""What data is, as a checksum: the same in every process, and another one where any byte of it is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from ..model.parts import is_plain, parts
from .nest import contents

SAMPLED_ITEMS = 8  # items of a large data set that its fingerprint reads
GLANCED = 4096  # numbers of a tensor or an array that a glance sees


def checksum(thing: object) -> str:
    """SHA-256 of a thing, nested as it may be."""
    digest = hashlib.sha256()
    _feed(digest, thing, ())
    return digest.hexdigest()


def glance(thing: object) -> int:
    """A checksum of 64 bits, never 0, that sees some numbers of each tensor, spread over it: in 0.1 ms."""
    digest = hashlib.blake2b(digest_size=8)
    _feed(digest, thing, (), GLANCED)
    return int.from_bytes(digest.digest(), "little") or 1


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


def _feed(digest: Any, thing: Any, within: tuple[int, ...], most: int | None = None) -> None:
    """Add a thing to a digest: what it is, then its bytes. within: what it is in, by identity; most: of its numbers."""
    if isinstance(thing, Tensor):
        _feed_tensor(digest, thing, most)
    elif isinstance(thing, np.ndarray) and thing.dtype.hasobject:  # its bytes are addresses
        _feed(digest, thing.tolist(), within, most)
    elif isinstance(thing, np.ndarray):
        digest.update(f"array {thing.shape} {thing.dtype};".encode())
        digest.update(np.ascontiguousarray(_thinned(thing, thing.shape, thing.flags.c_contiguous, most)).tobytes())
    elif isinstance(thing, Mapping):
        for key, value in list(thing.items()):
            digest.update(f"key {key};".encode())
            _feed(digest, value, within, most)
    elif isinstance(thing, (tuple, list)):
        digest.update(f"list {len(thing)};".encode())
        for value in thing:
            _feed(digest, value, within, most)
    elif hasattr(thing, "tobytes"):  # a PIL image, say
        digest.update(thing.tobytes())
    elif thing is None or isinstance(thing, (str, bytes, bool, int, float, complex)):
        digest.update(f"{type(thing).__name__} {thing!r};".encode())
    else:
        digest.update(f"{type(thing).__name__};".encode())  # a repr may hold an address: not the same on all ranks
        for key, value in [] if id(thing) in within else contents(thing) or ():
            digest.update(f"key {key};".encode())
            _feed(digest, value, (*within, id(thing)), most)


def _feed_tensor(digest: Any, tensor: Tensor, most: int | None) -> None:
    tensor = tensor.detach()
    if not is_plain(tensor):
        digest.update(f"{tensor.layout} {'nested' if tensor.is_nested else tuple(tensor.shape)};".encode())
        for part in parts(tensor):
            _feed_tensor(digest, part, most)
        return
    digest.update(f"tensor {tuple(tensor.shape)} {tensor.dtype};".encode())
    tensor = _thinned(tensor, tensor.shape, tensor.is_contiguous(), most).cpu().contiguous()
    digest.update(tensor.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8).numpy().data)


def _thinned(numbers: Any, shape: tuple[int, ...], contiguous: bool, most: int | None) -> Any:
    """At most so many of an array's or a tensor's numbers, spread over it; None: all of it."""
    size = math.prod(shape)
    if most is None or size <= most:
        return numbers
    step = -(-size // most) | 1  # odd: not the same columns of every row
    if contiguous:
        return numbers.reshape(-1)[::step]
    return numbers[np.unravel_index(np.arange(0, size, step), shape)]
