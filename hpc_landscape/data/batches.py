"""Batches in a fixed order, the same at every point: what every kind of data becomes."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import UserError, is_out_of_memory
from ..model.parts import length, parts, take_rows
from ..ranks.generators import Generators
from ..ranks.orphans import clear_up_after_us, end_children_with_us
from ..ranks.signals import blocked_for_children
from .faults import Patience, cause, in_worker, told_by_reading
from .fingerprint import checksum, labels, spread
from .nest import move, tensors_in
from .readings import ALIKE, OtherData, Readings

log = logging.getLogger(__name__)


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

    def to(self, device: torch.device | None, dtype: torch.dtype | None, channels_last: bool = False) -> Batches:
        """The same batches on a device, floating-point tensors in the dtype (None: as they are), images in order."""
        raise NotImplementedError

    def quick_hash(self) -> str:
        """A fingerprint that reads a few items."""
        raise NotImplementedError

    def full_hash(self) -> str:
        """A fingerprint of everything in memory; of larger data the quick one."""
        return self.quick_hash()

    def shard(self, index: int, count: int) -> Batches:
        """The batches index, index + count, ...: the same tensors, read without the others where that can be."""
        raise NotImplementedError

    def check(self, what: str) -> None:
        """Raise UserError where the data is empty, or differs between two readings."""
        if self.size == 0:
            raise UserError(f"the problem's {what} is empty")


class TensorBatches(Batches):
    """Tensors in memory, sliced."""

    size: int
    batch_size: int

    def __init__(self, tensors: tuple[Tensor, ...], batch_size: int):
        self.tensors, self.batch_size = tensors, batch_size
        self.size = length(tensors[0])
        self.bytes = sum(map(nbytes, tensors))
        bounds = slices(self.size, batch_size)
        self._batches = [tuple(take_rows(t, slice(a, b)) for t in tensors) for a, b in bounds]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return iter(self._batches)

    def to(self, device: torch.device | None, dtype: torch.dtype | None, channels_last: bool = False) -> TensorBatches:
        return TensorBatches(move(self.tensors, device, dtype, channels_last), self.batch_size)

    def shard(self, index: int, count: int) -> Batches:
        mine = self._batches[index::count]
        return StoredBatches(list(mine), sum(length(batch[0]) for batch in mine), self.batch_size)

    def quick_hash(self) -> str:
        rows = spread(self.size)
        return checksum([(tuple(t.shape) if not t.is_nested else self.size, take_rows(t, rows)) for t in self.tensors])

    def full_hash(self) -> str:
        return checksum(list(self.tensors))


class StoredBatches(Batches):
    """Batches, of whatever nesting, in memory."""

    def __init__(self, batches: list[Any], size: int | None, batch_size: int | None):
        self.batches, self.size, self.batch_size = batches, size, batch_size
        self.bytes = sum(map(nbytes, batches))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def count(self) -> int:
        return len(self.batches)

    def to(self, device: torch.device | None, dtype: torch.dtype | None, channels_last: bool = False) -> StoredBatches:
        moved = [move(batch, device, dtype, channels_last) for batch in self.batches]
        return StoredBatches(moved, self.size, self.batch_size)

    def shard(self, index: int, count: int) -> StoredBatches:
        return StoredBatches(self.batches[index::count], self.size if count == 1 else None, self.batch_size)

    def quick_hash(self) -> str:
        return checksum([len(self.batches), [self.batches[i] for i in spread(len(self.batches))]])

    def full_hash(self) -> str:
        return checksum(self.batches)


class ReadBatches(Batches):
    """Batches that are read anew in every pass, as ``read`` gives them; each is compared with what it was before."""

    streamed = True

    def __init__(self, size: int | None, batch_size: int | None):
        self.size, self.batch_size = size, batch_size
        self.where: tuple[Any, ...] = (None, None)
        self.first_bytes = 0  # of the first batch, once it has been read
        self.drawn: list[Tensor] = []  # where the random numbers are that reading draws
        self.patience: Patience | None = None  # with a machine that fails
        self.readings = Readings()  # of copies too
        self.share = (0, 1)  # the first batch that is given, and from each to the next

    def read(self) -> Iterable[Any]:
        """The batches of a new pass, where they are made."""
        raise NotImplementedError

    @property
    def apart(self) -> bool:
        """Whether a share is read without the other batches."""
        return False

    def numbered(self) -> Iterator[tuple[int, Any]]:
        """The share's batches as they are made, with their numbers among all; OtherData where they were others."""
        (first, step), apart = self.share, self.apart
        read = 0
        for batch in as_made(self.read, self.drawn, self.patience):
            number = first + read * step if apart else read
            self.readings.see(number, batch)
            read += 1
            if number % step == first:
                yield number, batch
        if not apart:
            self.readings.end(read)

    def __iter__(self) -> Iterator[Any]:
        for _, batch in self.numbered():
            yield move(batch, *self.where)

    def to(self, device: torch.device | None, dtype: torch.dtype | None, channels_last: bool = False) -> ReadBatches:
        there = copy.copy(self)  # the same loader, and its workers
        there.where = (device, dtype, channels_last)
        return there

    def shard(self, index: int, count: int) -> ReadBatches:
        part = copy.copy(self)
        first, step = self.share
        part.share, part.size = (first + index * step, count * step), self.size if count == 1 else None
        return part

    def check(self, what: str) -> None:
        self.readings.what = what
        super().check(what)
        first, again = (next(self.hashes(), None) for _ in range(2))
        if first is None:
            raise UserError(f"the problem's {what} is empty")
        if first != again:
            raise OtherData(f"the problem's {what} differs between two readings of its first batch: {ALIKE}")

    def hashes(self) -> Iterator[str]:
        """A checksum of each batch, as they are read."""
        for _, batch in self.numbered():
            self.first_bytes = self.first_bytes or nbytes(batch)
            yield checksum(batch)


