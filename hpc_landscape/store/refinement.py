"""What a file says of a refinement, whose points are not all evaluated: names, and how good its estimates are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import h5py
import numpy as np

REFINED = "refined"  # attribute: the metrics that are estimated, the one first that says where points are needed
TOLERANCE = "tolerance"  # attribute: of its range
SUMMARY = "runs/refinement"


class Summary(NamedTuple):
    """A metric's row in the file's dataset of that name: numbers, NaN while they are not known.

    ended: 1 once no more points are wanted. estimated_error: the largest, as a share of the range of the values; of
    their logarithms where log is 1. true_error: the largest of so many points held out.
    """

    ended: float = math.nan
    estimated_error: float = math.nan
    true_error: float = math.nan
    held_out: float = math.nan
    log: float = math.nan

    def __str__(self) -> str:
        if not math.isfinite(self.estimated_error):
            return "not estimated yet"
        scale = "of the range" + " of its logarithm" * (self.log == 1)
        text = f"estimated to {_percent(self.estimated_error)} {scale}"
        if math.isfinite(self.true_error):
            text += f" (off by {_percent(self.true_error)} at worst at {self.held_out:.0f} points held out)"
        return text if self.ended == 1 else f"{text}, so far"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"


def names(metric: str) -> tuple[str, str]:
    """The datasets of its estimate, and of that one's error."""
    return f"{metric}_estimate", f"{metric}_error"


def estimates(metrics: Iterable[str]) -> list[str]:
    """The datasets of all of these."""
    return [name for metric in metrics for name in names(metric)]


def described(file: h5py.File, shape: tuple[int, ...], attributes: dict[str, Any]) -> dict[str, Summary]:
    """The metrics that the file estimates, and what it says of that; none where that is not as it should be."""
    said = attributes.get(REFINED)
    metrics = said.split(",") if isinstance(said, str) else []
    arrays = dict.fromkeys([*metrics, *estimates(metrics)], shape)
    arrays[SUMMARY] = (len(metrics), len(Summary._fields))
    if not metrics or not all(_is_array(file, name, its) for name, its in arrays.items()):
        return {}
    rows = np.float64(file[SUMMARY][()]).tolist()
    return {metric: Summary(*row) for metric, row in zip(metrics, rows, strict=True)}


def _is_array(file: h5py.File, name: str, shape: tuple[int, ...]) -> bool:
    thing = file.get(name)
    return isinstance(thing, h5py.Dataset) and thing.dtype.kind == "f" and thing.shape == shape
