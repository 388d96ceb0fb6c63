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

RANKS, POINTS, SECONDS, SLOWER = 4, 400, 0.05, 5


class Waiting(nn.Module):
    """Writes down when each of its passes has begun and ended."""

    def __init__(self, log: str, slow: int):
        super().__init__()
        self.linear, self.log = nn.Linear(2, 2), log
        self.seconds = SECONDS * (SLOWER if launched()[1] == slow else 1)

    def forward(self, x: Tensor) -> Tensor:
        begin = time.time()
        time.sleep(self.seconds)
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(f"{begin} {time.time()}\n")
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
        runs = {schedule: lambda s=schedule, r=slow: _makespan(s, r) for schedule in ("strided", "stealing")}
        seconds: Seconds = in_turns(runs, turns)
        found |= {f"{name}: {key}": text for key, text in rows(seconds)}
        found[f"{name}: strided / stealing"] = ratio(seconds, *runs)
    return found


def _makespan(schedule: str, slow: int) -> Told:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = [
            *("mpirun", "-n", str(RANKS), sys.executable, "-m", "hpc_landscape", "--plot=false"),
            *("--problem=benchmarks.stealing:problem", f"--problem.log={log}", f"--problem.slow={slow}"),
            *(f"--x=-1:1:{POINTS}", "--y=none", f"--schedule={schedule}", f"--output={folder}/a.h5"),
        ]
        subprocess.run(command, capture_output=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        passes = np.loadtxt(log)
    points = passes[np.argsort(passes[:, 0])][-POINTS:]  # some passes are made before there are points
    return Told(points[:, 1].max() - points[:, 0].min())
