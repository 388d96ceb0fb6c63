"""What there is to go on with or to extend, and the model's weights: on every rank what rank 0 has."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from ..errors import UserError
from ..model import state
from ..model.checkpoint import load_checkpoint
from ..problems.problem import Problem
from ..progress import duration, stage
from ..ranks.base import Comm
from ..ranks.device import one_thread
from ..setting_groups import GridSettings, OutputSettings, ProblemSettings
from ..store import layout
from ..store.earlier import EXTENDED, Earlier
from ..store.lock import exclusive
from ..store.resume import created_by_this_job, fill_from
from .capacity import check_axes
from .share import broadcast_tensors

log = logging.getLogger(__name__)


def open_or_create(output: OutputSettings, axes: GridSettings, comm: Comm, stack: ExitStack) -> layout.Stored | None:
    """What the output holds, on every rank; None where a new file is to be made. Rank 0 locks it."""
    return comm.from_root(lambda: _open_or_create(output, axes, comm.local_size, stack))


def _open_or_create(output: OutputSettings, axes: GridSettings, ranks: int, stack: ExitStack) -> layout.Stored | None:
    path, lock = output.output, None if output.dry_run else stack
    stored = open_file(path, output.overwrite, lock, lambda text: log.info("note         %s", text))
    check_axes(axes.given, path, ranks, new=stored is None)
    return stored


def open_earlier(output: OutputSettings, axes: int, stored: layout.Stored | None, comm: Comm) -> Earlier | None:
    """The file that is gone on with, or else the one that is extended, on every rank. axes: how many are asked for."""
    return comm.from_root(lambda: _open_earlier(output, axes, stored))


def _open_earlier(output: OutputSettings, axes: int, stored: layout.Stored | None) -> Earlier | None:
    path, old = output.output, output.extend
    if old is not None and os.path.exists(path) and os.path.exists(old) and os.path.samefile(path, old):
        raise UserError(f"--extend {old}: is the --output itself; give the new file another name")
    if stored is not None:
        if old is not None and stored.attributes.get(EXTENDED) != old:
            log.info("note         --extend %s takes nothing: %s is there already, and is gone on with", old, path)
        return Earlier(path, stored)
    if old is None:
        return None
    try:
        found = layout.read(old)
    except UserError as error:
        raise UserError(f"--extend {error}") from None
    if (there := len(found.grid.axes)) != axes:
        raise UserError(f"--extend {old}: it is of {there} axes, and this run of {axes}; give as many as it has")
    return Earlier(old, found, "or leave out --extend")


def open_file(
    path: str, overwrite: bool, stack: ExitStack | None, notice: Callable[[str], None]
) -> layout.Stored | None:
    """What the file holds that is to be gone on with. stack: keeps other runs out, as long as it is open."""
    _check_place(path)
    if stack is not None:
        folder = os.path.dirname(os.path.abspath(path))
        if not os.access(folder, os.W_OK) or (os.path.exists(path) and not os.access(path, os.W_OK)):
            raise UserError(f"--output {path}: no permission to write there")
        stack.enter_context(exclusive(path, notice))
    if not os.path.exists(path):
        return None
    stored = layout.read(path)  # with --overwrite too: what is not ours, or damaged, is never written to
    return None if overwrite and not created_by_this_job(stored) else stored


def _check_place(path: str) -> None:
    """UserError where there can be no file of this name."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UserError(f"--output {path}: there is no directory {folder}")
    if os.path.isdir(path):
        raise UserError(f"--output {path}: is a directory; give a file name")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"--output {path}: is no regular file; choose another")
    try:
        os.stat(path)
    except FileNotFoundError:
        folder = os.path.dirname(os.path.realpath(path))
        if not os.path.isdir(folder):
            raise UserError(f"--output {path}: is a link into {folder}, and there is no such directory") from None
    except OSError as error:  # a link that leads back to itself, a name too long
        raise UserError(f"--output {path}: {error.strerror}") from None


@stage("weights")
def broadcast_weights(options: ProblemSettings, problem: Problem, earlier: Earlier | None, comm: Comm) -> None:
    """Rank 0's weights, trained, loaded or as built, for every rank. earlier: a file that may hold trained ones."""
    root = problem.root
    with comm.raise_on_all_ranks():
        if comm.is_root and options.checkpoint is not None:
            chosen = load_checkpoint(options.checkpoint, root, options.weights_only, options.checkpoint_key)
            log.info("weights      %s%s", options.checkpoint, chosen)
        elif comm.is_root and problem.train is not None:
            _train(problem, earlier)
    comm.check_equal(
        state.shapes(root), "the problem's factory makes another model on another rank: it must make the same on all"
    )
    broadcast_tensors(state.state(root).values(), comm)


def _train(problem: Problem, earlier: Earlier | None) -> None:
    if earlier is not None and earlier.stored.has_model:
        fill_from(earlier, "model", state.state(problem.root), "another model")
        log.info("weights      as trained before, from %s", earlier.path)
        return
    start = time.monotonic()
    model: Any = problem.model
    with one_thread(), torch.enable_grad():
        if problem.train is not None:
            problem.train(model)
    score = f": {problem.score(model)}" if problem.score else ""
    log.info("weights      trained in %s%s", duration(time.monotonic() - start), score)
