"""How many data-loading workers there is shared memory for: a batch that finds no room there ends its worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from ..errors import UserError
from ..progress import size
from ..ranks.memory import SHARED, free_shared_memory
from .batches import as_made, items_in, nbytes, start

AMPLE = 2**31  # bytes: with more room no batch is looked at beforehand, which takes the start of a worker
PART = 0.5  # of the room, for the batches of one loader
IN_HAND = 2  # batches beside those that wait: one is being made, one being used


class _Size:
    """A collate function that gives how much a batch takes instead of the batch."""

    def __init__(self, collate: Callable[[Any], Any]):
        self.collate = collate

    def __call__(self, samples: Any) -> int:
        return nbytes(self.collate(samples))


def that_fit(
    loader: DataLoader, options: Mapping[str, Any], batch_size: int, ranks: int, what: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """The options, with so few batches ahead, or workers, that their batches find room; a notice where it is fewer.

    ranks: of this node. A stream's workers stay as they are, since its order depends on them: UserError there.
    """
    there, workers, ahead = free_shared_memory(), loader.num_workers, loader.prefetch_factor or 1
    if not workers or there is None or there // ranks >= AMPLE:
        return dict(options)
    needed = _batch_bytes(loader, options, batch_size)
    room = PART * there // ranks
    streamed = isinstance(loader.dataset, IterableDataset)
    for count, before in _fewer(workers, ahead):
        if needed * (count * before + IN_HAND) <= room or not count:
            break
    if (count, before) == (workers, ahead):
        return dict(options)
    found = f"a batch takes {size(needed)}, and {SHARED}, by which workers give them, has {size(there)} free"
    found += f" for {ranks} ranks" if ranks > 1 else ""
    if streamed and count < workers:
        raise UserError(
            f"the problem's {what}: {found}: give its DataLoader fewer workers or a smaller batch_size, or a container "
            "more (docker run --shm-size=8g)"
        )
    say(f"{what}: {found}: it is read " + (f"by {count} workers, {before} ahead" if count else "without workers"))
    if not count:
        of_workers = ("multiprocessing_context", "persistent_workers", "prefetch_factor", "timeout")
        return {name: value for name, value in options.items() if name not in of_workers} | {"num_workers": 0}
    return {**options, "num_workers": count, "prefetch_factor": before}


def _fewer(workers: int, ahead: int) -> Iterator[tuple[int, int]]:
    """(workers, batches ahead of each), from what is asked for down to none."""
    yield from ((workers, before) for before in range(ahead, 0, -1))
    yield from ((count, 1) for count in range(workers - 1, -1, -1))


def _batch_bytes(loader: DataLoader, options: Mapping[str, Any], batch_size: int) -> int:
    """What the first batch takes, as a worker says that has made it; 0 where it cannot be made so."""
    dataset, taken = loader.dataset, {"worker_init_fn": options["worker_init_fn"]}
    taken |= {"num_workers": 1, "multiprocessing_context": options["multiprocessing_context"]}
    collate = _Size(options["collate_fn"])
    try:
        if isinstance(dataset, IterableDataset):
            probe = DataLoader(dataset, batch_size=loader.batch_size, collate_fn=collate, **taken)
        elif loader.batch_sampler is None:
            probe = DataLoader(dataset, batch_size=None, sampler=range(1), collate_fn=collate, **taken)
        else:
            first = list(range(min(batch_size, items_in(dataset))))
            probe = DataLoader(dataset, batch_sampler=[first], collate_fn=collate, **taken)
        return next(as_made(lambda: start(probe), []), 0)
    except Exception:  # it will be told where it is read
        return 0
