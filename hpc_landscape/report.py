"""What a run tells the person who started it."""

from __future__ import annotations

import importlib.util
import logging
import math
import resource
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.modules.batchnorm import _NormBase

from . import console
from .campaign.capacity import bytes_of, free
from .campaign.directions import moving
from .campaign.plan import Plan
from .directions.base import DEVICE, HOST, SEED
from .directions.normalize import standing
from .directions.registry import direction_kind
from .errors import COMPLETE, FAILED, NO_PROGRESS, STOPPED, UserError
from .evaluate.exactness import is_plain
from .model import state
from .model.norms import Norms, keeps_statistics
from .model.numbers import can_move
from .model.rest import notes_on_rest
from .progress import duration, size
from .ranks.base import Comm
from .ranks.signals import time_to_finish
from .store import layout
from .store.exactness import told
from .store.refinement import names
from .store.writer import Writer

log = logging.getLogger(__name__)
LONG = 10.0  # seconds
KEPT = {DEVICE: "", HOST: ", in host memory, brought over at each point", SEED: ", drawn again at each point"}
RETRY = "--retry_failed computes them again"


class RankZero(logging.Handler):
    """Brings what is logged to standard output, on rank 0 alone; warnings are called so."""

    def __init__(self, comm: Comm):
        super().__init__()
        self.addFilter(lambda record: comm.is_root)

    def emit(self, record: logging.LogRecord) -> None:
        warning = "warning: " * (record.levelno >= logging.WARNING)
        console.say(warning + record.getMessage())


@contextmanager
def logging_on(comm: Comm) -> Iterator[None]:
    """What the program logs is said to whom has started it, meanwhile."""
    logger, handler = logging.getLogger(__package__), RankZero(comm)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.level, logger.propagate = logging.INFO, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


class Rank(NamedTuple):
    """What rank 0 learns of each: its node, its devices, and the seconds of the stages of its start."""

    node: str
    devices: str
    stages: Mapping[str, float]


def announce(plan: Plan, ranks: Sequence[Rank], threads: int, writer: type[Writer]) -> None:
    """The plan, before the first point; on rank 0."""
    n, asked = len(plan.unfinished), plan.directions_asked
    stored, vectors = plan.stored, plan.directions.vectors
    log.info(f"problem      {plan.problem.name}: {_data_text(plan)}, {_warm_text(plan)}")
    log.info(f"parameters   {_parameter_text(plan)}")
    angle = "" if plan.cosine is None else f", cosine {plan.cosine:.4f}"
    kind = direction_kind(asked.directions)
    seed = f", seed {asked.seed}" if kind.seeded else ""
    log.info(f"directions   {len(vectors)} {kind.recipe(asked)}{seed}{angle}{KEPT[plan.directions.memory]}")
    for note in _notes(plan):
        log.info("note         %s", note)
    taken = f", {plan.before} taken from {plan.taken.earlier.path}" if plan.taken else ""
    some = plan.tolerance is not None and n > 0  # of those that are left, the values so far say which
    to_do = f", at most {plan.grid.size - plan.before} still to do" if some else f", {n} still to do"
    log.info(f"grid         {plan.grid}, {plan.grid.size} points{taken}" + (to_do if stored or taken else ""))
    if plan.tolerance is not None:
        log.info(f"refinement   {plan.quantities[0].name} to {plan.tolerance:g} of its range; now {n} points")
    log.info(f"metrics      {', '.join(q.name for q in plan.quantities)}")
    if not is_plain(plan.evaluator) and not plan.stored:
        off = told(plan.execution_errors.attributes(), plan.grid.size)
        log.info(f"execution    {plan.evaluator.execution}" + f": {off}" * bool(off))
    if plan.advice:
        log.info(f"note         {plan.advice}")
    nodes = len({rank.node for rank in ranks})
    where = ", ".join(sorted({rank.devices for rank in ranks})[:8])
    steal = ", stealing" * (plan.steals and len(ranks) > 1)
    log.info(
        f"ranks        {len(ranks)} on {nodes} node{'s' * (nodes > 1)}, {where}, "
        f"{threads} thread{'s' * (threads > 1)} each, {_precision_text(plan)}{steal}"
    )
    if len(ranks) > 1:
        log.info(f"start-up     {start_text(ranks)}")
    log.info(f"writer       {writer.__name__} -> {plan.path}" + (" (going on)" if stored else ""))


