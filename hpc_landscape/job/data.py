"""The problem's data, the same on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..data import streams
from ..data.batches import ReadBatches
from ..data.faults import AGAIN, Cause, Patience
from ..data.prepare import Batches, LoaderBatches, StreamBatches, TensorBatches, prepare
from ..data.resident import MovedBatches, kept, share
from ..data.streams import Seen, look
from ..errors import UserError, user_traceback
from ..model.batchnorm import batchnorm_layers
from ..problems.problem import Problem
from ..ranks.comm import Comm
from ..ranks.device import shared_gpus
from ..ranks.memory import free_memory
from ..settings import Settings

Say = Callable[[str], None]
SAME = "the factory must make the same on every rank; seed what it draws or shuffles, and leave out random augmentation"
CPU = torch.device("cpu")


@dataclass
class Sets:
    """The data: evaluation batches by the set's name (empty for a single set), warm-up batches, and checksums."""

    evaluation: dict[str, Batches]
    warmup: Batches | None
    hashes: dict[str, str]
    resident: float = 0.5  # the share of free memory that it may take
    sharers: int = 1  # ranks that compute on the same GPU
    patience: Patience = field(default_factory=Patience)  # with a machine that fails while data is read

    def each(self, change: Callable[[Batches], Batches], warmup: bool = True) -> Sets:
        """The same with all batches changed, those for evaluation and warm-up once; the warm-up's only when asked."""
        here = {name: change(batches) for name, batches in self.evaluation.items()}
        warm = next((here[name] for name, batches in self.evaluation.items() if batches is self.warmup), None)
        if warm is None and warmup and self.warmup is not None:
            warm = change(self.warmup)
        return replace(self, evaluation=here, warmup=warm)

    def to(self, device: torch.device, dtype: torch.dtype | None, warmup: bool, channels_last: bool = False) -> Sets:
        """The same on a device, floating-point tensors in the dtype, where there is room; else moved in every pass."""

        def moved(batches: Batches) -> Batches:
            elsewhere = device.type != "cpu" and not batches.streamed
            if elsewhere and batches.bytes > self.resident * free_memory(device, self.sharers):
                return MovedBatches(batches, device, dtype, channels_last)
            return batches.to(device, dtype, channels_last)

        return self.each(moved, warmup)

    @property
    def all(self) -> list[Batches]:
        """Those for evaluation, and those for the warm-up."""
        return [batches for batches in [*self.evaluation.values(), self.warmup] if batches is not None]

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


