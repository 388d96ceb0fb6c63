"""The batch program: settings -> problem -> directions -> grid -> points -> file -> picture."""

from __future__ import annotations

import importlib.util
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from . import __version__
from .directions.normalize import cosine
from .directions.recipes import make_directions
from .errors import UserError
from .evaluate.evaluator import DTYPES, Evaluator, check_precision
from .grid import Grid, strided
from .metrics import Accuracy, Loss, Metric
from .model_interface import state
from .model_interface.batchnorm import batchnorm_layers
from .model_interface.subspace import Subspace
from .parallel.comm import Comm
from .parallel.device import choose_device, describe, set_threads, shared_gpus
from .problems.checkpoint import load_checkpoint
from .problems.data import Batches, prepare
from .problems.problem import Problem, load_problem, user_traceback
from .progress import Progress, duration
from .settings import Settings
from .store import layout
from .store.lock import exclusive
from .store.store import choose_writer, fall_back
from .store.writer import Writer

COMPLETE, STOPPED, INTERRUPTED = 0, 75, 130  # exit codes; 75 is EX_TEMPFAIL: start again to go on
KEEP_DIRECTIONS = 2**30  # bytes


def run(settings: Settings, comm: Comm) -> int:
    """Compute, or go on with, the landscape that the settings describe; returns the exit code.

    Every rank of comm calls it. UserError, on all ranks alike, where the user can mend what is wrong.
    """
    with ExitStack() as stack, signals_exit():
        say = Say(comm)
        start = time.monotonic()

        # See what there is to go on with, and keep other runs out
        stored = _existing(settings, comm, stack)
        if stored is not None and not len(stored.unfinished) and not settings.dry_run:
            say(f"{settings.output} is complete: {stored.grid.size} points. --overwrite starts again.")
            return COMPLETE

        # Choose devices and threads
        with comm.together():
            writer = choose_writer(settings.writer, comm)
            device = choose_device(settings.device, comm.local_rank)
            check_precision(settings.precision, device)
        threads = set_threads(comm)

        # Make the problem: every rank its model and data, rank 0 the weights
        with comm.together():
            problem = load_problem(settings.problem, settings.problem_arguments)
        grid = settings.grid(problem.axis)
        _weights(settings, problem, stored, comm, say)
        data, warmup_data, hashes = _data(settings, problem, comm, say)

        # Directions, from rank 0
        directions = _directions(settings, problem, grid, stored, comm)

        # Put it all on the device
        dtype = DTYPES.get(settings.precision)
        bn = settings.bn if batchnorm_layers(problem.model) else "none"
        subspace = Subspace(state.parameters(problem.model), directions, device, dtype)
        resident = data.to(device, dtype)
        evaluator = Evaluator(
            problem,
            subspace,
            resident,
            resident if warmup_data is data else warmup_data.to(device, dtype) if bn == "warmup" else (),
            bn,
            settings.precision,
        )
        evaluator.metrics = _metrics(settings, problem, evaluator, comm, say)

        # Say what will be done
        plan = Plan(settings, problem, grid, directions, evaluator, data, warmup_data, bn, hashes, stored)
        _announce(plan, comm, say, device, threads, writer)
        if settings.dry_run:
            _dry_run(plan, comm, say)
            return COMPLETE

        # Lay out the file, or check that the one there is of this very run
        with comm.together():
            if comm.is_root:
                _lay_out(plan, comm)
        unfinished = comm.bcast(plan.unfinished)
        writer = fall_back(writer, settings.output, comm, say)

        # Evaluate this rank's share
        stop_code = _evaluate(plan, strided(unfinished, comm.rank, comm.size), len(unfinished), writer, comm)

        # Say how it went
        return comm.bcast(_finish(plan, stop_code, time.monotonic() - start, say) if comm.is_root else None)


class Say:
    """Prints on rank 0 alone."""

    def __init__(self, comm: Comm):
        self.comm = comm

    def __call__(self, text: str) -> None:
        if self.comm.is_root:
            print(text, flush=True)


