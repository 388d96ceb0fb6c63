"""A mean that is an estimate, and how far off it may be."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def mean_and_error(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The mean and its standard error, the sample deviation over sqrt(n), NaN for a single value: shape (2,)."""
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is a result
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return np.array([values.mean(), error])
