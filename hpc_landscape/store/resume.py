"""What an earlier file holds, as this run has it: the one that it goes on with, or the one that it extends."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import UserError, printable
from ..grid import Grid
from ..model import state
from . import layout
from .earlier import Earlier

# What differs, in words; else an attribute's name says it.
WORDS = {
    "sha256_loss": "the loss (its code, or a number or tensor that it uses)",
    "sha256_forward": "the problem's forward (its code, or what it uses)",
    "sha256_count": "the problem's count (its code, or what it uses)",
    "sha256_architecture": "the model's code",
    "problem_arguments": "the problem's arguments",
    "device_kind": "the kind of device",
    "tolerance": "--refine",
}
METRIC = "sha256_metric_"
JOB = "SLURM_JOB_ID"
JOBS_BEFORE = "HPC_LANDSCAPE_JOBS"  # those that submitted this one for themselves, as jobs/*.slurm do
NOT_THERE = "not recorded"


def fill_from(earlier: Earlier, group: str, tensors: Mapping[str, Tensor], what: str) -> None:
    """Fill the tensors with the file's of the same names; UserError, which says what it holds, where they differ."""
    try:
        state.fill(tensors, layout.read_arrays(earlier.path, group))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{earlier.path} holds {what} ({error.args[0]}): give the settings it was made with, {earlier.instead}"
        ) from None


def check_same(earlier: Earlier, identity: Mapping[str, Any], grid: Grid | None = None) -> None:
    """UserError where the file is of another run, which says what differs. grid: None where it may have another."""
    stored, differs = earlier.stored, []
    if grid is not None and _scales(stored.grid) != _scales(grid):
        differs.append(f"grid ({stored.grid} there, {grid} here)")
    for name, value in identity.items():
        there = stored.attributes.get(name, NOT_THERE)
        if not isinstance(there, (str, int, float)) or there != value:
            there = printable(str(there))
            hashed = name.startswith("sha256")
            shown = "" if hashed and there != NOT_THERE else f" ({textwrap.shorten(there, 200)} there"
            shown += f", {value} here)" if shown and not hashed else ")" if shown else ""
            differs.append(_words(name) + shown)
    if differs:
        raise UserError(
            f"{earlier.path} is of another run: {', '.join(differs)} differ{'s' if len(differs) == 1 else ''}; nothing "
            f"is touched. Give the settings it was made with, {earlier.instead}"
        )


def _words(name: str) -> str:
    if name.startswith(METRIC):
        return f"the code of the metric {name.removeprefix(METRIC)}"
    return WORDS.get(name, name.removeprefix("sha256_").replace("_", " "))


def created_by_this_job(stored: layout.Stored) -> bool:
    """Whether this very job began the file before it came back, by itself or as a new one: --overwrite is done then."""
    before = os.environ.get(JOBS_BEFORE, "").split()
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        before.append(os.environ.get(JOB, ""))
    return stored.attributes.get("slurm_job") in before


def _scales(grid: Grid) -> list[tuple[str, list[float]]]:
    return [(name, values.tolist()) for name, values in grid.scales.items()]
