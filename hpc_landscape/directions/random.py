"""Random directions: one independent stream each, from one seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..model.numbers import numbers_of, reals


def random_directions(
    parameters: Mapping[str, Tensor], count: int, seed: int, distribution: str = "normal"
) -> list[dict[str, Tensor]]:
    """count directions, drawn on the CPU in float32 in the parameters' order: normal, or uniform on [-1, 1].

    The draw depends on the seed and the parameters' shapes alone: not on the device, threads or ranks. Of a complex
    number the real and the imaginary part are drawn independently.
    """
    directions = []
    for stream in np.random.SeedSequence(seed).spawn(count):
        generator = np.random.default_rng(stream)
        direction = {}
        for name, parameter in parameters.items():
            shape = reals(parameter).shape
            if distribution == "normal":
                values = generator.standard_normal(shape, dtype=np.float32)
            else:
                values = 2 * generator.random(shape, dtype=np.float32) - 1
            direction[name] = numbers_of(torch.from_numpy(np.asarray(values, dtype=np.float32)), parameter)
        directions.append(direction)
    return directions
