"""The batch program: settings -> problem -> directions -> grid -> schedule -> points -> file -> picture."""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from .campaign.advice import advice
from .campaign.capacity import check_plan
from .campaign.data import read_data
from .campaign.directions import (
    Reader,
    Ways,
    broadcast_directions,
    default_axes,
    find_trajectory,
    loss_at_origin,
    project_trajectory,
)
from .campaign.extend import take_points
from .campaign.failures import Attempts, Reporter
from .campaign.fallback import on_device, take_near_enough
from .campaign.identity import made_of
from .campaign.loop import Campaign
from .campaign.metrics import check_metrics, choose_metrics, store_arrays
from .campaign.modes import first_mode, tuned
from .campaign.norms import broadcast_norms
from .campaign.plan import Plan, chosen, lay_out
from .campaign.prepare import broadcast_weights, open_earlier, open_or_create
from .campaign.recheck import compute_again, environment
from .campaign.teams import check_batches, describe_teams, known_batches, number_of_teams, shared, team_of
from .campaign.writing import fall_back, writing
from .data.sets import Sets
from .directions.base import Directions
from .directions.registry import direction_kind
from .errors import COMPLETE, UserError
from .evaluate.build import EvaluatorBuilder, ProblemSubject
from .evaluate.evaluator import DTYPES, Evaluator
from .evaluate.normalization import choose_normalization, policy_of
from .evaluate.sharded import ShardedSubject
from .evaluate.tune import recorded
from .grid import Grid
from .metrics.registry import MetricRegistry
from .model.sharded import Sharded
from .objects import script_alone
from .problems.problem import Problem
from .problems.registry import load_problem
from .progress import Progress
from .ranks.comm import Comm
from .ranks.control import Control
from .ranks.device import (
    check_precision,
    check_same_device_type,
    choose_device,
    describe,
    emulated,
    keep_memory,
    name_rank,
    set_threads,
    shared_gpus,
)
from .ranks.orphans import end_children_with_us
from .ranks.process_group import process_group
from .ranks.signals import Signals
from .ranks.team import Team
from .ranks.torch_state import as_before
from .report import (
    announce,
    dry_run,
    failed_note,
    finish,
    logging_on,
    measure_point,
    stopped,
    warn_if_long,
    without_root,
)
from .schedule.strided import Strided
from .settings import Settings
from .store.earlier import Earlier
from .store.store import choose_writer
from .store.writer import Writer

log = logging.getLogger(__name__)


