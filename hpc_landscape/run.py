"""The batch program: settings -> problem -> directions -> grid -> schedule -> points -> file -> picture."""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

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
from .campaign.ensemble import turning
from .campaign.failures import Attempts, Reporter
from .campaign.fallback import on_device, take_near_enough
from .campaign.identity import made_of
from .campaign.loop import Campaign
from .campaign.metrics import check_metrics, choose_metrics, store_arrays
from .campaign.modes import first_mode, tuned
from .campaign.norms import broadcast_norms
from .campaign.plan import Plan, chosen, lay_out
from .campaign.prepare import broadcast_weights, open_or_create
from .campaign.recheck import compute_again, environment
from .campaign.writing import fall_back, writing
from .data.sets import Sets
from .directions.base import Directions
from .directions.registry import direction_kind
from .errors import COMPLETE
from .evaluate.build import EvaluatorBuilder, ProblemSubject
from .evaluate.evaluator import DTYPES, Evaluator
from .evaluate.normalization import choose_normalization, policy_of
from .evaluate.tune import recorded
from .grid import Grid
from .metrics.registry import MetricRegistry
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
from .ranks.signals import Signals
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
from .store.layout import Stored
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

        # Choose writer, device and threads; refuse what cannot be had before anything is computed
        writer, device = _choose_machine(settings, comm)
        settings, trajectory = _locate(settings, comm)
        stack.enter_context(script_alone(settings.for_problem.problem.rpartition(":")[0]))  # workers import it again

        # Make the problem: model and data on every rank, weights from rank 0
        problem, sets, is_additive, brought = _make_problem(settings, stored, device, comm)
        threads = torch.get_num_threads()  # the factory may have set it

        # Make the directions on rank 0, and broadcast them
        reader = Reader(problem, settings.for_problem)
        directions, grid = _make_directions(settings, problem, sets, reader, trajectory, stored, device, comm)

        # Put it all on the device
        subject = ProblemSubject(problem, directions, device, DTYPES.get(settings.for_evaluation.precision))
        builder = _builder(settings, subject, sets, device)
        builder.is_additive, builder.points = is_additive, -(-grid.size // comm.size)
        settings, measured = _tuned(settings, builder, stored, comm)
        evaluator, registry = _build(builder, problem, subject.loss, comm)
        asked_metrics = settings.for_evaluation.metric_names
        quantities, seconds = choose_metrics(asked_metrics, evaluator, registry, comm, builder.losses)

        # Lay out the file, or check that the one there is of this very run
        asked = settings.for_output, settings.for_evaluation, settings.for_directions
        plan = Plan(*asked, problem, grid, directions, evaluator, quantities, sets, stored, brought)
        plan.environment, plan.record = environment(comm, device), _record(settings, evaluator, measured)
        plan.keeps_model = plan.output.save_model or _trains(settings, problem)
        take_near_enough(plan, builder, registry, comm)
        if stored is None and not measured:
            plan.advice = advice(plan.evaluator, sets, seconds, builder.points, settings.for_speed)
        del evaluator, registry  # their memory is free where the plan has another
        with comm.raise_on_all_ranks():
            if comm.is_root:
                if stored is None:
                    plan.trajectory = project_trajectory(reader, problem, trajectory, directions, grid)
                check_plan(plan, comm.local_size)
                lay_out(plan, comm)
        if _nothing_to_do(plan, device, threads, writer, comm):
            return COMPLETE
        plan.release()
        comm.from_root(lambda: compute_again(plan))
        writer = fall_back(writer, plan.path, comm, log.info)

        # Evaluate this rank's share
        stop_code = _evaluate(plan, writer, Control(comm, signals, grace))

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
    settings: Settings, stored: Stored | None, device: torch.device, comm: Comm
) -> tuple[Problem, Sets, bool, dict[str, str]]:
    """The problem, with weights; its data; whether all metrics add up over batches; and what users bring, on rank 0."""
    options, evaluation, asked = settings.for_problem, settings.for_evaluation, settings.for_directions
    with comm.raise_on_all_ranks():
        problem = load_problem(options.problem, options.problem_arguments)
        problem.wrapper.restrict(asked.include, asked.exclude, asked.trainable)
        is_additive = check_metrics(evaluation.metric_names, problem)
    with comm.raise_on_all_ranks():  # before anything of it is called, or trained
        brought = made_of(options.problem, evaluation.metric_names, evaluation.bn, problem) if comm.is_root else {}
    broadcast_weights(options, problem, settings.for_output.output, stored, comm)
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
    stored: Stored | None,
    device: torch.device,
    comm: Comm,
) -> tuple[Directions, Grid]:
    """The directions, on every rank; and the grid along them."""
    asked, evaluation = settings.for_directions, settings.for_evaluation
    policy = choose_normalization(evaluation.bn, problem.wrapper, sets.warmup is not None)
    loss = partial(loss_at_origin, problem, sets, device, policy, evaluation.precision, asked.seed)
    directions = broadcast_directions(
        *(asked, settings.dimensions, problem, reader, trajectory, loss if sets.evaluation else None),
        *(stored, settings.for_output.output, comm),
    )
    return directions, settings.grid(default_axes(asked, problem, directions))


