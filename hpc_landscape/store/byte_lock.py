"""A lock on a file itself, whatever its names: of one byte, far beyond its end, which nobody reads or writes.

It belongs to what ``open`` gave, and so ends with the process, however that dies. It is not flock's, which HDF5 takes
for readers and would turn them away: where a file system makes one of the other, it is not taken. Nor on NFS, where
Open MPI waits for a lock of the whole file.
"""

from __future__ import annotations

import os
import struct
import sys

PLACE = 2**62


def take(descriptor: int, shared: bool = False) -> bool | None:
    """Whether the lock is now this descriptor's; None where there are no such locks."""
    try:
        _set(descriptor, "F_RDLCK" if shared else "F_WRLCK")
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def give(descriptor: int) -> None:
    """Let go of it, though a process that was forked meanwhile may have the descriptor still."""
    _set(descriptor, "F_UNLCK")


def apart(descriptor: int) -> bool:
    """Whether locks like this leave flock's alone; descriptor: of a file of ours whose flock this process has."""
    try:
        if _file_system(descriptor).startswith("nfs"):
            return False
        other = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    except OSError:
        return False
    try:
        return take(other, shared=True) is True
    finally:
        os.close(other)


def _file_system(descriptor: int) -> str:
    """Its kind, as the system calls it; empty where that is not told."""
    device = os.fstat(descriptor).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        return next((line.rpartition(" - ")[2] for line in mounts if line.split(" ", 3)[2] == number), "")


def _set(descriptor: int, kind: str) -> None:
    if not sys.platform.startswith("linux"):
        raise OSError("this system has no such locks")
    import fcntl

    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", getattr(fcntl, kind), os.SEEK_SET, PLACE, 1, 0))
