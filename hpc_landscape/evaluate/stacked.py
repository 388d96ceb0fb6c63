"""Many points in one pass: parameters and batch normalization statistics stacked, the model called under vmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..data.data import Data, is_empty
from ..metrics.base import BatchMetric, times, weighed
from ..model.batchnorm import Average, last_batch, statistics
from ..model.wrapper import ModelWrapper


class _Call(nn.Module):
    """What a wrapper does, as a module whose parameters can be replaced."""

    def __init__(self, model: ModelWrapper):
        super().__init__()
        self.root = model.root

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


class Block:
    """A model at several points. parameters: by name, the points along dimension 0. Use while the model is attached."""

    def __init__(self, model: ModelWrapper, parameters: dict[str, Tensor]):
        self.model, self.call = model, _Call(model)
        self.rows = rows = next(iter(parameters.values())).shape[0]
        self.parameters = {f"root.{name}": stacked for name, stacked in parameters.items()}
        names = {id(b): f"root.{name}" for name, b in model.root.named_buffers()}
        own = {names[id(b)]: b.detach() for b in statistics(model)}
        self.statistics = {name: b.repeat(rows, *[1] * b.ndim) for name, b in own.items()}

    @torch.no_grad()
    def warm_up(self, data: Data) -> None:
        """Re-estimate every point's batch normalization statistics on the batches."""
        with last_batch(self.model):
            average = Average(list(self.statistics.values()))
            for batch in data.on(self.model):
                self._each(lambda batch=batch: (data.output(self.model, batch), torch.zeros((), device="cpu"))[1])
                average.add(data.samples(batch))
            average.close()

    @torch.no_grad()
    def measure(self, data: Data, metrics: Sequence[BatchMetric]) -> list[Tensor]:
        """Each metric's mean over all batches, at every point: (points,), float64."""
        totals: list[Any] = [0.0] * 2 * len(metrics)  # of each: the batches' means by their weights, and the weights
        for batch in data.on(self.model):
            items = data.items(batch)
            if is_empty(items):
                continue

            def parts(batch: Any = batch, items: Any = items) -> tuple[Tensor, ...]:
                pairs = list(weighed(metrics, self.model, data, batch, items))
                weights = (_tensor(weight) for _, weight in pairs)
                return (*(times(mean, weight) for mean, weight in pairs), *weights)

            for i, found in enumerate(self._each(parts)):
                totals[i] += found
        if not isinstance(totals[0], Tensor):
            return [torch.full((self.rows,), float("nan"), dtype=torch.float64, device="cpu")] * len(metrics)
        found, weights = ([total.cpu() for total in part] for part in (totals[: len(metrics)], totals[len(metrics) :]))
        return [a if metric.sums else a / w for metric, a, w in zip(metrics, found, weights, strict=True)]

    def _each(self, function: Callable[[], Any]) -> Any:
        """What the function, which calls the model, gives at every point."""

        def at(parameters: dict[str, Tensor], statistics: dict[str, Tensor]) -> Any:
            return functional_call(self.call, {**parameters, **statistics}, (function,))

        return vmap(at, in_dims=(0, 0), randomness="same")(self.parameters, self.statistics)


def _tensor(weight: Any) -> Tensor:
    return weight if isinstance(weight, Tensor) else torch.tensor(float(weight), dtype=torch.float64, device="cpu")
