"""A problem's data as batches in a fixed order, the same at every point and on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_convert

from ..errors import UserError, warn
from .batches import Batches, LoaderBatches, StoredBatches, TensorBatches, as_made, slices
from .data import samples
from .loaders import (
    Wish,
    as_it_is,
    chosen,
    from_dataset,
    from_loader,
    makes_its_own,
    reads_all_in_order,
    resident,
    rows_of,
)
from .nest import contents, tensors_in
from .readings import ONCE
from .sizes import shapes
from .streams import REPEATED, StreamBatches, first, look, size_of

__all__ = [
    "Batches",
    "LoaderBatches",
    "StoredBatches",
    "StreamBatches",
    "TensorBatches",
    "as_batches",
    "chosen",
    "prepare",
    "sample_count",
    "slices",
]

BATCH_SIZE = 512
LOOKED_AT = 64  # items of a list that say what it is a list of
WHOLE = (
    str,
    bytes,
    Mapping,
    Tensor,
    np.ndarray,
    set,
    frozenset,
)  # they have items, but neither samples nor batches


def prepare(
    data: object,
    batch_size: int,
    count: int | None,
    seed: int,
    what: str,
    notice: Callable[[str], None],
    batches: int | None = None,
    shuffle: bool = False,
    pin: bool | None = None,
    ranks: int = 1,
) -> Batches:
    """Batches of a pair of tensors, a Dataset, a DataLoader, or of whatever gives batches again and again.

    count: of a seeded subset of so many samples; of a stream, or of ready batches, of the first ones. shuffle: in an
    order drawn from the seed. batches: the first so many of these. pin: whether it goes to a GPU (None: as a DataLoader
    says); ranks: of this node, which read it too. A DataLoader's own batch size wins. One that
    shuffles or drops samples is read in sequence and in full: notice is told so. Raises UserError for anything else.
    """
    wish = Wish(batch_size, count, batches, seed, shuffle, what, notice, pin, ranks)
    if isinstance(data, (tuple, list)) and data and all(isinstance(t, Tensor) for t in data):
        data = _tensor_dataset(tuple(data), what)
    if isinstance(data, DataLoader):
        return from_loader(data, wish)
    if isinstance(data, IterableDataset):
        _check_samples(data, what)
        return from_loader(DataLoader(data, batch_size=batch_size), wish)
    if isinstance(data, (tuple, list)) and any(isinstance(t, np.ndarray) for t in data):
        raise UserError(f"the problem's {what} holds NumPy arrays: give tensors (torch.from_numpy)")
    if isinstance(data, (tuple, list)) and holds_batches(data, what):
        return _from_list(list(data), wish)
    if isinstance(data, Iterator) and not hasattr(data, "__len__"):
        raise UserError(f"the problem's {what} is a {type(data).__name__}, which can be read only once: {ONCE}")
    if not isinstance(data, (*WHOLE, type)):
        if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            return from_dataset(data, wish)
        if hasattr(data, "__iter__"):
            return as_it_is(data, getattr(data, "batch_size", None), wish)
    raise UserError(
        f"the problem's {what} is a {type(data).__name__}: give tensors, a Dataset, a DataLoader or a list of batches"
    )


def as_batches(data: Any) -> Iterable[Any]:
    """Batches to read again and again: a loader that reads in sequence and in full, a list, or prepared ones.

    Raises UserError for what gives others at a second reading.
    """
    if isinstance(data, Iterator) and not hasattr(data, "__len__"):
        return list(data)
    if type(data) in (list, tuple) and not all(isinstance(t, Tensor) for t in data):
        if _may_hold_batches(data):
            return data
    elif isinstance(data, DataLoader) and not makes_its_own(data):
        several = isinstance(data.dataset, IterableDataset) and data.num_workers > 1
        if reads_all_in_order(data) and resident(data.dataset) is None and not several:
            return data
    elif isinstance(data, Batches):
        return data
    found = prepare(data, BATCH_SIZE, None, 0, "data", warn)
    if isinstance(found, StreamBatches):
        found.check("data")
        if found.workers > 1 and (workers := look(found, "data").repeated):
            warn(REPEATED.format(what="data", workers=workers))
    return found


def _may_hold_batches(items: Any, unclear: bool = True) -> bool:
    """unclear: what is said where that cannot be told; a list is one of batches, unless it cannot be."""
    try:
        return holds_batches(items, "data")
    except UserError:
        return unclear


def _check_samples(stream: Any, what: str) -> None:
    """UserError where what it gives looks like batches, as of a pipeline that makes them."""
    items = [default_convert(item) for item in islice(as_made(lambda: stream, []), 2)]
    if _may_hold_batches(items, unclear=False):
        raise UserError(
            f"the problem's {what} is a {type(stream).__name__} whose items look like batches, of {shapes(items[0])}: "
            "give DataLoader(data, batch_size=None) where each is one, or DataLoader(data, batch_size=N) where each is "
            "a sample"
        )


def _tensor_dataset(tensors: tuple[Tensor, ...], what: str) -> TensorDataset:
    lengths = rows_of(tensors)
    if len(lengths) > 1 or None in lengths:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise UserError(
            f"the problem's {what} has tensors of different lengths: {shapes}. Where they are one batch, such as a "
            "graph, say DataLoader([graph], batch_size=None)"
        )
    dataset = TensorDataset()
    dataset.tensors = tensors  # sparse and nested ones are not asked for their length there
    return dataset


def _from_list(batches: list[Any], wish: Wish) -> StoredBatches:
    wish.in_its_order()
    wish.first_of_stream()
    sizes = [size_of(batch) for batch in batches]
    of = f", the first of {sizes[0]} samples" if sizes[0] else ""
    wish.say(f"a list of {len(batches)} batches{of}; where its items are samples, give DataLoader(list, batch_size=N)")
    taken = list(first(batches, wish.batches, wish.samples))
    told = [size for batch in taken if (size := size_of(batch)) is not None]
    return StoredBatches(taken, sum(told) if len(told) == len(taken) else None, None)


def holds_batches(items: tuple[Any, ...] | list[Any], what: str) -> bool:
    """Whether a list's items are batches, and not samples; UserError where that cannot be told."""
    looked = [*items[:LOOKED_AT], *items[-1:]]
    if any(isinstance(item, PackedSequence) for item in _flat(looked)):
        return True
    if moving := next((x for x in _flat(looked) if not _is_nest(x) and contents(x) is not None), None):
        raise _unclear(what, f"holds objects of type {type(moving).__name__}")
    lengths = [_lengths(item) for item in looked]
    tensors = [t for item in looked for t in tensors_in(item)]
    if not tensors or any(None in found for found in lengths):
        return False  # numbers are a sample's
    if any(len(found) > 1 for found in lengths):
        if len(items) == 1:
            raise _unclear(what, "is a list of one item")
        return False
    sizes = {length for found in lengths for length in found}
    flat = all(t.dim() == 1 for t in tensors)
    channels = len(sizes) == 1 and sizes <= {1, 3, 4} and any(t.dim() >= 3 for t in tensors)
    if flat or channels or sizes == {1}:
        raise _unclear(what, f"is a list of items with tensors of shape {tuple(tensors[0].shape)}")
    return True


