"""What a file states of a fast way's error, beside the errors of the whole grid."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn

from hpc_landscape import Problem
from hpc_landscape.store.exactness import DIFFERENCES, ERROR, RELATIVE

from .models import ResNet, images

PROBLEMS = {
    "digits": ("digits", 11),
    "MLP": ("benchmarks.models:mlp_problem", 15),
    "LeNet": ("benchmarks.models:lenet_problem", 15),
    "ResNet-8": ("benchmarks.errors:small_resnet", 13),
}
MODES = {
    "bf16": ["--precision=bf16"],
    "block 8": ["--block=8"],
    "channels last": ["--channels_last=true"],
}
PLAIN = ["--channels_last=false"]
SEEDS = 3
SHARE = 95  # percent


def small_resnet() -> Problem:
    """6n + 2 layers with n = 1, of width 8, untrained, on a few images."""
    torch.manual_seed(0)
    return Problem(ResNet(1, 8), nn.CrossEntropyLoss(), images(200, 16))


def errors(_: int) -> dict[str, Any]:
    """Errors of fast modes: the 95th percentile and the worst of a whole grid, and what the file states of 16 points.

    For each of three planes, absolute, and last the smallest of what is stated over the percentile; where nothing is
    stated the mode is as exact as the plain one, or is the plain one.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (problem, n) in PROBLEMS.items():
            rows: dict[str, list[str]] = {}
            ratios: dict[str, list[float]] = {}
            for seed in range(SEEDS):
                plain = _computed(folder, problem, n, seed, PLAIN)
                for mode, options in MODES.items():
                    fast = _computed(folder, problem, n, seed, options)
                    for metric in ("loss", "accuracy"):
                        key = f"{name}, {mode}, {metric}"
                        off, stated, relative = _seen(fast, plain, metric)
                        most = float(np.percentile(off, SHARE))
                        said = "nothing" if stated is None else f"{stated:.2g} (relative {relative:.2g})"
                        rows.setdefault(key, []).append(f"{most:.2g}, {off.max():.2g}, {said}")
                        if stated is not None and most > 0:
                            ratios.setdefault(key, []).append(stated / most)
            for key, texts in rows.items():
                found[key] = "; ".join(texts) + (f"; at least {min(ratios[key]):.2f}" if key in ratios else "")
    return found


def _computed(folder: str, problem: str, n: int, seed: int, options: list[str]) -> Path:
    """The file of a run of n x n points."""
    path = Path(folder, f"{problem.rpartition(':')[2]}-{seed}-{'-'.join(options).strip('-')}.h5")
    command = [
        *(sys.executable, "-m", "hpc_landscape", "--problem", problem, f"--x=-1:1:{n}", f"--y=-1:1:{n}"),
        *(f"--seed={seed}", "--max_error=.inf", "--plot=false", "--output", str(path), *options),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return path


def _seen(fast: Path, plain: Path, metric: str) -> tuple[np.ndarray, float | None, float | None]:
    """(errors at every point, what the file states, and relative to the size); None where nothing is stated."""
    with h5py.File(fast) as file, h5py.File(plain) as exact:
        off = np.abs(file[metric][()] - exact[metric][()]).reshape(-1)
        if DIFFERENCES + metric not in file.attrs:
            return off, None, None
        return off, float(file.attrs[ERROR + metric]), float(file.attrs[RELATIVE + metric])