class LoaderBatches(ReadBatches):
    """A DataLoader's batches, in an order of ours, read by its workers."""

    def __init__(
        self, loader: DataLoader, size: int | None, batch_size: int | None, order: Sequence[Any] | None = None
    ):
        """order: the samples that the batches are of, or the ready batches, where these are not all in sequence."""
        super().__init__(size, batch_size)
        self.loader, self.order = loader, order
        self._parts = Parts(loader)  # of copies too

    def count(self) -> int:
        return len(range(self.share[0], len(self.loader), self.share[1]))

    @property
    def apart(self) -> bool:
        return self.share[1] > 1 and self._independent()

    def read(self) -> Iterable[Any]:
        return start(self._parts.of(self.share) if self.apart else self.loader)

    def _independent(self) -> bool:
        """Whether a batch is the same where those before it are not read: a data set may draw, or remember."""
        parts, number = self._parts, max(1, self.loader.num_workers)  # the second one of its worker
        if parts.independent is None and number < len(self.loader):
            after = as_made(lambda: start(self.loader), self.drawn, self.patience)
            alone = part_of(self.loader, number, len(self.loader))
            one, other = next(itertools.islice(after, number, None)), next(as_made(lambda: start(alone), self.drawn))
            parts.independent = checksum(one) == checksum(other)
            if not parts.independent:
                log.info("team         %s: a batch depends on those read before it: all are read", self.readings.what)
        return parts.independent is not False

    def quick_hash(self) -> str:
        dataset = self.loader.dataset
        keys = range(items_in(dataset)) if self.order is None else self.order
        items = [dataset[keys[i]] for i in spread(len(keys))]
        order = None if self.order is None else np.asarray(self.order)
        return checksum([self.size, order, items, labels(dataset), next(self.hashes(), None)])


class Parts:
    """Loaders of a loader's shares, which keep their workers from pass to pass; independent: as they may be read."""

    def __init__(self, whole: DataLoader):
        self.whole, self.independent = whole, None if len(whole) else True
        self._loaders: dict[tuple[int, int], DataLoader] = {}

    def of(self, share: tuple[int, int]) -> DataLoader:
        if share not in self._loaders:
            for other in (self.whole, *self._loaders.values()):
                _end_workers(other)
            kept = {"pin_memory": self.whole.pin_memory, "persistent_workers": self.whole.persistent_workers}
            self._loaders[share] = part_of(self.whole, *share, **kept)
        return self._loaders[share]


