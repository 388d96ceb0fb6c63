"""The batch program: settings -> problem -> directions -> grid -> schedule -> points -> file -> picture."""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from .campaign.advice import advice, seconds_per_point
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
from .campaign.fallback import on_device, take_near_enough
from .campaign.identity import made_of
from .campaign.keeping import choose_memory
from .campaign.metrics import check_metrics, choose_metrics
from .campaign.modes import first_mode, tuned
from .campaign.norms import broadcast_norms
from .campaign.phases import begin
from .campaign.plan import Plan, chosen, lay_out
from .campaign.prepare import broadcast_weights, open_earlier, open_or_create
from .campaign.recheck import compute_again, environment
from .campaign.writing import fall_back
from .data.sets import Sets
from .directions.base import HOST, SEED, Directions
from .directions.registry import can_be_drawn_again, direction_kind
from .errors import COMPLETE
from .evaluate.build import EvaluatorBuilder, ProblemSubject
from .evaluate.evaluator import DTYPES, Evaluator
from .evaluate.normalization import choose_normalization, policy_of
from .evaluate.sharded import ShardedSubject
from .evaluate.tune import recorded
from .evaluation import evaluate, sharing, teams
from .grid import Grid
from .metrics.registry import MetricRegistry
from .model.sharded import Sharded
from .objects import script_alone
from .problems.problem import Problem
from .problems.registry import load_problem
from .progress import stage, stages_taken
from .ranks.base import Comm
from .ranks.device import (
    built_on,
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
    Rank,
    announce,
    dry_run,
    failed_note,
    finish,
    logging_on,
    measure_point,
)
from .schedule.refine import check_size
from .schedule.strided import Strided
from .setting_groups import RankSettings
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
        problem, sets, is_additive, brought, devices, device = _make_problem(settings, earlier, device, comm)
        threads = torch.get_num_threads()  # the factory may have set it

        # Make the directions on rank 0, and broadcast them
        reader = Reader(problem, settings.for_problem)
        directions, grid = _make_directions(settings, problem, sets, reader, trajectory, earlier, devices, comm)

        # Put it all on the device
        builder, loss = _builder(settings, problem, directions, sets, device, comm, stack)
        builder.is_additive, builder.points = is_additive, -(-grid.size // comm.size)
        settings, measured = _tuned(settings, builder, earlier, comm)
        evaluator, registry = _build(builder, problem, loss, comm)
        names = settings.for_evaluation.metric_names
        quantities, seconds = choose_metrics(names, evaluator, registry, comm, builder.losses)

        # Lay out the file, or check that the one there is of this very run
        asked = settings.for_output, settings.for_evaluation, settings.for_directions
        plan = Plan(*asked, problem, grid, directions, evaluator, quantities, sets, stored, brought, earlier)
        plan.environment = environment(comm, devices, builder.in_step)
        plan.record, plan.tolerance = _record(settings, evaluator, measured), settings.for_grid.refine
        plan.keeps_model, plan.steals = plan.output.save_model or _trains(settings, problem), settings.for_ranks.steals
        take_near_enough(plan, builder, registry, comm)
        plan.point_seconds = seconds_per_point(sets, plan.evaluator.normalization.reads_data, seconds)
        take_points(plan, comm)
        if stored is None and not measured:
            plan.advice = advice(plan.evaluator, sets, plan.point_seconds * builder.points, settings.for_speed)
        del evaluator, registry  # their memory is free where the plan has another
        with stage("file"):
            comm.from_root(lambda: _lay_out(plan, reader, trajectory, comm))
        _begin(plan, devices, threads, writer, comm)
        if _nothing_to_do(plan, settings.for_ranks, builder.team, comm):
            return COMPLETE
        plan.release()
        compute_again(plan, comm)

        # Evaluate the points
        writer = fall_back(writer, plan.path, comm, log.info)
        stop_code = evaluate(plan, settings.for_ranks, builder.team, writer, comm, signals)

        # Say how it went
        return comm.from_root(lambda: finish(plan, stop_code, time.monotonic() - start, grace))


def _choose_machine(settings: Settings, comm: Comm) -> tuple[type[Writer], torch.device | None]:
    """Who writes, and what this rank computes on; None where that is left to the problem."""
    with comm.raise_on_all_ranks():
        writer = choose_writer(settings.for_output.writer, comm)
        device = choose_device(settings.for_ranks.device, comm.local_rank, name_rank(comm))
    if device is not None:
        _check_devices([device], settings.for_evaluation.precision, comm)
    set_threads(comm)
    end_children_with_us()
    return writer, device


def _check_devices(devices: list[torch.device], precision: str, comm: Comm) -> None:
    """UserError where what is asked for cannot be had on one of this rank's devices."""
    with comm.raise_on_all_ranks():
        for device in devices:
            check_precision(precision, device)
    check_same_device_type(comm, devices)
    if {device.type for device in devices} == {"cpu"}:
        if note := emulated(precision, devices[0]):
            log.info(note)
        keep_memory()


def _locate(settings: Settings, comm: Comm) -> tuple[Settings, Ways]:
    """The settings, and the trajectory's checkpoints: some kinds of direction are around its last one."""
    ways = find_trajectory(settings.for_directions, comm)
    last = direction_kind(settings.for_directions.directions).from_last_checkpoint
    if last and settings.for_problem.checkpoint is None:
        settings = settings.replaced(checkpoint=ways[-1][-1])
    return settings, ways


def _make_problem(
    settings: Settings, earlier: Earlier | None, device: torch.device | None, comm: Comm
) -> tuple[Problem, Sets, bool, dict[str, str], list[torch.device], torch.device | None]:
    """The problem, with weights; its data; whether all metrics add up over batches; and what users bring, on rank 0.

    And the devices that this rank computes on; and the one, None where the problem has been built on several.
    """
    options, evaluation, asked = settings.for_problem, settings.for_evaluation, settings.for_directions
    with stage("problem"), comm.raise_on_all_ranks():
        problem = load_problem(options.problem, options.problem_arguments)
        devices = built_on(problem.root) if device is None else [device]
        problem.wrapper.restrict(asked.include, asked.exclude, asked.trainable)
        is_additive = check_metrics(evaluation.metric_names, problem)
    if device is None:
        _check_devices(devices, evaluation.precision, comm)
        device = devices[0] if len(devices) == 1 else None
    with comm.raise_on_all_ranks():  # before anything of it is called, or trained
        brought = made_of(options.problem, evaluation.metric_names, evaluation.bn, problem) if comm.is_root else {}
    broadcast_weights(options, problem, earlier, comm)
    policy = choose_normalization(evaluation.bn, problem.wrapper)
    resident = settings.for_speed.resident
    sets = read_data(problem, evaluation, asked.seed, resident, policy.reads_data, comm, devices)
    broadcast_norms(problem, sets, policy_of(evaluation.bn), evaluation.precision, asked.seed, device, comm)
    return problem, sets, is_additive, brought, devices, device


def _trains(settings: Settings, problem: Problem) -> bool:
    """Whether the model has been trained here: no other file holds it."""
    return problem.train is not None and settings.for_problem.checkpoint is None


@stage("directions")
def _make_directions(
    settings: Settings,
    problem: Problem,
    sets: Sets,
    reader: Reader,
    trajectory: Ways,
    earlier: Earlier | None,
    devices: list[torch.device],
    comm: Comm,
) -> tuple[Directions, Grid]:
    """The directions, on every rank; and the grid along them."""
    asked, evaluation = settings.for_directions, settings.for_evaluation
    policy = choose_normalization(evaluation.bn, problem.wrapper, sets.warmup is not None)
    device = devices[0] if len(devices) == 1 else None
    how = settings.for_speed.directions_memory, asked, settings.dimensions, evaluation.precision
    if settings.for_ranks.shard:  # each rank takes its rows, tensor by tensor
        memory = SEED if can_be_drawn_again(asked) else HOST
    else:
        memory = choose_memory(*how, problem, devices, comm)
    loss = partial(loss_at_origin, problem, sets, device, policy, evaluation.precision, asked.seed)
    directions = broadcast_directions(
        *(asked, settings.dimensions, problem, reader, trajectory, loss if sets.evaluation else None),
        *(earlier, memory, comm),
    )
    grid = settings.grid(default_axes(asked, problem, directions))
    if settings.for_grid.refine is not None:
        check_size(grid.shape)
    return directions, grid


def _builder(
    settings: Settings,
    problem: Problem,
    directions: Directions,
    sets: Sets,
    device: torch.device | None,
    comm: Comm,
    stack: ExitStack,
) -> tuple[EvaluatorBuilder, Any]:
    """What builds evaluators of the model along its directions; and the loss, on the device.

    The model is whole on each rank, or shared out over those of a team as long as the stack is open.
    """
    evaluation, team = settings.for_evaluation, sharing(settings.for_ranks, sets, comm)
    subject: ProblemSubject | ShardedSubject
    if team is None or device is None:
        subject = ProblemSubject(problem, directions, device, DTYPES.get(evaluation.precision))
    else:
        mesh = stack.enter_context(process_group(team.comm, device))
        with comm.raise_on_all_ranks():
            subject = ShardedSubject(problem, directions, Sharded(problem.wrapper, mesh, device))
    policy = choose_normalization(evaluation.bn, subject.model, sets.warmup is not None)
    seed, speed = settings.for_directions.seed, settings.for_speed
    builder = EvaluatorBuilder(subject, sets, device, policy, evaluation.precision, seed, speed)
    builder.team = team
    return builder, subject.loss


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


@stage("first batch")
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


def _lay_out(plan: Plan, reader: Reader, trajectory: Ways, comm: Comm) -> None:
    """On rank 0: a new file, if there is room for it; or whether the one there is of this run."""
    if plan.stored is None:
        plan.trajectory = project_trajectory(reader, plan.problem, trajectory, plan.directions, plan.grid)
    check_plan(plan, comm.local_size)
    lay_out(plan, comm)


def _begin(plan: Plan, devices: list[torch.device], threads: int, writer: type[Writer], comm: Comm) -> None:
    """Find the first points, and tell of the plan."""
    begin(plan, comm)
    ranks = comm.to_root(Rank(os.uname().nodename, " and ".join(map(describe, devices)), stages_taken()))
    shared = comm.most(shared_gpus(comm, devices))
    if comm.is_root:
        announce(plan, ranks, threads, writer)
    if shared > 1:
        log.warning("%d ranks share one GPU; start one rank per GPU", shared)


def _nothing_to_do(plan: Plan, options: RankSettings, team: Team | None, comm: Comm) -> bool:
    """Whether that is all, since there is no point to do, or none is wanted. team: that shares a model."""
    if plan.output.dry_run:
        number, count = (team.number, team.count) if team else (comm.rank, comm.size)
        points = Strided(plan.unfinished, number, count).next(plan.evaluator.execution.points)
        tried = [plan.grid.point(int(point)) for point in points] or [plan.grid.point(0)]
        measured = comm.to_root(measure_point(plan, tried, comm.local_size))
        together = count if team else teams(plan, len(plan.unfinished), options, comm)
        if comm.is_root:
            dry_run(plan, measured, together)
        return True
    if not len(plan.unfinished) and plan.stored is not None:
        log.info(f"{plan.path} is complete{failed_note(plan.stored)}; --overwrite starts again")
        return True
    return False