@dataclass
class Plan:
    """What will be computed: the parts of one run, and what its file says of them."""

    settings: Settings
    problem: Problem
    grid: Grid
    directions: list[dict[str, Tensor]]
    evaluator: Evaluator
    data: Batches
    warmup_data: Batches
    bn: str
    hashes: dict[str, str]
    stored: layout.Stored | None

    @property
    def unfinished(self) -> np.ndarray:
        return np.arange(self.grid.size) if self.stored is None else self.stored.unfinished

    @property
    def quantities(self) -> list[layout.Quantity]:
        return [layout.Quantity(m.name, m.shape, m.dims) for m in self.evaluator.metrics]

    @property
    def keeps_directions(self) -> bool:
        wanted = self.settings.save_directions
        return wanted if wanted is not None else self.direction_bytes <= KEEP_DIRECTIONS

    @property
    def keeps_model(self) -> bool:
        return self.settings.save_model or (self.problem.train is not None and self.settings.checkpoint is None)

    @property
    def direction_bytes(self) -> int:
        return sum(_bytes(direction) for direction in self.directions)

    def identity(self) -> dict[str, Any]:
        """What the values depend on: a run goes on with a file only where all of it is equal."""
        settings = self.settings
        trained = self.problem.train is not None and settings.checkpoint is None
        return {
            "sha256_model": state.sha256(state.state(self.problem.model)),
            **self.hashes,
            "sha256_directions": state.sha256(
                {f"{i}/{name}": d for i, direction in enumerate(self.directions) for name, d in direction.items()}
            ),
            "direction_recipe": f"{settings.directions} {settings.distribution} {settings.normalization} ignore "
            f"{settings.ignore}{' orthogonalized' if settings.orthogonalize else ''}",
            "seed": settings.seed,
            "metrics": ",".join(m.name for m in self.evaluator.metrics),
            "loss_function": repr(self.problem.loss) if isinstance(self.problem.loss, torch.nn.Module)
            else getattr(self.problem.loss, "__qualname__", type(self.problem.loss).__name__),
            "bn": self.bn,
            "batch_size": self.data.batch_size or 0,
            "warmup_batch_size": self.warmup_data.batch_size or 0,
            "precision": settings.precision,
            "trained_here": _one_line_dict(settings.problem_arguments) if trained else "no",
        }


# Before the points


