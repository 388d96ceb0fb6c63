"""What a run tells the person who started it."""

from __future__ import annotations

import importlib.util
import math
import os
import resource
import shlex
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch.nn.modules.batchnorm import _NormBase

from .. import said
from ..directions.normalize import cosine, standing
from ..directions.registry import direction_kind
from ..errors import COMPLETE, FAILED, NO_PROGRESS, STOPPED, UserError
from ..grid import strided
from ..model import state
from ..model.norms import Norms, keeps_statistics
from ..model.numbers import can_move
from ..model.rest import told
from ..progress import duration, size
from ..ranks.comm import Comm
from ..ranks.device import describe, shared_gpus
from ..ranks.signals import time_to_finish
from ..settings import Settings
from ..store import layout
from ..store.writer import Writer
from .capacity import bytes_of, free
from .directions import moving
from .failures import place
from .plan import Plan

LONG = 10.0  # seconds
RETRY = "--retry_failed computes them again"


class Say:
    """Speaks on rank 0 alone."""

    def __init__(self, comm: Comm):
        self.comm = comm

    def __call__(self, text: str) -> None:
        if self.comm.is_root:
            said.say(text)


def announce(plan: Plan, comm: Comm, say: Say, device: torch.device, threads: int, writer: type[Writer]) -> None:
    settings, n = plan.settings, len(plan.unfinished)
    devices = comm.allgather((os.uname().nodename, describe(device)))
    shared = max(comm.allgather(shared_gpus(comm, device)))
    stored, vectors = plan.stored, plan.directions.vectors
    say(f"problem      {plan.problem.name}: {_data_text(plan)}, {_warm_text(plan)}")
    say(f"parameters   {_parameter_text(plan)}")
    angle = f", cosine {cosine(*vectors[:2]):.4f}" if comm.is_root and len(vectors) > 1 else ""
    kind = direction_kind(settings.directions)
    seed = f", seed {settings.seed}" if kind.seeded else ""
    say(f"directions   {len(vectors)} {kind.recipe(settings)}{seed}{angle}")
    if comm.is_root:
        for note in _notes(plan):
            say(f"note         {note}")
    say(f"grid         {plan.grid}, {plan.grid.size} points" + (f", {n} still to do" if stored else ""))
    say(f"metrics      {', '.join(q.name for q in plan.quantities)}")
    if not plan.evaluator.execution.exact and not plan.stored:
        say(f"execution    {plan.evaluator.execution}{_execution_text(plan)}")
    nodes = len({node for node, _ in devices})
    where = ", ".join(sorted({name for _, name in devices})[:8])
    say(
        f"ranks        {comm.size} on {nodes} node{'s' * (nodes > 1)}, {where}, "
        f"{threads} thread{'s' * (threads > 1)} each, {_precision_text(plan)}"
    )
    say(f"writer       {writer.__name__} -> {settings.output}" + (" (going on)" if stored else ""))
    if shared > 1:
        say(f"warning: {shared} ranks share one GPU; start one rank per GPU")


def _execution_text(plan: Plan) -> str:
    errors = [f"{name} off by about {error:.2g}" for name, error in plan.execution_errors.estimates.items()]
    return f": {', '.join(errors)} (estimated at {len(plan.execution_errors.points)} points)" if errors else ""


def _data_text(plan: Plan) -> str:
    sizes = [f"{b.size or 'streamed'} {name}".strip() for name, b in plan.sets.evaluation.items()]
    if not sizes:
        return "no data"
    points = plan.evaluator.execution.interleaved
    turns = f" (streamed, {points} points on each batch)" if points > 1 else " (streamed)" * plan.sets.streamed
    return f"{' and '.join(sizes)} samples{turns}"


def _parameter_text(plan: Plan) -> str:
    model = state.parameters(plan.problem.root)
    total, moved = (sum(t.numel() for t in tensors.values()) for tensors in (model, plan.directions.vectors[0]))
    chosen = dict(plan.problem.wrapper.named_parameters())
    frozen = sum(chosen[name].numel() for name in plan.directions.vectors[0] if not chosen[name].requires_grad)
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in chosen.values() if not can_move(p)})
    words = [
        f"{moved:,} can move" + (f" ({', '.join(kinds)} cannot)" if kinds else "") if moved < total else "",
        f"{frozen:,} are frozen (requires_grad=False) and move all the same; --trainable leaves them" if frozen else "",
    ]
    text = " and ".join(filter(None, words))
    return f"{total:,} in {len(model)} tensors" + (f", of which {text}" if text else "")


