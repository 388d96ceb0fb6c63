"""Points at which something raises: the point's own fault, the data's, or the machine's; and what is said of it.

With --on_error record a run goes on beyond a point's own; what the machine has failed at is done again, and where it
fails for good, or data cannot be read, the run ends, since other points would be no better.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from ..data.batches import raised_in_reading
from ..data.faults import AGAIN, Cause, cause, said, sticks
from ..errors import UserError, is_out_of_memory, user_traceback
from ..grid import Grid
from ..said import notice
from ..store.writer import Writer
from .metrics import store_array
from .plan import Plan

MOST_KINDS = 3  # of errors that a rank tells of, and that are printed


class Failure(NamedTuple):
    """What was raised at a point. kind: its type and where it was raised; text: with the traceback."""

    kind: str
    text: str


def evaluate(plan: Plan, writer: Writer, points: np.ndarray) -> list[dict[str, np.ndarray] | Failure]:
    """Each point's values as the file takes them, or what was raised there where the run is to go on.

    GivenUp where it is no point's own fault, and does not pass.
    """
    quantities = {quantity.name: quantity for quantity in plan.quantities}

    def computed() -> list[dict[str, np.ndarray]]:
        found = plan.evaluator.evaluate([plan.grid.point(int(point)) for point in points])
        return [{k: store_array(v, quantities[k]) for k, v in values.items()} for values in found]

    def tried() -> list[dict[str, np.ndarray]]:
        try:
            return computed()
        except Exception as error:
            writer.check()  # it is no metric's error that the writer has failed
            _check_own(plan, error)
            raise

    try:
        return list(plan.sets.patience.call(tried))
    except Exception as error:
        writer.check()
        if plan.settings.on_error == "fail" or is_out_of_memory(error):
            raise
        if len(points) == 1:
            return [_failure(error)]
    return [one for point in points for one in evaluate(plan, writer, np.array([point]))]


def _check_own(plan: Plan, error: Exception) -> None:
    """GivenUp where neither this nor another point can be evaluated: the GPU is gone, the data cannot be read."""
    if is_out_of_memory(error) or isinstance(error, UserError):
        return
    if sticks(error) or not _device_works(plan):
        what = f"the device computes nothing in this process any more ({said(error)})"
    elif raised_in_reading(error) and cause(error, reading=True) is None:
        what = f"reading the problem's data raised {user_traceback(error)}\nThis is no fault of a point, nor recorded"
    else:
        return
    raise plan.sets.patience.given_up(what) from None


def nan_values(plan: Plan) -> dict[str, np.ndarray]:
    """The values of a point that has none."""
    return {quantity.name: np.full(quantity.shape, np.nan) for quantity in plan.quantities}


def _device_works(plan: Plan) -> bool:
    """Whether another point can be evaluated: after some errors a GPU computes nothing in this process any more."""
    device = plan.evaluator.device
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


def watch(plan: Plan, writer: Writer, reporter: Reporter) -> None:
    """From now on points are computed: a stop ends a wait, and what the machine has failed at is told by the writer."""
    plan.sets.obey(lambda: writer.stop_code)
    patience = plan.sets.patience
    patience.stop, patience.file = lambda: writer.stop_code, plan.settings.output
    patience.tell = lambda fault: reporter.broke_off(writer, fault)


class Reporter:
    """Says on rank 0 what was raised first, once for each of a few kinds: never the same a thousand times.

    What the machine has failed at is counted apart.
    """

    def __init__(self, grid: Grid):
        self.grid, self.sent, self.printed = grid, set[str](), set[str]()
        self.sent_of_machine, self.printed_of_machine = set[str](), set[str]()

    def found(self, writer: Writer, point: int, failure: Failure) -> None:
        """On the rank that has found it."""
        if failure.kind not in self.sent and len(self.sent) < MOST_KINDS:
            self.sent.add(failure.kind)
            writer.report((point, failure))

    def broke_off(self, writer: Writer, fault: Cause) -> None:
        """On the rank whose machine has failed; it tries again."""
        if fault.kind not in self.sent_of_machine:
            self.sent_of_machine.add(fault.kind)
            writer.report(fault)

    def hear(self, rank: int, what: Any) -> None:
        """On rank 0."""
        if isinstance(what, Cause):
            self._hear_of_machine(rank, what)
            return
        point, failure = what
        if failure.kind in self.printed or len(self.printed) >= MOST_KINDS:
            return
        self.printed.add(failure.kind)
        notice(
            f"an error at {place(self.grid, point)} on rank {rank}; its values are NaN, and the run goes on "
            f"(--on_error record). Others of this kind are not shown. {failure.text}"
        )

    def _hear_of_machine(self, rank: int, fault: Cause) -> None:
        if fault.kind in self.printed_of_machine:
            return
        self.printed_of_machine.add(fault.kind)
        notice(f"{fault} on rank {rank}: {AGAIN}")


def place(grid: Grid, index: int) -> str:
    """A point's coordinates as text."""
    return "(" + ", ".join(f"{c:g}" for c in grid.point(index)) + ")"