def _unclear(what: str, how: str) -> UserError:
    return UserError(
        f"the problem's {what} {how}, which may be samples or batches: give DataLoader(list, batch_size=None) where "
        "each item is a whole batch (of one graph: DataLoader([graph], batch_size=None)), or DataLoader(list, "
        "batch_size=N) where it is a sample"
    )


def _is_nest(thing: object) -> bool:
    return isinstance(thing, (tuple, list, Mapping)) and not isinstance(thing, PackedSequence)


def _flat(thing: Any) -> Iterator[Any]:
    """What a nest of tuples, lists and mappings holds."""
    if not _is_nest(thing):
        yield thing
        return
    for part in thing.values() if isinstance(thing, Mapping) else thing:
        yield from _flat(part)


def _lengths(item: Any) -> set[int | None]:
    """The lengths of all that an item holds: of tensors, of lists of numbers or texts; None for one of these alone."""
    if isinstance(item, Tensor):
        return rows_of([item])
    if isinstance(item, (tuple, list)) and item and not any(isinstance(x, Tensor) or _is_nest(x) for x in item):
        return {len(item)} if isinstance(item, list) else {None}
    if not _is_nest(item):
        return {None}
    parts = item.values() if isinstance(item, Mapping) else item
    return set().union(*map(_lengths, parts))


def sample_count(batches: Batches) -> int:
    """Samples in all, by reading the data where it does not say."""
    return batches.size if batches.size is not None else sum(samples(batch) for batch in batches)
