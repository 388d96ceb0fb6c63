"""What one run will compute, and what its file says of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property, partial
from typing import Any

import h5py
import numpy as np
import torch

from .. import __version__
from ..data.faults import Patience
from ..data.sets import Sets
from ..directions.base import Directions
from ..directions.normalize import cosine
from ..directions.registry import direction_kind
from ..errors import UserError, reason
from ..evaluate.build import CHOICES
from ..evaluate.evaluator import DTYPES, Evaluator
from ..evaluate.exactness import ExecutionErrors
from ..evaluate.execution import ExecutionMode, describe_dtype
from ..grid import Grid
from ..metrics.criterion import Criterion
from ..model import state
from ..model.modes import EVAL
from ..problems.problem import Problem
from ..ranks.base import Comm
from ..setting_groups import DirectionSettings, EvaluationSettings, OutputSettings
from ..store import layout
from ..store.earlier import Earlier, Taken
from ..store.refinement import REFINED, TOLERANCE, estimates
from ..store.resume import JOB, check_same

KEEP_DIRECTIONS = 2**30  # bytes


@dataclass
class Plan:
    """The parts of one run, and what its file says of them.

    output, evaluation, directions_asked: the settings of these rooms. made_of: checksums of what users bring.
    environment: in which values are the same to the bit. record: what else the file says of how it was made.
    keeps_model: whether the file holds it. advice: what would make the run shorter. steals: whether a rank that is done
    takes over points of others. point_seconds: that a point takes about, 0 where that is unknown. tolerance: of a
    refinement; round: the flat indices of its points that are to do next. earlier: the file that is gone on with,
    or extended; taken: its points, where extended.
    """

    output: OutputSettings
    evaluation: EvaluationSettings
    directions_asked: DirectionSettings
    problem: Problem
    grid: Grid
    directions: Directions
    evaluator: Evaluator
    quantities: list[layout.Quantity]
    sets: Sets
    stored: layout.Stored | None = None
    made_of: dict[str, str] = field(default_factory=dict)
    earlier: Earlier | None = None
    environment: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    keeps_model: bool = False
    trajectory: layout.Trajectory | None = None
    execution_errors: ExecutionErrors = field(default_factory=ExecutionErrors)
    advice: str = ""
    tolerance: float | None = None
    round: np.ndarray | None = None
    steals: bool = True
    point_seconds: float = 0.0
    taken: Taken | None = None

    def release(self) -> None:
        """Forget the directions: the file and the device have them."""
        self.directions.vectors.clear()
        self.directions.targets = None

    @property
    def patience(self) -> Patience:
        """With a machine that fails."""
        return self.sets.patience

    @property
    def path(self) -> str:
        """Of the file."""
        return self.output.output

    @property
    def extends(self) -> Earlier | None:
        """The earlier file that a new one takes points from."""
        return self.earlier if self.stored is None else None

    @property
    def unfinished(self) -> np.ndarray:
        """The points that there are to do now, as flat indices."""
        if self.round is not None:
            return self.round
        if self.stored is None:
            every = np.arange(self.grid.size)
            return every if self.taken is None else np.delete(every, self.taken.points)
        return np.flatnonzero(~self.finished(self.stored.done, self.stored.failed).reshape(-1))

    @property
    def before(self) -> int:
        """How many points this run has found finished, in its own file or in an earlier one."""
        if self.stored is None:
            return 0 if self.taken is None else len(self.taken.points)
        return int(self.finished(self.stored.done, self.stored.failed).sum())

    @property
    def refined(self) -> list[str]:
        """The metrics that a refinement estimates where it evaluates no points: all that are one number."""
        return [q.name for q in self.quantities if not q.shape] if self.tolerance is not None else []

    @property
    def retries(self) -> bool:
        """Whether points are computed again that have failed: of a file that can mark them."""
        return self.output.retry_failed and self.stored is not None and self.stored.failed is not None

    def finished(self, done: np.ndarray, failed: np.ndarray | None) -> np.ndarray:
        """Of the points' flags in the file, those that this run has nothing to do for."""
        return done & ~failed if self.retries and failed is not None else done

    def nan_values(self) -> dict[str, np.ndarray]:
        """The values of a point that has none."""
        return {quantity.name: np.full(quantity.shape, np.nan) for quantity in self.quantities}

    @property
    def keeps_directions(self) -> bool:
        wanted = self.output.save_directions
        return wanted if wanted is not None else self.direction_bytes <= KEEP_DIRECTIONS

    @property
    def direction_bytes(self) -> int:
        return sum(state.nbytes(direction) for direction in self.directions.vectors)

    @cached_property
    def cosine(self) -> float | None:
        """Of the angle between the first two directions, where there are two."""
        vectors = self.directions.vectors
        return cosine(*vectors[:2]) if len(vectors) > 1 else None

    @property
    def recipe(self) -> str:
        """How the directions were made, but for the seed."""
        return direction_kind(self.directions_asked.directions).recipe(self.directions_asked)

    @property
    def compute_dtype(self) -> str:
        """In what the model computes."""
        return describe_dtype(self.problem.root, self.evaluator.execution, DTYPES.get(self.evaluator.precision))

    def identity(self) -> dict[str, Any]:
        """What the values depend on: a run goes on with a file only where all of it is equal."""
        loss, evaluator = self.problem.loss, self.evaluator
        vectors = enumerate(self.directions.vectors)
        directions = {f"{i}/{name}": d for i, vector in vectors for name, d in vector.items()}
        directions |= {f"{i}/{name}": t for i, other in enumerate(self.directions.rest) for name, t in other.items()}
        sizes = {f"batch_size_{name}" if name else "batch_size": b for name, b in self.sets.evaluation.items()}
        if self.sets.warmup is not None:
            sizes["warmup_batch_size"] = self.sets.warmup
        wrapper = self.problem.wrapper
        norms = wrapper.norms
        return {
            "sha256_model": state.sha256(state.state(self.problem.root)),
            **self.sets.hashes,
            "sha256_directions": state.sha256(directions),
            "direction_recipe": self.recipe,
            "seed": self.directions_asked.seed,
            "metrics": ",".join(q.name for q in self.quantities),
            "metric_arguments": ",".join(spec for spec in self.evaluation.metric_names if "(" in spec) or "none",
            "loss_function": (repr(loss) if isinstance(loss, torch.nn.Module) else getattr(loss, "__qualname__", "?"))
            + ", a sum" * (loss is not None and Criterion(loss, self.problem.reduction).sum),
            "bn": evaluator.normalization.name,
            "bn_kept": ",".join(norms.others if norms else ()) or "none",
            "mode": "none" if wrapper.mode == EVAL else wrapper.mode,
            **{name: (batches.batch_size or 0) for name, batches in sizes.items()},
            "precision": self.evaluator.precision,
            "execution": str(evaluator.execution),
            "device_kind": evaluator.device_kind,
            **({} if self.tolerance is None else {TOLERANCE: self.tolerance}),
            **self.made_of,
        }


