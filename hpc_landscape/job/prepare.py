"""What the ranks prepare together before the first point; each step raises a UserError on all ranks alike."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

import torch

from ..campaign.share import broadcast_tensors
from ..errors import UserError
from ..model import state
from ..model.checkpoint import load_checkpoint
from ..problems.problem import Problem
from ..progress import duration
from ..ranks.comm import Comm
from ..ranks.device import one_thread
from ..settings import Settings
from ..store import layout
from ..store.lock import exclusive
from .capacity import check_axes
from .plan import created_by_this_job
from .report import Say
from .stored import fill_from


def open_or_create(settings: Settings, comm: Comm, stack: ExitStack, say: Say) -> layout.Stored | None:
    """What the output holds, on every rank; None where a new file is to be made. Rank 0 locks it."""
    stored = None
    with comm.raise_on_all_ranks():
        if comm.is_root:
            path = settings.output
            folder = os.path.dirname(os.path.abspath(path))
            if not os.path.isdir(folder):
                raise UserError(f"--output {path}: there is no directory {folder}")
            if os.path.isdir(path):
                raise UserError(f"--output {path}: is a directory; give a file name")
            if os.path.exists(path) and not os.path.isfile(path):
                raise UserError(f"--output {path}: is no regular file; choose another")
            _check_name(path)
            if not settings.dry_run:
                if not os.access(folder, os.W_OK) or (os.path.exists(path) and not os.access(path, os.W_OK)):
                    raise UserError(f"--output {path}: no permission to write there")
                stack.enter_context(exclusive(path, lambda text: say(f"note         {text}")))
            if os.path.exists(path):
                stored = layout.read(path)  # with --overwrite too: what is not ours, or damaged, is never written to
                if settings.overwrite and not created_by_this_job(stored):
                    stored = None
            check_axes(settings, comm.local_size, new=stored is None)
    return comm.bcast(stored)


def _check_name(path: str) -> None:
    """UserError where there can be no file of this name: a link that leads back to itself, a name too long."""
    try:
        os.stat(path)
    except FileNotFoundError:
        folder = os.path.dirname(os.path.realpath(path))
        if not os.path.isdir(folder):
            raise UserError(f"--output {path}: is a link into {folder}, and there is no such directory") from None
    except OSError as error:
        raise UserError(f"--output {path}: {error.strerror}") from None


def broadcast_weights(settings: Settings, problem: Problem, stored: layout.Stored | None, comm: Comm, say: Say) -> None:
    """Rank 0's weights, trained, loaded or as built, for every rank."""
    root = problem.root
    with comm.raise_on_all_ranks():
        if comm.is_root and settings.checkpoint is not None:
            chosen = load_checkpoint(settings.checkpoint, root, settings.weights_only, settings.checkpoint_key)
            say(f"weights      {settings.checkpoint}{chosen}")
        elif comm.is_root and problem.train is not None:
            _train(problem, settings, stored, say)
    shapes = comm.allgather(state.shapes(root))
    if any(other != shapes[0] for other in shapes):
        raise UserError("the problem's factory makes another model on another rank: it must make the same on all")
    broadcast_tensors(state.state(root).values(), comm)


def _train(problem: Problem, settings: Settings, stored: layout.Stored | None, say: Say) -> None:
    if stored is not None and stored.has_model:
        fill_from(settings.output, "model", state.state(problem.root), "another model")
        say(f"weights      as trained before, from {settings.output}")
        return
    start = time.monotonic()
    with one_thread(), torch.enable_grad():
        problem.train(problem.model)
    score = f": {problem.score(problem.model)}" if problem.score else ""
    say(f"weights      trained in {duration(time.monotonic() - start)}{score}")