def run(settings: Settings, comm: Comm) -> int:
    """Compute, or go on with, the landscape that the settings describe; returns the exit code.

    Every rank of comm calls it. UserError, on all ranks alike, where the user can mend what is wrong.
    """
    grace = settings.for_ranks.grace
    with ExitStack() as stack, Signals(comm, grace) as signals, as_before(), logging_on(comm):
        start = time.monotonic()

        # See what there is to go on with, and keep other runs out
        stored = open_or_create(settings.for_output, settings.for_grid, comm, stack)
        earlier = open_earlier(settings.for_output, settings.dimensions, stored, comm)

        # Choose writer, device and threads; refuse what cannot be had before anything is computed
        writer, device = _choose_machine(settings, comm)
        settings, trajectory = _locate(settings, comm)
        stack.enter_context(script_alone(settings.for_problem.problem.rpartition(":")[0]))  # workers import it again

        # Make the problem: model and data on every rank, weights from rank 0
        problem, sets, is_additive, brought = _make_problem(settings, earlier, device, comm)
        threads = torch.get_num_threads()  # the factory may have set it

        # Make the directions on rank 0, and broadcast them
        reader = Reader(problem, settings.for_problem)
        directions, grid = _make_directions(settings, problem, sets, reader, trajectory, earlier, device, comm)

        # Put it all on the device
        team = _sharing(settings, sets, comm)
        subject = _subject(settings, problem, directions, device, team, comm, stack)
        builder = _builder(settings, subject, sets, device)
        builder.in_step = team is not None
        builder.is_additive, builder.points = is_additive, -(-grid.size // comm.size)
        settings, measured = _tuned(settings, builder, earlier, comm)
        evaluator, registry = _build(builder, problem, subject.loss, comm)
        asked_metrics = settings.for_evaluation.metric_names
        quantities, seconds = choose_metrics(asked_metrics, evaluator, registry, comm, builder.losses)

        # Lay out the file, or check that the one there is of this very run
        asked = settings.for_output, settings.for_evaluation, settings.for_directions
        plan = Plan(*asked, problem, grid, directions, evaluator, quantities, sets, stored, brought, earlier)
        plan.environment = environment(comm, device, builder.in_step)
        plan.record = _record(settings, evaluator, measured)
        plan.keeps_model, plan.steals = plan.output.save_model or _trains(settings, problem), settings.for_ranks.steals
        take_near_enough(plan, builder, registry, comm)
        take_points(plan, comm)
        if stored is None and not measured:
            plan.advice = advice(plan.evaluator, sets, seconds, builder.points, settings.for_speed)
        del evaluator, registry  # their memory is free where the plan has another
        with comm.raise_on_all_ranks():
            if comm.is_root:
                if stored is None:
                    plan.trajectory = project_trajectory(reader, problem, trajectory, directions, grid)
                check_plan(plan, comm.local_size)
                lay_out(plan, comm)
        if _nothing_to_do(plan, device, threads, writer, team or Team(comm, comm.rank, comm.size), comm):
            return COMPLETE
        plan.release()
        compute_again(plan, comm)
        writer = fall_back(writer, plan.path, comm, log.info)

        # Evaluate this rank's share
        team = team or _team(settings.for_ranks.ranks_per_point, plan, comm)
        stop_code = _evaluate(plan, team, writer, Control(comm, signals, grace))

        # Say how it went
        return comm.from_root(lambda: finish(plan, stop_code, time.monotonic() - start, grace))


def _choose_machine(settings: Settings, comm: Comm) -> tuple[type[Writer], torch.device]:
    """Who writes, and what this rank computes on."""
    precision = settings.for_evaluation.precision
    with comm.raise_on_all_ranks():
        writer = choose_writer(settings.for_output.writer, comm)
        device = choose_device(settings.for_ranks.device, comm.local_rank, name_rank(comm))
        check_precision(precision, device)
    check_same_device_type(comm, device)
    set_threads(comm)
    if note := emulated(precision, device):
        log.info(note)
    end_children_with_us()
    if device.type == "cpu":
        keep_memory()
    return writer, device


def _locate(settings: Settings, comm: Comm) -> tuple[Settings, Ways]:
    """The settings, and the trajectory's checkpoints: some kinds of direction are around its last one."""
    ways = find_trajectory(settings.for_directions, comm)
    last = direction_kind(settings.for_directions.directions).from_last_checkpoint
    if last and settings.for_problem.checkpoint is None:
        settings = settings.replaced(checkpoint=ways[-1][-1])
    return settings, ways


def _make_problem(
    settings: Settings, earlier: Earlier | None, device: torch.device, comm: Comm
) -> tuple[Problem, Sets, bool, dict[str, str]]:
    """The problem, with weights; its data; whether all metrics add up over batches; and what users bring, on rank 0."""
    options, evaluation, asked = settings.for_problem, settings.for_evaluation, settings.for_directions
    with comm.raise_on_all_ranks():
        problem = load_problem(options.problem, options.problem_arguments)
        problem.wrapper.restrict(asked.include, asked.exclude, asked.trainable)
        is_additive = check_metrics(evaluation.metric_names, problem)
    with comm.raise_on_all_ranks():  # before anything of it is called, or trained
        brought = made_of(options.problem, evaluation.metric_names, evaluation.bn, problem) if comm.is_root else {}
    broadcast_weights(options, problem, earlier, comm)
    policy = choose_normalization(evaluation.bn, problem.wrapper)
    resident = settings.for_speed.resident
    sets = read_data(problem, evaluation, asked.seed, resident, policy.reads_data, comm, device)
    broadcast_norms(problem, sets, policy_of(evaluation.bn), evaluation.precision, asked.seed, device, comm)
    return problem, sets, is_additive, brought


def _trains(settings: Settings, problem: Problem) -> bool:
    """Whether the model has been trained here: no other file holds it."""
    return problem.train is not None and settings.for_problem.checkpoint is None


def _make_directions(
    settings: Settings,
    problem: Problem,
    sets: Sets,
    reader: Reader,
    trajectory: Ways,
    earlier: Earlier | None,
    device: torch.device,
    comm: Comm,
) -> tuple[Directions, Grid]:
    """The directions, on every rank; and the grid along them."""
    asked, evaluation = settings.for_directions, settings.for_evaluation
    policy = choose_normalization(evaluation.bn, problem.wrapper, sets.warmup is not None)
    loss = partial(loss_at_origin, problem, sets, device, policy, evaluation.precision, asked.seed)
    directions = broadcast_directions(
        *(asked, settings.dimensions, problem, reader, trajectory),
        *(loss if sets.evaluation else None, earlier, comm),
    )
    return directions, settings.grid(default_axes(asked, problem, directions))


def _subject(
    settings: Settings,
    problem: Problem,
    directions: Directions,
    device: torch.device,
    team: Team | None,
    comm: Comm,
    stack: ExitStack,
) -> ProblemSubject | ShardedSubject:
    """The model along its directions; team: of the ranks that share it out, as long as the stack is open."""
    if team is None:
        return ProblemSubject(problem, directions, device, DTYPES.get(settings.for_evaluation.precision))
    mesh = stack.enter_context(process_group(team.comm, device))
    with comm.raise_on_all_ranks():
        return ShardedSubject(problem, directions, Sharded(problem.wrapper, mesh, device))


def _builder(
    settings: Settings, subject: ProblemSubject | ShardedSubject, sets: Sets, device: torch.device
) -> EvaluatorBuilder:
    evaluation = settings.for_evaluation
    policy = choose_normalization(evaluation.bn, subject.model, sets.warmup is not None)
    seed, speed = settings.for_directions.seed, settings.for_speed
    return EvaluatorBuilder(subject, sets, device, policy, evaluation.precision, seed, speed)


def _tuned(settings: Settings, builder: EvaluatorBuilder, earlier: Earlier | None, comm: Comm) -> tuple[Settings, str]:
    """The settings in the fastest mode, as rank 0 has measured it or a file records it; and what was measured."""
    choice: dict[str, Any] = {}
    text = ""
    if earlier is not None:
        choice, text = recorded(earlier.stored.attributes, settings.for_speed)
    elif settings.for_speed.tune:
        choice, text = tuned(builder, comm)
        log.info("tuned        %s", text)
    settings = settings.replaced(tune=False, **choice)
    builder.speed = settings.for_speed
    return settings, text


def _build(builder: EvaluatorBuilder, problem: Problem, loss: Any, comm: Comm) -> tuple[Evaluator, MetricRegistry]:
    """The evaluator in the first mode that works, the same on every rank, and what makes metrics of its sets.

    loss: the problem's, on the device. There is a note where the mode is not the one that was asked for.
    """
    mode = first_mode(builder, comm, lambda text: log.info("execution    %s", text))
    evaluator, data = builder.build(mode, on_device(builder, mode, comm))
    return evaluator, MetricRegistry(problem, data, loss)


def _record(settings: Settings, evaluator: Evaluator, measured: str) -> dict[str, object]:
    """What the file says of how it was made, beside what values depend on."""
    return {
        "settings": settings.to_yaml(),
        "command": settings.to_command(),
        "problem": settings.for_problem.problem,
        **chosen(settings.for_speed, evaluator.execution),
        **({"tuned": measured} if measured else {}),
    }


def _nothing_to_do(
    plan: Plan, device: torch.device, threads: int, writer: type[Writer], team: Team, comm: Comm
) -> bool:
    """Tell of the plan; whether that was all, since there is no point to do, or none was wanted."""
    ranks = comm.allgather((os.uname().nodename, describe(device)))
    shared = max(comm.allgather(shared_gpus(comm, device)))
    if comm.is_root:
        announce(plan, ranks, threads, writer)
    if shared > 1:
        log.warning("%d ranks share one GPU; start one rank per GPU", shared)
    if plan.output.dry_run:
        points = Strided(plan.unfinished, team.number, team.count).next(plan.evaluator.execution.points)
        tried = [plan.grid.point(int(point)) for point in points] or [plan.grid.point(0)]
        dry_run(plan, comm.allgather(measure_point(plan, tried, comm.local_size)))
        return True
    if not len(plan.unfinished) and plan.stored is not None:
        log.info(f"{plan.path} is complete{failed_note(plan.stored)}; --overwrite starts again")
        return True
    return False


def _sharing(settings: Settings, sets: Sets, comm: Comm) -> Team | None:
    """The ranks that share out the model's parameters, where they do: all, if no number is said."""
    if settings.for_ranks.shard is None:
        return None
    asked = settings.for_ranks.ranks_per_point
    count = 1 if asked == "auto" else max(1, comm.size // asked)
    if count == comm.size:
        raise UserError("--shard fsdp: the model is shared out over several ranks: start them, by mpirun -n 4, say")
    check_batches(known_batches(sets), -(-comm.size // count))
    log.info("teams        %s", describe_teams(count, comm.size))
    return team_of(comm, count)


def _team(asked: int | Literal["auto"], plan: Plan, comm: Comm) -> Team:
    """The ranks that this one evaluates points with."""
    count, note = number_of_teams(asked, len(plan.unfinished), comm.size, known_batches(plan.sets))
    if note:
        log.info("note         %s", note)
    if count < comm.size:
        log.info("teams        %s", describe_teams(count, comm.size))
    return team_of(comm, count)


def _evaluate(plan: Plan, team: Team, kind: type[Writer], control: Control) -> int:
    """Evaluate this rank's points, and bring them to the file; returns the agreed code of a stop, 0 without one."""
    comm, points = control.comm, plan.unfinished
    progress = Progress(plan.grid.size, plan.grid.size - len(points), shown=comm.is_root)
    reporter, patience = Reporter(plan.grid), plan.sets.patience
    writer = kind(plan.path, comm, lambda n: progress.update(progress.done + n), reporter.receive, control)
    control.on_abandon = lambda after: stopped(plan, progress.done, control.stop_code, control.grace, after)
    control.on_silence = lambda: without_root(plan)

    # From now on a stop ends a wait, and what the machine has failed at is told by the writer
    plan.sets.obey(lambda: writer.stop_code)
    patience.stop, patience.file, patience.tell = lambda: writer.stop_code, plan.path, reporter.broke_off
    reporter.send = writer.report
    first = True

    def on_points(evaluated: np.ndarray, seconds: float) -> None:
        nonlocal first
        control.longest = max(control.longest, seconds)
        if first:
            first = False
            warn_if_long(control.grace, seconds / len(evaluated), len(evaluated))

    plan.evaluator.team = team
    campaign = Campaign(
        shared(points, team, writer, plan.evaluator.execution.points, plan.steals),
        Attempts(
            *(plan.evaluator, plan.grid, partial(store_arrays, quantities=plan.quantities), patience),
            record=plan.evaluation.on_error == "record",
            check=writer.check,
        ),
        writer,
        plan.nan_values,
        reporter.found,
        lambda: control.stops if team.size == 1 else 0,  # those of a team stop together
        on_points,
    )
    try:
        stopping = control.signals.stopping(writer.check, plan.sets.awaited, lambda: control.patience)
        with stopping, writing(writer):
            campaign.run()
    finally:
        progress.close()
    return control.stop_code