def start_text(ranks: Sequence[Rank]) -> str:
    """Seconds of each stage on the slowest rank; and on the fastest, where that one is much faster."""
    parts = []
    for stage in ranks[0].stages:
        found = [(rank.stages.get(stage, 0.0), rank.node) for rank in ranks]
        (least, fast), (most, slow) = min(found), max(found)
        text = f"{stage} {duration(most)}"
        parts.append(text + f" on {slow}, {duration(least)} on {fast}" * (most > 2 * least + 1))
    return "; ".join(parts)


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
    asked, directions = plan.directions_asked, plan.directions
    scaled = asked.normalized in ("filter", "layer")
    if text := standing(directions.vectors, moving(plan.problem), plan.grid.names, scaled):
        remedy = "; --normalization none does not scale" if asked.normalized != "none" else ""
        biases = " (--ignore none lets biases move)" if asked.ignore == "biasbn" and not scaled else ""
        yield text + remedy + biases
    yield from notes_on_rest(plan.problem.wrapper, directions.rest, directions.stays)
    if directions.targets is not None and plan.evaluator.normalization.name == "running":
        yield "batch normalization has the statistics of the model at the origin everywhere (--bn running)"


def _precision_text(plan: Plan) -> str:
    """The precision asked for; where the model is not of 32 bits by itself, what it is."""
    own = plan.compute_dtype
    usual = set(own.split(", ")) <= {"float32", "complex64"} or plan.evaluator.precision not in ("fp32", "tf32")
    return plan.evaluator.precision if usual else f"{own}, as the model is"


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
    samples = (plan.sets.warmup and plan.sets.warmup.size) or "streamed"
    return f"batch normalization re-estimated at each point on {samples} samples{norms.shown}"


class Measured(NamedTuple):
    """What one rank has found in evaluating a point: seconds, bytes of memory and of GPU memory; ranks on its node."""

    seconds: float
    memory: int
    gpu: int
    on_node: int


def measure_point(plan: Plan, points: Sequence[Sequence[float]], on_node: int) -> Measured:
    """Evaluate points, as many as are evaluated together, on every rank at once: they share memory and cores."""
    with plan.evaluator.attached():
        seconds = []
        for _ in range(2):  # the first time also starts up kernels and workers, which a long one does not feel
            begin = time.monotonic()
            plan.evaluator.evaluate(points)
            seconds.append((time.monotonic() - begin) / len(points))
            if seconds[0] * len(points) > LONG:
                break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gpus = [device for device in plan.evaluator.devices if device.type == "cuda"]
    gpu = max(map(torch.cuda.max_memory_allocated, gpus), default=0)
    return Measured(min(seconds), peak, gpu, on_node)


