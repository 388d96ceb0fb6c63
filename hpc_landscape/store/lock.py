"""Keeps a second writer out. HDF5's own locks are not used: they would keep readers out of a file in use."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import UserError

PATIENCE = 2.0  # seconds: a run that was killed a moment ago may still be dying


@contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Hold ``path`` for writing meanwhile; UserError where another run holds it. The lock dies with the process."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    folder, name = os.path.split(os.path.realpath(path))
    lock = os.path.join(folder, f".{name}.lock")
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:  # whatever the permissions say: a full or read-only disk, a remote root
            raise UserError(f"--output {path}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() < give_up:
                time.sleep(0.05)
                continue
            raise UserError(
                f"{path} is being written by another run; wait for it, or choose another --output"
            ) from None
        except OSError:  # a file system without locks
            break
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                break
        os.close(descriptor)  # the holder before us removed it meanwhile
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(lock)
        os.close(descriptor)
