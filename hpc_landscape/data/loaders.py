"""How a DataLoader is read: its own batches, in an order that is the same in every pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from ..errors import UserError
from ..model.parts import length, take_rows
from .batches import Batches, LoaderBatches, TensorBatches, items_in, slices
from .streams import First, StreamBatches
from .workers import that_fit

ROUNDS = 10  # times the data that a sampler may give before it is said to have no end
_SUBSET, _ORDER = 2**31, 2**31 + 1  # streams of the seed that no direction uses


@dataclass(frozen=True)
class Wish:
    """What is to be read of the data: samples per batch, a seeded subset, its order, and the first batches of it.

    pin: whether it goes to a GPU, None where that is not known; ranks: of this node, which read it too.
    """

    batch_size: int
    samples: int | None
    batches: int | None
    seed: int
    shuffle: bool
    what: str
    notice: Callable[[str], None]
    pin: bool | None = None
    ranks: int = 1

    def say(self, text: str) -> None:
        self.notice(f"{self.what}: {text}")

    def in_its_order(self) -> None:
        """UserError where another order is asked for, of what comes in batches."""
        if self.shuffle:
            raise UserError(
                f"--shuffle_data: the problem's {self.what} comes in ready batches, or as a stream: shuffle it, with a "
                "seed, where it is made"
            )

    def first_of_stream(self) -> None:
        if self.samples is not None:
            self.say(f"the first {self.samples} samples are taken, as it comes in ready batches or as a stream")


def chosen(total: int, count: int, seed: int) -> np.ndarray:
    """count of total indices, ascending, by a stream of the seed that no direction uses."""
    return np.sort(_stream(seed, _SUBSET).choice(total, count, replace=False))


def shuffled(total: int, seed: int) -> np.ndarray:
    """A permutation of so many indices, by another stream of the seed."""
    return _stream(seed, _ORDER).permutation(total)


def _stream(seed: int, key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(key,)))


def from_dataset(
    dataset: Any, wish: Wish, options: Mapping[str, Any] | None = None, rows: Sequence[Any] | None = None
) -> Batches:
    """Samples of a data set: all of them in sequence, or those of the rows in their order."""
    options = options or {}
    size = len(dataset) if rows is None else len(rows)
    if wish.samples is not None:
        if not 1 <= wish.samples <= size:
            raise UserError(f"the problem's {wish.what} has {size} samples: cannot take {wish.samples} of them")
        rows = _picked(rows, chosen(size, wish.samples, wish.seed))
        size = wish.samples
    if wish.shuffle:
        rows = _picked(rows, shuffled(size, wish.seed))
    bounds = slices(size, wish.batch_size)[: wish.batches]
    if bounds and bounds[-1][1] < size:
        size = bounds[-1][1]
        rows = range(size) if rows is None else rows[:size]
    tensors = resident(dataset) if options.get("collate_fn", default_collate) is default_collate else None
    if tensors is not None:
        if rows is not None:
            part = slice(rows.start, rows.stop) if isinstance(rows, range) else rows
            tensors = tuple(take_rows(t, part) for t in tensors)
        return TensorBatches(tensors, wish.batch_size)
    keys = range(size) if rows is None else rows
    order = [list(keys[a:b]) for a, b in bounds]
    return LoaderBatches(DataLoader(dataset, batch_sampler=order, **options), size, wish.batch_size, rows)


def _picked(rows: Sequence[Any] | None, which: np.ndarray) -> list[Any]:
    return which.tolist() if rows is None else [rows[i] for i in which.tolist()]


def resident(dataset: Any) -> tuple[Tensor, ...] | None:
    """The data set's tensors, where it is tensors in memory, or a subset of such."""
    if type(dataset) is TensorDataset:
        return dataset.tensors
    if type(dataset) is Subset and (tensors := resident(dataset.dataset)) is not None:
        rows = torch.as_tensor(dataset.indices, dtype=torch.long, device="cpu")
        return tuple(take_rows(t, rows) for t in tensors)
    return None


