"""The problem's data, the same on every rank, one copy on each node."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..data.batches import Batches, LoaderBatches, ReadBatches, StoredBatches
from ..data.faults import AGAIN, Cause, Patience
from ..data.prepare import TensorBatches
from ..data.resident import is_shared
from ..data.sets import Sets, prepare_sets
from ..errors import UserError
from ..problems.problem import Problem
from ..progress import size, stage
from ..ranks.base import Comm
from ..ranks.device import shared_gpus
from ..ranks.memory import free_memory
from ..ranks.shared import LEAST
from .share import COPIES, keep_in_memory, one_copy

if TYPE_CHECKING:
    from ..setting_groups import EvaluationSettings

log = logging.getLogger(__name__)
SAME = "the factory must make the same on every rank; seed what it draws or shuffles, and leave out random augmentation"


@stage("data")
def read_data(
    problem: Problem,
    options: EvaluationSettings,
    seed: int,
    resident: float,
    warms_up: bool,
    comm: Comm,
    devices: Sequence[torch.device],
) -> Sets:
    """The problem's data, after every rank has been seen to hold the same.

    resident: the share of free memory that it may take. warms_up: whether batch normalization is re-estimated on it.
    devices: this rank computes on them.
    """
    sharers, pin = shared_gpus(comm, devices), any(device.type == "cuda" for device in devices)
    patience = Patience(_once_for_each_kind())
    with comm.raise_on_all_ranks():
        sets = prepare_sets(
            problem.sets, problem.warmup_data, options, seed, resident, patience, log.info, pin, comm.local_size
        )
    sets.sharers = sharers
    comm.check_equal(sets.kinds, f"the ranks hold different data: {SAME}")
    seen = comm.from_root(lambda: sets.look(warms_up))
    for text in sets.take(seen, warms_up):
        log.warning("%s", text)
    _agree_on_content(sets, comm)
    return _keep(sets, problem, comm)


def _once_for_each_kind() -> Callable[[Cause], None]:
    told: set[str] = set()

    def tell(fault: Cause) -> None:
        if fault.kind not in told:
            told.add(fault.kind)
            log.info("note         %s: %s", fault, AGAIN)

    return tell


def _agree_on_content(sets: Sets, comm: Comm) -> None:
    """Take rank 0's checksums; UserError where another rank holds other data (all of it is read once per node)."""
    with comm.raise_on_all_ranks():
        mine = sets.fingerprints(full=comm.local_rank == 0)
    wanted = comm.bcast(mine)
    for what, (quick, full) in wanted.items():
        other = comm.first_rank(mine[what][0] != quick or mine[what][1] not in (None, full))
        if other is not None:
            raise UserError(f"the ranks hold different {what}: {SAME} (rank {other} has another than rank 0)")
    sets.take_hashes(wanted)


def check_readings(sets: Sets, path: str, comm: Comm) -> None:
    """UserError where passes of several ranks have read different data: each has compared its own. path: the file."""
    read = {what: batches.readings.whole for what, batches in sets.named.items() if isinstance(batches, ReadBatches)}
    for what, mine in read.items():
        wanted = comm.first_text(mine or "")
        if not comm.on_all(mine in (None, wanted)):
            raise UserError(
                f"the ranks have read different {what}: {SAME}. The values in {path} are not of the same data: "
                "--overwrite it"
            )


def _keep(sets: Sets, problem: Problem, comm: Comm) -> Sets:
    """One copy on each node: of tensors, and of what loaders read where every node has room for it.

    Checksums are of the loader all the same: where its data is kept is no part of what a run is.
    """
    left = int(sets.resident * min(comm.node_allgather(free_memory())))

    def here(batches: Batches) -> Batches:
        nonlocal left
        if not isinstance(batches, LoaderBatches):
            copied = one_copy(batches, comm)
            own = isinstance(copied, (TensorBatches, StoredBatches)) and not is_shared(copied)
            if own and comm.local_size > 1 and copied.bytes >= LEAST:
                log.info("note         %s of data: %s", size(copied.bytes), COPIES)
            return copied
        found = keep_in_memory(batches, left, comm)
        left -= found.bytes
        return found

    shared = sets.each(here)
    given = {name: _same_tensors(data, shared.evaluation[name]) for name, data in problem.sets.items()}
    if given:
        problem.data = given if isinstance(problem.data, Mapping) else given[""]
    if shared.warmup is not None:
        problem.warmup_data = _same_tensors(problem.warmup_data, shared.warmup)
    return shared


def _same_tensors(given: Any, batches: Batches) -> Any:
    """Given tensors as they are shared now, so that this rank's own copy can go; else what was given."""
    if isinstance(batches, TensorBatches) and isinstance(given, (tuple, list)):
        shapes = [getattr(t, "shape", None) for t in given]
        return batches.tensors if shapes == [t.shape for t in batches.tensors] else given
    return given
