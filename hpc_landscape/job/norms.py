"""What the ranks agree on before the first point: which running statistics are re-estimated."""

from __future__ import annotations

import torch

from ..data.resident import beginning
from ..evaluate.evaluator import DTYPES
from ..evaluate.find_norms import find_norms
from ..problems.problem import Problem
from ..ranks.comm import Comm
from ..settings import Settings
from .data import Sets
from .report import Say


def broadcast_norms(
    settings: Settings, problem: Problem, sets: Sets, device: torch.device, comm: Comm, say: Say
) -> None:
    """Give the problem's wrapper what rank 0 finds on the first batch; where that fails, all are re-estimated."""
    batches = sets.warmup or next(iter(sets.evaluation.values()), None)
    if batches is None or settings.bn == "running":
        return
    found = None
    with comm.raise_on_all_ranks():
        if comm.is_root:
            dtype = DTYPES.get(settings.precision)
            try:
                first = problem.on(beginning(batches, 1).to(device, dtype))
                found = find_norms(problem.wrapper, first, device, dtype, settings.seed)
            except Exception as error:  # whether the model can be evaluated at all is told where its form is chosen
                if len([*problem.wrapper.parameters()]) < len([*problem.root.parameters()]):
                    say(
                        "warning: whether a part that keeps still has batch normalization could not be told "
                        f"({type(error).__name__}): all layers are re-estimated"
                    )
    problem.wrapper.norms = comm.bcast(found)
    for text in found.notices if found else ():
        say(f"warning: {text}")
