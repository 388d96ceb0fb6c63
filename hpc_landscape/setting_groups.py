"""The settings of each room, typed, with their help texts. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from .directions.registry import direction_kind
from .errors import UserError
from .grid import NAMES, Axis
from .kinds import NORMALIZATIONS
from .words import split

PROBLEM = "problem."  # --problem.KEY VALUE, and the same in YAML
MOST_SETS = 10**6
MOST = 2**63 - 1  # of a whole number: what a file's attribute holds


def _setting(default: Any, text: str, metavar: str | None = None, otherwise: str | None = None) -> Any:
    """otherwise: what a default of nothing comes to."""
    return field(default=default, metadata={"help": text, "metavar": metavar, "otherwise": otherwise})


@dataclass(frozen=True)
class GridSettings:
    """The axes."""

    x: str | None = _setting(None, "first axis", "MIN:MAX:N", "-1:1:51; digits: -1:1:25")
    y: str | None = _setting(None, "second axis, or none for a line", "MIN:MAX:N", "-1:1:51; digits: -1:1:25")
    z: str | None = _setting(None, "third axis, for a volume", "MIN:MAX:N", "none")
    refine: float | None = _setting(
        None, "only the points that are needed to know the first metric to this share of its range", "TOL", "all points"
    )

    def check(self) -> None:
        """Raise UserError where a value makes no sense."""
        for name in NAMES:
            if (text := getattr(self, name)) not in (None, "none"):
                Axis.parse(text, name)
        if self.x == "none":
            raise UserError("--x none: the first axis is needed; leave out --y and --z for a line")
        if self.y == "none" and self.z not in (None, "none"):
            raise UserError("--z needs --y: a volume has three axes")
        if self.refine is not None and not 0 < self.refine < 1:
            raise UserError(f"--refine {self.refine:g}: must be more than 0 and less than 1: a share of the range")

    @property
    def given(self) -> dict[str, str]:
        """The axes that are said, by name."""
        return {name: text for name in NAMES if (text := getattr(self, name)) not in (None, "none")}

    @property
    def dimensions(self) -> int:
        """How many axes are asked for."""
        if self.y == "none":
            return 1
        return 3 if self.z not in (None, "none") else 2


@dataclass(frozen=True)
class ProblemSettings:
    """The model, its weights and its data."""

    problem: str = _setting(
        "digits",
        "a kind, as listed below, package.module:factory or path/file.py:factory; --problem.KEY VALUE for arguments",
        "NAME",
    )
    problem_arguments: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = _setting(
        None,
        "trained weights: a file of torch.save or safetensors, an index of shards, or the directory of a saved model "
        "or of torch.distributed.checkpoint",
        "FILE",
    )
    checkpoint_key: str | None = _setting(
        None,
        "which of several networks in a file: a key, keys with dots between (ema.model), or a prefix of names; also in "
        "the files of --to and --trajectory",
        "KEY",
    )
    weights_only: bool = _setting(True, "false: run the code that a pickled checkpoint holds; only if you trust it")

    def check(self) -> None:
        """Raise UserError where a value makes no sense."""
        if not self.problem.strip():
            raise UserError("--problem: must not be empty")
        for key in self.problem_arguments:
            if not key.isidentifier():
                raise UserError(f"--{PROBLEM}{key}: '{key}' cannot be the name of an argument")


@dataclass(frozen=True)
class DirectionSettings:
    """The directions that the axes go along."""

    directions: str = _setting(
        "random",
        "how the axes are chosen: a kind, as listed below, or file.py:MyDirections",
        "KIND",
    )
    to: str | None = _setting(None, "interpolation: the checkpoints of the other models, one per axis", "FILE,...")
    trajectory: str | None = _setting(
        None,
        "checkpoints in their order, a glob or a directory: projected onto the plane, and what pca is of; the option "
        "again, or ; between, for one more path",
        "FILES",
    )
    direction_files: str | None = _setting(
        None, "an earlier landscape.h5, or one .npz, .pt or .safetensors per axis, by parameter name", "FILE,..."
    )
    seed: int = _setting(0, "seed of directions and subsets", "N")
    include: str | None = _setting(None, "only these parameters move: names, modules or globs", "PATTERN,...")
    exclude: str | None = _setting(None, "these parameters do not move: names, modules or globs", "PATTERN,...")
    trainable: bool = _setting(
        False, "only parameters that are trained (requires_grad) move", otherwise="frozen ones, too"
    )
    distribution: Literal["normal", "uniform"] = _setting("normal", "of random directions")
    normalization: Literal["filter", "layer", "model", "none"] | None = _setting(
        None, "of directions against the weights", otherwise="filter for random ones, none for others"
    )
    ignore: Literal["biasbn", "none"] = _setting(
        "biasbn", "biasbn: biases and normalization parameters do not move in random or normalized directions"
    )
    orthogonalize: bool = _setting(False, "make later directions orthogonal to earlier ones, before normalization")
    ensemble: int | None = _setting(
        None,
        "the same line, plane or volume along so many independent sets of random directions, in one file",
        "N",
        otherwise="one set",
    )

    def check(self) -> None:
        """Raise UserError where a value makes no sense."""
        if not 0 <= self.seed <= MOST:
            raise UserError(f"--seed {self.seed}: must not be negative" + ", and less than 2^63" * (self.seed > MOST))
        if self.ensemble is not None and not 2 <= self.ensemble <= MOST_SETS:
            raise UserError(f"--ensemble {self.ensemble}: must be from 2 to {MOST_SETS:,} sets of directions")

    @property
    def normalized(self) -> str:
        """How directions are normalized."""
        return self.normalization or direction_kind(self.directions).normalization


@dataclass(frozen=True)
class EvaluationSettings:
    """What is computed at a point, and on what."""

    metrics: str | None = _setting(
        None,
        "comma-separated, arguments in brackets, accuracy(k=5), say: kinds, as listed below, or file.py:MyMetric",
        "NAME,...",
        "loss,accuracy",
    )
    bn: str = _setting(
        "warmup",
        "batch normalization: statistics re-estimated at each point (warmup), the checkpoint's (running), or each "
        "batch's own (batch); or file.py:MyPolicy",
        "POLICY",
    )
    samples: int | None = _setting(None, "evaluate on a seeded subset of this size", "N", "all")
    warmup_samples: int | None = _setting(
        None, "re-estimate BN on a seeded subset of this size", "N", "all of the data"
    )
    batches: int | None = _setting(None, "take the first so many batches of the data", "N", "all")
    shuffle_data: bool = _setting(
        False, "read the data in an order drawn from the seed, the same at every point: for losses of a whole batch"
    )
    batch_size: int = _setting(512, "samples per batch; a DataLoader's own wins", "N")
    precision: Literal["fp32", "tf32", "bf16", "fp64"] = _setting("fp32", "fp32: as the model is, without TF32")
    on_error: Literal["fail", "record"] = _setting(
        "fail", "where a metric raises: end the run, or store NaN for that point, mark it in the file, and go on"
    )

    def check(self) -> None:
        """Raise UserError where a value makes no sense."""
        for name in ("samples", "warmup_samples", "batches", "batch_size"):
            _check_number(name, getattr(self, name))
        if self.bn not in NORMALIZATIONS and ":" not in self.bn:
            known = ", ".join(NORMALIZATIONS.names())
            raise UserError(f"--bn {self.bn}: expected one of {known}, or {NORMALIZATIONS.own}")
        if len(set(self.metric_names)) < len(self.metric_names):
            raise UserError(f"--metrics {self.metrics}: a metric is named twice")

    @property
    def metric_names(self) -> list[str]:
        """The metrics asked for, with their arguments; empty: the default ones."""
        return split(self.metrics)


@dataclass(frozen=True)
class SpeedSettings:
    """How it is computed."""

    channels_last: bool | None = _setting(
        None,
        "images channels last; false: in PyTorch's own order; true: also where a CPU's kernels add up statistics in "
        "float32 then, of group normalization, or of batch normalization that is not torch's own",
        otherwise="where it is as exact",
    )
    compile: bool | Literal["reduce-overhead"] = _setting(
        False,
        "compile the model, or the problem's forward (torch.compile); reduce-overhead: as CUDA graphs; falls back, and "
        "says so, where it cannot be",
        "reduce-overhead",
    )
    block: int | None = _setting(
        None,
        "points at a time: of small models in one pass, their parameters stacked (vmap); of streamed data, "
        "in turn on each batch",
        "K",
        "1; streamed: 8",
    )
    tune: bool = _setting(
        False,
        "measure which of channels_last, compile and block is fastest, in under a minute, and use it",
    )
    max_error: float | None = _setting(
        None,
        "the largest relative error of a metric that 16 bits, TF32, blocks or compiling may have, as seen at 16 points "
        "beside the plain way, which is taken where it is larger",
        "ERROR",
        "0.01 in bf16 and tf32, else 0.0001",
    )
    resident: float = _setting(
        0.5, "data is kept in memory where it takes at most this share of what is free, else streamed", "SHARE"
    )

    directions_memory: Literal["auto", "device", "host", "seed"] = _setting(
        "auto",
        "where directions are kept: where points are computed; in host memory, once for a node, and brought over at "
        "each point; or nowhere, random ones drawn again from the seed at each point; auto: the first that fits",
    )

    def check(self) -> None:
        """Raise UserError where a value makes no sense."""
        _check_number("block", self.block)
        if self.tune and (self.channels_last is not None or self.compile or self.block is not None):
            raise UserError("--tune chooses --channels_last, --compile and --block by itself: leave them out, or it")
        if self.max_error is not None and not self.max_error >= 0:
            raise UserError(f"--max_error {self.max_error:g}: must not be negative; .inf takes whatever there is")
        if not 0 <= self.resident <= 1:
            raise UserError(f"--resident {self.resident}: must be from 0 (always stream) to 1")

    @property
    def compile_mode(self) -> str | None:
        """The mode of torch.compile; None: not compiled."""
        return self.compile if isinstance(self.compile, str) else "default" if self.compile else None


@dataclass(frozen=True)
class RankSettings:
    """Where it is computed, and how long."""

    device: Literal["auto", "cpu", "cuda", "mps", "as_built"] = _setting(
        "auto", "where to compute; as_built: where the factory put the model's parameters, on several GPUs, say"
    )
    ranks_per_point: int | Literal["auto"] = _setting(
        "auto",
        "ranks that evaluate a point together, each a part of the batches; auto: several where there are fewer points "
        "than ranks",
        "K",
    )
    shard: Literal["fsdp"] | None = _setting(
        None,
        "fsdp: the ranks of a team share out the model's parameters (FSDP2), for a model that fits no GPU; one team of "
        "all ranks, unless --ranks_per_point says otherwise",
    )
    schedule: Literal["stealing", "strided"] = _setting(
        "stealing", "every N-th point for each of N ranks; stealing: one that is done takes over half of another's rest"
    )
    grace: float | None = _setting(
        None,
        "seconds from a stop signal to the end of the job (Slurm: the number in --signal): a point that is not "
        "finished shortly before is given up, and a job that finished none fails instead of exiting with 75",
        "SECONDS",
        "twice as long as the longest point took, and 20 at least",
    )

    def check(self) -> None:
        """Raise UserError where a value makes no sense."""
        if self.ranks_per_point != "auto":
            _check_number("ranks_per_point", self.ranks_per_point)
        if self.grace is not None and not 0 < self.grace < math.inf:
            raise UserError(f"--grace {self.grace:g}: must be more than 0 seconds")

    @property
    def steals(self) -> bool:
        """Whether a rank that is done takes over points of others."""
        return self.schedule == "stealing"


@dataclass(frozen=True)
class OutputSettings:
    """What is written."""

    output: str = _setting("landscape.h5", "the file to write, or to go on with", "FILE.h5")
    overwrite: bool = _setting(False, "start again even if the output exists")
    extend: str | None = _setting(None, "an earlier file of this run: take the points that both grids have", "OLD.h5")
    retry_failed: bool = _setting(
        False, "with a file to go on with, a complete one too: compute the points again that are marked by --on_error"
    )
    writer: Literal["auto", "gather", "parallel"] = _setting(
        "auto", "who writes: rank 0, or every rank through parallel HDF5; auto: parallel where h5py has it"
    )
    save_directions: bool | None = _setting(None, "keep the directions in the file", otherwise="up to 1 GiB")
    save_model: bool = _setting(False, "keep the model in the file (always when it was trained here)")
    plot: bool = _setting(True, "draw a picture beside the file when complete, where matplotlib is installed")
    dry_run: bool = _setting(False, "print the plan, timed on one point; write nothing")

    def check(self) -> None:
        """Raise UserError where a value makes no sense."""
        if not self.output.strip():
            raise UserError("--output: must not be empty")


def _check_number(name: str, value: int | None) -> None:
    if value is not None and not 1 <= value <= MOST:
        raise UserError(f"--{name} {value}: must be at least 1" + ", and less than 2^63" * (value > MOST))
