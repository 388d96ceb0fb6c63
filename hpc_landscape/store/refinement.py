"""What a file says of a refinement, whose points are not all evaluated: names, and how good its estimates are."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import h5py
import numpy as np

REFINED = "refined"  # attribute: the metric that is estimated
TOLERANCE = "tolerance"  # attribute: of its range
SUMMARY = "runs/refinement"


class Summary(NamedTuple):
    """As in the file's dataset of that name: numbers, NaN while they are not known.

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
            return "estimated between"
        scale = "of the range" + " of its logarithm" * (self.log == 1)
        text = f"estimated between, to {_percent(self.estimated_error)} {scale}"
        if math.isfinite(self.true_error):
            text += f" (off by {_percent(self.true_error)} at worst at {self.held_out:.0f} points held out)"
        return text if self.ended == 1 else f"{text}, so far"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"


def names(metric: str) -> tuple[str, str]:
    """The datasets of its estimate, and of that one's error."""
    return f"{metric}_estimate", f"{metric}_error"


def described(file: h5py.File, shape: tuple[int, ...], attributes: dict[str, Any]) -> tuple[str, Summary | None]:
    """The metric that the file estimates, and what it says of that; nothing where it does not, as it should."""
    metric = attributes.get(REFINED)
    if not isinstance(metric, str) or any(not _is_array(file, name, shape) for name in (metric, *names(metric))):
        return "", None
    if not _is_array(file, SUMMARY, (len(Summary._fields),)):
        return "", None
    return metric, Summary(*np.float64(file[SUMMARY][()]).tolist())


def _is_array(file: h5py.File, name: str, shape: tuple[int, ...]) -> bool:
    thing = file.get(name)
    return isinstance(thing, h5py.Dataset) and thing.dtype.kind == "f" and thing.shape == shape