def makes_its_own(loader: DataLoader) -> bool:
    """Whether it is a subclass that makes its batches in its own way."""
    own = [getattr(type(loader), name) is not getattr(DataLoader, name) for name in ("__iter__", "_get_iterator")]
    return any(own) or "__iter__" in vars(loader)


def as_it_is(source: object, batch_size: int | None, wish: Wish) -> StreamBatches:
    """Whatever gives batches, as it gives them."""
    wish.in_its_order()
    wish.first_of_stream()
    return StreamBatches(source, batch_size, wish.batches, wish.samples)


def from_loader(loader: DataLoader, wish: Wish) -> Batches:
    """A loader's batches, made by its workers and its collate function."""
    if makes_its_own(loader):
        return as_it_is(loader, loader.batch_size, wish)
    options: dict[str, Any] = {
        "num_workers": loader.num_workers,
        "collate_fn": loader.collate_fn,
        "pin_memory": loader.pin_memory if wish.pin is None else wish.pin,  # copies to a GPU then do not wait
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
    }
    if loader.num_workers:  # fork is unsafe beside CUDA, threads and some interconnects
        options["multiprocessing_context"] = loader.multiprocessing_context or "forkserver"
        options["persistent_workers"] = True
        options["prefetch_factor"] = loader.prefetch_factor
        options = that_fit(loader, options, loader.batch_size or wish.batch_size, wish.ranks, wish.what, wish.notice)
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        return _from_stream(loader, wish, options)
    if loader.batch_sampler is None:
        return _from_ready(loader, wish, options)
    if type(loader.batch_sampler) is not BatchSampler:
        return _from_batch_sampler(loader, wish, options)
    rows, fault = named(loader.batch_sampler.sampler, items_in(dataset))
    faults = [fault] * bool(fault) + ["drops its last batch"] * bool(loader.batch_sampler.drop_last)
    if faults:
        part = "" if rows is None else f": the {len(rows)} samples that it names"
        order = "in an order drawn from the seed" if wish.shuffle else "in sequence"
        wish.say(f"the loader {' and '.join(faults)}; it is read {order} and in full{part}")
    own = Wish(**{**vars(wish), "batch_size": loader.batch_sampler.batch_size})
    return from_dataset(dataset, own, options, rows)


