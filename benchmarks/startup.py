"""What starting up costs on more and more ranks, stage by stage; as a program, one rank's stages.

Each stage is timed on rank 0 by wrapping the functions that ``run`` calls. On few cores the ranks share them: then a
stage's seconds are of the work of all ranks, and their slope is what a rank's own work takes.
"""

from __future__ import annotations

import time

BEGUN = time.perf_counter()

import json  # noqa: E402
import os  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import wraps  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

RANKS, CHECKED = (1, 2, 4, 8, 12), 32
SIZES = {"few small tensors": (2, 64), "many tensors": (400, 16), "large tensors": (4, 2048)}  # layers, width
STAGES = {
    "data": "read_data", "weights": "broadcast_weights", "directions": "broadcast_directions", "mode": "first_mode",
    "metrics": "choose_metrics", "layout": "_lay_out", "plan": "_begin", "again": "compute_again",
}  # fmt: skip


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
    from hpc_landscape.ranks.comm import world

    seconds = {"imports": time.perf_counter() - BEGUN}
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
        print(json.dumps({"seconds": seconds, "total": time.perf_counter() - BEGUN, **counted}), flush=True)


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
    """Seconds of each stage on 1 to 12 ranks and on 32, each size; a line through the first, and what 32 took."""
    found: dict[str, Any] = {}
    for size, (layers, width) in SIZES.items():
        runs = {n: [_run(n, layers, width) for _ in range(turns)] for n in (*RANKS, CHECKED)}
        middle = {n: sorted(of, key=lambda one: one["total"])[len(of) // 2] for n, of in runs.items()}
        some = middle[CHECKED]
        found[f"{size}: collectives, bytes"] = ", ".join(
            f"{middle[n]['collectives']} and {middle[n]['broadcast bytes']:,} on {n}" for n in (2, CHECKED)
        )
        for stage in some["seconds"]:
            seconds = [middle[n]["seconds"].get(stage, 0.0) for n in RANKS]
            slope, start = np.polyfit(RANKS, seconds, 1)
            row = ", ".join(f"{s:.2f}" for s in seconds)
            told = f"{start:.2f} + {slope:.3f} N: {start + slope * CHECKED:.2f}, was {some['seconds'][stage]:.2f}"
            found[f"{size}: {stage}"] = f"{row}; {told} on {CHECKED}"
    return found


def _run(ranks: int, layers: int, width: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(
                "mpirun",
                "-n",
                str(ranks),
                sys.executable,
                "-m",
                "benchmarks.startup",
                "--problem",
                "benchmarks.startup:problem",
            ),
            *("--problem.layers", str(layers), "--problem.width", str(width), f"--x=0:1:{ranks}", "--y=none"),
            *("--ranks_per_point=1", "--plot=false", "--output", os.path.join(folder, "a.h5")),
        ]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


if __name__ == "__main__":
    rank()
