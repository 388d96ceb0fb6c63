"""Keeps a second writer out. HDF5's own locks are not used: they would keep readers out of a file in use."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import UserError

PATIENCE = 2.0  # seconds: a run that was killed a moment ago may still be dying


def lock_of(path: str) -> str:
    """The file whose lock stands for path; it is there while a run holds it, and after one was killed."""
    folder, name = os.path.split(os.path.realpath(path))
    return os.path.join(folder, f".{name}.lock")


def holder(path: str) -> int | None:
    """The process of this machine that holds path for writing; None where none is seen.

    It only looks: taking the lock, be it for a moment or shared, could turn away a run that starts just then.
    """
    lock = lock_of(path)
    try:
        inode = os.stat(lock).st_ino
        with open("/proc/locks", encoding="ascii") as file:
            locks = [line.split() for line in file if " FLOCK " in line and " -> " not in line]
    except OSError:  # no lock, or a system that does not tell
        return None
    return next((int(pid) for *_, pid, where, _, _ in locks if where.endswith(f":{inode}") and _has(pid, lock)), None)


def _has(pid: str, path: str) -> bool:
    """Whether the process has the file open; true where one may not see: another user's process."""
    try:
        return any(os.path.realpath(f"/proc/{pid}/fd/{n}") == path for n in os.listdir(f"/proc/{pid}/fd"))
    except PermissionError:
        return True
    except OSError:
        return False


@contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Hold ``path`` for writing meanwhile; UserError where another run holds it. The lock dies with the process."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    lock = lock_of(path)
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