def dry_run(plan: Plan, ranks: Sequence[Measured], teams: int) -> None:
    """The plan: points per rank, memory and disk needed, and time, by what the ranks have measured.

    teams: that the ranks are put together in; each of a team's takes its part of a point.
    """
    slowest, memory, gpu, node = (max(values) for values in zip(*ranks, strict=True))
    slowest *= teams / len(ranks)
    most = -(-len(plan.unfinished) // teams)
    each = [rank.seconds for rank in ranks] if teams == len(ranks) else [slowest] * teams
    total = makespan(len(plan.unfinished), each, plan.steals)
    on_node = f", {size(node * memory)} on a node of {node}" if node > 1 else ""
    disk, free_disk = sum(bytes_of(plan).values()), free(plan.path)
    there = "there already" if plan.stored else f"{size(free_disk)} are free there" if math.isfinite(free_disk) else ""
    kind = "rank" if teams == len(ranks) else "team"
    log.info(f"points       {most} on the busiest of {teams} {kind}{'s' * (teams > 1)}")
    what = (
        f"these {len(plan.unfinished)} points; how many follow, their values tell" if plan.tolerance else "all points"
    )
    log.info(f"time         {duration(slowest)} a point, about {duration(total)} for {what}")
    log.info(f"memory       {size(memory)} per rank{on_node}" + (f", {size(gpu)} on its GPU" if gpu else ""))
    log.info(f"disk         about {size(disk)}" + (f", {there}" if there else ""))
    log.info("dry run: nothing was written")


def makespan(points: int, seconds: Sequence[float], steals: bool) -> float:
    """How long so many equal points take on ranks that take so many seconds for one, each of them at its own speed."""
    if steals and points:
        return max(*seconds, points / sum(1 / s for s in seconds))
    return max(seconds) * -(-points // len(seconds))


def finish(plan: Plan, stop_code: int, seconds: float, grace: float | None) -> int:
    """Say where the results are and what they say; draw the picture. Returns the exit code."""
    path = plan.path
    done = layout.read_values(path, layout.DONE).astype(bool)
    marked = plan.stored is None or plan.stored.failed is not None  # else the file is of an older version
    failed = layout.read_values(path, layout.FAILED).astype(bool) if marked else np.zeros_like(done)
    if failed.any():
        log.info(f"failed       {_failed_text(plan, failed)}")
    ready = plan.finished(done, failed)
    refined = plan.tolerance is not None
    missing = len(plan.unfinished) if refined else not done.all()
    if missing or (stop_code and not refined and not ready.all()):
        return stopped(plan, int(ready.sum()), stop_code, grace)
    points = f"{int(done.sum())} of {done.size}" if refined else done.size
    log.info(f"finished     {points} points in {duration(seconds)}, in {path}")
    name = plan.quantities[0].name
    for metric, summary in layout.read(path).refined.items():
        log.info(f"others       {metric} {summary}")
    if not plan.quantities[0].shape:
        values = layout.read_values(path, name)
        everywhere = layout.read_values(path, names(name)[0]) if refined else values
        centre = plan.grid.nearest((0.0,) * len(plan.grid.axes))
        log.info(f"centre       {name} {everywhere.flat[centre]:.6g} at {plan.grid.text_of(centre)}")
        if np.isfinite(values).any():
            low = int(np.nanargmin(np.where(np.isfinite(values), values, np.inf)))
            log.info(f"minimum      {name} {values.flat[low]:.6g} at {plan.grid.text_of(low)}")
        if broken := int((~np.isfinite(values[done])).sum()):
            log.info(f"note         {broken} values are NaN or infinite: results, stored as they are")
    picture = _draw(plan)
    log.info("next" + (f"         look at {picture}, or:" if picture else ""))
    log.info(f"  python -m hpc_landscape info {shlex.quote(path)}")
    surface = " --kind surface" if len(plan.grid.axes) == 2 and min(plan.grid.shape) > 1 else ""
    log.info(f"  python -m hpc_landscape plot {shlex.quote(path)}{surface}")
    return COMPLETE


def _failed_text(plan: Plan, failed: np.ndarray) -> str:
    where = np.flatnonzero(failed)
    shown = ", ".join(plan.grid.text_of(int(point)) for point in where[:3]) + ", ..." * (len(where) > 3)
    return f"{len(where)} points have raised an error: NaN, and 1 in '{layout.FAILED}'; at {shown}; {RETRY}"


def failed_note(stored: layout.Stored | None) -> str:
    """Of a complete file: how many points of it have failed; nothing where none has."""
    count = 0 if stored is None or stored.failed is None else int(stored.failed.sum())
    return f", but {count} points have raised an error and are NaN: {RETRY}" if count else ""


def stopped(plan: Plan, done: int, code: int, grace: float | None, abandoned: float | None = None) -> int:
    """Say what there is; returns the exit code: FAILED where the allocation was over and has brought nothing.

    abandoned: seconds after the stop at which the points in hand are given up.
    """
    total, path = plan.grid.size, plan.path
    if abandoned is not None:
        log.info(f"abandoned    points in hand, {abandoned:.3g} s after the stop")
    log.info(f"stopped      {done} of {total} points are in {path}; the same command goes on from there")
    if grace is not None and code == STOPPED and done == plan.before:
        console.notice(f"failed: {NO_PROGRESS}")
        return FAILED
    return code or FAILED


def without_root(plan: Plan) -> None:
    """What another rank says where rank 0 does not answer."""
    text = f"rank 0 does not answer; what the others have finished is in {plan.path}, if they can see it"
    console.notice(f"stopped: {text}; the same command goes on from there")


def warn_if_long(grace: float | None, seconds: float, points: int) -> None:
    """Warn where the points that are in hand when a stop comes may be lost; seconds: what one of them took."""
    if grace is not None and seconds * points > time_to_finish(grace):
        what = "the first point" if points == 1 else f"the first {points} points, which are evaluated together,"
        log.warning(
            f"{what} took {duration(seconds * points)}; with --grace {grace:g} a stop leaves "
            f"{duration(time_to_finish(grace))} to finish: then the points in hand are given up; give the "
            "job's --signal (and --grace) more time"
        )


def _draw(plan: Plan) -> str | None:
    if not plan.output.plot or importlib.util.find_spec("matplotlib") is None:
        return None
    from .view.plot import plot

    try:
        return plot(plan.path)
    except Exception as error:  # the landscape is complete all the same
        log.info(f"no picture   {error if isinstance(error, UserError) else f'{type(error).__name__}: {error}'}")
        return None