def _check_refined(plan: Plan) -> None:
    """UserError where there is no metric to go by, or a name is taken."""
    if plan.tolerance is None:
        return
    if (first := plan.quantities[0]).shape:
        raise UserError(f"--refine: {first.name} has several values a point: put a metric of one first in --metrics")
    if taken := {quantity.name for quantity in plan.quantities} & {*estimates(plan.refined)}:
        raise UserError(f"--refine: '{taken.pop()}' is the name of an estimate, too: rename the metric")


def lay_out(plan: Plan, comm: Comm) -> None:
    """A new file; or, where there is one to go on with, UserError that names what differs."""
    _check_refined(plan)
    identity, path = plan.identity(), plan.path
    if plan.stored is not None:
        check_same(Earlier(path, plan.stored), identity, plan.grid)
        if plan.evaluation.on_error == "record" and plan.stored.failed is None:
            raise UserError(
                f"--on_error record: {path} was made by an older version, and has no place to record errors"
            )
    if plan.stored is not None or plan.output.dry_run:
        return
    asked = plan.directions_asked
    attributes = {
        **identity,
        **plan.environment,
        **provenance(comm),
        "title": plan.problem.name,
        "parameters": sum(t.numel() for t in state.parameters(plan.problem.root).values()),
        "directions": asked.directions,
        "normalization": asked.normalized,
        **({"trainable": 1} if asked.trainable else {}),
        "compute_dtype": plan.compute_dtype,
        **({"interpolated": ",".join(plan.directions.rest[0])} if any(plan.directions.rest) else {}),
        **plan.directions.notes,
        **plan.record,
        **plan.execution_errors.attributes(),
        **({REFINED: ",".join(plan.refined)} if plan.refined else {}),
        **(plan.taken.attributes() if plan.taken else {}),
    }
    if plan.cosine is not None:
        attributes["cosine"] = plan.cosine
    arrays = [state.arrays(vector) for vector in plan.directions.vectors] if plan.keeps_directions else []
    try:
        layout.create(
            path,
            plan.grid,
            plan.quantities,
            attributes,
            dict(zip(plan.grid.names, arrays, strict=False)),
            state.arrays(state.state(plan.problem.root)) if plan.keeps_model else None,
            plan.trajectory,
            plan.refined,
            partial(plan.taken.fill, names=[q.name for q in plan.quantities]) if plan.taken else None,
        )
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {reason(error)}") from None


def chosen(speed: Any, execution: ExecutionMode) -> dict[str, int]:
    """The settings that the execution mode was chosen by, as a file keeps them; of the order, what came of it."""
    values = {name: getattr(speed, name) or 0 for name in CHOICES} | {"channels_last": execution.channels_last}
    return {name: 1 if isinstance(value, str) else int(value) for name, value in values.items()}


def provenance(comm: Comm) -> dict[str, Any]:
    """What made the file, where and when."""
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
