"""How far the values of a fast way to compute are from those of the plain one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..grid import Grid
from .evaluator import Evaluator

SAMPLED = 8  # points at which the error is seen
SPREAD = 4.0  # times their root mean square: the grid's worst, as an estimate


@dataclass
class ExecutionErrors:
    """How far a mode's values are from the plain mode's: by metric, at points (flat indices)."""

    points: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    differences: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def estimates(self) -> dict[str, float]:
        """By metric, what to expect at the worst point of the grid."""
        with np.errstate(over="ignore"):
            return {name: SPREAD * float(np.sqrt(np.mean(d**2))) for name, d in self.differences.items()}

    def attributes(self) -> dict[str, Any]:
        """As a file keeps them."""
        if not self.differences:
            return {}
        return {
            "execution_error_points": self.points,
            **{f"execution_error_{name}": estimate for name, estimate in self.estimates.items()},
            **{f"execution_error_differences_{name}": found for name, found in self.differences.items()},
        }


def errors_of_mode(evaluator: Evaluator, plain: Evaluator, grid: Grid, seed: int) -> ExecutionErrors:
    """How far values are from the plain mode's, at points drawn by the seed."""
    draw = np.random.default_rng([seed, 1])
    points = np.sort(draw.choice(grid.size, min(SAMPLED, grid.size), replace=False))
    values = []
    for one in (plain, evaluator):
        with one.attached():
            values.append([one(grid.point(int(point))) for point in points])
    found = {}
    for name in plain.metrics:
        slow, fast = (np.array([value[name] for value in which], dtype=np.float64) for which in values)
        same = (slow == fast) | (np.isnan(slow) & np.isnan(fast))
        with np.errstate(invalid="ignore"):
            found[name] = np.where(same, 0.0, fast - slow)
    return ExecutionErrors(points, found)
