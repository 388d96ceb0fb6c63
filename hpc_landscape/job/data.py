"""The problem's data, the same on every rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UserError
from ..parallel.comm import Comm
from ..problems.data import Batches, prepare
from ..problems.problem import Problem, user_traceback
from ..settings import Settings

Say = Callable[[str], None]


@dataclass
class Sets:
    """The data: evaluation batches by the set's name (empty for a single set), warm-up batches, and checksums."""

    evaluation: dict[str, Batches]
    warmup: Batches | None
    hashes: dict[str, str]

    def to(self, device: torch.device, dtype: torch.dtype | None, warmup: bool, channels_last: bool = False) -> Sets:
        """The same on a device, floating-point tensors in the dtype; the warm-up batches only when asked for."""
        here = {name: batches.to(device, dtype, channels_last) for name, batches in self.evaluation.items()}
        shared = next((here[name] for name, batches in self.evaluation.items() if batches is self.warmup), None)
        if shared is None and warmup and self.warmup is not None:
            shared = self.warmup.to(device, dtype, channels_last)
        return Sets(here, shared, self.hashes)


def read_data(settings: Settings, problem: Problem, comm: Comm, say: Say) -> Sets:
    """The problem's data, after every rank has been seen to hold the same."""

    def prepared(given: Any, count: int | None, what: str) -> Batches:
        try:
            batches = prepare(given, settings.batch_size, count, settings.seed, what, say)
            batches.check(what)
            return batches
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"reading the problem's {what} raised {user_traceback(error)}") from None

    sets = problem.sets
    trained_on = "train" if "train" in sets else next(iter(sets), None)
    given = problem.warmup_data
    with comm.together():
        evaluation = {name: prepared(data, settings.samples, _called(name)) for name, data in sets.items()}
        if given is None and trained_on is not None and settings.warmup_samples == settings.samples:
            warmup = evaluation[trained_on]
        elif given is not None or trained_on is not None:
            given = sets[trained_on] if given is None else given
            warmup = prepared(given, settings.warmup_samples, "warm-up data")
        else:
            warmup = None
    hashes = {}
    for name, batches in evaluation.items():
        hashes["sha256_data" + f"_{name}" * bool(name)] = _agreed_hash(batches, _called(name), comm)
    if warmup is not None:
        same = next((key for key, batches in zip(hashes, evaluation.values(), strict=True) if batches is warmup), None)
        hashes["sha256_warmup_data"] = hashes[same] if same else _agreed_hash(warmup, "warm-up data", comm)
    return Sets(evaluation, warmup, hashes)


def _called(name: str) -> str:
    return f"{name} data" if name else "data"


def _agreed_hash(batches: Batches, what: str, comm: Comm) -> str:
    """Rank 0's checksum; UserError where another rank holds other data (all of it is read once per node)."""
    with comm.together():
        quick = batches.quick_hash()
        full = batches.full_hash() if comm.local_rank == 0 and batches.bytes else None  # else the quick one is all
    seen = comm.allgather((quick, full))
    if any(q != seen[0][0] or f not in (None, seen[0][1]) for q, f in seen):
        raise UserError(
            f"the ranks hold different {what}: the factory must make the same on every rank; seed what it draws or "
            "shuffles, and leave out random augmentation"
        )
    return seen[0][1] or seen[0][0]
