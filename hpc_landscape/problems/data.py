"""A problem's data as batches in a fixed order, the same at every point and on every rank."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from ..errors import UserError
from ..metrics.data import each_tensor, move, samples

BATCH_SIZE = 512
SAMPLED_ITEMS = 8  # items of a large data set that its fingerprint reads


class Batches:
    """Data read in sequence and in full, batch by batch. ``size``: samples in all, None where it cannot be told."""

    size: int | None
    batch_size: int | None
    bytes = 0  # resident in this process
    streamed = False  # whether each pass has to load them

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError

    def count(self) -> int:
        """How many batches there are."""
        return sum(1 for _ in self)

    def to(self, device: torch.device, dtype: torch.dtype | None, channels_last: bool = False) -> Batches:
        """The same batches on a device, floating-point tensors in the dtype (None: as they are), images in order."""
        raise NotImplementedError

    def quick_hash(self) -> str:
        """A fingerprint that reads a few items."""
        raise NotImplementedError

    def full_hash(self) -> str:
        """A fingerprint of everything in memory; of larger data the quick one."""
        return self.quick_hash()

    def check(self, what: str) -> None:
        """Raise UserError where the data is empty, or differs between two readings."""
        if self.size == 0:
            raise UserError(f"the problem's {what} is empty")


class TensorBatches(Batches):
    """Tensors in memory, sliced."""

    def __init__(self, tensors: tuple[Tensor, ...], batch_size: int):
        self.tensors, self.batch_size = tensors, batch_size
        self.size = len(tensors[0])
        self.bytes = sum(t.numel() * t.element_size() for t in tensors)
        self._batches = [tuple(t[a:b] for t in tensors) for a, b in slices(self.size, batch_size)]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return iter(self._batches)

    def to(self, device: torch.device, dtype: torch.dtype | None, channels_last: bool = False) -> TensorBatches:
        return TensorBatches(move(self.tensors, device, dtype, channels_last), self.batch_size)

    def quick_hash(self) -> str:
        rows = _spread(self.size)
        return _hash([(t.shape, t[rows]) for t in self.tensors])

    def full_hash(self) -> str:
        return _hash(list(self.tensors))


class LoaderBatches(Batches):
    """A DataLoader's batches, read anew, by its workers, in every pass."""

    streamed = True

    def __init__(self, loader: DataLoader, size: int | None, batch_size: int | None):
        self.loader, self.size, self.batch_size = loader, size, batch_size
        self.where: tuple[Any, ...] = (None, None)
        self.first_bytes = 0  # of the first batch, once it has been read

    def __iter__(self) -> Iterator[Any]:
        for batch in self._read():
            yield move(batch, *self.where)

    def count(self) -> int:
        return super().count() if isinstance(self.loader.dataset, IterableDataset) else len(self.loader)

    def _read(self) -> Iterator[Any]:
        try:
            iterator = iter(self.loader)
        except Exception as error:  # workers that do not fork are sent the dataset pickled
            if self.loader.num_workers == 0:
                raise
            raise UserError(
                f"the data set cannot be sent to data-loading workers ({type(error).__name__}: {error}): use "
                "num_workers=0, or DataLoader(..., multiprocessing_context='fork') where forking is safe"
            ) from None
        return iterator

    def to(self, device: torch.device, dtype: torch.dtype | None, channels_last: bool = False) -> LoaderBatches:
        there = copy.copy(self)  # the same loader, and its workers
        there.where = (device, dtype, channels_last)
        return there

    def quick_hash(self) -> str:
        dataset = self.loader.dataset
        items = [] if isinstance(dataset, IterableDataset) else [dataset[int(i)] for i in _spread(len(dataset))]
        return _hash([self.size, items, _labels(dataset), self._first()])

    def check(self, what: str) -> None:
        super().check(what)
        if self._first() != self._first():
            raise UserError(
                f"the problem's {what} differs between two readings of its first batch: random augmentation? A point's "
                "value must depend on the point alone: use the transforms that you evaluate with"
            )

    def _first(self) -> str:
        for batch in self._read():
            self.first_bytes = nbytes(batch)
            return _hash(batch)
        raise UserError("the problem's data is empty")


def nbytes(batch: Any) -> int:
    """Bytes of all tensors in a batch."""
    sizes: list[int] = []
    each_tensor(batch, lambda t: sizes.append(t.numel() * t.element_size()) or t)
    return sum(sizes)


def slices(size: int, batch_size: int) -> list[tuple[int, int]]:
    """(start, end) of each batch. A last batch of one sample joins the one before: BN cannot normalize it."""
    if size == 0:
        return []
    starts = list(range(0, size, batch_size))
    if len(starts) > 1 and size - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], size], strict=True))


