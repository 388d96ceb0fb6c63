"""What is evaluated one after the other: all points, or the rounds of a refinement.

A phase is a set of points, over all ranks, and a writer that is open meanwhile. Between two phases the file alone says
what there is: rank 0 reads it, and all ranks get the points of the next one. So a run that was killed finds its place.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..errors import UserError, reason
from ..ranks.base import Comm
from ..schedule.refine import Refinement, refine
from ..store import layout
from ..store.raw import RawFile
from ..store.refinement import SUMMARY, Summary, names
from .plan import Plan


def begin(plan: Plan, comm: Comm) -> None:
    """Find the first round of a refinement that there is something to do in; nothing without one."""
    if plan.tolerance is not None:
        plan.round = comm.from_root(lambda: _next_round(plan))


def phases(plan: Plan, comm: Comm) -> Iterator[np.ndarray]:
    """The points of each phase, flat indices, the same on all ranks; the one before is in the file then."""
    yield plan.unfinished
    tried = np.zeros(plan.grid.size, bool)
    while plan.tolerance is not None:
        tried[plan.unfinished] = True
        plan.round = comm.from_root(lambda: _next_round(plan, tried))
        if not len(plan.round):
            return
        yield plan.round


def _next_round(plan: Plan, tried: np.ndarray | None = None) -> np.ndarray:
    """Its points, none where the refinement has ended; the estimates go into the file.

    tried: by this run. Before it has any, an end alone is noted, which a kill may have kept back.
    """
    assert plan.tolerance is not None
    values, done = np.full(plan.grid.shape, np.nan), np.zeros(plan.grid.shape, bool)
    name, path, begun = plan.quantities[0].name, plan.path, tried is not None
    if plan.taken is not None and plan.output.dry_run:  # there is no new file yet
        there = layout.read_values(plan.taken.earlier.path, name).reshape(-1)[plan.taken.there]
        values.reshape(-1)[plan.taken.points], done.reshape(-1)[plan.taken.points] = there, True
    elif begun or plan.stored is not None or plan.taken is not None:
        values, done, failed = (layout.read_values(path, dataset) for dataset in (name, layout.DONE, layout.FAILED))
        again = failed.astype(bool) & ~(False if tried is None else tried.reshape(done.shape))
        done = plan.finished(done.astype(bool), again)
    found = refine(values, done, plan.tolerance, plan.directions_asked.seed)
    noted = plan.stored is not None and plan.stored.complete
    if not plan.output.dry_run and (begun or (found.ended and not noted)):
        _note(plan, found, done)
    return found.points


def _note(plan: Plan, found: Refinement, done: np.ndarray) -> None:
    """Bring the estimates to the file, and at last how good they are."""
    everywhere, rows = np.arange(done.size), []
    try:
        file = RawFile(plan.path)
        try:
            for metric in plan.refined:
                told = found.tell(layout.read_values(plan.path, metric), done)
                for name, values in zip(names(metric), (told.values, told.error), strict=True):
                    file.write(name, everywhere, values.reshape(-1))
                rows.append(Summary(found.ended, told.estimated_error, told.true_error, told.held_out, told.log))
            file.write(SUMMARY, np.arange(len(rows)), np.array(rows, dtype=np.float64))
        finally:
            file.close()
        layout.sync(plan.path)
    except OSError as error:
        raise UserError(
            f"--output {plan.path}: cannot be written: {reason(error)}. All points so far are in it; mend this, and "
            "the same command goes on from there"
        ) from None
