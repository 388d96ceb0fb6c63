"""The batch program: settings -> problem -> directions -> grid -> points -> file -> picture."""

from __future__ import annotations

import dataclasses
import time
from contextlib import ExitStack

import numpy as np
import torch

from .campaign.data import read_data
from .campaign.norms import broadcast_norms
from .campaign.share import one_copy
from .data.data import Data
from .errors import COMPLETE, Stopped
from .evaluate.build import EvaluatorBuilder
from .evaluate.evaluator import Evaluator
from .evaluate.normalization import choose_normalization
from .evaluate.tune import recorded, tune
from .grid import strided
from .job.again import compute_again, environment
from .job.capacity import check_plan
from .job.directions import broadcast_directions, locate, make_grid, project_trajectory
from .job.failures import Failure, Reporter, evaluate, nan_values, watch
from .job.identity import made_of
from .job.metrics import check_metrics, choose_metrics, execution_errors
from .job.plan import Plan, lay_out
from .job.prepare import broadcast_weights, open_or_create
from .job.report import Say, announce, dry_run, failed_note, finish, stopped, warn_if_long, without_root
from .metrics.registry import MetricRegistry
from .objects import script_alone
from .problems.registry import load_problem
from .progress import Progress
from .ranks.comm import Comm
from .ranks.control import Control
from .ranks.device import (
    check_precision,
    check_same_device_type,
    choose_device,
    emulated,
    keep_memory,
    name_rank,
    set_threads,
)
from .ranks.orphans import end_children_with_us
from .ranks.signals import Signals
from .ranks.torch_state import as_before
from .settings import Settings
from .store.layout import Stored
from .store.store import choose_writer, fall_back
from .store.writer import Writer