def prepare(
    data: Any, batch_size: int, count: int | None, seed: int, what: str, notice: Callable[[str], None]
) -> Batches:
    """Batches of a pair of tensors, a Dataset or a DataLoader; of a seeded subset of count samples when asked.

    A DataLoader's own batch size wins. One that shuffles or drops samples is read in sequence and in full: notice is
    told so. Raises UserError for anything else.
    """
    if isinstance(data, (tuple, list)) and data and all(isinstance(t, Tensor) for t in data):
        data = _tensor_dataset(tuple(data), what)
    if isinstance(data, DataLoader):
        return _from_loader(data, batch_size, count, seed, what, notice)
    if isinstance(data, IterableDataset):
        return _from_loader(DataLoader(data, batch_size=batch_size), batch_size, count, seed, what, notice)
    if isinstance(data, (tuple, list)) and any(isinstance(t, np.ndarray) for t in data):
        raise UserError(f"the problem's {what} holds NumPy arrays: give tensors (torch.from_numpy)")
    whole = isinstance(data, (str, Mapping, Tensor, np.ndarray))  # they have items too, but not samples
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__") and not whole):
        return _from_dataset(data, batch_size, count, seed, what, {})
    raise UserError(f"the problem's {what} is a {type(data).__name__}: give tensors, a Dataset or a DataLoader")


def as_batches(data: Any) -> Iterable[Any]:
    """Batches to read again and again: a loader that reads in sequence and in full, a list, or prepared ones."""
    pair = isinstance(data, (tuple, list)) and bool(data) and all(isinstance(t, Tensor) for t in data)
    if isinstance(data, DataLoader):
        if _reads_all_in_order(data) and _resident(data.dataset) is None:
            return data
    elif not pair and not isinstance(data, Dataset) and isinstance(data, Iterable):
        return list(data) if isinstance(data, Iterator) else data
    return prepare(data, BATCH_SIZE, None, 0, "data", lambda text: warnings.warn(text, stacklevel=3))


def _reads_all_in_order(loader: DataLoader) -> bool:
    """Whether its batches are those that ``prepare`` would make of it."""
    if isinstance(loader.dataset, IterableDataset):
        return not loader.drop_last
    batches = loader.batch_sampler
    if batches is None:
        return isinstance(loader.sampler, SequentialSampler)
    in_order = type(batches) is BatchSampler and isinstance(batches.sampler, SequentialSampler)
    return in_order and not batches.drop_last and len(loader.dataset) % batches.batch_size != 1


def _tensor_dataset(tensors: tuple[Tensor, ...], what: str) -> TensorDataset:
    lengths = {len(t) if t.ndim else None for t in tensors}
    if len(lengths) > 1 or None in lengths:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise UserError(
            f"the problem's {what} has tensors of different lengths: {shapes}. Where they are one batch, such as a "
            "graph, say DataLoader([graph], batch_size=None)"
        )
    return TensorDataset(*tensors)


def _from_dataset(
    dataset: Any, batch_size: int, count: int | None, seed: int, what: str, options: Mapping[str, Any]
) -> Batches:
    size = len(dataset)
    if count is not None:
        if not 1 <= count <= size:
            raise UserError(f"the problem's {what} has {size} samples: cannot take {count} of them")
        dataset, size = Subset(dataset, chosen(size, count, seed).tolist()), count
    tensors = _resident(dataset) if options.get("collate_fn", default_collate) is default_collate else None
    if tensors is not None:
        return TensorBatches(tensors, batch_size)
    order = [list(range(a, b)) for a, b in slices(size, batch_size)]
    return LoaderBatches(DataLoader(dataset, batch_sampler=order, **options), size, batch_size)


def _resident(dataset: Any) -> tuple[Tensor, ...] | None:
    """The data set's tensors, where it is tensors in memory, or a subset of such."""
    if type(dataset) is TensorDataset:
        return dataset.tensors
    if type(dataset) is Subset and (tensors := _resident(dataset.dataset)) is not None:
        rows = torch.as_tensor(dataset.indices, dtype=torch.long)
        return tuple(t[rows] for t in tensors)
    return None


