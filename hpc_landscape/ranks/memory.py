"""How much memory is free: on this machine, within this job's limit, and on a GPU."""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

SHARED = "/dev/shm"


def free_memory(device: torch.device | str = "cpu", ranks: int = 1) -> int:
    """Bytes that a device can still give; of the host, no more than limits on the process or on the job allow.

    ranks: that share the device, in equal parts. What PyTorch keeps of a GPU in this process is this one's alone.
    """
    device = torch.device(device)
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] // ranks + kept
    return _free_on_host() // ranks


def free_shared_memory() -> int | None:
    """Bytes free in the folder in memory by which processes share tensors; None where there is none."""
    try:
        return shutil.disk_usage(SHARED).free
    except OSError:
        return None


def _free_on_host() -> int:
    return max(0, min([_available(), *_left_in_groups(), *_left_to_process()]))


def _available() -> int:
    """Bytes that the machine can give without swapping."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            if found := re.search(r"^MemAvailable:\s*(\d+)", file.read(), re.MULTILINE):
                return 1024 * int(found[1])
    except OSError:  # not Linux
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # half of what there is


def _left_to_process() -> Iterator[int]:
    """Bytes of address space left under ``ulimit -v``."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        try:
            yield limit - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        except OSError:
            yield limit


def _left_in_groups(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes left under each memory limit of this process's control groups, version 2 or 1: Slurm sets one for a job.

    Pages of files that were read count as used there, but are given up when others are wanted.
    """
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root, ("memory.max", "memory.current", "file")
        elif "memory" in controllers.split(","):
            top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
        else:
            continue
        here = top / path.strip("/")
        for group in (here, *here.parents):
            left = _left(group, *names)
            if left is not None:
                yield left
            if group == top:
                break


def _left(group: Path, limit: str, usage: str, cache: str) -> int | None:
    try:
        most = (group / limit).read_text().strip()
        if not most.isdigit():
            return None  # "max"
        used = int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return max(0, int(most) - used + int(stat.get(cache, 0)))
