"""Several points in turn on each batch: what it costs to load a batch is shared between them.

Each point computes what it would compute alone, in the same order, so that its values are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..data.data import Data, fresh
from ..metrics.base import BatchMetric, Sums
from ..model import batchnorm
from ..model.placement import Placement
from ..model.wrapper import ModelWrapper
from ..ranks.generators import Generators
from .passes import output


class InTurn:
    """A model at the points that a placement holds. Use while it is attached ``interleaved``, and without gradients.

    points: how many of the rows are in use. generators: their states, as they are now at first, are each point's own.
    """

    def __init__(self, model: ModelWrapper, placement: Placement, points: int, generators: Generators):
        self.model, self.placement, self.generators = model, placement, generators
        self.first = generators.read()
        self.states = [self.first] * points
        self.at = 0
        placement.select(0)

    def start(self) -> None:
        """Before each pass: every point's random numbers begin anew."""
        self.states = [self.first] * len(self.states)
        self.generators.write(self.first)

    def _select(self, row: int) -> None:
        if row != self.at:
            self.states[self.at] = self.generators.read()
            self.generators.write(self.states[row])
            self.placement.select(row)
            torch.clear_autocast_cache()  # the casts that user code has made are of another point's weights
            self.at = row

    def _rows(self) -> Iterator[int]:
        for row in range(len(self.states)):
            self._select(row)
            yield row

    def _batches(self, data: Data) -> Iterator[tuple[Any, int]]:
        """Every batch at every point."""
        for batch in data.on(self.model):
            for row in self._rows():
                yield fresh(batch), row

    def warm_up(self, data: Data, once: bool) -> None:
        """Re-estimate every point's batch normalization statistics. once: as in ``passes.warm_up``."""
        if once:
            with batchnorm.last_batch(self.model):
                averages = [batchnorm.Average(batchnorm.statistics(self.model)) for _ in self._rows()]
                for batch, row in self._batches(data):
                    output(self.model, data, batch)
                    averages[row].add(data.samples(batch))
                for average in averages:
                    average.close()
            return
        with batchnorm.warm_up(self.model, len(self.states)) as statistics:
            for _ in self._rows():
                batchnorm.reset(batchnorm.batchnorm_layers(self.model))
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
