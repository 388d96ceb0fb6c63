"""Data that is iterated over as it is: streams, ready batches, loaders that make their batches themselves."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from ..errors import Stopped, UserError
from ..model.parts import length, take_rows
from .batches import ReadBatches, as_made, start
from .fingerprint import checksum
from .nest import each_tensor, tensors_in
from .readings import ALIKE, OtherData, Readings

PROBE = 5.0  # seconds that a stream's end is looked for, before the first point
REPEATED = (
    "{what}: each of the loader's {workers} workers gives all of the samples (its data set does not share them out by "
    "get_worker_info()): it is read without workers"
)
LOOKED_AT = 1000  # samples of a stream that are compared between workers


@dataclass
class End:
    """What is known of a stream's end: whether one was seen, and the code of a stop that does not wait for it.

    awaited: whether the next batch is being waited for, and may never come.
    """

    seen: bool = False
    awaited: bool = False
    stop: Callable[[], int] = staticmethod(lambda: 0)


class StreamBatches(ReadBatches):
    """Batches as something gives them that can be iterated over again; at most so many of them, or of their samples."""

    def __init__(self, source: Any, batch_size: int | None, most: int | None = None, samples: int | None = None):
        super().__init__(None, batch_size)
        self.source, self.most, self.samples = source, most, samples
        self.end = End(seen=not self.may_go_on(0))  # of copies too

    def may_go_on(self, read: int) -> bool:
        """Whether no end is known of after so many batches: what it says of its length need not be so."""
        if self.most is not None or self.samples is not None:
            return False
        return self.told is None or read > self.told + self.workers  # each of which may have a last, smaller one

    @cached_property
    def told(self) -> int | None:
        """The batches that it says it has."""
        try:
            return len(self.source)
        except Exception:
            return None

    @property
    def workers(self) -> int:
        """The workers that read an iterable data set."""
        streams = type(self.source) is DataLoader and isinstance(self.source.dataset, IterableDataset)
        return self.source.num_workers if streams else 0

    def read(self) -> Iterable[Any]:
        whole = start(self.source) if isinstance(self.source, DataLoader) else iter(self.source)
        return first(whole, self.most, self.samples)

    def __iter__(self) -> Iterator[Any]:
        """Between batches of a stream without an end in sight a stop is obeyed: a point may never be finished."""
        batches = super().__iter__()
        for read in itertools.count():
            if self.end.seen and self.readings.count is None and self.may_go_on(read):
                self.end.seen = False
            if not self.end.seen and (code := self.end.stop()):
                raise Stopped(code)
            self.end.awaited = not self.end.seen
            try:
                batch = next(batches)
            except StopIteration:
                break
            finally:
                self.end.awaited = False
            yield batch
        self.end.seen = True

    def quick_hash(self) -> str:
        return checksum([self.most, self.samples, next(self.hashes(), None)])

    def alone(self) -> None:
        """Read in this process, without workers."""
        old = self.source
        self.source = DataLoader(old.dataset, old.batch_size, collate_fn=old.collate_fn, pin_memory=old.pin_memory)
        self.readings = Readings(self.readings.what)


class First(IterableDataset):
    """The first samples of an iterable data set."""

    def __init__(self, dataset: Iterable[Any], count: int):
        self.dataset, self.count = dataset, count

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.dataset), self.count)


def first(batches: Iterable[Any], most: int | None, samples: int | None) -> Iterator[Any]:
    """The first batches, the last one cut where so many samples end in it. None: all."""
    left = samples
    for batch in itertools.islice(batches, most):
        if left is None:
            yield batch
            continue
        size = size_of(batch)
        if size is None:
            raise UserError(
                f"--samples {samples}: the data comes in ready batches, and how many samples are in one cannot be "
                "told: give --batches N"
            )
        yield batch if size <= left else _cut(batch, size, left)
        left -= size
        if left <= 0:
            return


def size_of(batch: object) -> int | None:
    """How many samples a batch holds, where all its tensors agree."""
    lengths = {length(t) if t.dim() else None for t in tensors_in(batch)}
    return lengths.pop() if len(lengths) == 1 else None


def _cut(batch: object, size: int, count: int) -> Any:
    """A batch's first samples; UserError where not everything in it could be cut."""
    cut = each_tensor(batch, lambda t: take_rows(t, slice(count)))
    if size_of(cut) != count:
        raise UserError(
            f"--samples: a batch of {size}, a {type(batch).__name__}, cannot be cut to {count}: give --batches N, or a "
            "multiple of the batch size"
        )
    return cut


@dataclass
class Seen:
    """What a look at a stream has found: its batches, whether these were all, and how many workers gave all of it."""

    checks: list[int]
    ended: bool
    repeated: int = 0

    @property
    def batches(self) -> int:
        """How many were read."""
        return len(self.checks)


def look(batches: StreamBatches, what: str) -> Seen:
    """Read a stream for a few seconds; UserError where a second reading, where there is time for it, differs."""
    seconds = PROBE
    repeated = batches.workers if batches.workers > 1 and _workers_repeat(batches, seconds) else 0
    if repeated:
        batches.alone()
    begin = time.monotonic()
    found, ended = [], True
    for batch in batches.hashes():
        found.append(batch)
        if time.monotonic() - begin > seconds:
            ended = False
            break
    if ended and time.monotonic() - begin < seconds / 2 and list(batches.hashes()) != found:
        raise OtherData(f"the problem's {what} differs between two readings: {ALIKE}")
    return Seen(batches.readings.checks.tolist(), ended, repeated)


def _workers_repeat(batches: StreamBatches, seconds: float) -> bool:
    """Whether each of a loader's workers gives all samples: the data set does not share them out."""
    loader, begin = batches.source, time.monotonic()
    workers = loader.num_workers
    raw = DataLoader(
        loader.dataset,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )
    found = []
    for sample in itertools.islice(as_made(lambda: start(raw), [], batches.patience), LOOKED_AT):
        found.append(checksum(sample))
        if time.monotonic() - begin > seconds and len(found) >= 4 * workers:
            break
    else:
        if len(found) < LOOKED_AT:  # all there are
            return bool(found) and all(count % workers == 0 for count in Counter(found).values())
    whole = len(found) // workers * workers  # one of each worker by turns
    of_each = {tuple(found[worker:whole:workers]) for worker in range(workers)}
    return len(of_each) == 1


def _as_it_is(sample: object) -> Any:
    return sample
