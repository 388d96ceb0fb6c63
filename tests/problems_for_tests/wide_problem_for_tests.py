"""The tiny problem with a metric of many numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from tiny_problem_for_tests import tiny

from hpc_landscape import Problem
from hpc_landscape.metrics import Metric


class Wide(Metric):
    """Numbers that depend on the point."""

    def __init__(self, numbers: int):
        super().__init__()
        self.shape, self.dims = (numbers,), ("number",)

    def __call__(self, model_wrapper: Any) -> np.ndarray:
        weight = next(iter(model_wrapper.parameters())).detach().double().sum().item()
        return weight + np.arange(self.shape[0], dtype=np.float64)


def wide(numbers: int = 20000, **options: Any) -> Problem:
    """numbers: of a point."""
    problem = tiny(**options)
    return replace(problem, metrics=[Wide(numbers)], neutral=problem.neutral)
