"""Where a point's time goes on a GPU, kernel by kernel, and how much a network must read and write at least."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REST = "others"
KINDS = {  # the first that fits: names of fused kernels hold those of what they were fused with
    "changes of order": ("nchwtonhwc", "nhwctonchw", "transpose"),
    "reductions, the statistics among them": ("triton_red", "triton_per", "batch_norm", "bn_fw", "reduce", "welford"),
    "pointwise": ("triton_poi", "elementwise", "multi_tensor"),
    "convolutions and products": ("conv", "cudnn", "xmma", "cutlass", "gemm", "triton_tem", "nvjet", "sm80_", "sm90_"),
    "copies": ("memcpy", "memset"),
    REST: (),
}


def kind_of(kernel: str) -> str:
    """What a kernel does, by its name."""
    return next((kind for kind, words in KINDS.items() if any(word in kernel.lower() for word in words)), REST)


def kernel_seconds(run: Callable[[], Any], device: torch.device) -> tuple[dict[str, float], float]:
    """(seconds on the device of each kernel of a run, by name; seconds of the run). On a CPU, of each operation."""
    there = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if there else [])]
    run()
    with profile(activities=activities) as seen:
        start = time.perf_counter()
        run()
        if there:
            torch.cuda.synchronize(device)
        wall = time.perf_counter() - start
    found: dict[str, float] = {}
    for event in seen.key_averages():
        if there == str(event.device_type).endswith("CUDA") and not getattr(event, "is_user_annotation", False):
            found[event.key] = found.get(event.key, 0.0) + _microseconds(event, there) / 1e6
    return found, wall


def _microseconds(event: Any, there: bool) -> float:
    """PyTorch has renamed it."""
    names = ("self_device_time_total", "self_cuda_time_total") if there else ("self_cpu_time_total",)
    return float(next(getattr(event, name) for name in names if hasattr(event, name)))


def traffic(model: nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    """How many numbers of a sample's activations are read and written at a point, warm-up and evaluation pass.

    model: the ResNet that is measured, on ``meta``. Of operations that are launched one by one these are the tensors
    that they take and give; otherwise what is computed in one kernel is read and written once. Weights count for
    nothing: a batch is large.
    """
    count = {"convolved": 0, "normalized": 0, "projected": 0, "blocks": 0}

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            count["convolved"] += inputs[0].numel() + output.numel()
            count["projected"] += output.numel() if "shortcut" in name else 0
        count["normalized"] += output.numel() if isinstance(module, nn.BatchNorm2d) else 0
        count["blocks"] += output.numel() if hasattr(module, "shortcut") else 0

    hooks = [m.register_forward_hook(partial(look, name)) for name, m in model.named_modules()]
    x = torch.empty(1, *shape, device="meta")
    with torch.no_grad(), _Moved() as fixed:
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    convolved, normalized, blocks = count["convolved"], count["normalized"], count["blocks"]
    inside = normalized - blocks - count["projected"]  # what a ReLU follows within a block
    pointwise = 2 * inside + 3 * blocks  # normalize, add the shortcut, ReLU: in one kernel
    warm_up = fixed.numbers + normalized  # reads what it normalizes twice
    return {
        "launched one by one": warm_up + fixed.numbers,
        "the same, folded": warm_up + fixed.numbers - 2 * normalized,
        "compiled: convolution; statistics; pointwise": 2 * convolved + normalized + 2 * pointwise,
        "the same, evaluation in the convolutions": 2 * convolved + normalized + pointwise + blocks,
        "all in the convolutions, statistics too": 2 * convolved + 3 * blocks,
    }


class _Moved(TorchDispatchMode):
    """Adds up the numbers of the activations that operations take and give; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **kwargs or {})
        if not function.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, found)) if isinstance(t, torch.Tensor)]
            self.numbers += sum(t.numel() for t in tensors if t.ndim == 4 and t.shape[0] == 1)
        return found
