"""Whether --tune would make a run much shorter that does not ask for it: said in the plan."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping

from torch import nn

from ..data.sets import Sets
from ..evaluate.evaluator import Evaluator
from ..model.norms import is_norm
from ..progress import roughly
from ..setting_groups import SpeedSettings

COMPILED = {"cpu": 1.1}  # by device: how many times longer a point takes that is not compiled (benchmarks/RESULTS.md)
WORTH = 600.0  # seconds
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def advice(evaluator: Evaluator, sets: Sets, seconds: float, speed: SpeedSettings) -> str:
    """What --tune would save of a rank's points, where that is worth a line; else nothing.

    seconds: that these take. That is known of float32 alone, of passes over data that is at hand, by networks of
    convolutions and batch normalization.
    """
    asked = speed.tune or speed.compile or speed.block is not None or speed.channels_last is not None
    if asked or evaluator.precision not in ("fp32", "tf32") or sets.streamed or not evaluator.is_additive:
        return ""
    modules = [*evaluator.model.root.modules()]
    if not (any(isinstance(m, CONVOLUTIONS) for m in modules) and any(map(is_norm, modules))):
        return ""
    kind = evaluator.device.type
    text = saving(seconds, kind)
    return text if text and can_compile(kind) else ""


def saving(seconds: float, kind: str) -> str:
    """The line, of a run of so many seconds on this kind of device; nothing where less is saved than is worth it."""
    saved = seconds * (1 - 1 / COMPILED.get(kind, 1.0))
    return f"--tune would save about {roughly(saved)} of {roughly(seconds)}" if saved >= WORTH else ""


def seconds_per_point(sets: Sets, warms_up: bool, first: Mapping[str, float]) -> float:
    """What a point's passes take; 0 where their sizes are unknown.

    first: seconds that a pass over the first batch has taken, by evaluation set.
    """
    rates, total, warmup = {}, 0.0, sets.warmup
    for name, seconds in first.items():
        batches = sets.evaluation[name]
        if batches.size and batches.batch_size:
            rates[name] = seconds / min(batches.size, batches.batch_size)
            total += rates[name] * batches.size
    if warms_up and warmup is not None and warmup.size and rates:
        own = next((name for name in rates if sets.evaluation[name] is warmup), next(iter(rates)))
        total += rates[own] * warmup.size
    return total


def can_compile(kind: str) -> bool:
    """Whether torch.compile finds what it needs: on a CPU a C++ compiler, and Python's headers."""
    if kind != "cpu":
        return True
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    return shutil.which(compiler) is not None and os.path.exists(header)
