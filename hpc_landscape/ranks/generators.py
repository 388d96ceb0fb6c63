"""The random generators that belong to the process: torch's, on the CPU and on GPUs, NumPy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

States = list[Any]


class Generators:
    """All of them. devices: where tensors are drawn; the CPU's belong to them always."""

    def __init__(self, devices: Iterable[torch.device] = ()):
        kinds = {device.type for device in devices}
        gpus = sorted({device.index or 0 for device in devices if device.type == "cuda"})
        torchs = [torch.default_generator, *(torch.cuda.default_generators[index] for index in gpus)]
        self._python: tuple[int | None, Any] = None, None  # a seed, and the state that it makes
        self.elsewhere = bool(kinds - {"cpu", "meta"})
        self.parts: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [(g.get_state, g.set_state) for g in torchs]
        if "mps" in kinds:
            self.parts.append((torch.mps.get_rng_state, torch.mps.set_rng_state))
        self.parts += [(np.random.get_state, np.random.set_state), (random.getstate, random.setstate)]

    def seed(self, seed: int) -> None:
        """Start all of them anew, in some 5 us: ``torch.manual_seed`` takes longer alone, and ``random.seed``, too."""
        torch.default_generator.manual_seed(seed)
        if self.elsewhere:
            torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        if self._python[0] != seed:
            self._python = seed, random.Random(seed).getstate()
        random.setstate(self._python[1])

    def read(self) -> States:
        return [get() for get, _ in self.parts]

    def write(self, states: States) -> None:
        for (_, put), state in zip(self.parts, states, strict=True):
            put(state)

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """What is drawn meanwhile leaves them as they were."""
        states = self.read()
        try:
            yield
        finally:
            self.write(states)


def apart(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; what a loader and its data set draw in reading them is drawn beside what a point draws.

    Otherwise a point's numbers would depend on whether it shares the reading with others.
    """
    own = Generators()
    iterator, reading = None, own.read()
    while True:
        outside = own.read()
        own.write(reading)
        try:
            iterator = iter(batches) if iterator is None else iterator
            batch = next(iterator)
        except StopIteration:
            return
        finally:
            reading = own.read()
            own.write(outside)
        yield batch
