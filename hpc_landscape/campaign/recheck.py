"""One finished point of an earlier file, computed again: what its attributes miss shows here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ..data.faults import Patience
from ..errors import UserError, user_traceback
from ..evaluate.evaluator import Evaluator
from ..metrics import Accuracy
from ..ranks.base import Comm
from ..store import layout
from ..store.earlier import Earlier
from ..store.mixed import is_mixed, set_mixed
from .metrics import store_arrays

# Relative: what threads, kernels and machines change. Of one accuracy a few samples may change sides.
NEAR = {"fp64": 1e-5, "fp32": 1e-5, "tf32": 1e-2, "bf16": 5e-2}
SIDES = 2e-3
CANCELLED = 1e-7
ARITHMETIC = "2"  # of this program: another number where a version of it adds up in another order
SEVERAL = "; "  # between what the ranks have not in common


class Computed(Protocol):
    """What computes points now."""

    evaluator: Evaluator

    @property
    def environment(self) -> Mapping[str, str]: ...

    @property
    def quantities(self) -> Sequence[layout.Quantity]: ...

    @property
    def patience(self) -> Patience: ...


class Resumed(Computed, Protocol):
    """The same, with the file that is gone on with."""

    stored: layout.Stored | None

    @property
    def path(self) -> str: ...


def compute_again(plan: Resumed, comm: Comm, any_error: bool = False) -> None:
    """UserError where the first point that the file holds has other values now; costs one point, or nothing.

    Once a file has been gone on with in another environment, it is known no more which point is of which.
    """
    if plan.stored is None:
        return
    earlier = Earlier(plan.path, plan.stored)
    point = comm.from_root(lambda: _to_compare(earlier.stored), any_error)
    if point is not None:
        compare_again(plan, earlier, point, comm, any_error)
    comm.from_root(lambda: None if same_environment(plan, earlier) else set_mixed(plan.path), any_error)


def compare_again(plan: Computed, earlier: Earlier, point: int, comm: Comm, any_error: bool = False) -> None:
    """UserError where this point of the file has other values now. Every rank calls it."""
    evaluator = plan.evaluator
    found = comm.from_root(lambda: _computed(plan, earlier, point), any_error, everywhere=evaluator.in_step)
    comm.from_root(lambda: _compare(plan, earlier, point, found), any_error)


def _to_compare(stored: layout.Stored) -> int | None:
    """The first point that is there."""
    good = stored.done if stored.failed is None else stored.done & ~stored.failed
    good = good.reshape(-1)[: stored.grid.plane.size]  # of an ensemble the first set's directions alone are at hand
    return int(np.argmax(good)) if good.any() else None


def same_environment(plan: Computed, earlier: Earlier) -> bool:
    """Whether the file is of the environment that there is now."""
    there = {name: earlier.stored.attributes.get(name) for name in plan.environment}
    return there == plan.environment and not any(SEVERAL in str(value) for value in there.values())


def _computed(plan: Computed, earlier: Earlier, point: int) -> dict[str, np.ndarray]:
    grid = earlier.stored.grid
    try:
        with plan.evaluator.attached():
            found = plan.patience.call(lambda: plan.evaluator.evaluate([grid.point(point)]))[0]
        return store_arrays(found, plan.quantities)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{earlier.path} has a finished point at {grid.text_of(point)}, and computing it again raised "
            f"{user_traceback(error)}"
        ) from None


def _compare(plan: Computed, earlier: Earlier, point: int, found: Mapping[str, np.ndarray]) -> None:
    """UserError where these values are not those of the file: to the bit, where that is as it was made."""
    path, grid = earlier.path, earlier.stored.grid
    alike = same_environment(plan, earlier) and not is_mixed(path)
    alike &= not plan.evaluator.execution.compiled and not _on_gpu(plan)
    for name, now in found.items():
        stored = layout.read_values(path, name)
        there = np.asarray(stored[np.unravel_index(point, grid.shape)])
        if not _same(plan, name, there, now, alike, _largest(stored)):
            raise UserError(
                f"{path} is of another run: at {grid.text_of(point)} {name} is {_text(there)} there, and "
                f"{_text(now)} computed again now. Something that the values depend on has changed: undo that, "
                f"{earlier.instead}; nothing is touched"
            )


def environment(comm: Comm, devices: Iterable[torch.device], sharded: bool = False) -> dict[str, str]:
    """Where values are the same to the bit: the same kernels on the same kind of processor, and as many threads.

    And a version of this program that computes in the same order. Rank 0 learns of all ranks. devices: that this rank
    computes on. sharded: the model, in which nothing is folded.
    """
    names = {torch.cuda.get_device_name(device) if device.type == "cuda" else _processor() for device in devices}
    seen = comm.to_root((str(torch.get_num_threads()), SEVERAL.join(sorted(names))))
    threads, processors = (SEVERAL.join(sorted({texts[i] for texts in seen})) for i in range(2))
    return {
        "torch_version": str(torch.__version__),
        "threads": threads,
        "processor": processors,
        "arithmetic": ARITHMETIC + " of a sharded model" * sharded,
    }


def _processor() -> str:
    """The CPU's model, as Linux tells; libraries choose their kernels by it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part")))
            return next(named, "unknown")
    except OSError:
        return "unknown"


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def _same(plan: Computed, name: str, there: np.ndarray, now: np.ndarray, alike: bool, largest: float) -> bool:
    """To the bit where everything is alike. largest: of all values: what is far below it may have cancelled out."""
    equal = (there == now) | (np.isnan(there) & np.isnan(now))
    loose = SIDES if isinstance(plan.evaluator.metrics[name], Accuracy) else CANCELLED * largest
    near = np.isclose(now, there, rtol=NEAR[plan.evaluator.precision], atol=loose)
    return bool((equal if alike else equal | near).all())


def _on_gpu(plan: Computed) -> bool:
    """There sums may be added up in another order each time."""
    return plan.evaluator.device.type != "cpu"


def _text(value: Any) -> str:
    flat = np.asarray(value).reshape(-1)
    return ", ".join(f"{v:.9g}" for v in flat[:4]) + ", ..." * (flat.size > 4)
