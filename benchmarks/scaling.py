"""How the cost grows: with the number of points, of parameters and of samples; the slopes of the log-log curves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hpc_landscape.evaluate.execution import PLAIN

from .models import ResNet, images
from .points import POINT, ours
from .timing import in_turns

PICTURE = "benchmarks/scaling.png"
POINTS, WIDTHS, SAMPLES = (1, 2, 4, 8, 16), (8, 16, 32, 64), (250, 500, 1000, 2000, 4000)


def scaling(turns: int) -> dict[str, Any]:
    """ResNet-8 on 8x8 images: seconds, and the slope of the logarithms; 1 is proportional."""
    curves = {
        "points": _curve(POINTS, lambda n: _run(8, 500, n), lambda n: n, turns),
        "parameters": _curve(WIDTHS, lambda w: _run(w, 500, 1), lambda w: _parameters(w), turns),
        "samples": _curve(SAMPLES, lambda n: _run(8, n, 1), lambda n: n, turns),
    }
    found: dict[str, Any] = {}
    for name, (x, seconds) in curves.items():
        slope = np.polyfit(np.log(x), np.log(seconds), 1)[0]
        found[name] = f"slope {slope:.2f}: " + ", ".join(f"{a:g}: {s:.3g} s" for a, s in zip(x, seconds, strict=True))
    _draw(curves)
    return found


def _parameters(width: int) -> int:
    return sum(p.numel() for p in ResNet(1, width).parameters())


def _run(width: int, samples: int, points: int) -> Callable[[], None]:
    torch.manual_seed(0)
    evaluator = ours(ResNet(1, width), images(samples, 8), PLAIN, size=250)

    def run() -> None:
        with evaluator.attached():
            for _ in range(points):
                evaluator(POINT)

    return run


def _curve(
    values: tuple[int, ...], make: Callable[[int], Callable[[], None]], x: Callable[[int], int], turns: int
) -> tuple[list[int], list[float]]:
    seconds = in_turns({str(value): make(value) for value in values}, turns)
    return [x(value) for value in values], [float(np.median(s)) for s in seconds.values()]


def _draw(curves: dict[str, tuple[list[int], list[float]]]) -> None:
    """A panel for each curve, beside a line of slope 1."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, NullFormatter

    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (name, (x, seconds)) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        axes.loglog(x, seconds, "o-", label="measured")
        axes.loglog(x, [seconds[-1] * value / x[-1] for value in x], ":", color="gray", label="proportional")
        axes.set(xlabel=name, ylabel="seconds" if name == "points" else "seconds a point")
        axes.set_xticks(x, [EngFormatter(places=0, sep="")(value) for value in x])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        axes.grid(True, which="major", alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(f"ResNet-8, {torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d')}", fontsize=10)
    figure.savefig(PICTURE, dpi=150)


__all__ = ["scaling"]
