"""Where each rank is: its machine, its cores, and the device that a run would take."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .base import Comm

GPUS = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # where none is, PyTorch need not be asked


@dataclass(frozen=True)
class Place:
    """cores: those that the process may use, by number; none where the system does not tell. gpu: its UUID, or ""."""

    host: str
    cores: tuple[int, ...]
    device: str
    gpu: str = ""


def places(comm: Comm) -> list[Place]:
    """Each rank's, in their order, on rank 0."""
    return comm.to_root(Place(os.uname().nodename, cores(), *_device(comm.local_rank)))


def cores() -> tuple[int, ...]:
    """The cores that this process may use."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def crowded(found: list[Place]) -> str:
    """What there is to say of ranks that share cores or GPUs; nothing where each has its own."""
    said = []
    for host in dict.fromkeys(place.host for place in found):
        here = [place for place in found if place.host == host]
        together = {core for place in here for core in place.cores}
        if together and len(here) > len(together):
            said.append(f"{len(here)} ranks share {len(together)} cores of {host}")
        gpus = [place.gpu for place in here if place.gpu]
        if len(gpus) > len(set(gpus)):
            said.append(f"{len(gpus)} ranks share {len(set(gpus))} GPU{'s' * (len(set(gpus)) > 1)} of {host}")
    return "; ".join(said)


def _device(local_rank: int) -> tuple[str, str]:
    """(its name, a GPU's UUID). What hinders PyTorch is no reason to fail on one rank while the others wait."""
    if os.uname().sysname == "Linux" and not any(map(os.path.exists, GPUS)):
        return "cpu", ""
    try:
        import torch

        from .device import choose_device, describe

        device = choose_device("auto", local_rank)
        assert device is not None
        known = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
        return describe(device), str(getattr(known, "uuid", ""))
    except Exception as error:
        return f"none ({type(error).__name__}: {' '.join(str(error).split())[:200]})", ""
