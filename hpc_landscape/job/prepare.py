"""What the ranks prepare together before the first point; each step raises a UserError on all ranks alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ..directions.recipes import make_directions
from ..errors import UserError
from ..evaluate.evaluator import Evaluator
from ..grid import Grid
from ..metrics import Accuracy, Loss, Metric
from ..model_interface import state
from ..parallel.comm import Comm
from ..parallel.device import one_thread
from ..problems.checkpoint import load_checkpoint
from ..problems.data import Batches, prepare
from ..problems.problem import Problem, user_traceback
from ..progress import duration
from ..settings import Settings
from ..store import layout
from ..store.lock import exclusive
from .report import Say


def see_output(settings: Settings, comm: Comm, stack: ExitStack) -> layout.Stored | None:
    """What the output holds, on every rank; None where a new file is to be made. Rank 0 locks it."""
    stored = None
    with comm.together():
        if comm.is_root:
            path = settings.output
            folder = os.path.dirname(os.path.abspath(path))
            if not os.path.isdir(folder):
                raise UserError(f"--output {path}: there is no directory {folder}")
            if os.path.isdir(path):
                raise UserError(f"--output {path}: is a directory; give a file name")
            if not settings.dry_run:
                if not os.access(folder, os.W_OK) or (os.path.exists(path) and not os.access(path, os.W_OK)):
                    raise UserError(f"--output {path}: no permission to write there")
                stack.enter_context(exclusive(path))
            if os.path.exists(path):
                stored = layout.read(path)  # with --overwrite too: what is not ours, or damaged, is never written to
                if settings.overwrite:
                    stored = None
    return comm.bcast(stored)


def share_weights(settings: Settings, problem: Problem, stored: layout.Stored | None, comm: Comm, say: Say) -> None:
    """Rank 0's weights, trained, loaded or as built, for every rank."""
    model = problem.model
    with comm.together():
        if comm.is_root and settings.checkpoint is not None:
            load_checkpoint(settings.checkpoint, model, settings.weights_only)
            say(f"weights      {settings.checkpoint}")
        elif comm.is_root and problem.train is not None:
            _train(problem, settings, stored, say)
    tensors = state.state(model)
    shapes = comm.allgather([(name, tuple(t.shape), str(t.dtype)) for name, t in tensors.items()])
    if any(other != shapes[0] for other in shapes):
        raise UserError("the problem's factory makes another model on another rank: it must make the same on all")
    state.broadcast(tensors.values(), comm)


def _train(problem: Problem, settings: Settings, stored: layout.Stored | None, say: Say) -> None:
    if stored is not None and stored.has_model:
        try:
            state.fill(state.state(problem.model), layout.read_arrays(settings.output, "model"))
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{settings.output} holds another model ({error.args[0]}): give the settings it was made with, "
                "choose another --output, or --overwrite"
            ) from None
        say(f"weights      as trained before, from {settings.output}")
        return
    start = time.monotonic()
    with one_thread():
        problem.train(problem.model)
    score = f": {problem.score(problem.model)}" if problem.score else ""
    say(f"weights      trained in {duration(time.monotonic() - start)}{score}")


def read_data(settings: Settings, problem: Problem, comm: Comm, say: Say) -> tuple[Batches, Batches, dict[str, str]]:
    """(evaluation batches, warm-up batches, their checksums), after every rank has been seen to hold the same."""
    same = problem.warmup_data is None and settings.warmup_samples == settings.samples

    def prepared(given: Any, count: int | None, what: str) -> Batches:
        try:
            batches = prepare(given, settings.batch_size, count, settings.seed, what, say)
            batches.check(what)
            return batches
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"reading the problem's {what} raised {user_traceback(error)}") from None

    with comm.together():
        data = prepared(problem.data, settings.samples, "data")
        warmup_data = data
        if not same:
            given = problem.data if problem.warmup_data is None else problem.warmup_data
            warmup_data = prepared(given, settings.warmup_samples, "warm-up data")
    hashes = {"sha256_data": _agreed_hash(data, "data", comm)}
    hashes["sha256_warmup_data"] = hashes["sha256_data"] if same else _agreed_hash(warmup_data, "warm-up data", comm)
    return data, warmup_data, hashes


def _agreed_hash(batches: Batches, what: str, comm: Comm) -> str:
    """Rank 0's checksum; UserError where another rank holds other data (all of it is read once per node)."""
    with comm.together():
        quick = batches.quick_hash()
        full = batches.full_hash() if comm.local_rank == 0 and batches.bytes else None  # else the quick one is all
    seen = comm.allgather((quick, full))
    if any(q != seen[0][0] or f not in (None, seen[0][1]) for q, f in seen):
        raise UserError(
            f"the ranks hold different {what}: the factory must make the same on every rank; seed what it draws or "
            "shuffles, and leave out random augmentation"
        )
    return seen[0][1] or seen[0][0]


def share_directions(
    settings: Settings, problem: Problem, grid: Grid, stored: layout.Stored | None, comm: Comm
) -> list[dict[str, Tensor]]:
    """Rank 0's directions, made or read from the file that is gone on with, for every rank."""
    weights = {name: w.cpu() for name, w in state.parameters(problem.model).items() if w.is_floating_point()}
    directions = [{name: torch.zeros_like(w) for name, w in weights.items()} for _ in grid.axes]
    with comm.together():
        if comm.is_root and stored is not None and stored.has_directions and len(stored.grid.axes) == len(grid.axes):
            for axis, direction in zip(grid.names, directions, strict=True):
                try:
                    state.fill(direction, layout.read_arrays(settings.output, f"directions/{axis}"))
                except (KeyError, ValueError) as error:
                    raise UserError(
                        f"{settings.output} holds directions of another model ({error.args[0]}); choose another "
                        "--output, or --overwrite"
                    ) from None
        elif comm.is_root:
            directions = make_directions(settings, weights, len(grid.axes))
    state.broadcast((d for direction in directions for d in direction.values()), comm)
    return directions


METRICS: dict[str, Callable[[Evaluator], Metric]] = {
    "loss": lambda evaluator: Loss(evaluator.loss),
    "accuracy": lambda evaluator: Accuracy(),
}


def check_metrics(settings: Settings) -> None:
    """Raise UserError where a metric is asked for that there is not."""
    for name in settings.metric_names:
        if name not in METRICS:
            raise UserError(f"--metrics {name}: there is no such metric; there are {', '.join(METRICS)}")


def choose_metrics(settings: Settings, problem: Problem, evaluator: Evaluator, comm: Comm, say: Say) -> list[Metric]:
    """The metrics asked for; by default loss, and accuracy where the targets are class indices."""
    names = settings.metric_names or list(METRICS)
    applies = True
    with comm.together():
        if comm.is_root:  # one forward pass also tells early whether model and data fit
            try:
                output, target, loss = evaluator.first_batch()
            except UserError:
                raise
            except Exception as error:
                raise UserError(f"the problem fails on its first batch: {user_traceback(error)}") from None
            Loss(lambda *_: loss).batch_mean(output, target)
            applies = Accuracy.applies(output, target)
            if not applies and "accuracy" in settings.metric_names:
                raise UserError("--metrics accuracy: needs class scores (n, classes, ...) and class indices (n, ...)")
    if not comm.bcast(applies):
        if not settings.metric_names:
            say("accuracy is left out: the targets are no class indices")
        names = [name for name in names if name != "accuracy"]
    return [METRICS[name](evaluator) for name in names]
