"""What to say when memory is out."""

from __future__ import annotations

import re

from ..errors import is_out_of_shared_memory
from ..progress import size
from .memory import free_memory, free_shared_memory

UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_AMOUNT = r"([\d.]+) (bytes|B|KiB|MiB|GiB|TiB)"
# What was asked for, as PyTorch says it for a GPU and for a CPU, and as NumPy does.
_ASKED = (rf"Tried to allocate {_AMOUNT}", rf"tried to allocate {_AMOUNT}", rf"Unable to allocate {_AMOUNT}")
_GPU = r"(CUDA|HIP|MPS|XPU)\b.*out of memory|cudaError|\bCU[A-Z]+_|NCCL|hipError|rocblas"
_FREE = rf"of which {_AMOUNT} is free"


def explain(error: BaseException, block: int | None, batch_size: int, rank: int, ranks: int) -> str:
    """One line: whose memory, what was asked for, what was free, which settings to lower."""
    if is_out_of_shared_memory(error):
        return _explain_shared(rank, ranks)
    text = str(error)
    gpu = re.search(_GPU, text)
    asked = next(filter(None, (re.search(pattern, text) for pattern in _ASKED)), None)
    found = re.search(_FREE, text)
    free = _bytes(found) if found else _free_on_gpu() if gpu else free_memory()
    numbers = [f"asked for {size(_bytes(asked))}"] if asked else []
    numbers += [f"{size(free)} free"] if free is not None else []
    lower = [f"lower --block ({block} now)"] if (block or 1) > 1 else []
    lower += [f"lower --batch_size ({batch_size} now; a DataLoader has its own)"]
    lower += ["start fewer ranks per node"] if ranks > 1 else []
    where = f" on rank {rank} of {ranks}" if ranks > 1 else ""
    return (
        f"out of {'GPU memory' if gpu else 'memory'}{where}{': ' if numbers else ''}{', '.join(numbers)}; "
        f"{', or '.join(lower)}. Another --batch_size, as the warm-up of batch normalization depends on it, needs "
        "--overwrite"
    )


def _free_on_gpu() -> int | None:
    try:
        return free_memory("cuda")
    except (RuntimeError, AssertionError):  # it tells nothing any more, or is none of CUDA's
        return None


def _explain_shared(rank: int, ranks: int) -> str:
    where = f" on rank {rank} of {ranks}" if ranks > 1 else ""
    there = free_shared_memory()
    found = "" if there is None else f" ({size(there)} free now)"
    return (
        f"out of shared memory{where}: a data-loading worker found no room for its batches in "
        f"/dev/shm{found}; give a container more (docker run --shm-size=8g), or the DataLoader num_workers=0, fewer "
        "workers, a smaller batch_size or prefetch_factor"
    )


def _bytes(found: re.Match[str]) -> float:
    return float(found[1]) * UNITS[found[2]]
