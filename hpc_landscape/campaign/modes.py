"""Which mode points are computed in, as the ranks agree before the first one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ..evaluate.build import EvaluatorBuilder
from ..evaluate.execution import ExecutionMode
from ..evaluate.tune import tune
from ..ranks.base import Comm


def tuned(builder: EvaluatorBuilder, comm: Comm, any_error: bool = False) -> tuple[dict[str, Any], str]:
    """(the speed settings of the fastest mode, what was measured), as rank 0 measures it.

    any_error: whether what fails need not be a UserError.
    """
    most = _room(builder, comm)
    return comm.from_root(lambda: tune(builder, most), any_error)


def first_mode(
    builder: EvaluatorBuilder, comm: Comm, tell: Callable[[str], None], any_error: bool = False
) -> ExecutionMode:
    """The first mode that works, the one asked for first; the same on every rank.

    It is told where it is another than was asked for. What may be folded, the builder knows on every rank then.
    """
    candidates = builder.candidates()
    number, why, builder.pairs = comm.from_root(
        lambda: (*builder.first_that_works(), builder.pairs), any_error, everywhere=builder.in_step
    )
    if builder.asked(candidates[number]) != builder.asked(candidates[0]):
        tell(f"{candidates[number]}, since this model cannot be evaluated as asked for: {why}")
    return dataclasses.replace(candidates[number], interleaved=builder.interleaved(_room(builder, comm)))


def _room(builder: EvaluatorBuilder, comm: Comm) -> int:
    """How many points there is room for together on every rank, beside the ranks that share the memory of points."""
    on_gpu = builder.device is not None and builder.device.type == "cuda"
    sharers = builder.sets.sharers if on_gpu else comm.local_size
    return int(comm.least(builder.room(sharers)))
