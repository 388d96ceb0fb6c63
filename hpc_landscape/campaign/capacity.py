"""Whether there is room for what a run asks for: looked at before memory or disk is taken."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping

from ..errors import UserError
from ..grid import Axis
from ..model import state
from ..progress import size
from ..ranks.memory import free_memory
from ..store import layout
from .plan import Plan

INDEX = 8  # bytes: every rank holds the index of each point that is to do
ON_ROOT = 4  # arrays of all points that rank 0 holds beside: coordinates found, values read at the end
COPIES = 6  # of a point's values: under way, sent, received, written; rank 0 has them of another rank too
LEAST = 8 + 8 + 1 + 1  # bytes of a point in the file: a metric, wall_time, done, failed


def check_axes(axes: Mapping[str, str], output: str, ranks: int, new: bool) -> None:
    """UserError where the axes, MIN:MAX:N by name, ask for more points than memory, or a new file's disk, can take.

    ranks: of this node. What axes and metrics the problem adds is not known yet.
    """
    points = math.prod(Axis.parse(text, name).n for name, text in axes.items())
    what = f"{' '.join(f'--{name} {text}' for name, text in axes.items())}: {points:,} points"
    _check_memory(points, ranks, what)
    if new and (needed := points * LEAST) > (there := free(output)):
        raise UserError(f"{what} need {size(needed)} or more on the disk, and {size(there)} are free there; lower N")


def _check_memory(points: int, ranks: int, what: str) -> None:
    if (needed := points * INDEX * (ranks + ON_ROOT)) > (there := free_memory()):
        raise UserError(f"{what} need {size(needed)} of memory, and {size(there)} are available; lower N")


def check_plan(plan: Plan, ranks: int) -> None:
    """The same with all that is known now. A message of the disk says what takes the most, and what helps."""
    _check_memory(plan.grid.size, ranks, f"{plan.grid}: {plan.grid.size:,} points")
    _check_values(plan, ranks)
    parts = bytes_of(plan)
    needed, there = sum(parts.values()), free(plan.path)
    if plan.stored is not None or needed <= there:
        return
    most = max(parts, key=lambda name: parts[name])
    remedy = {"directions": "--save_directions false", "model": "leave out --save_model"}.get(most, "lower N")
    if any(q.name == most and q.shape for q in plan.quantities):
        remedy += f", or leave {most} out of --metrics"
    raise UserError(
        f"--output {plan.path}: {plan.grid.size:,} points and what is kept with them need {size(needed)} on "
        f"the disk ({most} {size(parts[most])}), and {size(there)} are free there; {remedy}"
    )


def _check_values(plan: Plan, ranks: int) -> None:
    """UserError where the values of the points that are in hand, and on their way to the file, take too much."""
    each = {quantity.name: 8 * math.prod(quantity.shape) for quantity in plan.quantities}
    needed = sum(each.values()) * ranks * (plan.evaluator.execution.points + COPIES)
    if needed > (there := free_memory()):
        most, all_of_them = max(each, key=lambda name: each[name]), sum(each.values())
        raise UserError(
            f"--metrics: a point's values take {size(all_of_them)} ({most} {size(each[most])}), and on their way to "
            f"the file {size(needed)} of memory, of which {size(there)} are available; leave {most} out, or start "
            "fewer ranks on a node"
        )


def bytes_of(plan: Plan) -> Mapping[str, int]:
    """What a file of this plan holds, in bytes, by part."""
    points = plan.grid.size
    return {
        **{quantity.name: 8 * points * math.prod(quantity.shape) for quantity in plan.quantities},
        layout.WALL_TIME: 8 * points,
        "estimates": 16 * points * len(plan.refined),
        layout.DONE: points,
        layout.FAILED: points,
        "directions": plan.direction_bytes * plan.keeps_directions,
        "model": state.nbytes(state.state(plan.problem.root)) * plan.keeps_model,
    }


def free(path: str) -> float:
    """Bytes free on the disk that holds, or would hold, the file."""
    try:
        return shutil.disk_usage(os.path.dirname(os.path.realpath(path))).free
    except OSError:
        return math.inf
