"""The disk's space that a new file takes: all of it at once, before HDF5 writes."""

from __future__ import annotations

import errno
import os


def reserve(where: str | int, space: int) -> None:
    """Take the disk's space, or raise OSError; a name's is given back at once.

    A disk that fills while HDF5 writes crashes the process: at the latest when it leaves, and after words of its own.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    descriptor = os.open(where, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666) if isinstance(where, str) else where
    try:
        os.posix_fallocate(descriptor, 0, space)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):  # else: it cannot reserve
            raise
    finally:
        if isinstance(where, str):
            os.close(descriptor)


def give_back(path: str) -> None:
    """Cut a file at the end that its superblock (version 2) tells: what was reserved beyond is not needed."""
    with open(path, "rb") as file:
        os.truncate(path, int.from_bytes(file.read(36)[28:], "little"))
