"""Metrics by name: the built-in ones, those of packages, the problem's own, and the user's from a file."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..data.data import Data
from ..data.prepare import TensorBatches
from ..errors import UserError
from ..kinds import METRICS
from .base import Metric
from .criterion import Criterion
from .supervised import LossTerm

if TYPE_CHECKING:
    from ..problems.problem import Problem


class MetricRegistry:
    """Makes the metrics that are asked for of a problem.

    Args:
        problem: whose metrics they are.
        sets: the evaluation sets by name; None where only the names matter as yet.
        loss: the problem's, on the sets' device.
    """

    def __init__(self, problem: Problem, sets: Mapping[str, Data | None], loss: Any = None):
        self.problem, self.sets, self.loss = problem, sets, loss
        self._criterion = None if loss is None else Criterion(loss, problem.reduction)
        self.own = {metric.name: metric for metric in problem.metrics}

    def on(self, sets: Mapping[str, Data]) -> MetricRegistry:
        """The same for these sets in another place: what has been found out of the loss stays known."""
        other = copy.copy(self)
        other.sets = sets
        return other

    @property
    def criterion(self) -> Criterion:
        """The problem's loss, on the device; only where there is one."""
        assert self._criterion is not None
        return self._criterion

    @property
    def data(self) -> dict[str, Data]:
        """The evaluation sets that are there."""
        return {name: data for name, data in self.sets.items() if data is not None}

    def make(self, spec: str) -> dict[str, Metric]:
        """The metrics that one word asks for, by their names in the file."""
        name, arguments = METRICS.parse(spec)
        if name in self.own:
            return {name: self.own[name]}
        make, on_sets = self.find(spec)
        if make is LossTerm and self._criterion is not None:
            words = [(on, spec.removeprefix(f"{on}_")) for on in on_sets]
            return {f"{on}_{w}" if on else w: LossTerm(self._criterion, w, self.sets[on]) for on, w in words}
        made = {}
        for on in on_sets:
            metric = self._on(on, make, spec, arguments)
            made[f"{on}_{metric.name}" if on else metric.name] = metric
        return made

    def find(self, spec: str) -> tuple[Callable[..., Any], list[str]]:
        """What makes the metric, and on which sets: every one, or that whose name and an underscore it begins with."""
        name, _ = METRICS.parse(spec)
        if name in self.own:
            return lambda: self.own[name], [""]
        if name == "expected_return" and self.problem.env is None:
            raise UserError("--metrics expected_return: the problem has no env: Problem(agent_wrapper, env=...)")
        if name in METRICS or ":" in name:
            make = METRICS.load(name)
            on_data = {"inputs", "data"} & set(inspect.signature(make).parameters)
            if on_data and not self.sets:
                raise UserError(f"--metrics {spec}: the problem has no data")
            return make, [*self.sets] if on_data else [""]
        for on in filter(None, self.sets):
            if (inner := name.removeprefix(f"{on}_")) in METRICS:
                return METRICS.load(inner), [on]
        if spec.isidentifier() and self.sets and not isinstance(self.problem.loss, nn.Module):
            on_those = [on for on in self.sets if on and spec.startswith(f"{on}_")]
            return LossTerm, on_those or [*self.sets]  # perhaps: only the loss can tell
        raise self.no_such(spec)

    def no_such(self, spec: str, terms: Iterable[str] = ()) -> UserError:
        """That there is no metric of this name."""
        return METRICS.unknown(spec, [*self.own, *terms])

    @property
    def default(self) -> list[str]:
        """What is computed where nothing is asked for."""
        return ["loss", "accuracy"] if self.sets else [*self.own] or ["expected_return"]

    def _on(self, on: str, make: Callable[..., Any], spec: str, arguments: dict[str, Any]) -> Metric:
        """The metric on one set: it is given those of these that its signature names."""
        ours = isinstance(make, type) and issubclass(make, tuple(map(METRICS.load, METRICS.built_in)))
        have = {"loss_fn": self._criterion if ours else self.loss, "problem": self.problem, "env": self.problem.env}
        if self._criterion is not None and self._criterion.ignore_index is not None:
            have["ignore_index"] = self._criterion.ignore_index
        if on in self.sets:
            have |= {"inputs": self.sets[on], "data": self.sets[on]}
        wanted = inspect.signature(make).parameters
        if "target" in wanted and wanted["target"].default is inspect.Parameter.empty:
            have["inputs"], have["target"] = self._tensors(on, spec)
        metric = METRICS.call(make, spec, {key: value for key, value in have.items() if key in wanted} | arguments)
        if not isinstance(metric, Metric):
            raise UserError(f"--metrics {spec}: gives a {type(metric).__name__}, not a hpc_landscape.metrics.Metric")
        return metric

    def _tensors(self, on: str, spec: str) -> tuple[Tensor, Tensor]:
        """All inputs and all targets, for a metric that wants them as tensors."""
        data = self.sets[on]
        batches = None if data is None else data.batches
        if not isinstance(batches, TensorBatches) or len(batches.tensors) != 2:
            raise UserError(
                f"--metrics {spec}: wants inputs and target as tensors; let it take data, and iterate over it"
            )
        return batches.tensors[0], batches.tensors[1]
