"""Every setting of a run, typed, with its help text. Imports no torch."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from .directions.registry import check_directions, direction_kind
from .errors import UserError, printable
from .grid import NAMES, Axis, Grid
from .kinds import DIRECTIONS, METRICS
from .words import split

PROBLEM = "problem."  # --problem.KEY VALUE, and the same in YAML
NOW = ("overwrite", "dry_run", "grace", "retry_failed")  # asked of one run, and not of those that go on with it
MOST = 2**63 - 1  # of a whole number: what a file's attribute holds


def _setting(default: Any, text: str, metavar: str | None = None) -> Any:
    return field(default=default, metadata={"help": text, "metavar": metavar})


@dataclass
class Settings:
    """The settings of one run. Values of None mean: decided by the problem or the file, as the help text says."""

    output: str = _setting("landscape.h5", "the file to write, or to go on with", "FILE.h5")
    overwrite: bool = _setting(False, "start again even if the output exists")
    problem: str = _setting(
        "digits", "digits (built in), package.module:factory or path/file.py:factory; --problem.KEY VALUE for arguments"
    )
    checkpoint: str | None = _setting(
        None,
        "trained weights: a file of torch.save or safetensors, an index of shards, or a saved model's directory",
        "FILE",
    )
    checkpoint_key: str | None = _setting(
        None,
        "which of several networks in a file: a key, keys with dots between (ema.model), or a prefix of names; also in "
        "the files of --to and --trajectory",
        "KEY",
    )
    weights_only: bool = _setting(True, "false: run the code that a pickled checkpoint holds; only if you trust it")
    x: str | None = _setting(None, "first axis; default -1:1:51 (digits: -1:1:25)", "MIN:MAX:N")
    y: str | None = _setting(None, "second axis, or none for a line; default -1:1:51 (digits: -1:1:25)", "MIN:MAX:N")
    z: str | None = _setting(None, "third axis, for a volume; default none", "MIN:MAX:N")
    seed: int = _setting(0, "seed of directions and subsets", "N")
    directions: str = _setting(
        "random",
        f"{', '.join(DIRECTIONS.built_in)}, or {DIRECTIONS.own}: random; to other models (--to); principal ones of "
        "--trajectory; of largest curvature; from files",
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
    include: str | None = _setting(None, "only these parameters move: names, modules or globs", "PATTERN,...")
    exclude: str | None = _setting(None, "these parameters do not move: names, modules or globs", "PATTERN,...")
    trainable: bool = _setting(
        False, "only parameters that are trained (requires_grad) move; default: frozen ones, too"
    )
    distribution: Literal["normal", "uniform"] = _setting("normal", "of random directions")
    normalization: Literal["filter", "layer", "model", "none"] | None = _setting(
        None, "of directions against the weights; default: filter for random ones, none for others"
    )
    ignore: Literal["biasbn", "none"] = _setting(
        "biasbn", "biasbn: biases and normalization parameters do not move in random or normalized directions"
    )
    orthogonalize: bool = _setting(False, "make later directions orthogonal to earlier ones, before normalization")
    bn: Literal["warmup", "running", "batch"] = _setting(
        "warmup", "batch normalization: statistics re-estimated at each point, the checkpoint's, or each batch's own"
    )
    metrics: str | None = _setting(
        None,
        "comma-separated, arguments in brackets, such as accuracy(k=5): "
        f"{', '.join(METRICS.built_in)}, or {METRICS.own}; default: loss,accuracy",
        "NAME,...",
    )
    samples: int | None = _setting(None, "evaluate on a seeded subset of this size; default: all", "N")
    warmup_samples: int | None = _setting(
        None, "re-estimate BN on a seeded subset of this size; default: all of the data", "N"
    )
    batches: int | None = _setting(None, "take the first so many batches of the data; default: all", "N")
    shuffle_data: bool = _setting(
        False, "read the data in an order drawn from the seed, the same at every point: for losses of a whole batch"
    )
    batch_size: int = _setting(512, "samples per batch; a DataLoader's own wins", "N")
    precision: Literal["fp32", "tf32", "bf16", "fp64"] = _setting("fp32", "fp32: as the model is, without TF32")
    channels_last: bool = _setting(
        False,
        "images channels last: faster; with batch normalization on a CPU inexact, as variances add up in float32 "
        "there: off by up to 1e-2 where batches are large",
    )
    compile: bool = _setting(
        False,
        "compile the model, or the problem's forward (torch.compile); falls back, and says so, where it cannot be",
    )
    block: int | None = _setting(
        None,
        "points at a time: of small models in one pass, their parameters stacked (vmap; default 1); of streamed data, "
        "in turn on each batch (default 8)",
        "K",
    )
    tune: bool = _setting(
        False,
        "measure which of channels_last, compile and block is fastest, in under a minute, and use it; channels_last "
        "is left out where it is inexact: on a CPU with --bn warmup",
    )
    resident: float = _setting(
        0.5, "data is kept in memory where it takes at most this share of what is free, else streamed", "SHARE"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = _setting("auto", "where to compute")
    writer: Literal["auto", "gather", "parallel"] = _setting(
        "auto", "who writes: rank 0, or every rank through parallel HDF5; auto: parallel where h5py has it"
    )
    on_error: Literal["fail", "record"] = _setting(
        "fail", "where a metric raises: end the run, or store NaN for that point, mark it in the file, and go on"
    )
    retry_failed: bool = _setting(
        False, "with a file to go on with, a complete one too: compute the points again that are marked by --on_error"
    )
    save_directions: bool | None = _setting(None, "keep the directions in the file; default: up to 1 GiB")
    save_model: bool = _setting(False, "keep the model in the file (always when it was trained here)")
    plot: bool = _setting(True, "draw a picture beside the file when complete, where matplotlib is installed")
    grace: float | None = _setting(
        None,
        "seconds from a stop signal to the end of the job (Slurm: the number in --signal): a point that is not "
        "finished shortly before is given up, and a job that finished none fails instead of exiting with 75; without "
        "it a stop waits twice as long as the longest point took, and 20 s at least",
        "SECONDS",
    )
    dry_run: bool = _setting(False, "print the plan, timed on one point; write nothing")
    problem_arguments: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise UserError where a value makes no sense."""
        self._check_texts()
        for name in NAMES:
            if (text := getattr(self, name)) not in (None, "none"):
                Axis.parse(text, name)
        if self.x == "none":
            raise UserError("--x none: the first axis is needed; leave out --y and --z for a line")
        if self.y == "none" and self.z not in (None, "none"):
            raise UserError("--z needs --y: a volume has three axes")
        for name in ("samples", "warmup_samples", "batches", "batch_size", "block"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MOST:
                raise UserError(f"--{name} {value}: must be at least 1" + ", and less than 2^63" * (value > MOST))
        if self.tune and (self.channels_last or self.compile or self.block is not None):
            raise UserError("--tune chooses --channels_last, --compile and --block by itself: leave them out, or it")
        if not 0 <= self.resident <= 1:
            raise UserError(f"--resident {self.resident}: must be from 0 (always stream) to 1")
        if self.grace is not None and not 0 < self.grace < math.inf:
            raise UserError(f"--grace {self.grace:g}: must be more than 0 seconds")
        if not 0 <= self.seed <= MOST:
            raise UserError(f"--seed {self.seed}: must not be negative" + ", and less than 2^63" * (self.seed > MOST))
        if self.metrics is not None and len(set(self.metric_names)) < len(self.metric_names):
            raise UserError(f"--metrics {self.metrics}: a metric is named twice")
        check_directions(self)

    def _check_texts(self) -> None:
        """Names that a file's attributes, a log and a shell can hold."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        for name, value in values.items():
            if isinstance(value, str) and printable(value) != value:
                raise UserError(f"--{name} {value}: holds a control character, or is not UTF-8")
        for name in ("output", "problem"):
            if not values[name].strip():
                raise UserError(f"--{name}: must not be empty")
        for key in self.problem_arguments:
            if not key.isidentifier():
                raise UserError(f"--{PROBLEM}{key}: '{key}' cannot be the name of an argument")

    @property
    def metric_names(self) -> list[str]:
        """The metrics asked for, with their arguments; empty: the default ones."""
        return split(self.metrics)

    @property
    def normalized(self) -> str:
        """How directions are normalized."""
        return self.normalization or direction_kind(self.directions).normalization

    @property
    def dimensions(self) -> int:
        """How many axes there are."""
        return direction_kind(self.directions).dimensions(self)

    def grid(self, defaults: Sequence[str] = ("-1:1:51",) * len(NAMES)) -> Grid:
        """The grid; defaults: what the axes are where nothing is said."""
        texts = zip(NAMES[: self.dimensions], defaults, strict=False)
        return Grid(*(Axis.parse(getattr(self, name) or default, name) for name, default in texts))

    def to_yaml(self) -> str:
        """The settings as a file that ``--config`` reads back."""
        import yaml

        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "problem_arguments"}
        values |= {PROBLEM + key: value for key, value in self.problem_arguments.items()}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    def to_command(self) -> str:
        """The command line of this run: what differs from the defaults."""
        words = ["python", "-m", "hpc_landscape"]
        for option in fields(self):
            value = getattr(self, option.name)
            if option.metadata and value != option.default and option.name not in NOW:
                flag = option.default is False and value is True and option.type == "bool"
                words.append(
                    f"--{option.name}"
                    if flag
                    else f"--{option.name}={str(value).lower() if isinstance(value, bool) else value}"
                )
        for key, value in self.problem_arguments.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            words.append(f"--{PROBLEM}{key}={text}")
        return shlex.join(words)
