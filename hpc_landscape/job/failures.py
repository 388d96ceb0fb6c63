"""Points at which a metric raises, and what is said of them: with --on_error record a run goes on beyond them."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import memory_is_out
from ..grid import Grid
from ..problems.problem import user_traceback
from ..store.writer import Writer
from .metrics import store_array
from .plan import Plan

MOST_KINDS = 3  # of errors that a rank tells of, and that are printed


class Failure(NamedTuple):
    """What was raised at a point. kind: its type and where it was raised; text: with the traceback."""

    kind: str
    text: str


def evaluate(plan: Plan, writer: Writer, points: np.ndarray) -> list[dict[str, np.ndarray] | Failure]:
    """Each point's values as the file takes them, or what was raised there where the run is to go on."""
    quantities = {quantity.name: quantity for quantity in plan.quantities}
    try:
        found = plan.evaluator.block([plan.grid.point(int(point)) for point in points])
        return [{k: store_array(v, quantities[k]) for k, v in values.items()} for values in found]
    except Exception as error:
        writer.check()  # it is no metric's error that the writer has failed
        if plan.settings.on_error == "fail" or memory_is_out(error) or not _device_works(plan):
            raise
        if len(points) == 1:
            return [_failure(error)]
    return [one for point in points for one in evaluate(plan, writer, np.array([point]))]


def nothing(plan: Plan) -> dict[str, np.ndarray]:
    """The values of a point that has none."""
    return {quantity.name: np.full(quantity.shape, np.nan) for quantity in plan.quantities}


def _device_works(plan: Plan) -> bool:
    """Whether another point can be evaluated: after some errors a GPU computes nothing in this process any more."""
    device = next(iter(plan.evaluator.subspace.views.values())).device
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError:
            return False
    return True


def _failure(error: Exception) -> Failure:
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last else ""
    return Failure(f"{type(error).__name__} {where}", user_traceback(error))


class Reporter:
    """Says on rank 0 what was raised first, once for each of a few kinds: never the same a thousand times."""

    def __init__(self, grid: Grid):
        self.grid, self.sent, self.printed = grid, set[str](), set[str]()

    def found(self, writer: Writer, point: int, failure: Failure) -> None:
        """On the rank that has found it."""
        if failure.kind not in self.sent and len(self.sent) < MOST_KINDS:
            self.sent.add(failure.kind)
            writer.report((point, failure))

    def hear(self, rank: int, what: Any) -> None:
        """On rank 0."""
        point, failure = what
        if failure.kind in self.printed or len(self.printed) >= MOST_KINDS:
            return
        self.printed.add(failure.kind)
        print(
            f"hpc_landscape: an error at {place(self.grid, point)} on rank {rank}; its values are NaN, and the run "
            f"goes on (--on_error record). Others of this kind are not shown. {failure.text}",
            file=sys.stderr,
            flush=True,
        )


def place(grid: Grid, index: int) -> str:
    """A point's coordinates as text."""
    return "(" + ", ".join(f"{c:g}" for c in grid.point(index)) + ")"
