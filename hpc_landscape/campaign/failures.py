"""Points at which something raises: the point's own fault, the data's, or the machine's; and what is said of it.

With --on_error record a run goes on beyond a point's own; what the machine has failed at is done again, and where it
fails for good, or data cannot be read, the run ends, since other points would be no better.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ..console import notice
from ..data.batches import raised_in_reading
from ..data.faults import AGAIN, Cause, Patience, cause, sticks, summary
from ..data.readings import OtherData
from ..errors import Stopped, UserError, is_out_of_memory, user_traceback
from ..evaluate.evaluator import Evaluator
from ..grid import Grid
from ..ranks.team import Elsewhere, Team

END, REPEAT, SINGLY = "end", "repeat", "singly"  # of the run; these points; each of them by itself
POLL = 0.05  # seconds
MOST_KINDS = 3  # of errors that a rank tells of, and that are printed


class Failure(NamedTuple):
    """What was raised at a point. kind: its type and where it was raised; text: with the traceback."""

    kind: str
    text: str


Outcome = str | int | Failure  # of points that have failed; a number: of a stop


@dataclass
class Attempts:
    """Evaluates points, again where the machine has failed.

    convert: makes of a point's values what the writer takes. record: whether a point's own fault is found as a Failure,
    and not raised. patience: with the machine. check: raises what went wrong in writing. turn_to: lets points lie along
    another set of directions.
    """

    evaluator: Evaluator
    grid: Grid
    convert: Callable[[dict[str, Any]], Any]
    patience: Patience
    record: bool = False
    check: Callable[[], None] = lambda: None
    turn_to: Callable[[int], None] = lambda number: None

    @property
    def team(self) -> Team:
        """The ranks that are at the same points."""
        return self.evaluator.team

    def evaluate(self, points: np.ndarray) -> list[Any]:
        """Each point's values as the writer takes them, or the Failure that it is.

        GivenUp where it is no point's own fault, and does not pass. The ranks of a team are in step.
        """
        if len(parts := self.grid.by_set(points)) > 1:
            return [one for part in parts for one in self.evaluate(part)]
        tries = 0
        while (found := self._attempt(points, tries)) == REPEAT:
            tries += 1
        if found == SINGLY:
            return [one for point in points for one in self.evaluate(np.array([point]))]
        return [found] if isinstance(found, Failure) else found

    def _attempt(self, points: np.ndarray, tries: int) -> Any:
        """The values, or the outcome without any."""
        raised: BaseException | None = None
        try:
            found = self._tried(points)
            self.team.exchange(None)  # all of its ranks have come so far
            return found
        except Elsewhere as error:
            faults = error.faults
        except BaseException as error:
            if self.evaluator.in_step:  # the others are in the model, and wait for this rank there
                raise
            outcome, raised = self._judged(error, tries, len(points))
            faults = self.team.fail(outcome)
            if outcome != END and not isinstance(outcome, int):
                raised = None
        if raised is not None:
            raise raised
        return self._agreed(faults)

    def _judged(self, error: BaseException, tries: int, count: int) -> tuple[Outcome, BaseException]:
        """What becomes of so many points where this was raised; and what is raised where they end the run."""
        try:
            if isinstance(error, Exception):
                if self.patience.again(error, tries):
                    return REPEAT, error
                self.check()
                if self.record and not is_out_of_memory(error) and not isinstance(error, OtherData):
                    return SINGLY if count > 1 else _failure(error), error
        except BaseException as other:
            error = other
        return error.code if isinstance(error, Stopped) and isinstance(error.code, int) else END, error

    def _agreed(self, faults: list[Outcome]) -> Outcome:
        """The outcome for all ranks of a team, of which some have failed; where that is the end, it is waited for."""
        while END in faults:  # who has failed says why, and ends all ranks
            self.check()
            time.sleep(POLL)
        for fault in faults:
            if isinstance(fault, int):
                raise Stopped(fault)
        return next((one for one in (REPEAT, SINGLY) if one in faults), faults[0])

    def _tried(self, points: np.ndarray) -> list[Any]:
        try:
            self.turn_to(self.grid.set_of(int(points[0])))
            found = self.evaluator.evaluate([self.grid.point(int(point)) for point in points])
            return [self.convert(values) for values in found] if self.team.leads else list(found)
        except Exception as error:
            self.check()  # it is no metric's error that the writer has failed
            if isinstance(error, Elsewhere):
                raise
            self._check_own(error)
            raise

    def _check_own(self, error: Exception) -> None:
        """GivenUp where neither this nor another point can be evaluated: the GPU is gone, the data cannot be read."""
        if is_out_of_memory(error) or isinstance(error, UserError):
            return
        if sticks(error) or not all(map(_works, self.evaluator.devices)):
            what = f"the device computes nothing in this process any more ({summary(error)})"
        elif raised_in_reading(error) and cause(error, reading=True) is None:
            what = (
                f"reading the problem's data raised {user_traceback(error)}\nThis is no fault of a point, nor recorded"
            )
        else:
            return
        raise self.patience.given_up(what) from None


def _works(device: torch.device) -> bool:
    """Whether another point can be evaluated: after some errors a GPU computes nothing in this process any more."""
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
    """Says on rank 0 what was raised first, once for each of a few kinds: never the same a thousand times.

    What the machine has failed at is counted apart. send: brings what a rank has found to rank 0.
    """

    def __init__(self, grid: Grid):
        self.grid, self.sent, self.printed = grid, set[str](), set[str]()
        self.sent_of_machine, self.printed_of_machine = set[str](), set[str]()
        self.send: Callable[[Any], None] = lambda what: self.receive(0, what)

    def found(self, point: int, failure: Failure) -> None:
        """On the rank that has found it."""
        if failure.kind not in self.sent and len(self.sent) < MOST_KINDS:
            self.sent.add(failure.kind)
            self.send((point, failure))

    def broke_off(self, fault: Cause) -> None:
        """On the rank whose machine has failed; it tries again."""
        if fault.kind not in self.sent_of_machine:
            self.sent_of_machine.add(fault.kind)
            self.send(fault)

    def receive(self, rank: int, what: Any) -> None:
        """On rank 0."""
        if isinstance(what, Cause):
            self._receive_of_machine(rank, what)
            return
        point, failure = what
        if failure.kind in self.printed or len(self.printed) >= MOST_KINDS:
            return
        self.printed.add(failure.kind)
        notice(
            f"an error at {self.grid.text_of(point)} on rank {rank}; its values are NaN, and the run goes on "
            f"(--on_error record). Others of this kind are not shown. {failure.text}"
        )

    def _receive_of_machine(self, rank: int, fault: Cause) -> None:
        if fault.kind in self.printed_of_machine:
            return
        self.printed_of_machine.add(fault.kind)
        notice(f"{fault} on rank {rank}: {AGAIN}")
