"""What a slow rank costs: a problem whose points only wait, five times longer on one of four ranks.

Waiting takes no core, so that two are enough for four ranks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpc_landscape import Problem
from hpc_landscape.ranks.launcher import launched

from .timing import Seconds, Told, in_turns, ratio, rows

PICTURE = "benchmarks/stealing.png"
RANKS, POINTS, SECONDS, SLOWER = 4, 400, 0.05, 5


class Waiting(nn.Module):
    """Writes down when each of its passes has begun and ended."""

    def __init__(self, log: str, slow: int):
        super().__init__()
        self.linear, self.log, self.rank = nn.Linear(2, 2), log, launched()[1]
        self.seconds = SECONDS * (SLOWER if self.rank == slow else 1)

    def forward(self, x: Tensor) -> Tensor:
        begin = time.time()
        time.sleep(self.seconds)
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(f"{self.rank} {begin} {time.time()}\n")
        return self.linear(x)


def problem(log: str, slow: int) -> Problem:
    """A pass over the data is a point, since there is no batch normalization."""
    torch.manual_seed(0)
    return Problem(Waiting(log, slow), nn.CrossEntropyLoss(), (torch.randn(4, 2), torch.tensor([0, 1, 0, 1])))


def stealing(turns: int) -> dict[str, Any]:
    """400 points on 4 ranks, one of them 5 times slower: seconds from the first point to the last, by schedule."""
    ideal = POINTS * SECONDS / (RANKS - 1 + 1 / SLOWER)
    found: dict[str, Any] = {"ideal": f"{ideal:.4g} s"}
    for name, slow in (("equal", RANKS), ("rank 0 slow", 0), ("rank 1 slow", 1)):
        passes: dict[str, np.ndarray] = {}
        runs = {s: lambda s=s, r=slow, p=passes: _makespan(s, r, p) for s in ("strided", "stealing")}
        seconds: Seconds = in_turns(runs, turns)
        found |= {f"{name}: {key}": text for key, text in rows(seconds)}
        found[f"{name}: strided / stealing"] = ratio(seconds, *runs)
    _draw(passes, ideal)  # of rank 1
    return found


def _makespan(schedule: str, slow: int, kept: dict[str, np.ndarray]) -> Told:
    """kept: of each schedule its last run's passes, as rank, begin and end, from the first one's begin."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = [
            *("mpirun", "-n", str(RANKS), sys.executable, "-m", "hpc_landscape", "--plot=false"),
            *("--problem=benchmarks.stealing:problem", f"--problem.log={log}", f"--problem.slow={slow}"),
            *(f"--x=-1:1:{POINTS}", "--y=none", f"--schedule={schedule}", f"--output={folder}/a.h5"),
        ]
        subprocess.run(command, capture_output=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        passes = np.loadtxt(log)
    points = passes[np.argsort(passes[:, 1])][-POINTS:]  # some passes are made before there are points
    points[:, 1:] -= points[:, 1].min()
    kept[schedule] = points
    return Told(points[:, 2].max())


def _draw(passes: dict[str, np.ndarray], ideal: float) -> None:
    """A row for each rank, with its points; and when all would be done at best."""
    from matplotlib.figure import Figure

    figure, ordered = Figure(figsize=(8, 3.4), layout="constrained"), sorted(passes.items(), reverse=True)
    for axes, (schedule, points) in zip(figure.subplots(len(passes), 1, sharex=True), ordered, strict=True):
        for rank in range(RANKS):
            of = points[points[:, 0] == rank]
            bars = list(zip(of[:, 1], of[:, 2] - of[:, 1], strict=True))
            axes.broken_barh(bars, (rank - 0.4, 0.8), facecolor="tab:blue", edgecolor="white", linewidth=0.3)
        axes.axvline(ideal, color="black", linestyle=":", label="ideal")
        axes.set(title=f"{schedule}: {points[:, 2].max():.1f} s", ylabel="rank", yticks=range(RANKS))
        axes.invert_yaxis()
        axes.legend(frameon=False, loc="lower right", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("seconds")
    figure.savefig(PICTURE, dpi=150)
