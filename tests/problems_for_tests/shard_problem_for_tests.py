"""Models that are shared out over ranks: a transformer with tied weights, and convolutions with batch normalization."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.utils import prune

from hpc_landscape import Problem

WORDS = 11


class Transformer(nn.Module):
    """Two layers; the last one's weights are the first one's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 6)
        layers = (nn.TransformerEncoderLayer(6, 2, 16, dropout=0.0, batch_first=True) for _ in range(2))
        self.layers = nn.ModuleList(layers)
        self.last = nn.Linear(6, WORDS, bias=False)
        self.last.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x.mean(1))


class FailsOnOne(Transformer):
    """Raises on one rank, while the others wait for it in the first layer."""

    def forward(self, x: Tensor) -> Tensor:
        if distributed.is_initialized() and distributed.get_rank() == 1:
            raise ArithmeticError("on one rank")
        return super().forward(x)


class Convolutions(nn.Module):
    """Blocks within blocks."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5))
        self.body = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), inner)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Holds(Convolutions):
    """Where it is asked to, one rank waits for ever in a late forward pass, and says in a file which process it is."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        Holds.passes += 1
        held = os.environ.get("HOLD_THE_SHARED")
        if held and Holds.passes == 80 and distributed.is_initialized() and distributed.get_rank() == 1:
            Path(held).write_text(str(os.getpid()))
            time.sleep(3600)
        return super().forward(x)


class Remembering(nn.Module):
    """With pruned weights, and a buffer that each batch puts another in place of."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = prune.l1_unstructured(nn.Linear(4, 3), "weight", 2)
        self.register_buffer("said", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.said = self.layer(x) + self.said.mean(0)
        return self.said


class Scaled(nn.Module):
    """With a parameter that is a mere number, which has no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.tensor(1.0)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x)


def problem(kind: str = "transformer", dtype: str = "float32", parts: bool = False) -> Problem:
    """parts: whether the forward calls parts of the model, and not the model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        if kind in ("transformer", "fails"):
            model = Transformer() if kind == "transformer" else FailsOnOne()
            inputs, classes = torch.randint(WORDS, (53, 6)), WORDS
        elif kind in ("convolutions", "holds"):
            model = Convolutions() if kind == "convolutions" else Holds()
            inputs, classes = torch.randn(53, 1, 6, 6), 3
        else:
            model = Scaled() if kind == "scaled" else Remembering()
            inputs, classes = torch.randn(53, 4), 3
        targets = torch.randint(classes, (53,))
    forward = (lambda model, batch: model.last(model.embed(batch[0]).mean(1))) if parts else None
    loss = (lambda output, batch: nn.functional.cross_entropy(output, batch[1])) if parts else nn.CrossEntropyLoss()
    if kind == "hooked":
        model.layer.register_forward_hook(lambda module, given, output: output + model.layer.bias)
    return Problem(model.to(getattr(torch, dtype)), loss, (inputs, targets), forward=forward)
