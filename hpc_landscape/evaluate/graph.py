"""A point's passes as a CUDA graph: captured at the first point, replayed at every other one.

What small networks wait for on a GPU is the launching of their kernels, one by one; a graph is launched at once.
Experimental: not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Captured:
    """run: reads and writes tensors that stay where they are, and gives a tensor; without a wait for the device.

    Raises RuntimeError where it cannot be captured.
    """

    def __init__(self, run: Callable[[], Tensor]):
        if not torch.cuda.is_available():
            raise RuntimeError("CUDA graphs need an NVIDIA GPU")
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # libraries set themselves up in the first runs
                run()
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = run()

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.result
