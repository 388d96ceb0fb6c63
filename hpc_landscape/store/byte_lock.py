"""A lock on a file itself, whatever its names: of one byte, far beyond its end, which nobody reads or writes.

It belongs to what ``open`` gave, and so ends with the process, however that dies. It is not flock's, which HDF5 takes
for readers and would make them wait: where a file system makes one of the other (NFS), it is not taken.
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
        other = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    except OSError:
        return False
    try:
        return take(other, shared=True) is True
    finally:
        os.close(other)


def _set(descriptor: int, kind: str) -> None:
    if not sys.platform.startswith("linux"):
        raise OSError("this system has no such locks")
    import fcntl

    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", getattr(fcntl, kind), os.SEEK_SET, PLACE, 1, 0))