def read_data(settings: Settings, problem: Problem, comm: Comm, say: Say, device: torch.device = CPU) -> Sets:
    """The problem's data, after every rank has been seen to hold the same. device: this rank computes on it."""
    sharers, pin = shared_gpus(comm, device), device.type == "cuda"
    told: set[str] = set()

    def tell(fault: Cause) -> None:
        if fault.kind not in told:
            told.add(fault.kind)
            say(f"note         {fault}: {AGAIN}")

    patience = Patience(tell)

    def prepared(given: Any, count: int | None, most: int | None, what: str) -> Batches:
        order, ranks = settings.shuffle_data, comm.local_size
        with _telling(what):
            batches = prepare(
                given, settings.batch_size, count, settings.seed, what, say, most, order, pin=pin, ranks=ranks
            )
            if isinstance(batches, ReadBatches):
                batches.patience = patience
            batches.check(what)
            return batches

    sets, most, count = problem.sets, settings.batches, settings.warmup_samples
    trained_on = "train" if "train" in sets else next(iter(sets), None)
    given = problem.warmup_data
    with comm.raise_on_all_ranks():
        evaluation = {name: prepared(data, settings.samples, most, _called(name)) for name, data in sets.items()}
        if given is None and trained_on is not None and count == settings.samples:
            warmup = evaluation[trained_on]
        elif given is not None or trained_on is not None:
            given = sets[trained_on] if given is None else given
            warmup = prepared(given, count, most if count is None else None, "warm-up data")
        else:
            warmup = None
    _agree_on_kinds(Sets(evaluation, warmup, {}), comm)
    _look_at_streams(settings, problem, Sets(evaluation, warmup, {}), comm, say)
    hashes: dict[str, str] = {}
    for name, batches in evaluation.items():
        hashes["sha256_data" + f"_{name}" * bool(name)] = _agreed_hash(batches, _called(name), patience, comm)
    if warmup is not None:
        same = next((key for key, batches in zip(hashes, evaluation.values(), strict=True) if batches is warmup), None)
        hashes["sha256_warmup_data"] = hashes[same] if same else _agreed_hash(warmup, "warm-up data", patience, comm)
    return _keep(Sets(evaluation, warmup, hashes, settings.resident, sharers, patience), problem, comm)


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """What the user's code raises while data is read, as a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"reading the problem's {what} raised {user_traceback(error)}") from None


def _look_at_streams(settings: Settings, problem: Problem, sets: Sets, comm: Comm, say: Say) -> None:
    """Tell of streams without an end in sight, and of workers that give everything several times, before any point."""
    named = [(_called(name), "samples", batches) for name, batches in sets.evaluation.items()]
    used = settings.bn == "warmup" and batchnorm_layers(problem.root)
    if used and all(batches is not sets.warmup for _, _, batches in named):
        named.append(("warm-up data", "warmup_samples", sets.warmup))
    for what, option, batches in named:
        if not isinstance(batches, StreamBatches):
            continue
        seen = Seen(0, True)
        with comm.raise_on_all_ranks(), _telling(what):
            if comm.is_root:
                seen = look(batches, what)
        seen = comm.bcast(seen)
        if seen.repeated:
            say(
                f"warning: {what}: each of the loader's {seen.repeated} workers gives all of the "
                "samples (its data set does not share them out by get_worker_info()): it is read without workers"
            )
            if batches.workers:
                batches.alone()
        if not seen.ended and not batches.bounded:
            say(
                f"warning: {what}: the stream has not ended after {seen.batches} batches in {streams.PROBE:g} s; where "
                f"it has no end give --batches N or --{option} N"
            )


def _keep(sets: Sets, problem: Problem, comm: Comm) -> Sets:
    """One copy on each node: of tensors, and of what loaders read where every node has room for it.

    Checksums are of the loader all the same: where its data is kept is no part of what a run is.
    """
    left = int(sets.resident * min(comm.node_allgather(free_memory())))

    def one_copy(batches: Batches) -> Batches:
        nonlocal left
        if not isinstance(batches, LoaderBatches):
            return share(batches, comm)
        found = kept(batches, left, comm)
        left -= found.bytes
        return found

    here = sets.each(one_copy)
    given = {name: _same_tensors(data, here.evaluation[name]) for name, data in problem.sets.items()}
    if given:
        problem.data = given if isinstance(problem.data, Mapping) else given[""]
    if here.warmup is not None:
        problem.warmup_data = _same_tensors(problem.warmup_data, here.warmup)
    return here


def _same_tensors(given: Any, batches: Batches) -> Any:
    """Given tensors as they are shared now, so that this rank's own copy can go; else what was given."""
    if isinstance(batches, TensorBatches) and isinstance(given, (tuple, list)):
        shapes = [getattr(t, "shape", None) for t in given]
        return batches.tensors if shapes == [t.shape for t in batches.tensors] else given
    return given


def _called(name: str) -> str:
    return f"{name} data" if name else "data"


def _agree_on_kinds(sets: Sets, comm: Comm) -> None:
    """UserError where another rank holds other sets, or sets of another kind: what follows is called for each set."""
    mine = [(name, type(batches).__name__, batches is sets.warmup) for name, batches in sets.evaluation.items()]
    seen = comm.allgather((mine, type(sets.warmup).__name__))
    if any(other != seen[0] for other in seen):
        raise UserError(f"the ranks hold different data: {SAME}")


def _agreed_hash(batches: Batches, what: str, patience: Patience, comm: Comm) -> str:
    """Rank 0's checksum; UserError where another rank holds other data (all of it is read once per node)."""
    with comm.raise_on_all_ranks(), _telling(what):
        quick = patience.call(batches.quick_hash, reading=True)
        full = batches.full_hash() if comm.local_rank == 0 and batches.bytes else None  # else the quick one is all
    seen = comm.allgather((quick, full))
    if any(q != seen[0][0] or f not in (None, seen[0][1]) for q, f in seen):
        raise UserError(f"the ranks hold different {what}: {SAME}")
    return seen[0][1] or seen[0][0]
