"""On a GPU: ResNet-56, warm-up and evaluation pass, against the best loops written by hand; and small networks.

``python -m benchmarks.gpu [PART ...]`` prints each number as soon as it is known, and keeps what there is in a file, so
that a hang costs a part alone. ``--device cpu --tiny`` runs the same code on next to nothing, where there is no GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hpc_landscape.evaluate.evaluator import Evaluator
from hpc_landscape.evaluate.execution import PLAIN, ExecutionMode
from hpc_landscape.ranks.torch_state import matmul

from .kernels import KINDS, kernel_seconds, kind_of, traffic
from .models import ResNet, images, lenet, mlp
from .points import POINT, Bare, ours
from .timing import in_turns, ratio, rows

BFLOAT16 = torch.bfloat16
GRID = 51 * 51
Rows = Iterator[tuple[str, Any]]


@dataclass(frozen=True)
class Size:
    """How much is measured. few: images of the forms that are slow, whose seconds are scaled to all of them."""

    images: int = 50_000
    few: int = 10_000
    batch: int = 2000
    blocks: int = 9  # of ResNet's three stages each: 9 is ResNet-56
    points: int = 20
    small: int = 1437
    stacked: tuple[int, ...] = (8, 32, 128)
    batches: tuple[int, ...] = (250, 500, 1000, 2000, 5000)
    product: int = 8192
    copied: int = 2**28
    turns: int = 7  # of small networks


FULL = Size()
TINY = Size(32, 16, 8, 1, 2, 20, (2,), (4, 8), 64, 2**10, 1)


@dataclass(frozen=True)
class Form:
    """A way to compute. few: whether it is so slow that fewer images tell enough."""

    mode: ExecutionMode
    precision: str = "fp32"
    few: bool = True


LAST = ExecutionMode(channels_last=True)
LOW = ExecutionMode(channels_last=True, compute_dtype=BFLOAT16)
FIRST = "bf16 compiled"  # what the grid is extrapolated from
FORMS = {
    FIRST: Form(replace(LOW, compiled="default"), "bf16", few=False),
    "bf16": Form(LOW, "bf16", few=False),
    "tf32": Form(LAST, "tf32"),
    "fp32": Form(LAST),
    "fp32 contiguous": Form(PLAIN),
    "bf16 max-autotune": Form(replace(LOW, compiled="max-autotune-no-cudagraphs"), "bf16"),
    "bf16 CUDA graphs": Form(replace(LOW, compiled="reduce-overhead"), "bf16"),
    "tf32 compiled": Form(replace(LAST, compiled="default"), "tf32"),
    "fp32 compiled": Form(replace(LAST, compiled="default")),
}
BARE, WHOLE, BEST = "bare / ours", "51 x 51 points, minutes, extrapolated from these", "bare, eager / our best"
TARGETS = {BARE: ("at least", 0.95), WHOLE: ("at most", 10.0), BEST: ("at least", 5.0)}


def verdict(key: str, value: Any) -> str:
    """What is said beside a number that has a target."""
    for name, (word, bound) in TARGETS.items():
        if key.endswith(name):
            met = value >= bound if word == "at least" else value <= bound
            return f"{word} {bound:g}: {'met' if met else 'MISSED'}"
    return ""


# Loops written by hand


class Captured:
    """The loop written by hand, all of a point as one CUDA graph; as it is where there are no such graphs."""

    def __init__(self, bare: Bare):
        self.bare, self.total = bare, torch.zeros(())
        self.graph = torch.cuda.CUDAGraph() if bare.origin[0].is_cuda else None
        if self.graph is not None:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                bare()
                bare()
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self.graph):
                self.total = bare._eager()

    def __call__(self) -> float:
        if self.graph is None:
            return self.bare()
        self.graph.replay()
        return float(self.total)


def in_precision(precision: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """The run with float32 computed so."""

    def there() -> Any:
        with matmul(precision):
            return run()

    return there


# A large network


def large(turns: int, device: torch.device, size: Size = FULL, names: Sequence[str] = ()) -> Rows:
    """ResNet-56, width 16, on 50,000 images of 32x32x3, both passes: every form against the bare loop of its kind."""
    for name in names or FORMS:
        form = FORMS[name]
        count = size.few if form.few else size.images
        data = images(count, 32, 3, device)
        evaluator = ours(resnet(size, device), data, form.mode, size=size.batch)
        evaluator.precision = form.precision
        with evaluator.attached():
            bare = Bare(resnet(size, device), data, form.mode, size=size.batch)
            yield from _against(name, evaluator, bare, turns, size.images / count)
            if name == FIRST:
                yield from grid(evaluator, size)
                yield from in_kernels(evaluator, size, device)
                with choosing(True):
                    yield from _against(f"{name}, cuDNN's choice timed", evaluator, bare, turns, size.images / count)
        del evaluator, bare, data
        forget(device)


def _against(name: str, evaluator: Evaluator, bare: Bare, turns: int, scale: float) -> Rows:
    """Seconds a point of ours and of the bare loop, in turns. scale: to all of the images."""
    runs = {"ours": lambda: evaluator.evaluate([POINT]), "bare": bare}
    start = time.perf_counter()
    seconds = in_turns({key: in_precision(evaluator.precision, run) for key, run in runs.items()}, turns)
    whole = time.perf_counter() - start
    for key, taken in seconds.items():
        said = "" if scale == 1 else f", scaled by {scale:.3g} from fewer images"
        yield f"{name}: {key}, s a point{said}", scale * statistics.median(taken)
    yield f"{name}: until all turns were over, s", whole
    yield f"{name}: {BARE}", ratio(seconds, "bare", "ours")


def resnet(size: Size, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return ResNet(size.blocks, 16, 3).to(device)


def forget(device: torch.device) -> None:
    """Give back what is no longer used: captured graphs keep memory of their own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def grid(evaluator: Evaluator, size: Size) -> Rows:
    """What the whole grid would take, from a few points of it."""
    points = [(2 * i / size.points - 1, 1 - 2 * i / size.points) for i in range(size.points)]
    start = time.perf_counter()
    for point in points:
        evaluator.evaluate([point])
    seconds = (time.perf_counter() - start) / size.points
    yield f"{FIRST}: s a point, of {size.points} points of a grid", seconds
    yield f"{FIRST}: {WHOLE}", seconds * GRID / 60


