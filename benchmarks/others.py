"""How others do the same, each in a process of its own, as its users run it: ``python -m benchmarks.others NAME``.

The process measures once for each line that it reads, and writes the seconds of a point.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from .models import ResNet, images
from .points import BATCH, POINT, directions
from .timing import Told

SAMPLES = 2500


def loss_landscapes() -> Callable[[], int]:
    """loss-landscapes 3.0.6: a line of two points, the evaluation pass alone."""
    import loss_landscapes
    import loss_landscapes.metrics

    torch.manual_seed(0)
    metric = loss_landscapes.metrics.Loss(nn.CrossEntropyLoss(), *images(SAMPLES, 28))
    start, end = ResNet().eval(), ResNet().eval()

    def run() -> int:
        with torch.no_grad():
            loss_landscapes.linear_interpolation(start, end, metric, steps=2)
        return 2

    return run


def update_bn() -> Callable[[], int]:
    """A plain loop: weights set, update_bn, evaluation, both through a DataLoader."""
    torch.manual_seed(0)
    model = ResNet()
    origin = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, second = directions(model)
    loader = DataLoader(TensorDataset(*images(SAMPLES, 28)), BATCH)
    criterion = nn.CrossEntropyLoss()

    def run() -> int:
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(origin[name] + POINT[0] * first[name] + POINT[1] * second[name])
            torch.optim.swa_utils.update_bn(loader, model)
            model.eval()
            total = 0.0
            for x, y in loader:
                total += criterion(model(x), y).item() * len(y)
        return 1

    return run


KINDS = {"loss-landscapes": loss_landscapes, "update_bn": update_bn}


class Other:
    """One of them, in its process; call it for the seconds of a point."""

    def __init__(self, name: str):
        command = [sys.executable, "-m", "benchmarks.others", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        if self.process.stdout.readline() != "ready\n":
            raise ImportError(f"{name} cannot be run here: see what it printed")

    def __call__(self) -> Told:
        print("go", file=self.process.stdin, flush=True)
        return Told(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


if __name__ == "__main__":
    measured = KINDS[sys.argv[1]]()
    measured()
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        units = measured()
        print((time.perf_counter() - begin) / units, flush=True)
