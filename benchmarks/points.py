"""A point, warm-up and evaluation pass: ours against the best loop written by hand, of the same kind."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from hpc_landscape.evaluate.evaluator import Evaluator
from hpc_landscape.evaluate.execution import PLAIN, ExecutionMode, compute_dtypes
from hpc_landscape.metrics import Data, Loss
from hpc_landscape.model import state
from hpc_landscape.model.folding import find_pairs
from hpc_landscape.model.placement import Placement
from hpc_landscape.model.wrapper import wrap_model

from .timing import Seconds, Told, in_turns, ratio

BATCH = 500
POINT = (0.3, -0.2)


def directions(model: nn.Module) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {n: 0.1 * torch.randn(p.shape, generator=generator).to(p) for n, p in model.named_parameters()} for _ in "xy"
    ]


def batches(data: tuple[Tensor, Tensor], channels_last: bool, size: int = BATCH) -> list[tuple[Tensor, Tensor]]:
    x, y = data
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return list(zip(x.split(size), y.split(size), strict=True))


class Bare:
    """The loop that one would write by hand for speed: resident batches, weights moved in place, nothing else."""

    def __init__(
        self,
        model: nn.Module,
        data: tuple[Tensor, Tensor],
        mode: ExecutionMode,
        warm_up: bool = True,
        size: int = BATCH,
    ):
        self.origin = [p.detach().clone() for p in model.parameters()]
        self.moves = [[d[name] for name, _ in model.named_parameters()] for d in directions(model)]
        self.batches = batches(data, mode.channels_last, size)
        self.model = model.to(memory_format=torch.channels_last) if mode.channels_last else model
        self.layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        self.low, self.warm = mode.compute_dtype, warm_up
        if mode.compute_dtype is not None:
            self.batches = [(x.to(mode.compute_dtype), y) for x, y in self.batches]
            model.to(mode.compute_dtype)
            for layer in self.layers:
                layer.float()
        self.parameters = list(model.parameters())
        self.call: Callable[[Tensor], Tensor] = (
            torch.compile(model, dynamic=False, mode=mode.compiled) if mode.compiled else model
        )
        model.eval()

    def __call__(self) -> float:
        return float(self._eager())

    @torch.inference_mode()
    def _eager(self) -> Tensor:
        moved = torch._foreach_add(self.origin, self.moves[0], alpha=POINT[0])
        torch._foreach_add_(moved, self.moves[1], alpha=POINT[1])
        torch._foreach_copy_(self.parameters, moved)
        if self.warm and self.layers:
            for layer in self.layers:
                layer.reset_running_stats()
                layer.train()
                layer.momentum = 0.1  # the same work as an average, and nothing to compile anew
            for x, _ in self.batches:
                self.call(x)
            for layer in self.layers:
                layer.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.origin[0].device)
        for x, y in self.batches:
            total += F.cross_entropy(self.call(x).float(), y).double() * len(y)
        return total


def ours(
    model: nn.Module, data: tuple[Tensor, Tensor], mode: ExecutionMode, bn: str = "warmup", size: int = BATCH
) -> Evaluator:
    """Our evaluator of the same."""
    on = Data(batches(data, mode.channels_last, size))
    if mode.folds and bn in ("warmup", "running"):
        with torch.no_grad():
            mode = replace(mode, folded=find_pairs(model.eval(), lambda: model(on.batches[0][0])))
    placement = Placement(
        state.parameters(model),
        directions(model),
        compute_dtypes=compute_dtypes(model, mode.compute_dtype),
        channels_last=mode.channels_last,
        rows=mode.points,
    )
    metrics = {"loss": Loss(nn.CrossEntropyLoss(), on)}
    return Evaluator(wrap_model(model), placement, metrics, bn, on, execution=mode)


def compare(
    make: Callable[[], nn.Module],
    data: tuple[Tensor, Tensor],
    kinds: dict[str, ExecutionMode],
    turns: int,
    size: int = BATCH,
    others: Mapping[str, Callable[[], Any]] | None = None,
) -> Seconds:
    """Seconds a point of ``ours KIND`` and ``bare KIND`` for each kind of mode, and of others, all in turns."""
    from contextlib import ExitStack

    runs: dict[str, Any] = {}
    with ExitStack() as stack:
        for kind, mode in kinds.items():
            evaluator = ours(make(), data, mode, size=size)
            stack.enter_context(evaluator.attached())
            points = [POINT] * mode.stacked
            runs[f"ours {kind}"] = lambda evaluator=evaluator, points=points: evaluator.evaluate(points)
            runs[f"bare {kind}"] = Bare(make(), data, mode if mode.stacked == 1 else PLAIN, size=size)
        seconds = in_turns({**runs, **(others or {})}, turns)
    for kind, mode in kinds.items():
        seconds[f"ours {kind}"] = [s / mode.stacked for s in seconds[f"ours {kind}"]]
    return seconds


def through_the_library(
    model: nn.Module, data: tuple[Tensor, Tensor], mode: ExecutionMode, points: int = 8
) -> Callable[[], Told]:
    """Seconds a point of the library's ``compute`` in a mode: of so many points more than those that are computed
    twice for the mode's error, without what is done once.
    """
    from hpc_landscape import LinearLossLandscape

    metric = Loss(nn.CrossEntropyLoss(), list(zip(*(part.split(BATCH) for part in data), strict=True)))
    fast: dict[str, Any] = {"channels_last": None if mode.channels_last else False, "compile": bool(mode.compiled)}
    precision = "bf16" if mode.compute_dtype is not None else "fp32"

    def seconds(steps: int) -> float:
        line = LinearLossLandscape(model, steps).random_line(seed=0)
        start = time.perf_counter()
        line.compute(metric, bn="warmup", precision=precision, **fast)
        return time.perf_counter() - start

    return lambda: Told((seconds(16 + points) - seconds(16)) / points)


def overhead(turns: int = 200) -> float:
    """Seconds of a point that are no forward pass: ResNet-20's parameters, with batches that cost nothing."""
    from .models import ResNet

    class Nothing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = ResNet()

        def forward(self, x: Tensor) -> Tensor:
            return x

    data = torch.zeros(1, 10), torch.zeros(1, dtype=torch.long)
    evaluator = ours(Nothing(), data, PLAIN)
    with evaluator.attached():
        evaluator(POINT)
        start = time.perf_counter()
        for _ in range(turns):
            evaluator(POINT)
        return (time.perf_counter() - start) / turns


__all__ = ["Bare", "compare", "ours", "overhead", "ratio", "through_the_library"]
