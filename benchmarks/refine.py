"""What refinement saves, and what its estimates are worth: planes that are evaluated in full beside it.

Digits over two random directions, and over the plane of its training's principal components; and a small network whose
loss is NaN beyond a line.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpc_landscape import Problem
from hpc_landscape.problems import digits
from hpc_landscape.store import layout
from hpc_landscape.store.layout import Stored

from .models import images, mlp

PICTURE = "benchmarks/refine.png"
TOLERANCE = 0.01
SAMPLES = 300
DIGITS = (f"--samples={SAMPLES}", f"--warmup_samples={SAMPLES}")
GRID = ("--x=-1:1:51", "--y=-1:1:51")
EPOCHS = 2  # between checkpoints
Plane = tuple[Stored, np.ndarray, np.ndarray]  # what the refined file says, its estimate, and the values at all points


class Cliff(nn.Module):
    """A network whose output is NaN where its last weights' sum has grown by more than EDGE."""

    EDGE = 0.5

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = mlp()
        self.start = float(self.last.detach().sum())

    @property
    def last(self) -> Tensor:
        return self.net[-1].weight

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + 0 * torch.sqrt(self.EDGE - (self.last.sum() - self.start))


def cliff() -> Problem:
    return Problem(Cliff(), nn.CrossEntropyLoss(), images(SAMPLES, 8))


def checkpoints(folder: str) -> None:
    """A training of digits' network."""
    (inputs, labels), _ = digits.load_digits()
    torch.manual_seed(0)
    model = digits.SmallResNet(12)
    for epoch in range(8):
        torch.save(model.state_dict(), f"{folder}/{epoch}.pt")
        digits.fit(model, inputs, labels, EPOCHS, epoch)
    torch.save(model.state_dict(), f"{folder}/8.pt")


def refine(_: int) -> dict[str, Any]:
    """Planes of 51 x 51 points, to 1% of the loss's range: points evaluated, and the true error over all points."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints(folder)
        training = (f"--checkpoint={folder}/8.pt", f"--trajectory={folder}/*.pt")
        ways = {
            "digits, random": (*DIGITS, *GRID),
            "digits, pca": (*DIGITS, "--directions=pca", *training, *_axes(folder, training)),
            "cliff": ("--problem=benchmarks.refine:cliff", *GRID),
        }
        planes = {name: _plane(f"{folder}/{i}", options) for i, (name, options) in enumerate(ways.items())}
    for name, (stored, guess, values) in planes.items():
        told = stored.refined["loss"]
        off, unknown = _off(told.log == 1, guess, values, stored.done)
        found[name] = (
            f"{stored.done.mean():.1%} of {stored.done.size} points; true error {off:.2%} of the range, estimated "
            f"{told.estimated_error:.2%}, held out {told.true_error:.2%}; no estimate at {unknown} finite points"
        )
    _draw(planes)
    return found


def _axes(folder: str, training: tuple[str, ...]) -> list[str]:
    """51 points along each axis, as long as the training asks for."""
    path = f"{folder}/axes.h5"
    _program(f"--output={path}", "--samples=20", "--refine=0.5", "--directions=pca", *training)
    axes = layout.read(path).grid.axes
    return [f"--{name}={axis.low!r}:{axis.high!r}:51" for name, axis in zip("xy", axes, strict=True)]


def _program(*options: str) -> None:
    command = [sys.executable, "-m", "hpc_landscape", "--metrics=loss", "--plot=false", *options]
    subprocess.run(command, capture_output=True, check=True, cwd=Path(__file__).parents[1])


def _plane(stem: str, options: tuple[str, ...]) -> Plane:
    paths = [f"{stem}-{name}.h5" for name in ("refined", "full")]
    for path, more in zip(paths, ((f"--refine={TOLERANCE}",), ()), strict=True):
        _program(*options, *more, f"--output={path}")
    return layout.read(paths[0]), layout.read_values(paths[0], "loss_estimate"), layout.read_values(paths[1], "loss")


def _off(log: bool, guess: np.ndarray, values: np.ndarray, done: np.ndarray) -> tuple[float, int]:
    """The largest error over all points, as a share of the range that was seen; finite values without an estimate."""
    with np.errstate(invalid="ignore", divide="ignore"):
        guess, values = (np.log(v) if log else v for v in (guess, values))
    there = values[done & np.isfinite(values)]
    return float(np.nanmax(np.abs(guess - values)) / np.ptp(there)), int((np.isfinite(values) & np.isnan(guess)).sum())


def _draw(planes: dict[str, Plane]) -> None:
    """Of each plane the estimate and the points that it is from, and below it all values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(planes), 6.2), layout="constrained")
    panels = figure.subplots(2, len(planes))
    for column, (name, (stored, guess, values)) in zip(panels.T, planes.items(), strict=True):
        shown = np.log10 if stored.refined["loss"].log else np.asarray
        limits = {"vmin": np.nanmin(shown(values)), "vmax": np.nanmax(shown(values))}
        x, y = stored.grid.coordinates
        for axes, field in zip(column, (guess, values), strict=True):
            axes.set_facecolor("0.78")
            axes.pcolormesh(x, y, shown(field).T, cmap="viridis", rasterized=True, **limits)
            axes.set(xticks=[], yticks=[])
        at = np.nonzero(stored.done)
        column[0].scatter(x[at[0]], y[at[1]], s=1.5, color="black", linewidth=0)
        column[0].set_title(f"{name}: {stored.done.sum()} points", fontsize=9)
        column[1].set_title(f"all {stored.done.size}", fontsize=9)
    figure.savefig(PICTURE, dpi=150)


__all__ = ["refine"]
