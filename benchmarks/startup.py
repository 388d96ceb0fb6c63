"""What a start costs on more and more ranks, by stages, and what a call of all ranks takes; as a program, one rank.

Each stage is timed on rank 0 by wrapping the functions that ``run`` calls. On few cores the ranks share them: then a
stage's seconds are of the work of all ranks, and their slope is what a rank's own work takes of a core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any

import numpy as np

PICTURE = "benchmarks/startup.png"
RANKS, CHECKED = (1, 2, 4, 8, 12), 32
SIZES = {"few small tensors": (2, 64), "many tensors": (400, 16), "large tensors": (4, 2048)}  # layers, width
STAGES = {
    "data": "read_data", "weights": "broadcast_weights", "directions": "broadcast_directions", "mode": "first_mode",
    "metrics": "choose_metrics", "layout": "_lay_out", "plan": "_begin", "again": "compute_again",
}  # fmt: skip
TIMES = 200  # that a small call is timed
ARRAY = 2**26  # bytes of a broadcast that is timed


def problem(layers: int = 2, width: int = 64) -> Any:
    """A chain of linear layers, and little data."""
    import torch
    from torch import nn

    from hpc_landscape import Problem

    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    return Problem(model, nn.CrossEntropyLoss(), (torch.randn(32, width), torch.randint(width, (32,))))


def rank() -> None:
    """One rank: prints seconds by stage, on rank 0, and what it has sent and received by collectives."""
    from hpc_landscape import evaluation, run
    from hpc_landscape.arguments import parse
    from hpc_landscape.campaign.failures import Attempts
    from hpc_landscape.progress import age
    from hpc_landscape.ranks.comm import world

    seconds = {"imports": age()}
    comm = _timed(seconds, "MPI", world)()
    counted = _count(comm)
    for stage, name in STAGES.items():
        setattr(run, name, _timed(seconds, stage, getattr(run, name)))
    Attempts.evaluate = _timed(seconds, "points", Attempts.evaluate)  # type: ignore[method-assign]
    evaluation._evaluate = _timed(seconds, "points and file", evaluation._evaluate)
    settings, _ = parse(sys.argv[1:], "benchmarks.startup")
    _timed(seconds, "run", run.run)(settings, comm)
    seconds["other"] = seconds["run"] - sum(seconds.get(stage, 0.0) for stage in (*STAGES, "points and file"))
    if comm.is_root:
        print(json.dumps({"seconds": seconds | {"in all": age()}, **counted}), flush=True)


def calls() -> None:
    """One rank: prints the seconds of a call, on rank 0; of those in which all wait for each other, and of an array."""
    from hpc_landscape.ranks.comm import world

    comm, array = world(), np.zeros(ARRAY, np.uint8)
    kinds: dict[str, tuple[Callable[[], object], int]] = {
        "a number of all": (lambda: comm.least(1.0), TIMES),
        "a value of rank 0": (lambda: (comm.bcast("value"), comm.barrier()), 2 * TIMES),
        "a message of each": (lambda: (comm.to_root({"node": "a node", "stages": [1.0] * 8}), comm.barrier()), TIMES),
        "64 MiB": (lambda: (comm.bcast_array(array), comm.barrier()), 4),
    }
    seconds = {}
    for name, (call, times) in kinds.items():
        call()
        comm.barrier()
        start = time.perf_counter()
        for _ in range(times):
            call()
        seconds[name] = (time.perf_counter() - start) / times
    if comm.is_root:
        print(json.dumps({"seconds": seconds}), flush=True)


def _timed(seconds: dict[str, float], stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start

    return call


def _count(comm: Any) -> dict[str, int]:
    """What a rank's collectives are, and the bytes of arrays among them."""
    found = {"collectives": 0, "broadcast bytes": 0}
    for name in ("allgather", "bcast", "bcast_array", "least", "to_root", "node_allgather", "barrier"):
        real = getattr(comm, name)

        def call(*values: Any, real: Any = real, name: str = name) -> Any:
            found["collectives"] += 1
            if name == "bcast_array":
                found["broadcast bytes"] += values[0].nbytes
            return real(*values)

        setattr(comm, name, call)
    return found