def _notes(plan: Plan) -> Iterator[str]:
    """What is to be known of the directions."""
    settings, directions = plan.settings, plan.directions
    scaled = settings.normalized in ("filter", "layer")
    if text := standing(directions.vectors, moving(plan.problem), plan.grid.names, scaled):
        remedy = "; --normalization none does not scale" if settings.normalized != "none" else ""
        biases = " (--ignore none lets biases move)" if settings.ignore == "biasbn" and not scaled else ""
        yield text + remedy + biases
    yield from told(plan.problem.wrapper, directions.rest, directions.stays)
    if directions.ends is not None and plan.evaluator.normalization.name == "running":
        yield "batch normalization has the statistics of the model at the origin everywhere (--bn running)"


def _precision_text(plan: Plan) -> str:
    """The precision asked for; where the model is not of 32 bits by itself, what it is."""
    own = plan.compute_dtype
    usual = set(own.split(", ")) <= {"float32", "complex64"} or plan.settings.precision not in ("fp32", "tf32")
    return plan.settings.precision if usual else f"{own}, as the model is"


def _warm_text(plan: Plan) -> str:
    bn, norms = plan.evaluator.normalization.name, plan.problem.wrapper.norms or Norms()
    if bn == "none":
        kept = any(map(keeps_statistics, plan.problem.root.modules()))
        if norms.others or kept:
            return f"batch normalization as in the checkpoint{norms.shown}"
        own = any(isinstance(module, _NormBase) for module in plan.problem.root.modules())
        return "batch normalization by each batch's own statistics alone" if own else "no batch normalization"
    if bn != "warmup":
        return f"batch normalization: {bn}{norms.shown}"
    samples = plan.sets.warmup.size or "streamed"
    return f"batch normalization re-estimated at each point on {samples} samples{norms.shown}"