def run(settings: Settings, comm: Comm) -> int:
    """Compute, or go on with, the landscape that the settings describe; returns the exit code.

    Every rank of comm calls it. UserError, on all ranks alike, where the user can mend what is wrong.
    """
    with ExitStack() as stack, Signals(comm, settings.grace) as signals, as_before():
        say = Say(comm)
        start = time.monotonic()

        # See what there is to go on with, and keep other runs out
        stored = open_or_create(settings, comm, stack, say)

        # Choose writer, device and threads; refuse what cannot be had before anything is computed
        with comm.raise_on_all_ranks():
            writer = choose_writer(settings.writer, comm)
            device = choose_device(settings.device, comm.local_rank, name_rank(comm))
            check_precision(settings.precision, device)
        check_same_device_type(comm, device)
        settings, trajectory = locate(settings, comm)
        set_threads(comm)
        if note := emulated(settings.precision, device):
            say(note)
        end_children_with_us()
        stack.enter_context(script_alone(settings.problem.rpartition(":")[0]))  # data-loading workers import it again
        if device.type == "cpu":
            keep_memory()

        # Make the problem: model and data on every rank, weights from rank 0
        with comm.raise_on_all_ranks():
            problem = load_problem(settings.problem, settings.problem_arguments)
            problem.wrapper.restrict(settings.include, settings.exclude, settings.trainable)
            is_additive = check_metrics(settings, problem)
        threads = torch.get_num_threads()  # the factory may have set it
        with comm.raise_on_all_ranks():
            brought = made_of(settings, problem) if comm.is_root else {}  # before anything of it is called, or trained
        broadcast_weights(settings, problem, stored, comm, say)
        policy = choose_normalization(settings.bn, problem.wrapper)
        sets = read_data(
            problem, settings.for_evaluation, settings.seed, settings.resident, policy.reads_data, comm, say, device
        )
        broadcast_norms(problem, sets, policy, settings.precision, settings.seed, device, comm, say)

        # Make the directions on rank 0, and broadcast them
        directions = broadcast_directions(settings, problem, sets, stored, trajectory, device, comm, say)
        grid = make_grid(settings, problem, directions)

        # Put it all on the device
        policy = choose_normalization(settings.bn, problem.wrapper, sets.warmup is not None)
        points = -(-grid.size // comm.size)
        builder = EvaluatorBuilder(
            *(problem, sets, directions, device, policy, settings.precision, settings.seed, settings.for_speed),
            is_additive=is_additive,
            points=points,
        )
        settings, tuned = _tuned(settings, builder, stored, comm, say)
        evaluator, data = _chosen(builder, comm, say)
        quantities = choose_metrics(settings, evaluator, MetricRegistry(problem, data, builder.loss), comm, say)
        there = environment(comm, device)
        plan = Plan(settings, problem, grid, directions, evaluator, quantities, sets, stored, brought, there, tuned)
        with comm.raise_on_all_ranks():
            if comm.is_root and stored is None:
                plan.trajectory = project_trajectory(settings, problem, trajectory, directions, grid, say)
                plan.execution_errors = execution_errors(plan, builder)

        # Lay out the file, or check that the one there is of this very run
        with comm.raise_on_all_ranks():
            if comm.is_root:
                check_plan(plan, comm.local_size)
                lay_out(plan, comm)
        announce(plan, comm, say, device, threads, writer)
        unfinished = comm.bcast(plan.unfinished)
        if settings.dry_run:
            dry_run(plan, comm, say)
            return COMPLETE
        if not len(unfinished):
            say(f"{settings.output} is complete{failed_note(stored)}; --overwrite starts again")
            return COMPLETE
        plan.release()
        with comm.raise_on_all_ranks():
            if comm.is_root:
                compute_again(plan)
        writer = fall_back(writer, settings.output, comm, say)

        # Evaluate this rank's share
        mine = strided(unfinished, comm.rank, comm.size)
        control = Control(comm, signals, settings.grace)
        stop_code = _evaluate(plan, mine, len(unfinished), writer, control, say)

        # Say how it went
        return comm.bcast(finish(plan, stop_code, time.monotonic() - start, say) if comm.is_root else None)


def _tuned(
    settings: Settings, builder: EvaluatorBuilder, stored: Stored | None, comm: Comm, say: Say
) -> tuple[Settings, str]:
    """The settings in the fastest mode, as rank 0 has measured it or the file records it; and what was measured."""
    if not settings.tune:
        return settings, ""
    if stored is not None:
        choice, text = recorded(stored.attributes)
    else:
        most = min(comm.allgather(builder.room(_sharers(builder, comm))))
        choice, text = comm.from_root(lambda: tune(builder, most))
        say(f"tuned        {text}")
    settings = settings.replaced(tune=False, **choice)
    builder.speed = settings.for_speed
    return settings, text


def _chosen(builder: EvaluatorBuilder, comm: Comm, say: Say) -> tuple[Evaluator, dict[str, Data]]:
    """The evaluator in the first mode that works, the same on every rank, and the evaluation sets.

    There is a note where it is not the mode that was asked for.
    """
    candidates = builder.candidates()
    chosen, why = comm.from_root(builder.first_that_works)
    if candidates[chosen] != candidates[0]:
        say(f"execution    {candidates[chosen]}, since this model cannot be evaluated as asked for: {why}")
    most = min(comm.allgather(builder.room(_sharers(builder, comm))))
    mode = dataclasses.replace(candidates[chosen], interleaved=builder.interleaved(most))
    here = builder.data(mode)
    if builder.device.type == "cpu":
        here = here.each(lambda batches: one_copy(batches, comm))
    return builder.build(mode, here)


def _sharers(builder: EvaluatorBuilder, comm: Comm) -> int:
    """The ranks that share the memory of points."""
    return builder.sets.sharers if builder.device.type == "cuda" else comm.local_size


def _evaluate(plan: Plan, points: np.ndarray, unfinished: int, kind: type[Writer], control: Control, say: Say) -> int:
    """Evaluate this rank's points, and bring them to the file; returns the agreed code of a stop, 0 without one."""
    comm = control.comm
    progress = Progress(plan.grid.size, plan.grid.size - unfinished) if comm.is_root else None
    reporter = Reporter(plan.grid)
    writer = kind(plan.settings.output, comm, lambda n: progress.update(progress.done + n), reporter.hear, control)
    control.on_abandon = lambda after: stopped(plan, progress.done, control.stop_code, say, after)
    control.on_silence = lambda: without_root(plan)
    stopping = control.signals.stopping(writer.check, plan.sets.awaited, lambda: control.patience)
    try:
        watch(plan, writer, reporter)
        with stopping, plan.evaluator.attached(), writer:
            size = plan.evaluator.execution.points
            for block in (points[i : i + size] for i in range(0, len(points), size)):
                if control.stops:
                    break
                start = time.perf_counter()
                try:
                    found = evaluate(plan, writer, block)
                except Stopped:  # in a stream that may have no end
                    break
                taken = time.perf_counter() - start
                control.longest = max(control.longest, taken)
                if block[0] == points[0]:
                    warn_if_long(plan.settings, taken / len(block), len(block), say)
                for point, values in zip(block, found, strict=True):
                    if isinstance(values, Failure):
                        reporter.found(writer, int(point), values)
                        writer.put(int(point), taken / len(block), nan_values(plan), failed=True)
                    else:
                        writer.put(int(point), taken / len(block), values)
    finally:
        if progress is not None:
            progress.close()
    return control.stop_code