@contextmanager
def signals_exit() -> Iterator[None]:
    """SIGTERM and SIGUSR1 end the program with its own exit code: before and after points there is nothing to save."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(STOPPED)

    with _handling({signal.SIGTERM: leave, signal.SIGUSR1: leave}):
        yield


@contextmanager
def _handling(handlers: dict[int, Any]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _existing(settings: Settings, comm: Comm, stack: ExitStack) -> layout.Stored | None:
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
            if os.path.exists(path) and not settings.overwrite:
                stored = layout.read(path)
    return comm.bcast(stored)


def _weights(settings: Settings, problem: Problem, stored: layout.Stored | None, comm: Comm, say: Say) -> None:
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
    start, threads = time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(1)  # the result must not depend on how many ranks share the machine
    try:
        problem.train(problem.model)
    finally:
        torch.set_num_threads(threads)
    score = f": {problem.score(problem.model)}" if problem.score else ""
    say(f"weights      trained in {duration(time.monotonic() - start)}{score}")


def _data(settings: Settings, problem: Problem, comm: Comm, say: Say) -> tuple[Batches, Batches, dict[str, str]]:
    """(evaluation batches, warm-up batches, their checksums), after every rank has been seen to hold the same."""
    same = problem.warmup_data is None and settings.warmup_samples is None

    def prepared(given: Any, count: int | None, what: str) -> Batches:
        batches = prepare(given, settings.batch_size, count, settings.seed, what, say)
        batches.check(what)
        return batches

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
        full = batches.full_hash() if comm.local_rank == 0 else None
    seen = comm.allgather((quick, full))
    if any(q != seen[0][0] or f not in (None, seen[0][1]) for q, f in seen):
        raise UserError(
            f"the ranks hold different {what}: the factory must make the same on every rank; seed what it draws or "
            "shuffles, and leave out random augmentation"
        )
    return seen[0][1]


def _directions(
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


def _metrics(settings: Settings, problem: Problem, evaluator: Evaluator, comm: Comm, say: Say) -> list[Metric]:
    """The metrics asked for; by default loss, and accuracy where the targets are class indices."""
    known = {"loss": lambda: Loss(problem.loss), "accuracy": Accuracy}
    names = settings.metric_names or list(known)
    for name in names:
        if name not in known:
            raise UserError(f"--metrics {name}: there is no such metric; there are {', '.join(known)}")
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
    return [known[name]() for name in names]


def _announce(plan: Plan, comm: Comm, say: Say, device: torch.device, threads: int, writer: type[Writer]) -> None:
    settings, n = plan.settings, len(plan.unfinished)
    devices = comm.allgather((os.uname().nodename, describe(device)))
    shared = max(comm.allgather(shared_gpus(comm, device)))
    model = state.parameters(plan.problem.model)
    stored = plan.stored
    say(f"problem      {plan.problem.name}: {plan.data.size or 'streamed'} samples, {_warm_text(plan)}")
    say(f"parameters   {sum(t.numel() for t in model.values()):,} in {len(model)} tensors")
    angle = f", cosine {cosine(*plan.directions[:2]):.4f}" if len(plan.directions) > 1 else ""
    say(f"directions   {len(plan.directions)} {plan.identity()['direction_recipe']}, seed {settings.seed}{angle}")
    say(f"grid         {plan.grid}, {plan.grid.size} points" + (f", {n} still to do" if stored else ""))
    say(f"metrics      {', '.join(m.name for m in plan.evaluator.metrics)}")
    nodes = len({node for node, _ in devices})
    where = ", ".join(sorted({name for _, name in devices})[:8])
    say(
        f"ranks        {comm.size} on {nodes} node{'s' * (nodes > 1)}, {where}, "
        f"{threads} thread{'s' * (threads > 1)} each, {settings.precision}"
    )
    say(f"writer       {writer.__name__} -> {settings.output}" + (" (going on)" if stored else ""))
    if shared > 1:
        say(f"warning: {shared} ranks share one GPU; start one rank per GPU, or see jobs/README.md on MPS")


def _warm_text(plan: Plan) -> str:
    if plan.bn == "none":
        return "no batch normalization"
    if plan.bn != "warmup":
        return f"batch normalization: {plan.bn}"
    return f"batch normalization re-estimated at each point on {plan.warmup_data.size or 'streamed'} samples"


def _lay_out(plan: Plan, comm: Comm) -> None:
    """A new file; or, where there is one to go on with, UserError that names what differs."""
    identity, settings = plan.identity(), plan.settings
    if plan.stored is not None:
        _check_same(plan.stored, identity, plan.grid, settings.output)
        return
    attributes = {
        **identity,
        **_provenance(comm),
        "settings": settings.to_yaml(),
        "problem": settings.problem,
        "title": plan.problem.name,
        "parameters": sum(t.numel() for t in state.parameters(plan.problem.model).values()),
    }
    if len(plan.directions) > 1:
        attributes["cosine"] = cosine(*plan.directions[:2])
    arrays = [state.arrays(direction) for direction in plan.directions] if plan.keeps_directions else []
    try:
        layout.create(
            settings.output,
            plan.grid,
            plan.quantities,
            attributes,
            dict(zip(plan.grid.names, arrays, strict=False)),
            state.arrays(state.state(plan.problem.model)) if plan.keeps_model else None,
        )
    except OSError as error:
        raise UserError(f"--output {settings.output}: cannot be written: {error}") from None


def _check_same(stored: layout.Stored, identity: dict[str, Any], grid: Grid, path: str) -> None:
    differs = []
    if [a.tolist() for a in stored.grid.coordinates] != [a.tolist() for a in grid.coordinates]:
        differs.append(f"grid ({stored.grid} there, {grid} here)")
    for name, value in identity.items():
        there = stored.attributes.get(name)
        if there != value:
            shown = "" if name.startswith("sha256") else f" ({there} there, {value} here)"
            differs.append(name.removeprefix("sha256_").replace("_", " ") + shown)
    if differs:
        raise UserError(
            f"{path} is of another run: {', '.join(differs)} differ{'s' if len(differs) == 1 else ''}; nothing is "
            "touched. Give the settings it was made with, choose another --output, or --overwrite"
        )


def _provenance(comm: Comm) -> dict[str, Any]:
    return {
        "program_version": __version__,
        "torch_version": str(torch.__version__),
        "numpy_version": np.__version__,
        "h5py_version": h5py.__version__,
        "hdf5_version": h5py.version.hdf5_version,
        "mpi_version": comm.library,
        "ranks": comm.size,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _dry_run(plan: Plan, comm: Comm, say: Say) -> None:
    """The plan: points per rank, memory and disk needed, and time, from one point evaluated on every rank at once."""
    mine = strided(plan.unfinished, comm.rank, comm.size)
    with plan.evaluator.attached():
        seconds = []
        for _ in range(2):  # the first one also starts up kernels and workers
            begin = time.monotonic()
            plan.evaluator(plan.grid.point(int(mine[0]) if len(mine) else 0))
            seconds.append(time.monotonic() - begin)
    slowest = max(comm.allgather(min(seconds)))
    most = -(-len(plan.unfinished) // comm.size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    memory = max(comm.allgather(peak))
    gpu = max(comm.allgather(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0))
    disk = plan.grid.size * (8 * (1 + sum(math.prod(q.shape) for q in plan.quantities)) + 1)
    disk += plan.direction_bytes * plan.keeps_directions
    disk += _bytes(state.state(plan.problem.model)) * plan.keeps_model
    say(f"points       {most} on the busiest of {comm.size} rank{'s' * (comm.size > 1)}")
    say(f"time         {duration(slowest)} a point, about {duration(slowest * most)} in all")
    say(f"memory       {_size(memory)} per rank" + (f", {_size(gpu)} on its GPU" if gpu else ""))
    say(f"disk         {_size(disk)}")
    say("dry run: nothing was written")


# The points


def _evaluate(plan: Plan, points: np.ndarray, unfinished: int, kind: type[Writer], comm: Comm) -> int:
    """Evaluate this rank's points, and bring them to the file; returns the agreed code of a stop, 0 without one."""
    progress = Progress(plan.grid.size, plan.grid.size - unfinished) if comm.is_root else None
    writer = kind(plan.settings.output, comm, lambda n: progress.update(progress.done + n))
    try:
        with _stopping(writer), plan.evaluator.attached(), writer:
            for point in points:
                if writer.stop_code:
                    break
                start = time.perf_counter()
                values = plan.evaluator(plan.grid.point(int(point)))
                writer.put(int(point), time.perf_counter() - start, values)
    finally:
        if progress is not None:
            progress.close()
    return writer.stop_code


