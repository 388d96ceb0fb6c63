"""One finished point of a file that is gone on with, computed again: what its attributes miss shows here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ..data.faults import Patience
from ..errors import UserError, user_traceback
from ..evaluate.evaluator import Evaluator
from ..grid import Grid
from ..metrics import Accuracy
from ..ranks.comm import Comm
from ..store import layout
from ..store.mixed import is_mixed, set_mixed
from .metrics import store_arrays

# Relative: what threads, kernels and machines change. Of one accuracy a few samples may change sides.
NEAR = {"fp64": 1e-5, "fp32": 1e-5, "tf32": 1e-2, "bf16": 5e-2}
SIDES = 2e-3
CANCELLED = 1e-7
ARITHMETIC = "2"  # of this program: another number where a version of it adds up in another order
SEVERAL = "; "  # between what the ranks have not in common


class Resumed(Protocol):
    """A file that is gone on with, and what computes its points now."""

    stored: layout.Stored | None
    evaluator: Evaluator

    @property
    def path(self) -> str: ...

    @property
    def grid(self) -> Grid: ...

    @property
    def environment(self) -> Mapping[str, str]: ...

    @property
    def quantities(self) -> Sequence[layout.Quantity]: ...

    @property
    def patience(self) -> Patience: ...


def compute_again(plan: Resumed) -> None:
    """UserError where the first point that the file holds has other values now; costs one point, or nothing.

    Once a file has been gone on with in another environment, it is known no more which point is of which.
    """
    path, stored = plan.path, plan.stored
    if stored is None:
        return
    there = {name: stored.attributes.get(name) for name in plan.environment}
    same = there == plan.environment and not any(SEVERAL in str(value) for value in there.values())
    good = stored.done if stored.failed is None else stored.done & ~stored.failed
    good = good.reshape(-1)[: plan.grid.plane.size]  # of an ensemble the directions are at hand of the first set alone
    if good.any():
        alike = same and not is_mixed(path) and not plan.evaluator.execution.compiled and not _on_gpu(plan)
        _compare(plan, int(np.argmax(good)), alike)
    if not same:
        set_mixed(path)


def _compare(plan: Resumed, point: int, alike: bool) -> None:
    path, where = plan.path, plan.grid.text_of(point)
    try:
        with plan.evaluator.attached():
            found = plan.patience.call(lambda: plan.evaluator.evaluate([plan.grid.point(point)]))[0]
        values = store_arrays(found, plan.quantities)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} has a finished point at {where}, and computing it again raised {user_traceback(error)}"
        ) from None
    for name, now in values.items():
        stored = layout.read_values(path, name)
        there = np.asarray(stored[np.unravel_index(point, plan.grid.shape)])
        if not _same(plan, name, there, now, alike, _largest(stored)):
            raise UserError(
                f"{path} is of another run: at {where} {name} is {_text(there)} there, and {_text(now)} computed again "
                "now. Something that the values depend on has changed: undo that, choose another --output, or "
                "--overwrite; nothing is touched"
            )


def environment(comm: Comm, device: torch.device) -> dict[str, str]:
    """Where values are the same to the bit: the same kernels on the same kind of processor, and as many threads.

    And a version of this program that computes in the same order.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    seen = comm.allgather((str(torch.get_num_threads()), name))
    threads, processors = (SEVERAL.join(sorted(set(texts))) for texts in zip(*seen, strict=True))
    return {
        "torch_version": str(torch.__version__),
        "threads": threads,
        "processor": processors,
        "arithmetic": ARITHMETIC,
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


def _same(plan: Resumed, name: str, there: np.ndarray, now: np.ndarray, alike: bool, largest: float) -> bool:
    """To the bit where everything is alike. largest: of all values: what is far below it may have cancelled out."""
    equal = (there == now) | (np.isnan(there) & np.isnan(now))
    loose = SIDES if isinstance(plan.evaluator.metrics[name], Accuracy) else CANCELLED * largest
    near = np.isclose(now, there, rtol=NEAR[plan.evaluator.precision], atol=loose)
    return bool((equal if alike else equal | near).all())


def _on_gpu(plan: Resumed) -> bool:
    """There sums may be added up in another order each time."""
    return plan.evaluator.device.type != "cpu"


def _text(value: Any) -> str:
    flat = np.asarray(value).reshape(-1)
    return ", ".join(f"{v:.9g}" for v in flat[:4]) + ", ..." * (flat.size > 4)
