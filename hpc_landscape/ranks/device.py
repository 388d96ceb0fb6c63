"""Which device a rank computes on, and with how many threads."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..errors import UserError
from .base import Comm

AS_BUILT = "as_built"
AMPERE = (8, 0)  # the first compute capability with bfloat16 and TF32


def choose_device(wanted: str, local_rank: int, who: str = "") -> torch.device | None:
    """The rank's device: GPU number local_rank modulo those visible; raises UserError where there is none.

    None: ``as_built``, and the model says where it is (``built_on``). who: how the message names the rank.
    """
    if wanted == AS_BUILT:
        return None
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if wanted == "cuda":
        if not torch.cuda.is_available():
            why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no GPU is visible"
            raise UserError(
                f"--device cuda: {why}{who}; use --device cpu, or start where a GPU is visible (Slurm: "
                "--gpus-per-task=1)"
            )
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: not available on this machine; use --device cpu")
    return torch.device(wanted)


def built_on(model: nn.Module) -> list[torch.device]:
    """The devices that a model's parameters are on; UserError where some are on none, the meta device."""
    found: dict[torch.device, str] = {}
    for name, parameter in model.named_parameters():
        found.setdefault(parameter.device, name)
    if (without := found.get(torch.device("meta"))) is not None:
        raise UserError(
            f"--device {AS_BUILT}: {without} is on the meta device, without values, as what a device_map offloads is: "
            "spread the model over devices that hold all of it"
        )
    return sorted(found or [torch.device("cpu")], key=str)


def check_precision(precision: str, device: torch.device) -> None:
    """Raise UserError where the device has no such arithmetic: nothing is recorded as what it is not."""
    if precision == "fp64" and device.type == "mps":
        raise UserError("--precision fp64: mps has no float64; use --device cpu")
    if precision == "tf32" and device.type != "cuda":
        raise UserError(f"--precision tf32: only NVIDIA GPUs have it, the device is {device.type}; use fp32")
    nvidia = device.type == "cuda" and torch.cuda.is_available() and not torch.version.hip
    if precision in ("tf32", "bf16") and nvidia and torch.cuda.get_device_capability(device) < AMPERE:
        name = torch.cuda.get_device_name(device)
        raise UserError(f"--precision {precision}: {name} has none (NVIDIA GPUs have it from Ampere on); use fp32")
    if precision == "bf16" and device.type == "mps":
        try:
            torch.ones(1, dtype=torch.bfloat16, device=device)
        except (TypeError, RuntimeError):
            raise UserError("--precision bf16: this macOS has none on mps; use fp32") from None


def emulated(precision: str, device: torch.device) -> str:
    """What is to be said where the device computes so, but has no instructions for it; where that can be told."""
    if precision != "bf16" or device.type != "cpu":
        return ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "bf16")
    except OSError:  # another system
        return ""
    return "" if "bf16" in flags else "note: this CPU has no bf16 instructions: they are emulated, and slower than fp32"


def name_rank(comm: Comm) -> str:
    """Which of several ranks this is, as a message's end; nothing for one that is alone."""
    if comm.size == 1:
        return ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    told = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible} there)"
    return f" to rank {comm.rank} of {comm.size} on {os.uname().nodename}{told}"


def check_same_device_type(comm: Comm, devices: Sequence[torch.device]) -> None:
    """Raise UserError, on all ranks, where some compute on a GPU and others on none: slow, and with other values.

    devices: of this rank.
    """
    without = {device.type for device in devices} == {"cpu"}
    if comm.on_all(not without) or comm.on_all(without):
        return
    raise UserError(
        f"no GPU is visible{comm.first_text(name_rank(comm) if without else '')}, and to others one is: give each rank "
        "one (Slurm: --gpus-per-task=1), or take --device cpu for all"
    )


def describe(device: torch.device) -> str:
    """A device as a person names it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def shared_gpus(comm: Comm, devices: Sequence[torch.device]) -> int:
    """How many ranks share the busiest GPU of this node, told by UUID, not by index; 1 where each has its own.

    devices: of this rank.
    """
    gpus = [device for device in devices if device.type == "cuda"]
    mine = [str(getattr(torch.cuda.get_device_properties(device), "uuid", device)) for device in gpus]
    taken = sum(comm.node_allgather(mine), [])
    return max(map(taken.count, taken), default=1)


def fair_threads(comm: Comm) -> int:
    """Threads for this rank: its fair share of the cores that it may use, given what its neighbours may use.

    max(1, floor(sum over this rank's cores of 1 / ranks of this node that may use that core)).
    """
    if not hasattr(os, "sched_getaffinity"):
        return max(1, (os.cpu_count() or 1) // comm.local_size)
    mine = sorted(os.sched_getaffinity(0))
    everyone = comm.node_allgather(mine)
    share = sum(1 / sum(core in cores for cores in everyone) for core in mine)
    return max(1, math.floor(share + 1e-9))


def set_threads(comm: Comm) -> int:
    """Give PyTorch this rank's fair share of the cores; OMP_NUM_THREADS, where set, wins. Returns the number."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    threads = fair_threads(comm)
    if wanted.isdigit() and int(wanted) > 0:
        threads = int(wanted)
    torch.set_num_threads(threads)
    return threads


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread meanwhile: the result then does not depend on how many ranks share the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def keep_memory() -> None:
    """Let glibc keep freed memory for the next tensor; elsewhere nothing.

    It gives every large activation back to the system, which clears its pages again at the next use: half of the time
    of a ResNet-50 on a CPU (benchmarks/RESULTS.md). The price is memory: 1.3 GiB instead of 0.9 there.
    """
    mmap_max, trim_threshold = -4, -1  # malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