def _from_loader(
    loader: DataLoader, batch_size: int, count: int | None, seed: int, what: str, notice: Callable[[str], None]
) -> Batches:
    options: dict[str, Any] = {
        "num_workers": loader.num_workers,
        "collate_fn": loader.collate_fn,
        "pin_memory": loader.pin_memory or torch.cuda.is_available(),  # copies to a GPU then do not wait
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
    }
    if loader.num_workers:  # fork is unsafe beside CUDA, threads and some interconnects
        options["multiprocessing_context"] = loader.multiprocessing_context or "forkserver"
        options["persistent_workers"] = True
        options["prefetch_factor"] = loader.prefetch_factor
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        if count is not None:
            raise UserError(
                f"the problem's {what} is an iterable data set: a subset of {count} cannot be taken from it"
            )
        if loader.drop_last:
            notice(f"{what}: the loader drops its last batch; it is read in full")
        again = DataLoader(dataset, batch_size=loader.batch_size, **options)
        return LoaderBatches(again, None, loader.batch_size)
    if loader.batch_sampler is None:  # the data set gives whole batches
        if count is not None:
            raise UserError(f"the problem's {what} comes in ready batches: a subset of {count} samples cannot be taken")
        _say_order(loader.sampler, False, what, notice)
        return LoaderBatches(DataLoader(dataset, batch_size=None, **options), None, None)
    if type(loader.batch_sampler) is not BatchSampler:
        order = _own_order(loader.batch_sampler)
        if order is not None and count is None:
            size = sum(map(len, order))
            return LoaderBatches(DataLoader(dataset, batch_sampler=order, **options), size, None)
        notice(f"{what}: the loader's batch sampler is not used; the data is read in sequence, {batch_size} at a time")
        return _from_dataset(dataset, batch_size, count, seed, what, options)
    sampler, drops = loader.batch_sampler.sampler, loader.batch_sampler.drop_last
    if type(sampler) is SubsetRandomSampler:
        dataset = Subset(dataset, sorted(int(i) for i in sampler.indices))
    _say_order(sampler, drops, what, notice)
    return _from_dataset(dataset, loader.batch_sampler.batch_size, count, seed, what, options)


def _say_order(sampler: Any, drops: bool, what: str, notice: Callable[[str], None]) -> None:
    faults = []
    if not isinstance(sampler, SequentialSampler):
        faults.append("shuffles" if "Random" in type(sampler).__name__ else f"samples by {type(sampler).__name__}")
    if drops:
        faults.append("drops its last batch")
    if faults:
        notice(f"{what}: the loader {' and '.join(faults)}; it is read in sequence and in full")


def _own_order(batch_sampler: Any) -> list[list[int]] | None:
    """A custom batch sampler's batches, where it gives the same ones twice."""
    try:
        first, second = ([list(map(int, batch)) for batch in batch_sampler] for _ in range(2))
    except TypeError:
        return None
    return first if first == second else None


def chosen(total: int, count: int, seed: int) -> np.ndarray:
    """count of total indices, ascending, by a stream of the seed that no direction uses."""
    stream = np.random.SeedSequence(seed, spawn_key=(2**31,))
    return np.sort(np.random.default_rng(stream).choice(total, count, replace=False))


def sample_count(batches: Batches) -> int:
    """Samples in all, by reading the data where it does not say."""
    return batches.size if batches.size is not None else sum(samples(batch) for batch in batches)


def _labels(dataset: Any) -> Any:
    """The data set's labels, where it has them in memory: as an array where they make one."""
    labels = getattr(dataset, "targets", None)
    try:
        return labels if labels is None else np.asarray(labels)
    except (ValueError, TypeError):  # lists of several lengths, say
        return labels


def _spread(size: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, size - 1, min(size, SAMPLED_ITEMS)).round()})


def _hash(thing: Any) -> str:
    digest = hashlib.sha256()
    _feed(digest, thing)
    return digest.hexdigest()


def _feed(digest: Any, thing: Any) -> None:
    """Add a thing, nested as it may be, to a digest: what it is, then its bytes."""
    if isinstance(thing, Tensor):
        thing = thing.detach().cpu().contiguous()
        digest.update(f"tensor {tuple(thing.shape)} {thing.dtype};".encode())
        digest.update(memoryview(thing.reshape(-1).view(torch.uint8).numpy()))
    elif isinstance(thing, np.ndarray) and thing.dtype.hasobject:  # its bytes are addresses
        _feed(digest, thing.tolist())
    elif isinstance(thing, np.ndarray):
        digest.update(f"array {thing.shape} {thing.dtype};".encode())
        digest.update(np.ascontiguousarray(thing).tobytes())
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            digest.update(f"key {key};".encode())
            _feed(digest, value)
    elif isinstance(thing, (tuple, list)):
        digest.update(f"list {len(thing)};".encode())
        for value in thing:
            _feed(digest, value)
    elif hasattr(thing, "tobytes"):  # a PIL image, say
        digest.update(thing.tobytes())
    elif thing is None or isinstance(thing, (str, bytes, bool, int, float)):
        digest.update(f"{type(thing).__name__} {thing!r};".encode())
    else:
        digest.update(f"{type(thing).__name__};".encode())  # a repr may hold an address: not the same on all ranks