@contextmanager
def _stopping(writer: Writer) -> Iterator[None]:
    """A signal lets every rank finish the point in hand; a second Ctrl-C does not wait for it."""

    def stop(number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        writer.stop_code = writer.stop_code or (INTERRUPTED if number == signal.SIGINT else STOPPED)

    with _handling({signal.SIGTERM: stop, signal.SIGUSR1: stop, signal.SIGINT: stop}):
        yield


# After the points


def _finish(plan: Plan, stop_code: int, seconds: float, say: Say) -> int:
    """Say where the results are and what they say; draw the picture. Returns the exit code."""
    path = plan.settings.output
    done = layout.read_values(path, layout.DONE).astype(bool)
    if not done.all():
        say(f"stopped      {done.sum()} of {done.size} points are in {path}; the same command goes on from there")
        return stop_code or 1
    say(f"finished     {done.size} points in {duration(seconds)}, in {path}")
    name = plan.quantities[0].name
    values = layout.read_values(path, name)
    if values.shape == done.shape:
        centre = plan.grid.nearest((0.0,) * len(plan.grid.axes))
        say(f"centre       {name} {values.flat[centre]:.6g} at {_place(plan.grid, centre)}")
        if np.isfinite(values).any():
            low = int(np.nanargmin(np.where(np.isfinite(values), values, np.inf)))
            say(f"minimum      {name} {values.flat[low]:.6g} at {_place(plan.grid, low)}")
        if broken := int((~np.isfinite(values)).sum()):
            say(f"note         {broken} values are NaN or infinite: results, stored as they are")
    picture = _draw(plan, say)
    say("next         " + (f"look at {picture}; " if picture else "") + "or:")
    say(f"  python -m hpc_landscape info {path}")
    say(f"  python -m hpc_landscape plot {path} --kind {'surface' if len(plan.grid.axes) == 2 else 'line'}")
    return COMPLETE


def _draw(plan: Plan, say: Say) -> str | None:
    if not plan.settings.plot or importlib.util.find_spec("matplotlib") is None:
        return None
    from .view.plot import plot

    try:
        return plot(plan.settings.output, metric=plan.quantities[0].name)
    except UserError as error:
        say(f"no picture: {error}")
        return None


def _place(grid: Grid, index: int) -> str:
    return "(" + ", ".join(f"{c:g}" for c in grid.point(index)) + ")"


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _one_line_dict(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(values.items())) or "defaults"


def _size(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.3g} {unit}"
        n /= 1024
    return f"{n:.3g} TiB"