def _builder(settings: Settings, subject: ProblemSubject, sets: Sets, device: torch.device) -> EvaluatorBuilder:
    evaluation = settings.for_evaluation
    policy = choose_normalization(evaluation.bn, subject.model, sets.warmup is not None)
    seed, speed = settings.for_directions.seed, settings.for_speed
    return EvaluatorBuilder(subject, sets, device, policy, evaluation.precision, seed, speed)


def _tuned(settings: Settings, builder: EvaluatorBuilder, stored: Stored | None, comm: Comm) -> tuple[Settings, str]:
    """The settings in the fastest mode, as rank 0 has measured it or the file records it; and what was measured."""
    choice: dict[str, Any] = {}
    text = ""
    if stored is not None:
        choice, text = recorded(stored.attributes, settings.for_speed)
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


def _nothing_to_do(plan: Plan, device: torch.device, threads: int, writer: type[Writer], comm: Comm) -> bool:
    """Tell of the plan; whether that was all, since there is no point to do, or none was wanted."""
    ranks = comm.allgather((os.uname().nodename, describe(device)))
    shared = max(comm.allgather(shared_gpus(comm, device)))
    if comm.is_root:
        announce(plan, ranks, threads, writer)
    if shared > 1:
        log.warning("%d ranks share one GPU; start one rank per GPU", shared)
    if plan.output.dry_run:
        points = Strided(plan.unfinished, comm.rank, comm.size).next(plan.evaluator.execution.points)
        tried = [plan.grid.point(int(point)) for point in points] or [plan.grid.point(0)]
        dry_run(plan, comm.allgather(measure_point(plan, tried, comm.local_size)))
        return True
    if not len(plan.unfinished):
        log.info(f"{plan.path} is complete{failed_note(plan.stored)}; --overwrite starts again")
        return True
    return False


def _evaluate(plan: Plan, kind: type[Writer], control: Control) -> int:
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

    campaign = Campaign(
        Strided(points, comm.rank, comm.size),
        Attempts(
            *(plan.evaluator, plan.grid, partial(store_arrays, quantities=plan.quantities), patience),
            record=plan.evaluation.on_error == "record",
            check=writer.check,
            turn_to=turning(plan),
        ),
        writer,
        plan.nan_values,
        reporter.found,
        lambda: control.stops,
        on_points,
    )
    try:
        stopping = control.signals.stopping(writer.check, plan.sets.awaited, lambda: control.patience)
        with stopping, writing(writer):
            campaign.run()
    finally:
        progress.close()
    return control.stop_code
