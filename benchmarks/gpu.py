"""On a GPU: ResNet-56 on 50,000 images of 32x32x3, warm-up and evaluation pass, against loops written by hand."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hpc_landscape.evaluate.execution import PLAIN, ExecutionMode

from .models import ResNet, images, lenet, mlp
from .points import compare
from .timing import ratio, rows

BATCH = 2000
LAST = ExecutionMode(channels_last=True)
KINDS = {
    "eager": LAST,
    "compiled": ExecutionMode(channels_last=True, compiled="default"),
    "bf16": ExecutionMode(channels_last=True, compute_dtype=torch.bfloat16),
    "bf16 compiled": ExecutionMode(channels_last=True, compute_dtype=torch.bfloat16, compiled="default"),
}
GRID = 51 * 51


def gpu(turns: int) -> dict[str, Any]:
    """Seconds a point of ResNet-56 on 50,000 images, small networks, and the card's ceilings."""
    if not torch.cuda.is_available():
        raise ImportError("there is no GPU here")
    device = torch.device("cuda")
    data = images(50_000, 32, 3, device)
    found: dict[str, Any] = {}
    seconds = compare(lambda: _seeded(ResNet(9, 16, 3)), data, KINDS, turns, BATCH)
    found |= dict(rows(seconds))
    for kind in KINDS:
        found[f"{kind}: bare / ours"] = ratio(seconds, f"bare {kind}", f"ours {kind}")
        found[f"{kind}: 51 x 51 points, minutes"] = min(seconds[f"ours {kind}"]) * GRID / 60
    flops = _flops(ResNet(9, 16, 3), data[0][:100]) / 100 * 2 * len(data[0])
    for kind, dtype in (("eager", torch.float32), ("bf16 compiled", torch.bfloat16)):
        rate = flops / min(seconds[f"ours {kind}"])
        found[f"{kind}: share of the measured matrix product rate"] = rate / _product_rate(dtype)
    found["copy, GB/s"] = _copy_rate() / 1e9
    return found | _small(turns, device)


def _small(turns: int, device: torch.device) -> dict[str, Any]:
    """Networks that wait for their launches: one at a time, by CUDA graphs, in blocks."""
    found: dict[str, Any] = {}
    kinds = {"eager": PLAIN, "CUDA graphs": ExecutionMode(compiled="reduce-overhead")}
    kinds |= {f"block {k}": ExecutionMode(stacked=k) for k in (8, 32, 128)}
    for name, make in (("mlp", mlp), ("lenet", lenet)):
        seconds = compare(lambda make=make: _seeded(make()), images(1437, 8, 1, device), kinds, turns, 1437)
        found |= {f"{name} {key}": text for key, text in rows(seconds) if "block" not in key or "ours" in key}
        found |= {f"{name}: bare eager / {k}": ratio(seconds, "bare eager", f"ours {k}") for k in kinds}
    return found


def _seeded(model: nn.Module) -> nn.Module:
    return model.to("cuda")


def _flops(model: nn.Module, x: torch.Tensor) -> int:
    model = model.to(x.device).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops()


def _timed(run: Any, repeats: int = 20) -> float:
    run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def _product_rate(dtype: torch.dtype, n: int = 8192) -> float:
    """Operations a second of a large matrix product."""
    a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in "ab")
    return 2 * n**3 / _timed(lambda: torch.mm(a, b))


def _copy_rate(n: int = 2**28) -> float:
    """Bytes a second, read and written, of a copy."""
    a, b = (torch.empty(n, device="cuda") for _ in "ab")
    return 2 * 4 * n / _timed(lambda: a.copy_(b))


__all__ = ["gpu"]
