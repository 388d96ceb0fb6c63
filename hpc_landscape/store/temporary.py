"""A file becomes whole under a name of its own, and then takes the one that it is for.

That name is made exclusively, and cannot be foreseen: nobody can have put a link or a file of theirs there. From then
on the file is reached by its descriptor, whatever becomes of the name. While it is written it is locked, so that what a
killed process has left behind can be told from what another one is writing.
"""

from __future__ import annotations

import glob
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from . import byte_lock

# How what we write begins: HDF5, PNG, PDF, SVG, CSV, NPZ, a page, GIF, MP4, STL, OBJ; or it is empty, or zeros that
# only take the space
BEGINNINGS = (
    *(b"\x89HDF\r\n\x1a\n", b"\x89PNG\r\n", b"%PDF-", b"<?xml", b"x,", b"PK\x03\x04"),
    *(b"<!doctyp", b"GIF8", b"\0\0\0\x20ftyp", b"z is 0", b"# z is 0"),
)


@contextmanager
def whole(path: str, settle: Callable[[int], None] = lambda descriptor: None) -> Iterator[tuple[str, int]]:
    """(a name to open, a descriptor) of a new, empty file; it takes path's name in the end, or vanishes: OSError.

    A link at path stays, and what it leads to is replaced. settle(descriptor) is called just before.
    """
    path = os.path.realpath(path)
    temporary, descriptor = _make(path)
    try:
        by_descriptor = f"/proc/self/fd/{descriptor}"
        yield by_descriptor if os.path.exists(by_descriptor) else temporary, descriptor
        settle(descriptor)
        if not os.path.samestat(os.lstat(temporary), os.fstat(descriptor)):
            raise FileNotFoundError(f"{temporary} was replaced while it was being written")
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)


def _make(path: str) -> tuple[str, int]:
    """The name and a descriptor of an empty file, locked as long as that is open."""
    while True:
        temporary = f"{path}.{secrets.token_hex(4)}.tmp"
        with suppress(FileExistsError):
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
            if _lock(descriptor) is not False and os.path.lexists(temporary):
                return temporary, descriptor
            os.close(descriptor)  # another process took it for a leftover, in the moment between


def _lock(descriptor: int) -> bool | None:
    """Whether this process has it now, and nobody else; None where our lock would disturb HDF5's, or there is none."""
    if byte_lock.take(descriptor) is False:
        return False
    with suppress(OSError, ImportError):
        import fcntl

        byte_lock.give(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        apart = byte_lock.apart(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return byte_lock.take(descriptor) if apart else None
    return None


def clear(path: str, held: bool = False) -> None:
    """Remove what killed processes have left behind of path, and nothing else.

    held: nobody else may write path; without, only what can be seen to be nobody's goes.
    """
    path = os.path.realpath(path)
    for name in glob.glob(f"{glob.escape(path)}.*.tmp"):
        if re.fullmatch(r"\.[0-9a-f]{8}\.tmp", name[len(path) :]):
            with suppress(OSError):
                _remove(name, held)


def _remove(name: str, held: bool) -> None:
    if not stat.S_ISREG(os.lstat(name).st_mode):
        return
    descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        still_there = os.path.samestat(os.lstat(name), os.fstat(descriptor))
        if still_there and _is_ours(descriptor):
            locked = _lock(descriptor)
            if locked or (held and locked is None):
                os.unlink(name)
    finally:
        os.close(descriptor)


def _is_ours(descriptor: int) -> bool:
    """A regular file of this user, of no other name, that begins as what is written here does."""
    found, begin = os.fstat(descriptor), os.pread(descriptor, 8, 0)
    known = not begin.strip(b"\0") or begin.startswith(BEGINNINGS)
    return known and stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid()
