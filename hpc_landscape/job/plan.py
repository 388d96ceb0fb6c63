"""What one run will compute, and what its file says of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import h5py
import numpy as np
import torch

from .. import __version__
from ..data.sets import Sets
from ..directions.base import Directions
from ..directions.normalize import cosine
from ..directions.registry import direction_kind
from ..errors import UserError, reason
from ..evaluate.build import CHOICES
from ..evaluate.evaluator import DTYPES, Evaluator
from ..evaluate.exactness import ExecutionErrors
from ..evaluate.execution import describe_dtype
from ..grid import Grid
from ..metrics.criterion import Criterion
from ..model import state
from ..model.modes import EVAL
from ..problems.problem import Problem
from ..ranks.comm import Comm
from ..settings import Settings
from ..store import layout
from .stored import check_same

KEEP_DIRECTIONS = 2**30  # bytes
JOB = "SLURM_JOB_ID"
JOBS_BEFORE = "HPC_LANDSCAPE_JOBS"  # those that submitted this one for themselves, as jobs/*.slurm do


@dataclass
class Plan:
    """What will be computed: the parts of one run, and what its file says of them."""

    settings: Settings
    problem: Problem
    grid: Grid
    directions: Directions
    evaluator: Evaluator
    quantities: list[layout.Quantity]
    sets: Sets
    stored: layout.Stored | None
    made_of: dict[str, str] = field(default_factory=dict)  # checksums of what users bring
    environment: dict[str, str] = field(default_factory=dict)  # in which values are the same to the bit
    tuned: str = ""  # what was measured to choose the form
    trajectory: layout.Trajectory | None = None
    execution_errors: ExecutionErrors = field(default_factory=ExecutionErrors)

    def release(self) -> None:
        """Forget the directions: the file and the device have them."""
        self.directions.vectors.clear()
        self.directions.ends = None

    @property
    def unfinished(self) -> np.ndarray:
        if self.stored is None:
            return np.arange(self.grid.size)
        return np.flatnonzero(~self.finished(self.stored.done, self.stored.failed).reshape(-1))

    @property
    def retries(self) -> bool:
        """Whether points are computed again that have failed: of a file that can mark them."""
        return self.settings.retry_failed and self.stored is not None and self.stored.failed is not None

    def finished(self, done: np.ndarray, failed: np.ndarray | None) -> np.ndarray:
        """Of the points' flags in the file, those that this run has nothing to do for."""
        return done & ~failed if self.retries and failed is not None else done

    @property
    def keeps_directions(self) -> bool:
        wanted = self.settings.save_directions
        return wanted if wanted is not None else self.direction_bytes <= KEEP_DIRECTIONS

    @property
    def keeps_model(self) -> bool:
        return self.settings.save_model or self.trained_here

    @property
    def trained_here(self) -> bool:
        return self.problem.train is not None and self.settings.checkpoint is None

    @property
    def direction_bytes(self) -> int:
        return sum(state.nbytes(direction) for direction in self.directions.vectors)

    @property
    def compute_dtype(self) -> str:
        """In what the model computes."""
        return describe_dtype(self.problem.root, self.evaluator.execution, DTYPES.get(self.settings.precision))

    def identity(self) -> dict[str, Any]:
        """What the values depend on: a run goes on with a file only where all of it is equal."""
        settings, loss = self.settings, self.problem.loss
        vectors = enumerate(self.directions.vectors)
        directions = {f"{i}/{name}": d for i, vector in vectors for name, d in vector.items()}
        directions |= {f"{i}/{name}": t for i, other in enumerate(self.directions.rest) for name, t in other.items()}
        sizes = {f"batch_size_{name}" if name else "batch_size": b for name, b in self.sets.evaluation.items()}
        sizes["warmup_batch_size"] = self.sets.warmup
        wrapper = self.problem.wrapper
        norms = wrapper.norms
        return {
            "sha256_model": state.sha256(state.state(self.problem.root)),
            **self.sets.hashes,
            "sha256_directions": state.sha256(directions),
            "direction_recipe": direction_kind(settings.directions).recipe(settings),
            "seed": settings.seed,
            "metrics": ",".join(q.name for q in self.quantities),
            "metric_arguments": ",".join(spec for spec in settings.metric_names if "(" in spec) or "none",
            "loss_function": (repr(loss) if isinstance(loss, torch.nn.Module) else getattr(loss, "__qualname__", "?"))
            + ", a sum" * (loss is not None and Criterion(loss, self.problem.reduction).sum),
            "bn": self.evaluator.normalization.name,
            "bn_kept": ",".join(norms.others if norms else ()) or "none",
            "mode": "none" if wrapper.mode == EVAL else wrapper.mode,
            **{name: (batches.batch_size or 0) for name, batches in sizes.items() if batches is not None},
            "precision": settings.precision,
            "execution": str(self.evaluator.execution),
            "device_kind": self.evaluator.device.type,
            **self.made_of,
        }


def lay_out(plan: Plan, comm: Comm) -> None:
    """A new file; or, where there is one to go on with, UserError that names what differs."""
    identity, settings = plan.identity(), plan.settings
    if plan.stored is not None:
        check_same(plan.stored, identity, plan.grid, settings.output)
        if settings.on_error == "record" and plan.stored.failed is None:
            raise UserError(
                f"--on_error record: {settings.output} was made by an older version, and has no place to record errors"
            )
    if plan.stored is not None or settings.dry_run:
        return
    attributes = {
        **identity,
        **plan.environment,
        **_provenance(comm),
        "settings": settings.to_yaml(),
        "command": settings.to_command(),
        "problem": settings.problem,
        "title": plan.problem.name,
        "parameters": sum(t.numel() for t in state.parameters(plan.problem.root).values()),
        "directions": settings.directions,
        "normalization": settings.normalized,
        **({"trainable": 1} if settings.trainable else {}),
        "compute_dtype": plan.compute_dtype,
        **({"interpolated": ",".join(plan.directions.rest[0])} if any(plan.directions.rest) else {}),
        **plan.directions.notes,
        **{
            name: 0 if not (value := getattr(settings, name)) else 1 if isinstance(value, str) else int(value)
            for name in CHOICES
        },
        **({"tuned": plan.tuned} if plan.tuned else {}),
        **plan.execution_errors.attributes(),
    }
    vectors = plan.directions.vectors
    if len(vectors) > 1:
        attributes["cosine"] = cosine(*vectors[:2])
    arrays = [state.arrays(vector) for vector in vectors] if plan.keeps_directions else []
    try:
        layout.create(
            settings.output,
            plan.grid,
            plan.quantities,
            attributes,
            dict(zip(plan.grid.names, arrays, strict=False)),
            state.arrays(state.state(plan.problem.root)) if plan.keeps_model else None,
            plan.trajectory,
        )
    except OSError as error:
        raise UserError(f"--output {settings.output}: cannot be written: {reason(error)}") from None


def _provenance(comm: Comm) -> dict[str, Any]:
    return {
        "program_version": __version__,
        "numpy_version": np.__version__,
        "h5py_version": h5py.__version__,
        "hdf5_version": h5py.version.hdf5_version,
        "mpi_version": comm.library,
        "ranks": comm.size,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **({"slurm_job": os.environ[JOB]} if JOB in os.environ else {}),
    }


def created_by_this_job(stored: layout.Stored) -> bool:
    """Whether this very job began the file before it came back, by itself or as a new one: --overwrite is done then."""
    before = os.environ.get(JOBS_BEFORE, "").split()
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        before.append(os.environ.get(JOB, ""))
    return stored.attributes.get("slurm_job") in before
