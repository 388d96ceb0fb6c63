"""Executors call a function of the model at every point that is placed: here what they share, and the plain one."""

from __future__ import annotations

import abc
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..data.data import Data
from ..metrics.base import Counted
from ..model.batchnorm import as_vector, batchnorm_layers, statistics, write_vector
from ..model.estimation import AveragedStatistics, RunningStatistics
from ..model.folding import Pair, folded
from ..model.sharded import AnyPlacement
from ..model.wrapper import ModelWrapper
from ..ranks.generators import Generators
from .share import Share

Point = Sequence[float]


class Executor(abc.ABC):
    """A model attached at one or more points, which are computed together.

    model: as it is called in passes over data. placement: what it is attached to, with room for the points.
    seed: of what is drawn at a point, the same at each. share: of the batches of a pass, this rank's; None: all.
    Use while the model is attached.
    """

    layers_once = False  # whether batch normalization's layers are to be used exactly once in a pass
    row = 0  # of the point that the model is at, where it is at one after the other

    def __init__(
        self,
        model: ModelWrapper,
        placement: AnyPlacement,
        generators: Generators,
        seed: int,
        share: Share | None = None,
    ):
        self.model, self.placement, self.generators, self.seed = model, placement, generators, seed
        self.share = share or Share()
        self.points: Sequence[Point] = ()
        self.layers = batchnorm_layers(model)
        self._counted: dict[Data, list[tuple[int, Counted]]] = {}
        self._sampled: dict[Data, list[tuple[int, tuple[Any, float]]]] = {}

    @abc.abstractmethod
    def place(self, points: Sequence[Point], full: bool) -> None:
        """Let the model be at these points, whatever was done before. full: whatever a metric may have done."""

    @abc.abstractmethod
    def each(self, function: Callable[[], Any]) -> list[Any]:
        """What the function, which calls the model, gives at every point.

        One result for each point; or a single one, of which every tensor has the points along dimension 0.
        """

    def counted(self, data: Data) -> Iterable[Counted]:
        """This rank's batches of an evaluation set, with what is known of each: read once where they stay."""
        if (kept := self._counted.get(data)) is None:
            mine, stays = self.share.of(data), data.at_hand(self.model)
            found: Iterator[tuple[int, Counted]]
            found = ((n, (batch, items, {} if stays else None)) for n, batch, items in mine.counted(self.model))
            if not stays:
                return self.share.taken(found)
            self._counted[data] = kept = list(found)
        return self.share.taken(kept)

    def sampled(self, data: Data) -> Iterable[tuple[Any, float]]:
        """Those of a warm-up set that hold samples, and how many: read once where they stay."""
        if (kept := self._sampled.get(data)) is None:
            mine = self.share.of(data) if self.shares_estimation else data
            found = ((n, (batch, samples)) for n, batch, samples in mine.sampled(self.model))
            if not data.at_hand(self.model):
                return self.share.taken(found)
            self._sampled[data] = kept = list(found)
        return self.share.taken(kept)

    @property
    def shares_estimation(self) -> bool:
        """Whether statistics can be re-estimated by several ranks together."""
        return self.share.divided

    def estimation(self) -> AveragedStatistics | RunningStatistics:
        """What re-estimates statistics of the points in the next pass; use ``with``."""
        together = self.share.together if self.shares_estimation else None
        return AveragedStatistics(self.layers, self.statistics(), together)

    def folding(self) -> AbstractContextManager[Any]:
        """While passes measure with fixed statistics: batch normalization is folded into layers, where it can be."""
        return nullcontext()

    @abc.abstractmethod
    def statistics(self) -> list[Tensor]:
        """All points' running means and variances: the buffers themselves."""

    @abc.abstractmethod
    def read_statistics(self) -> list[Tensor]:
        """The same as one vector for each point, on the CPU."""

    @abc.abstractmethod
    def write_statistics(self, values: Sequence[Tensor]) -> None:
        """Set them to what ``read_statistics`` has read."""

    def start_pass(self) -> None:
        """All random numbers begin anew, and no cast of another point's weights is left."""
        self.generators.seed(self.seed)
        torch.clear_autocast_cache()
        self._save_random()
        self.share.begin(self.left)

    def left(self) -> object:
        """What batches may leave for those after them, as it can be compared."""
        return self._left()

    def _save_random(self) -> None:  # noqa: B027 (of a single point there is nothing to save)
        """Every point's random numbers are what they are now."""

    def _left(self) -> object:
        """What a batch may leave for the next: how far random numbers are, and which buffers are as written last.

        But for those of batch normalization, which are seen to in a pass that writes them.
        """
        drawn = [bytes(s.numpy()) if isinstance(s, Tensor) else s for s in self.generators.read()]
        own = {id(buffer) for layer in self.layers for buffer in layer.buffers()}
        written = [(id(buffer), buffer._version) for buffer in self.model.root.buffers() if id(buffer) not in own]
        return pickle.dumps(drawn), written


class Eager(Executor):
    """The model as it is, at one point after the other on each batch.

    So each computes what it would compute alone, in the same order, and its values are the same to the bit.
    """

    def __init__(
        self,
        model: ModelWrapper,
        placement: AnyPlacement,
        generators: Generators,
        seed: int,
        layers_once: bool = False,
        pairs: Sequence[Pair] = (),
        share: Share | None = None,
    ):
        super().__init__(model, placement, generators, seed, share)
        self.layers_once, self.pairs = layers_once, pairs
        self.running = RunningStatistics(self.layers, self)
        self.running.together = self.share.together if self.shares_estimation else None
        self._states: list[Any] = []

    def place(self, points: Sequence[Point], full: bool) -> None:
        self.points = points
        for row, coordinates in enumerate(points):
            self._put(row)
            self.placement.restore(full)
            self.placement.place(coordinates, row)
        self._put(0)
        self.start_pass()

    def each(self, function: Callable[[], Any]) -> list[Any]:
        found = []
        for row in range(len(self.points)):
            self._select(row)
            found.append(function())
        return found

    @property
    def shares_estimation(self) -> bool:
        return super().shares_estimation and (self.layers_once or not self.running.others)

    def estimation(self) -> AveragedStatistics | RunningStatistics:
        return super().estimation() if self.layers_once else self.running

    def folding(self) -> AbstractContextManager[Any]:
        return folded(self.model.root, self.pairs, lambda: self.row, self.each) if self.pairs else nullcontext()

    def statistics(self) -> list[Tensor]:
        return [buffer for buffers in self.each(lambda: statistics(self.layers)) for buffer in buffers]

    def left(self) -> object:
        return self.each(self._left)

    def read_statistics(self) -> list[Tensor]:
        return self.each(lambda: as_vector(statistics(self.layers)))

    def write_statistics(self, values: Sequence[Tensor]) -> None:
        for row, vector in enumerate(values):
            self._select(row)
            write_vector(statistics(self.layers), vector)

    def leave(self) -> None:
        """Put the model where a point alone is placed."""
        self._put(0)

    def _save_random(self) -> None:
        self._states = [self.generators.read()] * len(self.points) if len(self.points) > 1 else []

    def _select(self, row: int) -> None:
        if row != self.row:
            self._states[self.row] = self.generators.read()
            self.generators.write(self._states[row])
            torch.clear_autocast_cache()  # the casts that user code has made are of another point's weights
            self._put(row)

    def _put(self, row: int) -> None:
        if row != self.row:
            self.placement.select(row)
            self.row = row
