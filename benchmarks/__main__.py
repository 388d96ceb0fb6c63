"""Prints what is measured here and now, as tables and as JSON: ``python -m benchmarks [SECTION ...] [--turns N]``.

Everything that is compared runs in turns. Without sections all of them are run. ``peers`` needs loss-landscapes 3.0.6
(pip install loss-landscapes==3.0.6), ``ranks``, ``teams``, ``stealing`` and ``startup`` an mpirun, ``gpu`` an NVIDIA
GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from hpc_landscape.evaluate.execution import PLAIN, ExecutionMode
from hpc_landscape.ranks.device import keep_memory

from . import points as points_of
from .curvature import curvature
from .errors import errors
from .gpu import gpu
from .models import ResNet, images, lenet, mlp
from .others import KINDS as OTHERS
from .others import Other
from .refine import refine
from .scaling import scaling
from .startup import startup
from .stealing import stealing
from .teams import teams
from .timing import in_turns, ratio, rows

EAGER = ExecutionMode(channels_last=True)
KINDS = {
    "eager": EAGER,
    "compiled": ExecutionMode(channels_last=True, compiled="default"),
    "bf16": ExecutionMode(channels_last=True, compute_dtype=torch.bfloat16),
}
SAMPLES = 2500
RESNET = ("--problem=benchmarks/models.py:problem", "--x=0:1:2", "--y=none", "--plot=false")


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return make()

    return made


def machine(_: int) -> dict[str, Any]:
    """Where this was measured."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        lines = file.read().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    flags = next((line for line in lines if line.startswith("flags")), "")
    has = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags.split()]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu": name, "cores": len(os.sched_getaffinity(0)), "instructions": " ".join(has), "gpu": gpu,
        "python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads(),
    }  # fmt: skip


def points(turns: int) -> dict[str, Any]:
    """A point of ResNet-20, width 16, on 2,500 images of 28x28: warm-up and evaluation pass."""
    kinds = KINDS | {"contiguous": PLAIN}
    seconds = points_of.compare(seeded(ResNet), images(SAMPLES, 28), kinds, turns)
    found: dict[str, Any] = dict(rows(seconds))
    for kind in KINDS:
        found[f"{kind}: bare / ours"] = ratio(seconds, f"bare {kind}", f"ours {kind}")
    found["bare eager / bare contiguous"] = ratio(seconds, "bare eager", "bare contiguous")
    for kind in ("compiled", "bf16"):
        found[f"ours: eager / {kind}"] = ratio(seconds, "ours eager", f"ours {kind}")
    return found


def library(turns: int) -> dict[str, Any]:
    """ResNet-20 on 1,000 images through the library's ``compute``, beside the program's evaluator and the bare loop."""
    kinds, data = {"default": EAGER, "contiguous": PLAIN}, images(1000, 28)
    others = {f"library {k}": points_of.through_the_library(seeded(ResNet)(), data, mode) for k, mode in kinds.items()}
    seconds = points_of.compare(seeded(ResNet), data, kinds, turns, others=others)
    found: dict[str, Any] = dict(rows(seconds))
    return found | {f"{k}: program / library": ratio(seconds, f"ours {k}", f"library {k}") for k in kinds}


def peers(turns: int) -> dict[str, Any]:
    """The same network and data as others evaluate them, each as its users run it, seconds a point.

    loss-landscapes 3.0.6 has no warm-up: its points are compared with ours without one.
    """
    others = {name: Other(name) for name in OTHERS}
    runs: dict[str, Any] = dict(others)
    with ExitStack() as stack:
        for kind, mode in KINDS.items():
            for bn in ("running", "warmup"):
                evaluator = points_of.ours(seeded(ResNet)(), images(SAMPLES, 28), mode, bn)

                def mine(evaluator=evaluator) -> None:
                    with evaluator.attached():
                        evaluator(points_of.POINT)

                runs[f"ours {kind}, {bn}"] = mine
        for other in others.values():
            stack.callback(other.close)
        seconds = in_turns(runs, turns)
    found: dict[str, Any] = dict(rows(seconds))
    for kind in KINDS:
        found[f"loss-landscapes / ours {kind}"] = ratio(seconds, "loss-landscapes", f"ours {kind}, running")
        found[f"update_bn / ours {kind}"] = ratio(seconds, "update_bn", f"ours {kind}, warmup")
    return found


def small(turns: int) -> dict[str, Any]:
    """Small networks on 1,437 images of 8x8: seconds a point, one at a time, compiled, and in blocks."""
    found: dict[str, Any] = {}
    data = images(1437, 8)
    for name, make in (("mlp", mlp), ("lenet", lenet)):
        kinds = {kind: KINDS[kind] for kind in ("eager", "compiled")}
        kinds |= {f"block {k}": ExecutionMode(stacked=k) for k in (4, 16, 128)}
        seconds = points_of.compare(seeded(make), data, kinds, turns)
        found |= {f"{name} {key}": text for key, text in rows(seconds) if not key.startswith("bare block")}
        for kind in kinds:
            found[f"{name}: bare eager / ours {kind}"] = ratio(seconds, "bare eager", f"ours {kind}")
    return found


