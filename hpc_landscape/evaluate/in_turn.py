"""Several points in turn on each batch: what it costs to load a batch is shared between them.

Each point computes what it would compute alone, in the same order, so that its values are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..metrics.data import Data
from ..metrics.metric import BatchMetric, Sums
from ..model_interface import batchnorm
from ..model_interface.model_wrapper import ModelWrapper
from ..model_interface.subspace import Subspace
from .passes import output


class InTurn:
    """A model at the points that a subspace holds. Use while it is attached ``in_turn``, and without gradients.

    points: how many of the rows are in use. generators: their states are each point's own.
    """

    def __init__(self, model: ModelWrapper, subspace: Subspace, points: int, generators: Iterable[torch.Generator]):
        self.model, self.subspace = model, subspace
        self.generators = list(generators)
        self.states: list[list[Tensor]] = [[g.get_state() for g in self.generators] for _ in range(points)]
        self.at = 0
        subspace.select(0)

    def _select(self, row: int) -> None:
        if row != self.at:
            self.states[self.at] = [g.get_state() for g in self.generators]
            for generator, state in zip(self.generators, self.states[row], strict=True):
                generator.set_state(state)
            self.subspace.select(row)
            self.at = row

    def _rows(self) -> Iterator[int]:
        for row in range(len(self.states)):
            self._select(row)
            yield row

    def _batches(self, data: Data) -> Iterator[tuple[Any, int]]:
        """Every batch at every point."""
        for batch in data.on(self.model):
            for row in self._rows():
                yield batch, row

    def warm_up(self, data: Data, once: bool) -> None:
        """Re-estimate every point's batch normalization statistics. once: as in ``passes.warm_up``."""
        root = self.model.root
        if once:
            with batchnorm.last_batch(root):
                averages = [batchnorm.Average(batchnorm.statistics(root)) for _ in self._rows()]
                for batch, row in self._batches(data):
                    output(self.model, data, batch)
                    averages[row].add(data.samples(batch))
                for average in averages:
                    average.close()
            return
        with batchnorm.warm_up(root, len(self.states)) as statistics:
            for _ in self._rows():
                batchnorm.reset(batchnorm.batchnorm_layers(root))
            for batch, row in self._batches(data):
                samples = data.samples(batch)
                if not samples:
                    continue
                statistics.weigh(samples, row)
                output(self.model, data, batch)

    def measure(self, data: Data, metrics: Sequence[BatchMetric]) -> list[list[float]]:
        """Each metric's mean over all batches, at every point."""
        sums = [Sums(metrics) for _ in self.states]
        for batch, row in self._batches(data):
            sums[row].add(self.model, data, batch)
        return [total.means() for total in sums]
