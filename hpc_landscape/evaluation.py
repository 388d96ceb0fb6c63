"""A run's points, evaluated: phase after phase, by ranks that are put together anew for each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from functools import partial

import numpy as np

from .campaign.data import check_readings
from .campaign.ensemble import turning
from .campaign.failures import Attempts, Reporter
from .campaign.loop import Campaign
from .campaign.metrics import store_arrays
from .campaign.phases import phases
from .campaign.plan import Plan
from .campaign.teams import check_batches, describe_teams, known_batches, number_of_teams, shared, team_of
from .campaign.writing import writing
from .data.sets import Sets
from .errors import UserError
from .progress import Progress
from .ranks.base import Comm
from .ranks.control import Control
from .ranks.signals import Signals
from .ranks.team import Team
from .report import stopped, warn_if_long, without_root
from .setting_groups import RankSettings
from .store.writer import Writer

log = logging.getLogger(__name__)
LONG = 10.0  # seconds of a point: of those that are left in the end, fewer than ranks, several ranks share one


def sharing(options: RankSettings, sets: Sets, comm: Comm) -> Team | None:
    """The ranks that share out the model's parameters, where they do: all, if no number is said."""
    if options.shard is None:
        return None
    count, note = number_of_teams(options.ranks_per_point, 1, comm.size)
    if count == comm.size:
        raise UserError("--shard fsdp: the model is shared out over several ranks: start them, by mpirun -n 4, say")
    check_batches(known_batches(sets), -(-comm.size // count))
    if note:
        log.info("note         %s", note)
    log.info("teams        %s, and share out the model", describe_teams(count, comm.size))
    return team_of(comm, count)


def evaluate(
    plan: Plan, options: RankSettings, team: Team | None, kind: type[Writer], comm: Comm, signals: Signals
) -> int:
    """Evaluate all that there is to do, phase by phase; returns the agreed code of a stop, 0 without one.

    team: that has been put together already, since it shares a model.
    """
    progress = Progress(plan.grid.size if plan.tolerance is None else None, plan.before, shown=comm.is_root)
    reporter, turn_to, longest = Reporter(plan.grid), turning(plan), 0.0
    known: dict[int, Team] = {}
    try:
        for points in phases(plan, comm):
            parts = iter([(points, team)]) if team is not None else _parts(plan, points, options, known, comm)
            for part, members in parts:
                control = Control(comm, signals, options.grace)
                control.longest = longest
                _evaluate(plan, part, members, kind, control, reporter, progress, turn_to)
                longest = control.longest
                if control.stop_code:
                    return control.stop_code
                check_readings(plan.sets, plan.path, comm)
    finally:
        progress.close()
    return 0


def _parts(
    plan: Plan, points: np.ndarray, options: RankSettings, known: dict[int, Team], comm: Comm
) -> Iterator[tuple[np.ndarray, Team]]:
    """Points, and with whom this rank evaluates them. Of long points those left in the end are a part of their own.

    known: teams that have been put together, by how many there are.
    """

    def of(count: int) -> Team:
        if count not in known:
            known[count] = team_of(comm, count)
        return known[count]

    left = len(points) % comm.size
    long = options.ranks_per_point == "auto" and plan.point_seconds >= LONG and 0 < left < len(points)
    if long and number_of_teams("auto", left, comm.size, known_batches(plan.sets))[0] < comm.size:
        yield points[:-left], of(comm.size)
        points = points[-left:]
    yield points, of(teams(plan, len(points), options, comm, told=set(known)))


def teams(plan: Plan, points: int, options: RankSettings, comm: Comm, told: Collection[int] = ()) -> int:
    """How many teams the ranks are for so many points; told where they are of several, or not as was asked for."""
    count, note = number_of_teams(options.ranks_per_point, points, comm.size, known_batches(plan.sets))
    if count in told:
        return count
    if note:
        log.info("note         %s", note)
    if count < comm.size:
        log.info("teams        %s", describe_teams(count, comm.size))
    return count


def _evaluate(
    plan: Plan,
    points: np.ndarray,
    team: Team,
    kind: type[Writer],
    control: Control,
    reporter: Reporter,
    progress: Progress,
    turn_to: Callable[[int], None],
) -> None:
    """Evaluate this rank's part of the points, which are the same on all, and bring it to the file."""
    comm, patience = control.comm, plan.sets.patience
    writer = kind(plan.path, comm, lambda n: progress.update(progress.done + n), reporter.receive, control)
    control.on_abandon = lambda after: stopped(plan, progress.done, control.stop_code, control.grace, after)
    control.on_silence = lambda: without_root(plan)

    # From now on a stop ends a wait, and what the machine has failed at is told by the writer
    plan.sets.obey(lambda: writer.stop_code)
    patience.stop, patience.file, patience.tell = lambda: writer.stop_code, plan.path, reporter.broke_off
    reporter.send = writer.report

    def on_points(evaluated: np.ndarray, seconds: float) -> None:
        if not control.longest:
            warn_if_long(control.grace, seconds / len(evaluated), len(evaluated))
        control.longest = max(control.longest, seconds)

    plan.evaluator.team = team
    campaign = Campaign(
        shared(points, team, writer, plan.evaluator.execution.points, plan.steals),
        Attempts(
            *(plan.evaluator, plan.grid, partial(store_arrays, quantities=plan.quantities), patience),
            record=plan.evaluation.on_error == "record",
            check=writer.check,
            turn_to=turn_to,
        ),
        writer,
        plan.nan_values,
        reporter.found,
        lambda: control.stops if team.size == 1 else 0,  # those of a team stop together
        on_points,
    )
    stopping = control.signals.stopping(writer.check, plan.sets.awaited, lambda: control.patience)
    with stopping, writing(writer):
        campaign.run()
