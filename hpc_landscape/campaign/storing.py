"""What the library computes, stored in a file as it comes, and gone on with."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..data.batches import Batches
from ..data.data import Data
from ..data.faults import Patience
from ..data.prepare import prepare
from ..errors import warn
from ..evaluate.evaluator import Evaluator
from ..grid import Grid
from ..metrics import DataMetric
from ..model import state
from ..ranks.control import Control
from ..store import layout
from ..store.earlier import Earlier
from ..store.identity import checksum
from ..store.layout import Quantity, Stored
from ..store.resume import METRIC, check_same
from ..store.store import choose_writer
from .failures import Attempts
from .frame import Frame
from .loop import Campaign
from .metrics import quantity_of, store_arrays
from .plan import provenance
from .prepare import open_file
from .recheck import compute_again, environment
from .teams import shared, team_of
from .writing import fall_back, writing


@dataclass
class StoredRun:
    """A metric over a frame, in a file."""

    path: str
    frame: Frame
    evaluator: Evaluator
    quantities: list[Quantity]
    environment: dict[str, str]
    attributes: dict[str, Any]
    trajectory: layout.Trajectory | None = None
    stored: Stored | None = None
    patience: Patience = field(default_factory=Patience)

    @property
    def grid(self) -> Grid:
        """Of the frame."""
        return self.frame.grid

    @property
    def unfinished(self) -> np.ndarray:
        """The points that there are to do."""
        return np.arange(self.grid.size) if self.stored is None else self.stored.unfinished

    def lay_out(self, identity: dict[str, Any]) -> None:
        """A new file; or, where there is one, UserError that names what differs."""
        if self.stored is not None:
            check_same(Earlier(self.path, self.stored), identity, self.grid)
            return
        made = provenance(self.frame.comm)
        attributes = {**identity, **self.environment, **self.frame.notes, **made, **self.attributes}
        vectors = zip(self.grid.names, self.frame.vectors, strict=True)
        directions = {axis: state.arrays(vector) for axis, vector in vectors}
        layout.create(self.path, self.grid, self.quantities, attributes, directions, None, self.trajectory)


def name_of(metric: Any) -> str:
    """What a metric, or a function, is called in a file."""
    name = getattr(metric, "name", None) or getattr(metric, "__name__", "metric")
    return name if isinstance(name, str) and name.isidentifier() else "metric"


def compute_stored(
    frame: Frame,
    evaluator: Evaluator,
    path: str,
    overwrite: bool,
    attributes: dict[str, Any],
    trajectory: layout.Trajectory | None,
    on_points: Any,
) -> np.ndarray:
    """The evaluator's one metric at every point, brought to the file as it comes; what is there is not computed again.

    Every rank calls it, and gets all values. UserError where the file is of another run.
    """
    comm = frame.comm
    name, metric = next(iter(evaluator.metrics.items()))
    with ExitStack() as stack:
        stored = comm.from_root(lambda: open_file(path, overwrite, stack, warn), any_error=True)
        quantities = comm.from_root(lambda: [quantity_of(name, metric, evaluator)], any_error=True)
        there = environment(comm, evaluator.devices)
        run = StoredRun(path, frame, evaluator, quantities, there, attributes, trajectory, stored)
        identity = _identity(run, metric)
        comm.from_root(lambda: run.lay_out(identity), any_error=True)
        compute_again(run, comm, any_error=True)
        kind = fall_back(choose_writer("auto", comm), path, comm, warn)
        writer = kind(path, comm, on_points, control=Control(comm))
        attempts = Attempts(
            *(evaluator, frame.grid, functools.partial(store_arrays, quantities=quantities), run.patience),
            check=writer.check,
        )
        schedule = shared(run.unfinished, team_of(comm, comm.size), writer, evaluator.execution.points)
        fault: Exception | None = None
        with writing(writer):  # all ranks close it together, also where one of them has failed
            try:
                Campaign(schedule, attempts, writer).run()
            except Exception as error:
                fault = error
        with comm.raise_on_all_ranks(any_error=True):
            if fault is not None:
                raise fault
        return comm.from_root(lambda: layout.read_values(path, name), any_error=True)


def _identity(run: StoredRun, metric: Any) -> dict[str, Any]:
    """What the values depend on, as far as it can be told; rank 0 knows all of it."""
    frame, evaluator = run.frame, run.evaluator
    root, policy = frame.model.root, evaluator.normalization
    model = {**state.state(root), **frame.fixed, **frame.origin}
    known = [*root.modules(), *root.parameters(), *root.buffers(), frame.model]
    data = {"": getattr(metric, "data", None), "_warmup": policy.data}
    return {
        "sha256_model": state.sha256({name: t.detach().cpu() for name, t in model.items()}),
        "sha256_directions": state.sha256({f"{i}/{n}": d for i, v in enumerate(frame.vectors) for n, d in v.items()}),
        **{f"sha256_data{which}": _fingerprint(one) for which, one in data.items() if isinstance(one, Data)},
        METRIC + run.quantities[0].name: checksum(_without_data(metric), known),
        "metrics": ",".join(quantity.name for quantity in run.quantities),
        "bn": policy.name,
        "sha256_statistics": _statistics(run),
        "precision": evaluator.precision,
        "execution": str(evaluator.execution),
        "device_kind": evaluator.device_kind,
    }


def _without_data(metric: Any) -> Any:
    """A metric's class and arguments."""
    if not isinstance(metric, DataMetric):
        return metric
    held = {name: value for name, value in vars(metric).items() if name not in ("data", "criterion")}
    return type(metric), held, metric.data.forward, metric.data.count


def _fingerprint(data: Data) -> str:
    """Of a metric's data."""
    batches = data.batches
    if not isinstance(batches, Batches):
        batches = prepare(batches, 512, None, 0, "data", lambda text: None)
    return batches.full_hash()


def _statistics(run: StoredRun) -> str:
    """Of batch normalization's statistics that have been estimated before, at every point of every rank."""
    policy = run.evaluator.normalization
    mine = {str(point): vector for point, vector in getattr(policy, "by_point", {}).items()}
    common = getattr(policy, "common", None)
    parts = {point: vector for part in run.frame.comm.to_root(mine) for point, vector in part.items()}
    tensors: dict[str, torch.Tensor] = dict(sorted(parts.items()))
    return state.sha256(tensors | ({} if common is None else {"common": common}))
