"""A problem's data sets, as this rank has them: for evaluation, by name, and for the warm-up of batch normalization."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UserError, user_traceback
from ..ranks.memory import free_memory
from . import streams
from .batches import Batches, ReadBatches
from .faults import Patience
from .prepare import prepare
from .resident import MovedBatches
from .streams import Seen, StreamBatches, look

if TYPE_CHECKING:
    from ..setting_groups import EvaluationSettings

WARMUP = "warm-up data"


@dataclass
class Sets:
    """The data: evaluation batches by the set's name (empty for a single set), warm-up batches, and checksums.

    resident: the share of free memory that it may take. sharers: ranks that compute on the same GPU. patience: with a
    machine that fails while data is read.
    """

    evaluation: dict[str, Batches]
    warmup: Batches | None
    hashes: dict[str, str] = field(default_factory=dict)
    resident: float = 0.5
    sharers: int = 1
    patience: Patience = field(default_factory=Patience)

    def each(self, change: Callable[[Batches], Batches], warmup: bool = True) -> Sets:
        """The same with all batches changed, those for evaluation and warm-up once; the warm-up's only when asked."""
        here = {name: change(batches) for name, batches in self.evaluation.items()}
        warm = next((here[name] for name, batches in self.evaluation.items() if batches is self.warmup), None)
        if warm is None and warmup and self.warmup is not None:
            warm = change(self.warmup)
        return replace(self, evaluation=here, warmup=warm)

    def to(
        self, device: torch.device | None, dtype: torch.dtype | None, warmup: bool, channels_last: bool = False
    ) -> Sets:
        """The same on a device, floating-point tensors in the dtype, where there is room; else moved in every pass."""

        def moved(batches: Batches) -> Batches:
            elsewhere = device is not None and device.type != "cpu" and not batches.streamed
            if device is not None and elsewhere and batches.bytes > self.resident * free_memory(device, self.sharers):
                return MovedBatches(batches, device, dtype, channels_last)
            return batches.to(device, dtype, channels_last)

        return self.each(moved, warmup)

    @property
    def all(self) -> list[Batches]:
        """Those for evaluation, and those for the warm-up."""
        return [batches for batches in [*self.evaluation.values(), self.warmup] if batches is not None]

    @property
    def named(self) -> dict[str, Batches]:
        """Each by what messages call it; what the warm-up shares with evaluation once."""
        found = {called(name): batches for name, batches in self.evaluation.items()}
        if self.warmup is not None and all(batches is not self.warmup for batches in found.values()):
            found[WARMUP] = self.warmup
        return found

    @property
    def kinds(self) -> Any:
        """What ranks have to have in common before anything is asked of each set."""
        mine = [(name, type(batches).__name__, batches is self.warmup) for name, batches in self.evaluation.items()]
        return mine, type(self.warmup).__name__

    @property
    def streamed(self) -> bool:
        """Whether a pass loads any of it."""
        return any(batches.streamed for batches in self.all)

    @property
    def _streams(self) -> list[StreamBatches]:
        return [batches for batches in self.all if isinstance(batches, StreamBatches)]

    def obey(self, stop: Callable[[], int]) -> None:
        """In a stream whose end is not in sight, let a stop, by its code, end the point in hand."""
        for batches in self._streams:
            batches.end.stop = stop

    def awaited(self) -> bool:
        """Whether a batch of such a stream is being waited for."""
        return any(batches.end.awaited for batches in self._streams)

    # What is to be seen of streams before any point

    def look(self, warms_up: bool) -> dict[str, Seen]:
        """What a first look at each stream finds; UserError where two readings differ."""
        found = {}
        for what, batches in self._used(warms_up).items():
            if isinstance(batches, StreamBatches):
                with as_user_error(what):
                    found[what] = look(batches, what)
        return found

    def take(self, seen: Mapping[str, Seen], warms_up: bool) -> Iterator[str]:
        """Read streams as they have been found to be; gives what there is to say of it."""
        for what, one in seen.items():
            batches = self._used(warms_up)[what]
            if one.repeated:
                yield streams.REPEATED.format(what=what, workers=one.repeated)
                if batches.workers:
                    batches.alone()
            batches.readings.take(one.checks, one.ended)
            if not one.ended and batches.may_go_on(one.batches):
                option = "warmup_samples" if what == WARMUP else "samples"
                yield (
                    f"{what}: the stream has not ended after {one.batches} batches in {streams.PROBE:g} s; "
                    f"where it has no end give --batches N or --{option} N"
                )

    def _used(self, warms_up: bool) -> dict[str, Any]:
        return {what: batches for what, batches in self.named.items() if warms_up or what != WARMUP}

    # What tells it from other data

    def fingerprints(self, full: bool) -> dict[str, tuple[str, str | None]]:
        """(a quick checksum, one of everything in memory or None where that is not asked for) of each set."""
        found = {}
        for what, batches in self.named.items():
            with as_user_error(what):
                quick = self.patience.call(batches.quick_hash, reading=True)
                found[what] = quick, batches.full_hash() if full and batches.bytes else None
        return found

    def take_hashes(self, found: Mapping[str, tuple[str, str | None]]) -> None:
        """Keep the checksums, by the names that a file has for them."""
        best = {what: full or quick for what, (quick, full) in found.items()}
        self.hashes = {"sha256_data" + f"_{name}" * bool(name): best[called(name)] for name in self.evaluation}
        if self.warmup is not None:
            same = next((called(name) for name, b in self.evaluation.items() if b is self.warmup), WARMUP)
            self.hashes["sha256_warmup_data"] = best[same]


def prepare_sets(
    given: Mapping[str, Any],
    warmup_data: object,
    options: EvaluationSettings,
    seed: int,
    resident: float,
    patience: Patience,
    notice: Callable[[str], None],
    pin: bool = False,
    ranks: int = 1,
) -> Sets:
    """A problem's data as batches. given: by name; warmup_data: None for the set that it was trained on.

    ranks: of this node, which read it too; pin: whether it goes to a GPU. UserError where it cannot be read.
    """

    def prepared(data: object, count: int | None, most: int | None, what: str) -> Batches:
        with as_user_error(what):
            batches = prepare(
                data, options.batch_size, count, seed, what, notice, most, options.shuffle_data, pin=pin, ranks=ranks
            )
            if isinstance(batches, ReadBatches):
                batches.patience = patience
            batches.check(what)
            return batches

    most, count = options.batches, options.warmup_samples
    trained_on = "train" if "train" in given else next(iter(given), None)
    evaluation = {name: prepared(data, options.samples, most, called(name)) for name, data in given.items()}
    warmup = None
    if warmup_data is None and trained_on is not None and count == options.samples:
        warmup = evaluation[trained_on]
    else:
        data = given[trained_on] if warmup_data is None and trained_on is not None else warmup_data
        if data is not None:
            warmup = prepared(data, count, most if count is None else None, WARMUP)
    return Sets(evaluation, warmup, resident=resident, patience=patience)


@contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """What the user's code raises while data is read, as a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"reading the problem's {what} raised {user_traceback(error)}") from None


def called(name: str) -> str:
    """A set, as messages name it."""
    return f"{name} data" if name else "data"