def part_of(loader: DataLoader, first: int, step: int, **kept: Any) -> DataLoader:
    """Every so many of the batches of a loader that names them, made as it makes them."""
    options = {
        "num_workers": loader.num_workers,
        "prefetch_factor": loader.prefetch_factor,
        "collate_fn": loader.collate_fn,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
    }
    if loader.batch_sampler is None:  # the data set gives whole batches
        how: dict[str, Any] = {"batch_size": None, "sampler": list(loader.sampler)[first::step]}
    else:
        how = {"batch_sampler": list(loader.batch_sampler)[first::step]}
    return DataLoader(loader.dataset, **how, **options, **kept)


def items_in(dataset: Any) -> int:
    """How many items a data set has that is no stream; torch's class itself promises no length."""
    return len(dataset)


def start(loader: DataLoader) -> Iterator[Any]:
    """A pass over a loader, whose workers are ended where it fails; UserError where they do not start."""
    end_children_with_us()
    if loader.num_workers:
        clear_up_after_us()
    try:
        yield from _started(loader)
    except Exception:
        _end_workers(loader)
        raise


def _started(loader: DataLoader) -> Iterator[Any]:
    try:
        with blocked_for_children():
            return iter(loader)
    except Exception as error:  # workers that do not fork are sent the dataset pickled
        if loader.num_workers == 0 or cause(error, reading=True) or is_out_of_memory(error):
            raise
        raise UserError(
            f"the data set cannot be sent to data-loading workers ({type(error).__name__}: {error}): use "
            "num_workers=0, or DataLoader(..., multiprocessing_context='fork') where forking is safe"
        ) from None


def _end_workers(loader: DataLoader) -> None:
    """Those that stay from pass to pass: once one of them has died, no pass with the others comes to its end."""
    staying = getattr(loader, "_iterator", None)
    if staying is not None:
        loader._iterator = None
        staying._shutdown_workers()


def as_made(read: Callable[[], Iterable[Any]], drawn: list[Tensor], patience: Patience | None = None) -> Iterator[Any]:
    """The batches of a pass, each made as the user's code makes it, wherever it is used.

    Gradients are on, inference mode and autocast are off, and PyTorch's random numbers are the data's own, which go on
    from those in ``drawn``: what a model or a loss draws does not depend on whether its data is read anew.
    patience: with it, a pass that the machine has broken off is begun again, and goes on from where it was.
    """
    generators, begin = Generators(), None
    batches: Iterator[Any] | None = None
    given = tries = 0
    while True:
        with _undisturbed(drawn):
            try:
                if begin is None:
                    begin = generators.read()
                elif batches is None:
                    generators.write(begin)
                if batches is None:
                    batches = _after(iter(read()), given)
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                if patience is None or not patience.again(error, tries, reading=True):
                    raise
                batches, tries = None, tries + 1
                continue
        if not given and patience is not None:
            told_by_reading()
        given, tries = given + 1, 0
        yield batch


def _after(batches: Iterator[Any], count: int) -> Iterator[Any]:
    """What comes after the first so many batches."""
    if sum(1 for _ in itertools.islice(batches, count)) < count:
        raise ValueError(f"the data has fewer than {count} batches when it is read again")
    return batches


def raised_in_reading(error: BaseException) -> bool:
    """Whether it was raised where batches are made, and not where they are used."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code is not as_made.__code__:
        frames = frames.tb_next
    return frames is not None or in_worker(error)


@contextmanager
def _undisturbed(drawn: list[Tensor]) -> Iterator[None]:
    outside = torch.get_rng_state()
    if drawn:
        torch.set_rng_state(drawn[0])
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        drawn[:] = [torch.get_rng_state()]
        torch.set_rng_state(outside)


def nbytes(batch: object) -> int:
    """Bytes of all tensors in a batch."""
    return sum(p.numel() * p.element_size() for t in tensors_in(batch) for p in parts(t))


def slices(size: int, batch_size: int) -> list[tuple[int, int]]:
    """(start, end) of each batch. A last batch of one sample joins the one before: BN cannot normalize it."""
    if size == 0:
        return []
    starts = list(range(0, size, batch_size))
    if len(starts) > 1 and size - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], size], strict=True))