def startup(turns: int) -> dict[str, Any]:
    """Seconds of each stage, for each size, and of a call: on 1 to 12 ranks, the line through them, and it on 32."""
    found: dict[str, Any] = {}
    every: dict[str, dict[int, dict[str, Any]]] = {}
    for size, (layers, width) in SIZES.items():
        runs = _on_ranks(turns, partial(_start, layers=layers, width=width))
        found[f"{size}: collectives, bytes"] = ", ".join(
            f"{runs[n]['collectives']} and {runs[n]['broadcast bytes']:,} on {n}" for n in (2, CHECKED)
        )
        found |= {f"{size}: {stage}": told for stage, told in _lines(runs)}
        every[size] = runs
    every["a call"] = _on_ranks(turns, _calls, RANKS[1:])  # one rank alone sends nothing
    _draw(every)
    return found | {f"a call: {name}": told for name, told in _lines(every["a call"])}


def _on_ranks(
    turns: int, start: Callable[[int], dict[str, Any]], ranks: tuple[int, ...] = RANKS
) -> dict[int, dict[str, Any]]:
    """The run of the middle, by its seconds in all, on each number of ranks."""
    runs = {n: [start(n) for _ in range(turns)] for n in (*ranks, CHECKED)}
    return {n: sorted(of, key=lambda one: sum(one["seconds"].values()))[len(of) // 2] for n, of in runs.items()}


def _lines(runs: dict[int, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Of each stage what it took, the line through it without the largest run, and how well that says the largest."""
    for stage, last in runs[CHECKED]["seconds"].items():
        seconds, slope, start = _fitted(runs, stage)
        row = ", ".join(f"{s:.3g}" for s in seconds[:-1])
        yield stage, f"{row}; {start:.3g} + {slope:.3g} N: {start + slope * CHECKED:.3g}, was {last:.3g} on {CHECKED}"


def _fitted(runs: dict[int, dict[str, Any]], stage: str) -> tuple[list[float], float, float]:
    """What the stage took on each number of ranks; slope and start of the line without the largest."""
    seconds = [of["seconds"].get(stage, 0.0) for of in runs.values()]
    slope, start = np.polyfit([*runs][:-1], seconds[:-1], 1)
    return seconds, float(slope), float(start)


def _draw(every: dict[str, dict[int, dict[str, Any]]]) -> None:
    """A panel for each: what took longest, measured, and the line that was fitted below the largest number of ranks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(every), 3.4), layout="constrained")
    for axes, (name, runs) in zip(figure.subplots(1, len(every)), every.items(), strict=True):
        last = {stage: s for stage, s in runs[CHECKED]["seconds"].items() if stage not in ("run", "in all")}
        for stage in sorted(last, key=last.__getitem__, reverse=True)[:5]:
            seconds, slope, start = _fitted(runs, stage)
            (points,) = axes.plot([*runs], seconds, "o", markersize=4, label=stage)
            line = [value if (value := start + slope * n) > 0 else np.nan for n in runs]
            axes.plot([*runs], line, color=points.get_color(), linewidth=1)
        axes.set(title=name, xlabel="ranks, on the same cores", ylabel="seconds")
        if name == "a call":
            axes.set(xscale="log", yscale="log")
            axes.set_xticks([*runs], [*map(str, runs)], minor=False)
            axes.minorticks_off()
        else:
            axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=150)


def _start(ranks: int, layers: int, width: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return _launch(
            *(ranks, "--problem", "benchmarks.startup:problem"),
            *("--problem.layers", str(layers), "--problem.width", str(width), f"--x=0:1:{ranks}", "--y=none"),
            *("--ranks_per_point=1", "--plot=false", "--output", os.path.join(folder, "a.h5")),
        )


def _calls(ranks: int) -> dict[str, Any]:
    return _launch(ranks, "calls")


def _launch(ranks: int, *arguments: str) -> dict[str, Any]:
    command = ["mpirun", "-n", str(ranks), sys.executable, "-m", "benchmarks.startup", *arguments]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


if __name__ == "__main__":
    calls() if sys.argv[1:] == ["calls"] else rank()
