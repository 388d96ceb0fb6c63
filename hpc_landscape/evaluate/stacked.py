"""Many points in one pass: parameters and batch normalization statistics stacked, the model called under vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..data.data import Data
from ..metrics.base import Counted
from ..model.batchnorm import as_vector, statistics, write_vector
from ..model.placement import Placement
from ..model.wrapper import ModelWrapper
from ..ranks.generators import Generators
from .executor import Executor, Point
from .share import Share


class _Call(nn.Module):
    """What a wrapper does, as a module whose parameters can be replaced."""

    def __init__(self, model: ModelWrapper):
        super().__init__()
        self.root = model.root

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


class Stacked(Executor):
    """All points that there is room for at once. A function's tensors depend on the point, its numbers do not."""

    layers_once = True

    def __init__(
        self, model: ModelWrapper, placement: Placement, generators: Generators, seed: int, share: Share | None = None
    ):
        super().__init__(model, placement, generators, seed, share)
        self.call, rows = _Call(model), placement.rows
        self.parameters = {f"root.{name}": stacked for name, stacked in placement.stacked.items()}
        names = {id(b): f"root.{name}" for name, b in model.root.named_buffers()}
        own = {names[id(b)]: b.detach() for b in statistics(self.layers)}
        self.buffers = {name: b.repeat(rows, *[1] * b.ndim) for name, b in own.items()}
        self._start = {name: b.clone() for name, b in self.buffers.items()}

    def place(self, points: Sequence[Point], full: bool) -> None:
        """Where there are fewer points than room the last fills up: a value does not depend on how many neighbours it
        has.
        """
        self.points = points
        self.placement.restore(full)
        for row in range(self.placement.rows):
            self.placement.place(points[min(row, len(points) - 1)], row)
        for name, buffer in self.buffers.items():
            buffer.copy_(self._start[name])
        self.start_pass()

    @torch.no_grad()
    def each(self, function: Callable[[], Any]) -> list[Any]:
        numbers: list[Any] = []

        def at(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Any:
            found = functional_call(self.call, {**parameters, **buffers}, (function,))
            numbers[:] = [None if isinstance(value, Tensor) else value for value in found or ()]
            return (*(t for t in found or () if isinstance(t, Tensor)), torch.zeros((), device="cpu"))

        *tensors, _ = vmap(at, in_dims=(0, 0), randomness="same")(self.parameters, self.buffers)
        left = iter(tensors)
        return [[next(left) if number is None else number for number in numbers]]

    def counted(self, data: Data) -> Iterable[Counted]:
        return ((batch, items, None) for batch, items, _ in super().counted(data))  # a weight is of this stack alone

    def statistics(self) -> list[Tensor]:
        return list(self.buffers.values())

    def read_statistics(self) -> list[Tensor]:
        return [as_vector(self._row(row)) for row in range(len(self.points))]

    def write_statistics(self, values: Sequence[Tensor]) -> None:
        for row in range(self.placement.rows):
            write_vector(self._row(row), values[min(row, len(values) - 1)])

    def _row(self, row: int) -> list[Tensor]:
        """A point's own statistics."""
        return [buffer[row] for buffer in self.buffers.values()]
