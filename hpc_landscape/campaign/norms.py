"""Which running statistics are re-estimated, as the ranks agree before the first point: of program and library."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ..data.resident import beginning
from ..data.sets import Sets
from ..errors import warn
from ..evaluate.evaluator import DTYPES
from ..evaluate.find_norms import find_norms
from ..evaluate.normalization import Normalization
from ..model.norms import Norms
from ..model.wrapper import ModelWrapper
from ..problems.problem import Problem
from ..ranks.base import Comm

log = logging.getLogger(__name__)


def broadcast_norms(
    problem: Problem,
    sets: Sets,
    normalization: type[Normalization],
    precision: str,
    seed: int,
    device: torch.device | None,
    comm: Comm,
) -> None:
    """Give the problem's wrapper what rank 0 finds on the first batch; where that fails, all are re-estimated."""
    batches = sets.warmup or next(iter(sets.evaluation.values()), None)
    if batches is None or not normalization.by_batch:
        return
    unknown = ""
    with comm.raise_on_all_ranks():
        found = None
        if comm.is_root:
            dtype = DTYPES.get(precision)
            try:
                first = problem.on(beginning(batches, 1).to(device, dtype))
                found = find_norms(problem.wrapper, first, device, dtype, seed)
            except Exception as error:  # whether the model can be evaluated at all is told where its mode is chosen
                unknown = type(error).__name__
    if unknown and len([*problem.wrapper.parameters()]) < len([*problem.root.parameters()]):
        log.warning(
            "whether a part that keeps still has batch normalization could not be told (%s): all layers are "
            "re-estimated",
            unknown,
        )
    problem.wrapper.norms = comm.bcast(found)
    for text in found.notices if found else ():
        log.warning("%s", text)


def broadcast_found_norms(model: ModelWrapper, data: Any, device: torch.device | None, comm: Comm) -> Norms:
    """What rank 0 finds on the first batch; warns of what is odd, and raises what goes wrong."""
    found: Norms = comm.from_root(lambda: find_norms(model, data, device), any_error=True)
    for text in found.notices:
        warn(text)
    return found
