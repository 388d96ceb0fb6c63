"""Whether a fast way to compute is near enough to the plain one, as the ranks find together; else all take that one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data.data import Data
from ..data.faults import Patience
from ..data.sets import Sets
from ..evaluate.build import EvaluatorBuilder
from ..evaluate.evaluator import Evaluator
from ..evaluate.exactness import Excess, ExecutionErrors, compare, described, is_plain, plainly, sample, threshold
from ..evaluate.execution import ExecutionMode
from ..grid import Grid
from ..metrics import BatchMetric, Metric
from ..metrics.registry import MetricRegistry
from ..ranks.base import Comm
from ..store.exactness import GIVEN_UP
from .failures import Attempts, Failure
from .metrics import remade
from .modes import first_mode
from .plan import Plan
from .share import one_copy

log = logging.getLogger(__name__)


def on_device(builder: EvaluatorBuilder, mode: ExecutionMode, comm: Comm) -> Sets:
    """The data as the mode wants it, in memory once for the ranks of a node; every rank calls it."""
    here = builder.data(mode)
    return here.each(lambda batches: one_copy(batches, comm)) if builder.device == torch.device("cpu") else here


def take_near_enough(plan: Plan, builder: EvaluatorBuilder, registry: MetricRegistry, comm: Comm) -> None:
    """Measure how far the plan's evaluator is off; where that is beyond --max_error, the plan has the plain one then.

    Every rank calls it. A dry run measures nothing.
    """
    fast, asked, stored = plan.evaluator, plan.evaluation, _decided(plan)
    if plan.output.dry_run and stored is None:
        return

    def equip(evaluator: Evaluator, data: Mapping[str, Data]) -> None:
        evaluator.metrics = remade(asked.metric_names, fast.metrics, registry, data)

    choice = Choice(fast, builder, equip, plan.grid, comm, plan.patience, record=asked.on_error == "record")
    plan.evaluator, plan.execution_errors, why = choice.settle(stored, lambda text: log.info("execution    %s", text))
    if why:
        plan.record[GIVEN_UP] = why


def _decided(plan: Plan) -> Mapping[str, Any] | None:
    """The attributes of the file that says which of the two is taken; a larger grid may be off by more."""
    if plan.stored is not None:
        return plan.stored.attributes
    there = {} if plan.extends is None else plan.extends.stored.attributes
    return there if GIVEN_UP in there else None


@dataclass
class Choice:
    """A fast way to compute, and the plain one that is taken where it is off by too much. Every rank has one.

    builder: has built the fast evaluator. equip: gives another one that it builds its metrics, on these sets.
    record: whether a point at which something raises is NaN. any_error: whether what fails need not be a UserError.
    """

    fast: Evaluator
    builder: EvaluatorBuilder
    equip: Callable[[Evaluator, Mapping[str, Data]], None]
    grid: Grid
    comm: Comm
    patience: Patience
    record: bool = False
    any_error: bool = False

    def settle(
        self, stored: Mapping[str, Any] | None, tell: Callable[[str], None]
    ) -> tuple[Evaluator, ExecutionErrors, str]:
        """(the evaluator to take, how far it is off, which one has been given up and why), the same on every rank.

        stored: of a file that is gone on with: it says which of the two it is of, and nothing is measured. tell: is
        told, on every rank, where the fast one is given up.
        """
        fast, asked = self.fast, described(self.fast)
        if is_plain(fast) or not _additive(fast):
            return fast, ExecutionErrors(), ""
        if stored is not None:
            why = str(stored.get(GIVEN_UP, ""))
            if why.partition(": ")[0] != asked:
                return fast, ExecutionErrors.read(stored), ""
            plain, said = self._plain(), f"{why}, as the file has it"
        else:
            errors, plain = self._measured()
            most = threshold(fast.precision, self.builder.speed.max_error)
            excess = errors.beyond(most)
            if excess is None:
                return fast, errors, ""
            why = f"{asked}: {self._text(excess)}"
            enough = _enough(excess.relative)
            said = f"{why}, more than --max_error {most:g}; --max_error {enough} would take it"
        tell(f"{plain.precision}, {plain.execution}, instead of {said}")
        return plain, ExecutionErrors(), why

    def _plain(self) -> Evaluator:
        """The plain evaluator, on every rank."""
        builder = plainly(self.builder)
        mode = first_mode(builder, self.comm, lambda text: None, self.any_error)
        here = on_device(builder, mode, self.comm)
        with self.comm.raise_on_all_ranks(self.any_error):
            evaluator, data = builder.build(mode, here)
            self.equip(evaluator, data)
            if self.fast.careful:
                evaluator.be_careful()
        return evaluator

    def _measured(self) -> tuple[ExecutionErrors, Evaluator]:
        """How far the fast one is off, and the plain one. Ranks share the points: a value depends on no rank."""
        comm, points, plain = self.comm, sample(self.grid.plane.shape), self._plain()
        mine = np.array_split(points, comm.size)[comm.rank]
        with comm.raise_on_all_ranks(self.any_error):
            found = [self._values(evaluator, mine) for evaluator in (self.fast, plain)]
        pairs = [pair for fast, exact in comm.allgather(found) for pair in zip(fast, exact, strict=True)]
        names = _additive(self.fast)
        seen = [pair if all(pair) else ({name: np.nan for name in names},) * 2 for pair in pairs]
        fast, exact = ({name: np.array([pair[i][name] for pair in seen]) for name in names} for i in range(2))
        return compare(self.grid, points, fast, exact, names), plain

    def _values(self, evaluator: Evaluator, points: np.ndarray) -> list[dict[str, float]]:
        """At each point the value of every metric that adds up over batches; none where one raises, and may."""
        own, evaluator.metrics = evaluator.metrics, _additive(evaluator)
        attempts = Attempts(evaluator, self.grid, dict, self.patience, self.record)
        together, found = evaluator.execution.points, []
        try:
            with evaluator.attached():
                for first in range(0, len(points) if evaluator.metrics else 0, together):
                    found += attempts.evaluate(points[first : first + together])
        finally:
            evaluator.metrics = own
        return [{} if isinstance(values, Failure) else values for values in found]

    def _text(self, excess: Excess) -> str:
        where, off = self.grid.text_of(excess.point), f"off by {excess.error:.2g}"
        return f"{excess.metric} is {off} at {where}, {excess.relative:.2g} of its size"


def _additive(evaluator: Evaluator) -> dict[str, Metric]:
    """The metrics of which an error is seen: others may take far longer than a point."""
    return {name: metric for name, metric in evaluator.metrics.items() if isinstance(metric, BatchMetric)}


def _enough(relative: float) -> str:
    """A number of one digit that is as large."""
    if not math.isfinite(relative):
        return ".inf"
    digit = 10.0 ** math.floor(math.log10(relative))
    return f"{math.ceil(relative / digit) * digit:g}"
