"""What a team gains: one point, evaluated by a rank alone and by two together."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from typing import Any

from .timing import Seconds, Told, in_turns, ratio, rows

PICTURE = "benchmarks/teams.png"
TEAM = "a team of 2, 1 thread each"
SETUPS = {"1 rank, 1 thread": (1, 1), "1 rank, 2 threads": (1, 2), TEAM: (2, 1)}  # ranks, threads


def teams(turns: int) -> dict[str, Any]:
    """A point of ResNet-20, in twenty batches, on 2 cores: by a rank alone, and by two together; their values."""
    values: dict[str, str] = {}

    def run(name: str) -> Told:
        ranks, threads = SETUPS[name]
        command = ["mpirun", "-n", str(ranks), sys.executable, "-m", "benchmarks.rank", "team"]
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        values[name] = done.stderr.splitlines()[0]
        return Told(1 / float(done.stdout))

    seconds = in_turns({name: lambda name=name: run(name) for name in SETUPS}, turns)
    found: dict[str, Any] = {name: f"{text}, {values[name]}" for name, text in rows(seconds)}
    for name in list(SETUPS)[:2]:
        found[f"{name} / a team of 2"] = ratio(seconds, name, TEAM)
    _draw(seconds)
    return found


def _draw(seconds: Seconds) -> None:
    """A bar for each, and what two ranks would take at best."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.2), layout="constrained")
    axes = figure.subplots()
    middles = [statistics.median(of) for of in seconds.values()]
    spread = [[m - min(of), max(of) - m] for m, of in zip(middles, seconds.values(), strict=True)]
    axes.barh(list(seconds), middles, xerr=list(zip(*spread, strict=True)), color=["0.75", "0.75", "tab:blue"])
    axes.axvline(middles[0] / 2, color="black", linestyle=":", label="half of one rank's")
    axes.set(xlabel="seconds a point: median, least and most")
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=150)


__all__ = ["teams"]
