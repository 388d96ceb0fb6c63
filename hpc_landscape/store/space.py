"""The disk's space that a new file takes: all of it at once, before HDF5 writes."""

from __future__ import annotations

import errno
import os


def reserve(descriptor: int, space: int) -> None:
    """Take the disk's space for an open file, or raise OSError.

    A disk that fills while HDF5 writes crashes the process: at the latest when it leaves, and after words of its own.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, space)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):  # else: it cannot reserve
            raise


def give_back(descriptor: int) -> None:
    """Cut a file at the end that its superblock (version 2) tells: what was reserved beyond is not needed."""
    os.ftruncate(descriptor, int.from_bytes(os.pread(descriptor, 36, 0)[28:], "little"))
