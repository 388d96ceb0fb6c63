"""Many points in one pass: parameters and batch normalization statistics stacked, the model called under vmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..metrics.data import Data, samples
from ..metrics.metric import BatchMetric
from ..model_interface.batchnorm import Average, last_batch, statistics
from ..model_interface.model_wrapper import ModelWrapper


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
        rows = next(iter(parameters.values())).shape[0]
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
                average.add(samples(batch))
            average.close()

    @torch.no_grad()
    def measure(self, data: Data, metrics: Sequence[BatchMetric]) -> list[Tensor]:
        """Each metric's mean over all batches, at every point: (points,), float64."""
        totals: list[Tensor | float] = [0.0] * len(metrics)
        items = 0.0
        for batch in data.on(self.model):
            weight = data.items(batch)
            if not weight:
                continue  # a mean over nothing is NaN

            def means(batch: Any = batch) -> tuple[Tensor, ...]:
                output, target = data.output(self.model, batch), data.target(batch)
                return tuple(metric.batch_mean(output, target) for metric in metrics)

            for i, mean in enumerate(self._each(means)):
                totals[i] += (mean.cpu() if mean.device.type == "mps" else mean).double() * weight
            items += weight
        nothing = torch.full(
            (len(next(iter(self.parameters.values()))),), float("nan"), dtype=torch.float64, device="cpu"
        )
        return [total.cpu() / items if items else nothing for total in totals]

    def _each(self, function: Callable[[], Any]) -> Any:
        """What the function, which calls the model, gives at every point."""

        def at(parameters: dict[str, Tensor], statistics: dict[str, Tensor]) -> Any:
            return functional_call(self.call, {**parameters, **statistics}, (function,))

        return vmap(at, in_dims=(0, 0), randomness="same")(self.parameters, self.statistics)