def _from_stream(loader: DataLoader, wish: Wish, options: Mapping[str, Any]) -> Batches:
    wish.in_its_order()
    wish.first_of_stream()
    if loader.drop_last:
        wish.say("the loader drops its last batch; it is read in full")
    samples = wish.samples
    if samples is not None and loader.num_workers == 0 and loader.batch_size is not None:
        beginning = First(cast(IterableDataset[Any], loader.dataset), samples)  # whatever a batch of them is made to
        source = DataLoader(beginning, batch_size=loader.batch_size, **options)
        most = -(-samples // loader.batch_size)
        return StreamBatches(source, loader.batch_size, min(most, wish.batches or most))
    again = DataLoader(loader.dataset, batch_size=loader.batch_size, **options)
    return StreamBatches(again, loader.batch_size, wish.batches, samples)


def _from_ready(loader: DataLoader, wish: Wish, options: Mapping[str, Any]) -> Batches:
    """The data set gives whole batches."""
    wish.in_its_order()
    rows, fault = named(loader.sampler, items_in(loader.dataset))
    if fault:
        part = "" if rows is None else f": the {len(rows)} batches that it names"
        wish.say(f"the loader {fault}; it is read in sequence and in full{part}")
    order: Sequence[Any] = range(items_in(loader.dataset)) if rows is None else rows
    if wish.samples is not None:
        again = DataLoader(loader.dataset, batch_size=None, sampler=order, **options)
        return as_it_is(again, None, wish)
    if wish.batches is not None:
        order = rows = list(order[: wish.batches])
    return LoaderBatches(DataLoader(loader.dataset, batch_size=None, sampler=order, **options), None, None, rows)


def _from_batch_sampler(loader: DataLoader, wish: Wish, options: Mapping[str, Any]) -> Batches:
    """A batch sampler of the user's: its batches, where they are always the same; else the samples that it names."""
    dataset, total = loader.dataset, items_in(loader.dataset)
    twice = None if is_shard(loader.batch_sampler) else _twice(loader.batch_sampler, total, list)
    if twice is not None and twice[0] == twice[1] and wish.samples is None and not wish.shuffle:
        order = twice[0][: wish.batches]
        flat = [i for batch in order for i in batch]
        return LoaderBatches(DataLoader(dataset, batch_sampler=order, **options), len(flat), None, flat)
    rows = None
    if twice is not None:
        one, two = ([i for batch in reading for i in batch] for reading in twice)
        rows = _subset(one, two, total)
    which = "data" if rows is None else f"{len(rows)} samples that it names"
    way = "in an order drawn from the seed" if wish.shuffle else "in sequence"
    wish.say(
        f"the loader's batch sampler is not used; the {which} {'is' if rows is None else 'are'} read {way}, "
        f"{wish.batch_size} at a time"
    )
    return from_dataset(dataset, wish, options, rows)


def named(sampler: Any, total: int) -> tuple[list[Any] | None, str]:
    """(the indices that a sampler names, in their order, or None for all in sequence; what is not done as it does)."""
    kind = type(sampler).__name__
    if isinstance(sampler, SequentialSampler):
        return None, ""
    if type(sampler) is SubsetRandomSampler:
        return sorted(int(i) for i in sampler.indices), "shuffles"
    if type(sampler) is RandomSampler:
        part = sampler.replacement or sampler.num_samples != total
        return None, f"shuffles, and draws {sampler.num_samples} of {total}" if part else "shuffles"
    if isinstance(sampler, WeightedRandomSampler):
        return None, "shuffles, and draws samples by weights, which are not used here"
    if is_shard(sampler):
        return None, f"gives a part of the data to each process ({kind})"
    twice = _twice(sampler, total, _index)
    if twice is None:
        return None, f"samples by {kind}, which has no end"
    if twice[0] == twice[1]:
        return (None if twice[0] == list(range(total)) else twice[0]), ""
    rows = _subset(*twice, total)
    return rows, "shuffles" if sorted(twice[0], key=str) == sorted(twice[1], key=str) else f"samples by {kind}"


def is_shard(sampler: object) -> bool:
    """Whether it gives each process of a larger job its own part."""
    if any(hasattr(sampler, name) for name in ("num_replicas", "num_processes")):
        return True
    inner = getattr(sampler, "sampler", None) or getattr(sampler, "batch_sampler", None)
    return inner is not None and inner is not sampler and is_shard(inner)


def _twice(sampler: Any, total: int, read: Callable[[Any], Any]) -> tuple[list[Any], list[Any]] | None:
    """What a sampler gives at two readings; None where it has no end, or cannot be read so."""
    most = ROUNDS * total + ROUNDS
    try:
        first, second = ([read(item) for item in itertools.islice(iter(sampler), most)] for _ in range(2))
    except (TypeError, ValueError):
        return None
    return None if max(len(first), len(second)) >= most else (first, second)


def _index(index: object) -> Any:
    """An index as the data set is given it; whole numbers as Python's."""
    return int(index) if isinstance(index, (int, np.integer, Tensor)) else index


def _subset(first: list[Any], second: list[Any], total: int) -> list[int] | None:
    """The indices, ascending, where both readings are the same part of the data, each once; else None."""
    once = set(first)
    same = once == set(second) and len(first) == len(second) == len(once) < total
    return sorted(once) if same and all(isinstance(i, int) for i in once) else None


def reads_all_in_order(loader: DataLoader) -> bool:
    """Whether its batches are those that would be made of it here."""
    if isinstance(loader.dataset, IterableDataset):
        return not loader.drop_last
    batches = loader.batch_sampler
    if batches is None:
        return isinstance(loader.sampler, SequentialSampler)
    if not isinstance(batches, BatchSampler) or type(batches) is not BatchSampler:
        return False
    in_order = isinstance(batches.sampler, SequentialSampler) and not batches.drop_last
    return in_order and items_in(loader.dataset) % batches.batch_size != 1


def rows_of(tensors: Sequence[Tensor]) -> set[int | None]:
    """The lengths of tensors, None for a number."""
    return {length(t) if t.dim() else None for t in tensors}