def in_kernels(evaluator: Evaluator, size: Size, device: torch.device) -> Rows:
    """Where a point's time goes, and what it must read and write."""
    found, wall = kernel_seconds(lambda: evaluator.evaluate([POINT]), device)
    yield f"{FIRST}: a point, ms, profiled", 1000 * wall
    yield f"{FIRST}: its kernels, ms", 1000 * sum(found.values())
    for kind in KINDS:
        yield f"{FIRST}: {kind}, ms", 1000 * sum(s for name, s in found.items() if kind_of(name) == kind)
    for name, seconds in sorted(found.items(), key=lambda item: -item[1])[:12]:
        yield f"{FIRST}: kernel {name[:90]}, ms", 1000 * seconds
    with torch.device("meta"):
        model = ResNet(size.blocks, 16, 3)
    for how, numbers in traffic(model, (3, 32, 32)).items():
        yield f"GB a point in bfloat16, {how}", 2 * numbers * size.images / 1e9


# What limits it


def ceilings(_: int, device: torch.device, size: Size = FULL) -> Rows:
    """What the card can do at most."""
    for dtype in (torch.float32, BFLOAT16):
        a, b = (torch.randn(size.product, size.product, device=device, dtype=dtype) for _ in "ab")
        seconds = timed(lambda a=a, b=b: torch.mm(a, b), device)
        yield f"matrix product, {dtype}, TFLOP/s", 2 * size.product**3 / seconds / 1e12
    a, b = (torch.empty(size.copied, device=device) for _ in "ab")
    yield "copy, read and written, GB/s", 2 * 4 * size.copied / timed(lambda: b.copy_(a), device) / 1e9
    model, x = resnet(size, torch.device("cpu")).eval(), torch.zeros(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    yield "ResNet-56, TFLOP a point", 2 * size.images * counter.get_total_flops() / 2 / 1e12


def layers(_: int, device: torch.device, size: Size = FULL) -> Rows:
    """One layer of each stage of ResNet-56 in bfloat16: ms, and GB/s as if it read and wrote each number once."""
    for channels, side in ((16, 32), (32, 16), (64, 8)):
        shape = size.batch, channels, side, side
        for order in (torch.channels_last, torch.contiguous_format):
            x = torch.randn(shape, device=device).to(BFLOAT16).contiguous(memory_format=order)
            weight = torch.randn(channels, channels, 3, 3, device=device).to(BFLOAT16).contiguous(memory_format=order)
            scale = torch.ones(channels, device=device)
            runs: dict[str, Callable[[], Any]] = {
                "convolution": lambda x=x, w=weight: F.conv2d(x, w, padding=1),
                "statistics": lambda x=x: torch.var_mean(x, (0, 2, 3)),
                "batch norm": lambda x=x, s=scale: F.batch_norm(x, s.clone(), s.clone(), s, s, True, 0.1),
                "batch norm, fixed": lambda x=x, s=scale: F.batch_norm(x, s, s, s, s, False),
                "relu": lambda x=x: F.relu(x),
            }
            for name, run in runs.items():
                for benchmark in (False, True) if name == "convolution" else (False,):
                    with torch.no_grad(), choosing(benchmark):
                        seconds = timed(run, device)
                    key = f"{channels} channels, {str(order)[6:]}, {name}" + ", cuDNN's choice timed" * benchmark
                    yield key, f"{1000 * seconds:.3f} ms, {2 * 2 * x.numel() / seconds / 1e9:.0f} GB/s"


def batches(turns: int, device: torch.device, size: Size = FULL) -> Rows:
    """Bare bfloat16 loops of ResNet-56, eager and as one CUDA graph, by batch size: small batches fit the cache."""
    data = images(size.few, 32, 3, device)
    for count in size.batches:
        for benchmark in (False, True):
            with matmul("bf16"), choosing(benchmark):
                bare = Bare(resnet(size, device), data, LOW, size=count)
                seconds = in_turns({"launched": bare, "one CUDA graph": Captured(bare)}, turns)
            for key, taken in seconds.items():
                said = f"batches of {count}, {key}" + ", cuDNN's choice timed" * benchmark
                yield f"{said}, s a point, scaled", size.images / size.few * statistics.median(taken)
            del bare
            forget(device)


@contextmanager
def choosing(by_time: bool) -> Iterator[None]:
    """Whether cuDNN chooses its algorithms by timing them, and not by rules."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = by_time
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def timed(run: Callable[[], Any], device: torch.device, repeats: int = 20) -> float:
    """Seconds of a run, the device's work included."""
    for _ in range(3):
        run()
    settle(device)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    settle(device)
    return (time.perf_counter() - start) / repeats


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Networks that wait for their launches


def small(_: int, device: torch.device, size: Size = FULL) -> Rows:
    """Small networks on 1,437 images of 8x8: one at a time, by CUDA graphs, in blocks, against bare loops."""
    data = images(size.small, 8, 1, device)
    forms = {"eager": PLAIN, "CUDA graphs": ExecutionMode(compiled="reduce-overhead")}
    forms |= {f"block {k}": ExecutionMode(stacked=k) for k in size.stacked}
    for name, make in (("MLP", mlp), ("LeNet", lenet)):
        runs: dict[str, Any] = {}
        with ExitStack() as stack:
            for key, mode in forms.items():
                evaluator = ours(_seeded(make, device), data, mode, size=size.small)
                stack.enter_context(evaluator.attached())
                points = [POINT] * mode.stacked
                runs[f"ours, {key}"] = lambda evaluator=evaluator, points=points: evaluator.evaluate(points)
            runs["bare, eager"] = Bare(_seeded(make, device), data, PLAIN, size=size.small)
            runs["bare, CUDA graphs"] = Bare(_seeded(make, device), data, forms["CUDA graphs"], size=size.small)
            runs["bare, a point as one graph"] = Captured(Bare(_seeded(make, device), data, PLAIN, size=size.small))
            seconds = in_turns(runs, size.turns)
        for key, mode in forms.items():
            seconds[f"ours, {key}"] = [s / mode.stacked for s in seconds[f"ours, {key}"]]
        yield from ((f"{name}: {key}", text) for key, text in rows(seconds))
        ratios = {key: ratio(seconds, "bare, eager", f"ours, {key}") for key in forms}
        yield from ((f"{name}: bare, eager / ours, {key}", value) for key, value in ratios.items())
        yield f"{name}: {BEST}", max(ratios.values())
        forget(device)


def _seeded(make: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return make().to(device)


PARTS: dict[str, Callable[..., Rows]] = {f.__name__: f for f in (ceilings, layers, small, large, batches)}


def gpu(turns: int) -> dict[str, Any]:
    """All parts, on the GPU that is there."""
    if not torch.cuda.is_available():
        raise ImportError("there is no GPU here")
    return {key: value for part in PARTS.values() for key, value in part(turns, torch.device("cuda"))}


def tell(key: str, value: Any) -> None:
    text = f"{value:.4g}" if isinstance(value, float) else value
    print(f"  {key:<82} {text:<12} {verdict(key, value)}".rstrip(), flush=True)


def tell_targets(paths: Sequence[str]) -> None:
    """What the files of results have of numbers with a target."""
    for path in paths:
        if not os.path.exists(path):
            print(f"  {path}: nothing was measured")
            continue
        with open(path, encoding="utf-8") as file:
            for key, value in json.load(file).items():
                if verdict(key, value):
                    tell(key, value)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="next to nothing: whether it runs")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--forms", help=f"of the large network, separated by commas: {', '.join(FORMS)}")
    parser.add_argument("--json", help="also write the results there")
    parser.add_argument("--targets", nargs="+", metavar="JSON", help="show what such files have beside targets")
    options = parser.parse_args()
    names = options.forms.split(",") if options.forms else []
    if unknown := {*options.parts} - {*PARTS} | {*names} - {*FORMS}:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if options.targets:
        tell_targets(options.targets)
        return
    device, size = torch.device(options.device), TINY if options.tiny else FULL
    results: dict[str, Any] = {}
    for part in options.parts or PARTS:
        run = partial(large, names=names) if part == "large" else PARTS[part]
        print(f"\n{part}: {(PARTS[part].__doc__ or '').splitlines()[0]}", flush=True)
        for key, value in run(options.turns, device, size):
            results[f"{part}: {key}"] = value
            tell(key, value)
            if options.json:  # at once: what comes next may not return
                with open(options.json, "w", encoding="utf-8") as file:
                    json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()


__all__ = ["gpu"]