def dry_run(plan: Plan, comm: Comm, say: Say) -> None:
    """The plan: points per rank, memory and disk needed, and time, from one point evaluated on every rank at once."""
    mine = strided(plan.unfinished, comm.rank, comm.size)[: plan.evaluator.execution.points]
    points = [plan.grid.point(int(point)) for point in mine] or [plan.grid.point(0)]
    with plan.evaluator.attached():
        seconds = []
        for _ in range(2):  # the first time also starts up kernels and workers, which a long one does not feel
            begin = time.monotonic()
            plan.evaluator.evaluate(points)
            seconds.append((time.monotonic() - begin) / len(points))
            if seconds[0] * len(points) > LONG:
                break
    slowest = max(comm.allgather(min(seconds)))
    most = -(-len(plan.unfinished) // comm.size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    memory = max(comm.allgather(peak))
    gpu = max(comm.allgather(torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0))
    node = max(comm.allgather(comm.local_size))
    on_node = f", {size(node * memory)} on a node of {node}" if node > 1 else ""
    disk, free_disk = sum(bytes_of(plan).values()), free(plan.settings.output)
    there = "there already" if plan.stored else f"{size(free_disk)} are free there" if math.isfinite(free_disk) else ""
    say(f"points       {most} on the busiest of {comm.size} rank{'s' * (comm.size > 1)}")
    say(f"time         {duration(slowest)} a point, about {duration(slowest * most)} for all points")
    say(f"memory       {size(memory)} per rank{on_node}" + (f", {size(gpu)} on its GPU" if gpu else ""))
    say(f"disk         about {size(disk)}" + (f", {there}" if there else ""))
    say("dry run: nothing was written")


def finish(plan: Plan, stop_code: int, seconds: float, say: Say) -> int:
    """Say where the results are and what they say; draw the picture. Returns the exit code."""
    path = plan.settings.output
    done = layout.read_values(path, layout.DONE).astype(bool)
    marked = plan.stored is None or plan.stored.failed is not None  # else the file is of an older version
    failed = layout.read_values(path, layout.FAILED).astype(bool) if marked else np.zeros_like(done)
    if failed.any():
        say(f"failed       {_failed_text(plan, failed)}")
    ready = plan.finished(done, failed)
    if not done.all() or (stop_code and not ready.all()):
        return stopped(plan, int(ready.sum()), stop_code, say)
    say(f"finished     {done.size} points in {duration(seconds)}, in {path}")
    name = plan.quantities[0].name
    if not plan.quantities[0].shape:
        values = layout.read_values(path, name)
        centre = plan.grid.nearest((0.0,) * len(plan.grid.axes))
        say(f"centre       {name} {values.flat[centre]:.6g} at {place(plan.grid, centre)}")
        if np.isfinite(values).any():
            low = int(np.nanargmin(np.where(np.isfinite(values), values, np.inf)))
            say(f"minimum      {name} {values.flat[low]:.6g} at {place(plan.grid, low)}")
        if broken := int((~np.isfinite(values)).sum()):
            say(f"note         {broken} values are NaN or infinite: results, stored as they are")
    picture = _draw(plan, say)
    say("next" + (f"         look at {picture}, or:" if picture else ""))
    say(f"  python -m hpc_landscape info {shlex.quote(path)}")
    surface = " --kind surface" if len(plan.grid.axes) == 2 and min(plan.grid.shape) > 1 else ""
    say(f"  python -m hpc_landscape plot {shlex.quote(path)}{surface}")
    return COMPLETE


def _failed_text(plan: Plan, failed: np.ndarray) -> str:
    where = np.flatnonzero(failed)
    shown = ", ".join(place(plan.grid, int(point)) for point in where[:3]) + ", ..." * (len(where) > 3)
    return f"{len(where)} points have raised an error: NaN, and 1 in '{layout.FAILED}'; at {shown}; {RETRY}"


def failed_note(stored: layout.Stored) -> str:
    """Of a complete file: how many points of it have failed; nothing where none has."""
    count = 0 if stored.failed is None else int(stored.failed.sum())
    return f", but {count} points have raised an error and are NaN: {RETRY}" if count else ""


def stopped(plan: Plan, done: int, code: int, say: Say, abandoned: float | None = None) -> int:
    """Say what there is; returns the exit code: FAILED where the allocation was over and has brought nothing.

    abandoned: seconds after the stop at which the points in hand are given up.
    """
    total, path = plan.grid.size, plan.settings.output
    if abandoned is not None:
        say(f"abandoned    points in hand, {abandoned:.3g} s after the stop")
    say(f"stopped      {done} of {total} points are in {path}; the same command goes on from there")
    if plan.settings.grace is not None and code == STOPPED and done == total - len(plan.unfinished):
        said.notice(f"failed: {NO_PROGRESS}")
        return FAILED
    return code or FAILED


def without_root(plan: Plan) -> None:
    """What another rank says where rank 0 does not answer."""
    text = f"rank 0 does not answer; what the others have finished is in {plan.settings.output}, if they can see it"
    said.notice(f"stopped: {text}; the same command goes on from there")


def warn_if_long(settings: Settings, seconds: float, points: int, say: Say) -> None:
    """Warn where the points that are in hand when a stop comes may be lost; seconds: what one of them took."""
    if settings.grace is not None and seconds * points > time_to_finish(settings.grace):
        what = "the first point" if points == 1 else f"the first {points} points, which are evaluated together,"
        say(
            f"warning: {what} took {duration(seconds * points)}; with --grace {settings.grace:g} a stop leaves "
            f"{duration(time_to_finish(settings.grace))} to finish: then the points in hand are given up; give the "
            "job's --signal (and --grace) more time"
        )


def _draw(plan: Plan, say: Say) -> str | None:
    if not plan.settings.plot or importlib.util.find_spec("matplotlib") is None:
        return None
    from ..view.plot import plot

    try:
        return plot(plan.settings.output)
    except Exception as error:  # the landscape is complete all the same
        say(f"no picture   {error if isinstance(error, UserError) else f'{type(error).__name__}: {error}'}")
        return None
