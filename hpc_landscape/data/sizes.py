"""How many samples a batch holds, and how it is taken apart; where its parts do not tell, nobody guesses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .nest import rebuilt

UNKNOWN = (
    "cannot tell how many samples a batch holds: {found}. Say over how many items the loss of a batch is a mean: "
    "give Problem, or Data, a count=lambda batch: ..."
)


def batch_size(batch: Any) -> int | None:
    """How many samples a batch holds, by what all of its parts agree on; None where they leave it open.

    Of a nest of tensors it is the first dimension that they have in common. Below the top a list may also be one of
    samples, as a detector's images are: then its length; one of mappings, as its targets are, is nothing else. In
    (input, target) the input may be time first.
    """
    if type(batch) in (tuple, list) and batch and all(isinstance(t, Tensor) and t.ndim for t in batch):
        sizes = {tensor.size(0) for tensor in batch}
        if len(sizes) == 1:  # what is read below, of most batches, soon
            return sizes.pop()
    found = _readings(batch, top=True)
    if found and len(found) > 1 and type(batch) in (tuple, list):
        found = set.intersection(found, *({len(part)} for part in batch if _records(part)))
    if not found and type(batch) in (tuple, list) and len(batch) == 2:
        given, target = batch
        if isinstance(given, Tensor) and isinstance(target, Tensor) and given.ndim > 1 and target.ndim:
            return target.shape[0] if given.shape[1] == target.shape[0] else None
    return found.pop() if found and len(found) == 1 else None


def _records(thing: Any) -> bool:
    """Whether it is a list of samples, each a mapping, as a detector's targets are."""
    return type(thing) in (tuple, list) and bool(thing) and all(isinstance(part, Mapping) for part in thing)


def _readings(thing: object, top: bool = False) -> set[int] | None:
    """The numbers of samples that it may be read as; None where it says nothing, as a text or a number does."""
    if isinstance(thing, Tensor):
        return {thing.size(0)} if thing.ndim else set()
    if isinstance(thing, PackedSequence):
        return {int(thing.batch_sizes[0])}
    if (own := _own(thing)) is not None:
        return {own}
    if isinstance(thing, Mapping):
        return _common(list(thing.values()))
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return _common([getattr(thing, field.name) for field in dataclasses.fields(thing)])
    if isinstance(thing, (tuple, list)):
        parts = _common(thing)
        if top or (isinstance(thing, tuple) and hasattr(thing, "_fields")):
            return parts
        return (parts or set()) | {len(thing)}
    return None


def _common(parts: Sequence[Any]) -> set[int] | None:
    """What all that say something agree on."""
    said = [found for found in map(_readings, parts) if found is not None]
    return set.intersection(*said) if said else None


def _own(thing: object) -> int | None:
    """What a batch of graphs, or a dict of tensors of its own kind, says of itself."""
    for name in ("num_graphs", "batch_size"):
        own = getattr(thing, name, None)
        if isinstance(own, Sequence) and own:  # a torch.Size
            own = own[0]
        if isinstance(own, int) and not isinstance(own, bool):
            return own
    return None


def part(batch: Any, size: int, start: int, end: int, top: bool = True) -> Any:
    """Some samples of a batch of that size. ValueError where it cannot be taken apart."""
    if isinstance(batch, Tensor):
        dim = 0 if batch.ndim and batch.size(0) == size else 1
        if batch.ndim <= dim or batch.size(dim) != size:
            raise ValueError("no such dimension")
        return batch.narrow(dim, start, end - start)
    if batch is None or isinstance(batch, (str, int, float)):
        return batch
    if isinstance(batch, PackedSequence):
        padded, lengths = pad_packed_sequence(batch)
        return pack_padded_sequence(padded[:, start:end], lengths[start:end], enforce_sorted=False)
    named = isinstance(batch, tuple) and hasattr(batch, "_fields")
    record = dataclasses.is_dataclass(batch) and not isinstance(batch, type)
    if isinstance(batch, Mapping) or named or record:
        return rebuilt(batch, lambda value: part(value, size, start, end, False))
    if type(batch) in (tuple, list):
        whole = None if _records(batch) else batch_size(batch)
        if whole == size == len(batch) and not top:
            raise ValueError("a list of samples, or of their parts")
        if whole is None or (whole != size and len(batch) == size):
            if len(batch) != size:
                raise ValueError("no such length")
            return batch[start:end]  # a list of samples
        return type(batch)(part(value, size, start, end, False) for value in batch)
    raise ValueError(f"a {type(batch).__name__} is not taken apart")


def shapes(batch: Any) -> str:
    """What its parts are, for a message."""
    if isinstance(batch, Tensor):
        return str(tuple(batch.shape))
    if isinstance(batch, Mapping):
        return ", ".join(f"{key} {shapes(value)}" for key, value in list(batch.items())[:6])
    if type(batch) in (tuple, list) and len(batch) <= 6:
        return ", ".join(map(shapes, batch))
    return f"a {type(batch).__name__}"