def memory(_: int) -> dict[str, Any]:
    """Peak memory of a run of ResNet-20 on 2,500 images, two points, in a process of its own."""
    found: dict[str, Any] = {}
    modes = {
        "default": [],
        "contiguous": ["--channels_last=false"],
        "bf16": ["--precision=bf16"],
        "block 4": ["--block=4"],
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, options in modes.items():
            output = os.path.join(folder, f"{len(found)}.h5")
            command = [sys.executable, "-m", "benchmarks.peak", *RESNET, "--output", output, *options]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name] = done.stdout.splitlines()[-1]
    return found


def tuned(_: int) -> dict[str, Any]:
    """What --tune takes for small networks, and for ResNet-20, for a grid of 51 x 51."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("mlp_problem", "lenet_problem", "problem"):
            command = [
                *(sys.executable, "-m", "hpc_landscape", "--problem", f"benchmarks/models.py:{name}", "--tune"),
                *("--dry_run", "--output", os.path.join(folder, "a.h5")),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name] = next(line[13:] for line in done.stdout.splitlines() if line.startswith("tuned"))
    return found


def overhead(turns: int) -> dict[str, Any]:
    """What a point costs outside its passes, with the parameters of ResNet-20."""
    values = [points_of.overhead() for _ in range(turns)]
    return {"seconds a point": f"{statistics.median(values):.3g}  ({min(values):.3g} to {max(values):.3g})"}


def store(_: int) -> dict[str, Any]:
    """A million points of a value that costs nothing, through the writer into the file."""
    from hpc_landscape.campaign.writing import writing
    from hpc_landscape.grid import Axis, Grid
    from hpc_landscape.ranks.base import SerialComm
    from hpc_landscape.store import layout
    from hpc_landscape.store.gather import GatherStore

    grid, value = Grid(Axis(-1, 1, 1000), Axis(-1, 1, 1000)), np.float64(0.5)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.h5")
        layout.create(path, grid, [layout.Quantity("loss")], {})
        start = time.perf_counter()
        with writing(GatherStore(path, SerialComm())) as writer:
            for point in range(grid.size):
                writer.put(point, 0.0, {"loss": value})
            put = time.perf_counter() - start
        seconds = time.perf_counter() - start
    return {"points/s, put": round(grid.size / put), "points/s, on disk": round(grid.size / seconds)}


def ranks(turns: int) -> dict[str, Any]:
    """Points a second of ResNet-20 on 2 cores: one rank with one thread, with two, and two ranks with one each."""
    setups = {"1 rank, 1 thread": (1, 1), "1 rank, 2 threads": (1, 2), "2 ranks, 1 thread each": (2, 1)}
    found: dict[str, list[float]] = {name: [] for name in setups}
    for _ in range(turns):
        for name, (n, threads) in setups.items():
            command = ["mpirun", "-n", str(n), sys.executable, "-m", "benchmarks.rank"]
            env = os.environ | {"OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
            found[name].append(sum(float(line) for line in done.stdout.split()))
    shown: dict[str, Any] = {name: f"{statistics.median(v):.4g} points/s" for name, v in found.items()}
    shown["2 ranks / 1 rank, 1 thread"] = statistics.median(
        b / a for a, b in zip(found["1 rank, 1 thread"], found["2 ranks, 1 thread each"], strict=True)
    )
    shown["2 ranks / 1 rank, 2 threads"] = statistics.median(
        b / a for a, b in zip(found["1 rank, 2 threads"], found["2 ranks, 1 thread each"], strict=True)
    )
    return shown


def start(turns: int) -> dict[str, Any]:
    """Starting up: imports, --help, and the default job to its first point (training left out)."""

    output = os.path.join(tempfile.gettempdir(), "benchmark-start.h5")
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}  # as where a program has run before

    def run(*words: str) -> Callable[[], None]:
        def once() -> None:
            with suppress(FileNotFoundError):
                os.remove(output)
            subprocess.run([sys.executable, *words], check=True, capture_output=True, env=env)

        return once

    runs = {
        "import torch": run("-c", "import torch"),
        "import hpc_landscape": run("-c", "import hpc_landscape"),
        "import hpc_landscape.landscape": run("-c", "import hpc_landscape.landscape"),
        "--help": run("-m", "hpc_landscape", "--help"),
        "a run of one point of no size": run(
            *("-m", "hpc_landscape", "--problem=benchmarks/models.py:mlp_problem", "--x=0:0:1", "--y=none"),
            *("--plot=false", f"--output={output}"),
        ),
    }
    seconds = in_turns(runs, turns)
    found: dict[str, Any] = dict(rows(seconds))
    for name in ("import hpc_landscape", "import hpc_landscape.landscape", "a run of one point of no size"):
        found[f"{name} / import torch"] = ratio(seconds, name, "import torch")
    return found


SECTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    f.__name__: f
    for f in (machine, points, library, peers, small, tuned, errors, curvature, overhead, memory, store, ranks, teams)
    + (stealing, refine, start, startup, scaling, gpu)
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", help="also write the results there")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(unknown)}")
    keep_memory()  # as the program does
    results = {}
    for name in options.sections or SECTIONS:
        print(f"\n{name}: {SECTIONS[name].__doc__.splitlines()[0]}", flush=True)
        try:
            results[name] = SECTIONS[name](options.turns)
        except ImportError as error:
            results[name] = {"not measured": str(error)}
        for key, value in results[name].items():
            print(f"  {key:<34} {value if not isinstance(value, float) else f'{value:.3f}'}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory of this process {peak:.2f} GiB")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
